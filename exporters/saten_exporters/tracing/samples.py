"""Inputs that a model is traced and verified with, by the kind of its inputs: seeded ones, and those of texts.

Every sample has padding: a mask of ones alone would be traced away by some models.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from saten_exporters.exportable import Exportable
from saten_runtime.errors import UsageError
from saten_runtime.vocabulary.tasks import IMAGES, PAIRS, PROMPTS, TEXTS

__all__ = ["KINDS", "Case", "Kind", "padded_tokens"]

Inputs = dict[str, Any]

# (tokens, padded length) of each row: batches of 1, 2 and 3, short and long, with and without padding
TEXT_CASES = {
    "single": [(1, 1)],
    "short": [(7, 7)],
    "padded": [(16, 16), (5, 16)],
    "ragged": [(33, 33), (2, 33), (20, 33)],
}
PICTURE_CASES = {"one": 1, "two": 2, "three": 3}
# As above, and the tokens read in each run, the first of them with an empty cache; several after earlier ones only
# where there is one row, which is all that GroupQueryAttention takes.
PROMPT_CASES = {
    "single": ([(1, 1)], (1,)),
    "prompt": ([(7, 7)], (7,)),
    "steps": ([(9, 9)], (6, 1, 1, 1)),
    "padded": ([(12, 12), (5, 12)], (10, 1, 1)),
    "pieces": ([(17, 21)], (8, 12, 1)),
    "ragged": ([(21, 21), (3, 21), (14, 21)], (8, *[1] * 13)),
}
TEXT_TOKENS = 128  # of a text at most
CONTINUED = 12  # tokens that torch adds, greedily, to the prompt of the case "greedy"


@dataclass(frozen=True)
class Case:
    """One comparison with torch. reads: tokens of each run of a decoder; empty where one run reads all."""

    inputs: dict[str, torch.Tensor]
    reads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kind:
    """sample: what to trace with. axes: names of the dynamic axes of an input, by its name and number of axes.

    cases: what to verify with, by name. text: the inputs of a text, or of a pair. pictures: whether an image processor
    prepares the inputs. cached: whether the model takes and gives the keys and values of earlier tokens.
    """

    sample: Callable[[Exportable], Inputs]
    axes: Callable[[str], Mapping[int, str]]
    cases: Callable[[Exportable], dict[str, Case]]
    text: Callable[[Exportable, Sequence[str]], Case]
    pictures: bool = False
    cached: bool = False


def padded_tokens(source: Exportable, lengths: list[tuple[int, int]], *, left: bool = False) -> dict[str, torch.Tensor]:
    """Random ids (seeded) that fit the model, one row for each (tokens, padded length) of `lengths`.

    Rows are padded to the longest, on the right, or on the `left`, as a decoder continues them.
    """
    cut = [(min(tokens, source.max_length), min(padded, source.max_length)) for tokens, padded in lengths]
    longest = max(padded for _, padded in cut)
    generator = torch.Generator().manual_seed(len(cut) * 1009 + longest)
    ids = torch.randint(0, int(source.model.config.vocab_size), (len(cut), longest), generator=generator)
    counts = torch.tensor([[tokens] for tokens, _ in cut])
    places = torch.arange(longest)[None]
    mask = (places >= longest - counts if left else places < counts).long()
    ids = torch.where(mask.bool(), ids, source.pad_id)
    return _taken(source, {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)})


def _taken(source: Exportable, known: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those of the inputs that tokenizer and model both have."""
    taken = inspect.signature(source.model.forward).parameters
    # A tokenizer may leave the mask out; a graph without it would read padding as text.
    wanted = dict.fromkeys([*source.tokenizer.model_input_names, "attention_mask"])
    return {name: known[name] for name in wanted if name in known and name in taken}


def _text(source: Exportable, item: Sequence[str]) -> Case:
    """A text, or a pair of them, cut to `TEXT_TOKENS`."""
    cut = min(source.max_length, TEXT_TOKENS)
    return Case(_taken(source, source.tokenizer(*item, truncation=True, max_length=cut, return_tensors="pt")))


def _token_cases(source: Exportable) -> dict[str, Case]:
    return {name: Case(padded_tokens(source, lengths)) for name, lengths in TEXT_CASES.items()}


def _pictures(source: Exportable, count: int) -> dict[str, torch.Tensor]:
    config = source.model.config
    size = config.image_size if isinstance(config.image_size, (list, tuple)) else (config.image_size,) * 2
    generator = torch.Generator().manual_seed(count)
    return {"pixel_values": torch.rand((count, config.num_channels, *size), generator=generator) * 2 - 1}


def _picture_cases(source: Exportable) -> dict[str, Case]:
    return {name: Case(_pictures(source, count)) for name, count in PICTURE_CASES.items()}


def _no_text(source: Exportable, item: Sequence[str]) -> Case:
    raise UsageError(f"{source.source['model']}: takes pictures, found the text {item[0]!r:.40}")


def _prompts(source: Exportable, lengths: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Ids, mask and positions; positions count the tokens that are not padding."""
    return _placed(padded_tokens(source, lengths, left=True))


def _placed(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = inputs["attention_mask"]
    return {
        "input_ids": inputs["input_ids"],
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


def _prompt(source: Exportable, item: Sequence[str]) -> Case:
    """A text, read in one run."""
    inputs = _placed(_text(source, item).inputs)
    return Case(inputs, (inputs["input_ids"].shape[1],))


def _prompt_with_past(source: Exportable) -> Inputs:
    """3 tokens after 4, whose keys and values the model computed before.

    Every layer keeps all of them, as a device does. transformers' own cache drops those that a window has passed.
    """
    from transformers import DynamicCache

    whole = _prompts(source, [(7, 7), (5, 7)])
    first = {name: tensor[:, :4] for name, tensor in whole.items()}
    with torch.no_grad():
        past = source.model(**first, past_key_values=DynamicCache(), use_cache=True).past_key_values
    new = {name: whole[name][:, 4:] for name in ("input_ids", "position_ids")}
    return {
        "input_ids": new["input_ids"],
        "attention_mask": whole["attention_mask"],
        "position_ids": new["position_ids"],
        "past_key_values": past,
    }


def _prompt_cases(source: Exportable) -> dict[str, Case]:
    cases = {
        name: Case(_prompts(source, lengths), reads)
        for name, (lengths, reads) in PROMPT_CASES.items()
        if sum(reads) <= source.max_length
    }
    return {**cases, "greedy": _continued(source)}


def _continued(source: Exportable) -> Case:
    """A prompt and the tokens that torch continues it with, read one by one."""
    prompt = _prompts(source, [(8, 8)])
    new = max(0, min(CONTINUED, source.max_length - 8))
    ids = prompt["input_ids"]
    with torch.no_grad():
        for _ in range(new):
            following = source.model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], dim=1)
    places = torch.arange(ids.shape[1])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "position_ids": places}
    return Case(inputs, (ids.shape[1] - new, *[1] * new))


def _text_axes(_: str) -> Mapping[int, str]:
    return {0: "batch", 1: "sequence"}


def _picture_axes(_: str) -> Mapping[int, str]:
    return {0: "batch"}


def _cached_axes(name: str) -> Mapping[int, str]:
    if name == "attention_mask":
        return {0: "batch", 1: "past_sequence + sequence"}
    if "past_key_values" in name:
        return {0: "batch", 2: "past_sequence"}
    return _text_axes(name)


TOKENS = Kind(lambda source: padded_tokens(source, [(2, 16), (2, 16)]), _text_axes, _token_cases, _text)
PIXELS = Kind(lambda source: _pictures(source, 2), _picture_axes, _picture_cases, _no_text, pictures=True)
CACHED = Kind(_prompt_with_past, _cached_axes, _prompt_cases, _prompt, cached=True)
KINDS: dict[str, Kind] = {TEXTS: TOKENS, PAIRS: TOKENS, PROMPTS: CACHED, IMAGES: PIXELS}
