"""Small tokenizers as sentencepiece makes them, of transformers' classes, by family."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "Der Weg führt über die Brücke und durch den Wald nach Süden.",
    "La rivière traverse la forêt, puis le garçon lit un livre à la fenêtre.",
    "the number of the path returns and reads the file of a number",
    "猫はマットの上に座っている。犬は庭で遊んでいる。",
    "El niño lee el libro mañana por la mañana en el jardín.",
]
TEXTS = ["La forêt  et le garçon.", "猫は庭で遊ぶ", "reads\nthe Brücke 😀 twice", "ñ", "the number of the path"]
# What sentencepiece's `unk` stands for in one model, another spells in bytes.
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def unigram(special: Sequence[str]) -> list[tuple[str, float]]:
    """The pieces of a model of XLM-RoBERTa's kind, with their scores."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(special), unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return [(piece, score) for piece, score in json.loads(made.to_str())["model"]["vocab"]]


def merged(special: Sequence[str]) -> dict[str, Any]:
    """The pieces and merges of a model of Gemma's kind."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=[*special, *BYTES], show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    model = json.loads(made.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


ROBERTA, GEMMA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
TOKENIZERS: dict[str, Callable[[], Any]] = {
    "xlm-roberta": lambda: transformers.XLMRobertaTokenizer(vocab=unigram(ROBERTA)),
    "camembert": lambda: transformers.CamembertTokenizer(vocab=unigram(ROBERTA)),
    "gemma": lambda: transformers.GemmaTokenizer(**merged(GEMMA)),
}
ENDS = {name: {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2} for name in ("xlm-roberta", "camembert")}
ENDS["gemma"] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
