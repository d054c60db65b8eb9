"""The model families we know, as one table: everything that differs between them is a column.

To add a family, add a row to `ARCHITECTURES` and a configuration of it to the tests, which walk the table.
Paths are those of transformers' base model (`BertModel`, `LlamaModel`, …), before a task's head is put around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from saten_runtime.errors import ExportError, UsageError
from saten_runtime.vocabulary.tasks import (
    FEATURE_EXTRACTION,
    HUB_TASKS,
    IMAGE_CLASSIFICATION,
    QUESTION_ANSWERING,
    TEXT_CLASSIFICATION,
    TEXT_GENERATION,
    TOKEN_CLASSIFICATION,
)

__all__ = ["ARCHITECTURES", "Architecture", "Attention", "Mlp", "architecture", "task_of"]


ENCODER = tuple(row.hub for row in (FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, QUESTION_ANSWERING))
VISION = tuple(row.hub for row in (FEATURE_EXTRACTION, IMAGE_CLASSIFICATION))
DECODER = tuple(row.hub for row in (FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TEXT_GENERATION))

ENCODER_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),  # transformers 5 ignores the others quietly
}
# "dynamic" and "longrope" change their frequencies with the length of the text, which a graph cannot.
ROPE_OPTIONS: Mapping[str, tuple[Any, ...]] = {"rope_parameters.rope_type": ("default", "linear", "llama3", "yarn")}
# Whatever the family, transformers makes a cache that forgets, or a mask that shows later tokens, where one of these is
# said; one graph for every length has neither.
FULL_ATTENTION: Mapping[str, tuple[Any, ...]] = {
    "use_sliding_window": (False,),
    "sliding_window": (None,),
    "attention_chunk_size": (None,),
    "layer_types": ("full_attention",),
    "is_causal": (True,),
    "add_cross_attention": (False,),
    **ROPE_OPTIONS,
}
# Two rotations, one for each kind of layer.
TWO_ROPES: Mapping[str, tuple[Any, ...]] = {
    option.replace(".", f".{kind}_attention."): allowed
    for option, allowed in ROPE_OPTIONS.items()
    for kind in ("full", "sliding")
}
# Gemma's configs may ask for tokens that see later ones.
GEMMA_OPTIONS: Mapping[str, tuple[Any, ...]] = {**FULL_ATTENTION, "use_bidirectional_attention": (None, False)}
# Windows are a matter of the mask, and the device's cache keeps all. Gemma 3 does not cap scores, whatever it is told;
# EmbeddingGemma lets tokens see later ones.
GEMMA3_OPTIONS: Mapping[str, tuple[Any, ...]] = {"attn_logit_softcapping": (None,), "is_causal": (True,), **TWO_ROPES}
BERT_TABLES = ("embeddings.word_embeddings", "embeddings.position_embeddings")


@dataclass(frozen=True)
class Attention:
    """The layers of a block between which values lie, by path in the block: they can be narrower, as keys are not."""

    value: str
    output: str


@dataclass(frozen=True)
class Mlp:
    """The layers of a block's MLP, by path in the block. ups: they make its channels; packed: matrices in each of them,
    one behind the other. down: it reads the channels.
    """

    ups: tuple[str, ...]
    down: str
    packed: int = 1


FUSED = "queries, keys and values come from one matrix"
BERT_ATTENTION = Attention("attention.self.value", "attention.output.dense")
BERT_MLP = Mlp(("intermediate.dense",), "output.dense")
VIT_ATTENTION, VIT_MLP = Attention("attention.v_proj", "attention.o_proj"), Mlp(("mlp.fc1",), "mlp.fc2")
LLAMA_ATTENTION = Attention("self_attn.v_proj", "self_attn.o_proj")
LLAMA_MLP = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")

# Families that users ask for, and why no bundle can be made of them.
REFUSED = {
    "gemma2": "tanh caps its attention scores, which torch's attention and the device's do not",
    "gemma3": "it reads texts and pictures together; its text model alone has model_type gemma3_text",
    "siglip": "it reads texts and pictures together; its vision tower alone has model_type siglip_vision_model",
    "whisper": "it reads sound; a bundle reads texts or pictures",
}


@dataclass(frozen=True)
class Architecture:
    """One family.

    kind: "encoder", "decoder" or "vision". tasks: as the hub names them. tables: lookup tables to compress, the
    vocabulary first, then positions.
    blocks: the list of blocks, whose outputs distillation compares. linear: class of the linear layers; Conv1D
    keeps its weight as (in, out). tied_head: the layer that uses the vocabulary table again where
    `tie_word_embeddings` says so, seen from the task's model. heads: layers, so seen, that a new task starts with
    random weights. attention, mlp: the layers of a block that FLAT makes smaller; whole_heads: why there is no
    attention of the kind it needs. pooler: the base model takes `add_pooling_layer`. positions: the module that
    interpolates its positions for pictures of any size. options: entries of the config that must have one of the
    values listed, each of them where an entry is a list; a dot leads into a dictionary, and an absent entry passes.
    """

    model_type: str
    kind: str
    tasks: tuple[str, ...]
    blocks: str
    tables: tuple[str, ...] = ()
    linear: str = "Linear"
    tied_head: str | None = None
    heads: tuple[str, ...] = ("classifier", "qa_outputs")
    attention: Attention | None = None
    mlp: Mlp | None = None
    whole_heads: str = ""
    pooler: bool = False
    positions: str | None = None
    options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def check_task(self, task: str) -> None:
        """Refuse a task that this family does not have.

        Raises:
            UsageError: naming those it has.
        """
        if task not in self.tasks:
            raise UsageError(f"{self.model_type} has no task {task!r}; there are: {', '.join(self.tasks)}")

    def check_options(self, config: Mapping[str, Any]) -> None:
        """Refuse a `config.json` with an option that we cannot express.

        Raises:
            ExportError: naming the option, its value, and those that can be expressed.
        """
        for option, allowed in self.options.items():
            value = _entry(config, option.split("."), allowed[0])
            if any(each not in allowed for each in (value if isinstance(value, list) else [value])):
                expected = ", ".join(repr(each) for each in allowed)
                raise ExportError(
                    f"{self.model_type} with {option} = {value!r} cannot be expressed; expected one of: {expected}"
                )


ARCHITECTURES = {
    row.model_type: row
    for row in (
        Architecture(
            "bert",
            "encoder",
            ENCODER,
            "encoder.layer",
            BERT_TABLES,
            heads=("classifier", "qa_outputs", "bert.pooler"),
            attention=BERT_ATTENTION,
            mlp=BERT_MLP,
            pooler=True,
            options=ENCODER_OPTIONS,
        ),
        *(
            Architecture(
                name,
                "encoder",
                ENCODER,
                "encoder.layer",
                BERT_TABLES,
                attention=BERT_ATTENTION,
                mlp=BERT_MLP,
                pooler=True,
                options=ENCODER_OPTIONS,
            )
            for name in ("roberta", "xlm-roberta", "camembert")
        ),
        Architecture(
            "distilbert",
            "encoder",
            ENCODER,
            "transformer.layer",
            BERT_TABLES,
            heads=("pre_classifier", "classifier", "qa_outputs"),
            attention=Attention("attention.v_lin", "attention.out_lin"),
            mlp=Mlp(("ffn.lin1",), "ffn.lin2"),
        ),
        Architecture(
            "electra",
            "encoder",
            ENCODER,
            "encoder.layer",
            BERT_TABLES,
            attention=BERT_ATTENTION,
            mlp=BERT_MLP,
            options=ENCODER_OPTIONS,
        ),
        Architecture(
            "mpnet",
            "encoder",
            ENCODER,
            "encoder.layer",
            BERT_TABLES,
            mlp=BERT_MLP,
            whole_heads="its attention views queries, keys and values as heads of one width",
            pooler=True,
        ),
        Architecture(
            "modernbert",
            "encoder",
            ENCODER,
            "layers",
            ("embeddings.tok_embeddings",),
            heads=("head", "classifier", "qa_outputs"),
            mlp=Mlp(("mlp.Wi",), "mlp.Wo", packed=2),
            whole_heads=FUSED,
            options=TWO_ROPES,
        ),
        Architecture("vit", "vision", VISION, "layers", attention=VIT_ATTENTION, mlp=VIT_MLP, pooler=True),
        Architecture(
            "deit",
            "vision",
            VISION,
            "layers",
            heads=("classifier", "cls_classifier", "distillation_classifier"),
            attention=VIT_ATTENTION,
            mlp=VIT_MLP,
            pooler=True,
        ),
        *(
            Architecture(
                name,
                "vision",
                VISION,
                "encoder.layer",
                attention=VIT_ATTENTION,
                mlp=VIT_MLP,
                positions="embeddings",
                options={"use_swiglu_ffn": (False,)},
            )
            for name in ("dinov2", "dinov2_with_registers")
        ),
        Architecture(
            "siglip_vision_model",
            "vision",
            (FEATURE_EXTRACTION.hub,),
            "encoder.layers",
            attention=Attention("self_attn.v_proj", "self_attn.out_proj"),
            mlp=VIT_MLP,
            options={"vision_use_head": (False,)},  # torch's own multi-head attention, in one matrix
        ),
        *(
            Architecture(
                name,
                "decoder",
                DECODER,
                "layers",
                ("embed_tokens",),
                tied_head="lm_head",
                heads=("score",),
                attention=LLAMA_ATTENTION,
                mlp=LLAMA_MLP,
                options=options,
            )
            for name, options in (
                *((name, FULL_ATTENTION) for name in ("llama", "qwen2", "qwen3", "mistral")),
                ("gemma", GEMMA_OPTIONS),
                ("gemma3_text", GEMMA3_OPTIONS),
            )
        ),
        Architecture(
            "gpt2",
            "decoder",
            DECODER,
            "h",
            ("wte", "wpe"),
            linear="Conv1D",
            tied_head="lm_head",
            heads=("score",),
            mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"),
            whole_heads=FUSED,
            options=FULL_ATTENTION,
        ),
    )
}


def architecture(model_type: object) -> Architecture:
    """Look a family up by the `model_type` of its config.

    Raises:
        ExportError: no such family; the message lists those there are, or says why this one is not among them.
    """
    row = ARCHITECTURES.get(model_type) if isinstance(model_type, str) else None
    if isinstance(model_type, str) and model_type in REFUSED:
        raise ExportError(f"model_type {model_type!r} cannot be expressed: {REFUSED[model_type]}")
    if row is None:
        raise ExportError(f"model_type {model_type!r} is not known; there are: {', '.join(sorted(ARCHITECTURES))}")
    return row


def task_of(architectures: list[str]) -> str:
    """The task of the model classes named in a config, as the hub names it.

    Raises:
        UsageError: none of ours; the message lists the ends of classes that are.
    """
    suffixes = sorted(
        ((suffix, task) for task, row in HUB_TASKS.items() for suffix in row.suffixes), key=_longest_first
    )
    for name in architectures:
        for suffix, task in suffixes:
            if name.endswith(suffix):
                return task
    named = ", ".join(architectures) or "none"
    raise UsageError(
        f"no task is known for a model of class {named}; under architectures in its config.json, name its class, which "
        f"ends in one of {', '.join(dict.fromkeys(suffix for suffix, _ in suffixes))}; or pass --task to export it"
    )


def _entry(config: Mapping[str, Any], path: list[str], default: Any) -> Any:
    """The entry at a path of keys, `default` where a key is absent."""
    value: Any = config
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def _longest_first(entry: tuple[str, str]) -> int:
    return -len(entry[0])
