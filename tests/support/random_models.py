"""Random small models with tokenizers, settings and items, as folders that transformers and sentence-transformers read.

A `Case` says all that a folder is made of, so that one that fails can be built again from what was printed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from saten_edge.checkpoints.architectures import ARCHITECTURES
from saten_edge.checkpoints.sentences import OLD_POOLINGS
from saten_runtime.vocabulary.tasks import HUB_TASKS

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
PIECES = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat", "sat", "on", "mat"]
ADDED = ["zap", "Quux"]
PATCH = 8  # of a picture, in pixels
# Each family with each of its tasks.
CELLS = [(family, task) for family, row in ARCHITECTURES.items() for task in row.tasks]


@dataclass(frozen=True)
class Case:
    """What one example is made of. config: entries of the model's config; names: of the tokenizer's; how: the rest."""

    family: str
    task: str
    seed: int
    config: dict[str, Any]
    names: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    items: list[Any] = field(default_factory=list)
    batch: int = 8


# --- what is drawn -----------------------------------------------------------------------------------------------

# Layers of one kind are alike, so that one tells as much as two, in half the time.
DEPTHS = {"distilbert": "n_layers", "gpt2": "n_layer"}
DEPTH = st.sampled_from([1, 1, 1, 2])
ACTIVATIONS = st.sampled_from(["gelu", "relu", "gelu_new", "silu"])
EPSILONS = st.sampled_from([1e-12, 1e-5, 0.1])
KEYS = st.sampled_from([1, 2, 4])
SWITCH = st.booleans()
ROPES = st.sampled_from(
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16},
    ]
).map(lambda said: {"rope_theta": 1e4, **said})
# They count positions from the one after their padding's.
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
BERT = {"hidden_act": ACTIVATIONS, "layer_norm_eps": EPSILONS}
GROUPED = {"num_key_value_heads": KEYS, "rope_parameters": ROPES, "rms_norm_eps": EPSILONS}
# Entries of a family's config that change its numbers.
OPTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    **dict.fromkeys(("bert", *ROBERTAS, "electra", "mpnet"), BERT),
    "distilbert": {"activation": st.sampled_from(["gelu", "relu"]), "sinusoidal_pos_embds": SWITCH},
    "modernbert": {
        "hidden_activation": ACTIVATIONS,
        "classifier_pooling": st.sampled_from(["cls", "mean"]),
        "local_attention": st.sampled_from([4, 16]),
        **dict.fromkeys(("norm_bias", "mlp_bias", "attention_bias", "classifier_bias"), SWITCH),
    },
    **{family: {**BERT, "qkv_bias": SWITCH} for family in ("vit", "deit", "dinov2", "dinov2_with_registers")},
    "siglip_vision_model": BERT,
    "llama": {**GROUPED, "head_dim": st.sampled_from([16, 24]), "attention_bias": SWITCH, "mlp_bias": SWITCH},
    **dict.fromkeys(("qwen2", "qwen3", "mistral"), GROUPED),
    "gemma": {**GROUPED, "hidden_act": ACTIVATIONS},
    "gpt2": {
        "activation_function": ACTIVATIONS,
        "scale_attn_by_inverse_layer_idx": SWITCH,
        "n_inner": st.sampled_from([None, 96]),
    },
}
# Height and width in pixels that a model takes; some take squares alone.
SHAPES, SQUARES = st.sampled_from([(32, 32), (32, 16), (8, 40)]), st.sampled_from([(32, 32), (16, 16), (40, 40)])
IDS = st.integers(5, 40)
RULES = st.fixed_dictionaries(
    {},
    optional={
        "repetition_penalty": st.sampled_from([0.7, 1.3, 2.5]),
        "no_repeat_ngram_size": st.integers(1, 3),
        "min_new_tokens": st.integers(1, 6),
        "min_length": st.integers(1, 20),
        "suppress_tokens": st.lists(IDS, min_size=1, max_size=20),
        "begin_suppress_tokens": st.lists(IDS, min_size=1, max_size=9),
        "bad_words_ids": st.lists(st.lists(IDS, min_size=1, max_size=2), min_size=1, max_size=9),
        "eos_token_id": st.sampled_from([3, [3, 7], [9]]),
    },
)
POOLINGS = st.lists(st.sampled_from(list(OLD_POOLINGS.values())), min_size=1, max_size=2, unique=True)
WORDS = st.sampled_from(
    ["the", "cat", "Cat", "MAT", "sat", "zap", "Quux", "quux", "on.", "b4", "éa", "[MASK]", "[SEP]", "don't", "日"]
)
TEXTS = st.one_of(st.lists(WORDS, max_size=12), st.lists(WORDS, min_size=20, max_size=60)).map(" ".join)
# Texts, or pairs of them; either of which may be empty.
ONE_OR_TWO = st.one_of(TEXTS, st.tuples(TEXTS, TEXTS))
QUESTIONS = st.tuples(
    st.sampled_from(["the cat?", "", "Quux"]), st.sampled_from(["the cat sat on the mat", "Quux sat.", "cat mat " * 40])
)
PROMPTS = st.lists(WORDS, min_size=1, max_size=6).map(" ".join)


@st.composite
def cases(draw: st.DrawFn, family: str, task: str) -> Case:
    seed, batch = draw(st.integers(0, 9999)), draw(st.integers(1, 8))
    labels = draw(st.integers(1 if task == "text-classification" else 2, 4))
    config = {"num_labels": labels} if HUB_TASKS[task].labels else {}
    config |= {name: draw(values) for name, values in OPTIONS[family].items()}
    config[DEPTHS.get(family, "num_hidden_layers")] = 2 if family == "modernbert" else draw(DEPTH)  # it has two kinds
    if ARCHITECTURES[family].kind == "vision":
        return _pictures(draw, Case(family, task, seed, config, batch=batch))
    decoder = ARCHITECTURES[family].kind == "decoder"
    config["pad_token_id"] = draw(st.sampled_from([0, 1, 2, 4, 11, *[None] * decoder]))
    if decoder:
        config["tie_word_embeddings"] = draw(SWITCH)
    item = {
        "question-answering": QUESTIONS,
        "text-generation": PROMPTS,
        "text-classification": TEXTS if decoder else ONE_OR_TWO,
    }.get(task, TEXTS)
    items, names = draw(st.lists(item, min_size=1, max_size=9)), _names(draw)
    if task == "text-classification" and config["pad_token_id"] is None:
        # The one known difference, in docs/exporting.md: a text that spells the padding at its end.
        names["split_special_tokens"] = True
    return Case(family, task, seed, config, names, _how(draw, decoder), items, batch)


def _pictures(draw: st.DrawFn, case: Case) -> Case:
    height, width = draw(SHAPES if case.family in ("vit", "deit") else SQUARES)
    config = {"num_channels": draw(st.sampled_from([1, 3])), "patch_size": PATCH}
    if ARCHITECTURES[case.family].positions is None:  # else they are interpolated for what the processor makes
        config["image_size"] = [height, width] if height != width else height
    how: dict[str, Any] = {name: draw(SWITCH) for name in ("do_normalize", "do_rescale")}
    how["resample"] = draw(st.sampled_from([0, 1, 2, 3, 4, 5]))
    size = {"height": height, "width": width}
    if draw(SWITCH):  # of the shorter side, then the middle
        how |= {"size": {"shortest_edge": draw(st.integers(max(height, width), 48))}, "crop_size": size}
    else:
        how["size"] = size
    sizes = draw(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=5))
    return replace(case, config={**case.config, **config}, how=how, items=sizes)


def _names(draw: st.DrawFn) -> dict[str, Any]:
    """Settings of a tokenizer."""
    return {
        "pad_token": draw(st.sampled_from(["[PAD]", "[MASK]", "[SEP]"])),
        "padding_side": draw(st.sampled_from(["left", "right"])),
        "truncation_side": draw(st.sampled_from(["left", "right"])),
        "split_special_tokens": draw(SWITCH),
        "extra_special_tokens": draw(st.sampled_from([[], ["sat"]])),
        "masked": draw(SWITCH),
    }


def _how(draw: st.DrawFn, decoder: bool) -> dict[str, Any]:
    return {
        "model": draw(st.sampled_from(list(TOKENIZERS))),
        "normalizer": draw(st.sampled_from(list(NORMALIZERS))),
        "template": draw(st.sampled_from(["$A [SEP]", "[CLS] $A"] if decoder else ["[CLS] $A [SEP]"])),
        "spare": draw(st.integers(0, 4)),
        "positions": draw(st.integers(24, 48)),
        "shorter": draw(st.sampled_from([0, 0, 5])),
        "added": draw(SWITCH),
        "generation": draw(RULES),
        "pooling": draw(POOLINGS),
        "old_spelling": draw(SWITCH),
        "normalize": draw(SWITCH),
        "prompt": draw(st.sampled_from([None, "the cat: "])),
        "truncate_dim": draw(st.sampled_from([None, 5])),
        "do_lower_case": draw(SWITCH),
        "max_seq_length": draw(st.sampled_from([None, 9, 20])),
    }


# --- tokenizers --------------------------------------------------------------------------------------------------

NORMALIZERS: dict[str, Callable[[], Any]] = {
    "lower": lambda: normalizers.BertNormalizer(lowercase=True),
    "cased": lambda: normalizers.BertNormalizer(lowercase=False),
    "plain": lambda: normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("cat", "mat")]),
    "bare": lambda: normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
}


def _wordpiece() -> Tokenizer:
    made = Tokenizer(models.WordPiece({piece: index for index, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    return made


def _byte_level(*, prefix: bool) -> Tokenizer:
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("a", "t"), ("m", "at"), ("Ġ", "s")]
    pieces = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()
    return made


def _unigram() -> Tokenizer:
    words = [f"▁{word}" for word in ("the", "cat", "sat", "on", "mat")]
    pieces = [(piece, 0.0) for piece in SPECIAL] + [(word, -2.0) for word in words]
    pieces += [(letter, -5.0) for letter in ("▁", *LETTERS, "C", "M", "A", "T", "Q")]
    made = Tokenizer(models.Unigram(pieces, unk_id=1))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": _wordpiece,
    "bytes": lambda: _byte_level(prefix=False),
    "bytes behind a space": lambda: _byte_level(prefix=True),
    "unigram": _unigram,
}


def save_tokenizer(case: Case, folder: Path, longest: int) -> int:
    """Write it, and return how many ids it makes."""
    how, names = case.how, dict(case.names)
    made = TOKENIZERS[how["model"]]()
    made.normalizer = NORMALIZERS[how["normalizer"]]()
    pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    ids = [(token, SPECIAL.index(token)) for token in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(single=how["template"], pair=pair, special_tokens=ids)
    if how["added"]:
        made.add_tokens(ADDED)
    taken = ["input_ids", *["token_type_ids"] * (case.family in ("bert", "electra"))]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=longest,
        model_input_names=[*taken, *["attention_mask"] * names.pop("masked")],
        **{"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
        **{"eos_token": "[SEP]", **names},
    )
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


# --- folders -----------------------------------------------------------------------------------------------------


def longest_of(case: Case) -> int:
    """Tokens that the model has positions for."""
    first = {**dict.fromkeys(ROBERTAS, case.config["pad_token_id"]), "mpnet": 1}.get(case.family, -1) + 1
    return int(case.how["positions"]) - first


def length_of(case: Case) -> int:
    """Tokens that a text is cut to."""
    said = case.how["max_seq_length"] if case.task == "feature-extraction" else None
    return min(said or longest_of(case) - case.how["shorter"], longest_of(case))


def save_sentences(case: Case, folder: Path) -> None:
    """What sentence-transformers keeps beside a model."""
    how = {**case.how, "max_seq_length": case.how["max_seq_length"] and length_of(case)}
    kinds = {"": "Transformer", "1_Pooling": "Pooling", **({"2_Normalize": "Normalize"} if how["normalize"] else {})}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    switches = {old: new in how["pooling"] for old, new in OLD_POOLINGS.items()}
    pooling = switches if how["old_spelling"] else {"pooling_mode": how["pooling"]}
    prompts = {"prompts": {"query": how["prompt"]}, "default_prompt_name": "query"} if how["prompt"] else {}
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 64, **pooling},
        "sentence_bert_config.json": {name: how[name] for name in ("max_seq_length", "do_lower_case")},
        "config_sentence_transformers.json": {"truncate_dim": how["truncate_dim"], **prompts},
    }
    (folder / "1_Pooling").mkdir()
    for name, said in files.items():
        (folder / name).write_text(json.dumps(said))


def save_model(case: Case, folder: Path, sizes: dict[str, Any]) -> None:
    """The model and what prepares its inputs."""
    entries = {**sizes, "initializer_range": 0.2, **case.config}
    if (case.family, case.task) == ("deit", "image-classification"):
        entries["architectures"] = ["DeiTForImageClassification"]  # transformers has two, the other with a teacher
    config = transformers.AutoConfig.for_model(case.family, **entries)
    if ARCHITECTURES[case.family].kind == "vision":
        _save_processor(case, folder)
    else:
        config.max_position_embeddings = case.how["positions"]
        config.vocab_size = save_tokenizer(case, folder, longest_of(case) - case.how["shorter"]) + case.how["spare"]
        if case.task == "feature-extraction":
            save_sentences(case, folder)
    torch.manual_seed(case.seed)
    model = getattr(transformers, HUB_TASKS[case.task].auto).from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # no bias is zero, no norm is one
    if case.task == "text-generation":
        model.generation_config = transformers.GenerationConfig(**{"eos_token_id": 3, **case.how["generation"]})
    model.save_pretrained(folder)


def _save_processor(case: Case, folder: Path) -> None:
    channels = case.config["num_channels"]
    middle = {"image_mean": [0.4, 0.5, 0.6][:channels], "image_std": [0.2, 0.3, 0.4][:channels]}
    cropped = "crop_size" in case.how
    kind = transformers.CLIPImageProcessorPil if cropped else transformers.ViTImageProcessorPil
    kind(**middle, do_convert_rgb=channels == 3, **case.how).save_pretrained(folder)
