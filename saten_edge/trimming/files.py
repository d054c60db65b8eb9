"""A model's folder with fewer rows for words: weights, config.json and generation_config.json, all else as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from saten_edge.checkpoints.architectures import architecture
from saten_edge.checkpoints.guard import INDEX_FILE, read_headers
from saten_edge.checkpoints.mapped import map_file, write_tensors
from saten_edge.checkpoints.models import silent_transformers
from saten_runtime.errors import CheckpointError, ExportError
from saten_runtime.records.files import read_json, write_json
from saten_runtime.vocabulary.files import CONFIG_FILE, GENERATION_CONFIG_FILE

__all__ = ["ModelFiles"]

# Entries of the two files that name ids, beside those that end in `_token_id`: lists, and lists of lists.
_LISTS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids", "force_words_ids")
# Those that mix ids with other numbers.
_MIXED = ("forced_decoder_ids", "sequence_bias")
_ID = "_token_id"
# Whose weights the files of a folder may hold, whatever its task is.
_CLASSES = ("AutoModel", "AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForCausalLM")


@dataclass(frozen=True)
class ModelFiles:
    """A folder, and its tensors with a row for each id. rows: how many that are; config, generation: what the files
    say, with the ids that the family names where they say nothing. value_bytes: of all tensors. prefix: what a name of
    the base model's may have in front.
    """

    folder: Path
    rows: int
    tensors: frozenset[str]
    config: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    value_bytes: int
    prefix: str

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        """Find the tensors: they are those whose shape follows the size of the vocabulary.

        Raises:
            ExportError: there is no word table, one has another number of rows than config.json says, or an id stands
                where it cannot be told from other numbers.
        """
        import transformers

        with silent_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            wanted, known = _by_rows(config)
        entries = read_headers(folder)
        table, prefix = _table(config), f"{_prefix(config)}."
        rows = {name: entry.shape[0] for name, entry in entries.items() if name.removeprefix(prefix) in wanted}
        size = int(config.vocab_size)
        strange = [name for name, entry in entries.items() if name.removeprefix(prefix) not in known]
        also = [name for name in strange if size in entries[name].shape]
        if table not in {name.removeprefix(prefix) for name in rows}:
            raise ExportError(f"{folder}: holds no word table; expected a tensor {table}, with or without {prefix}")
        if also:
            raise ExportError(
                f"{folder}: {also[0]} {entries[also[0]].shape} may have a row for each of the {size} words, and "
                f"{config.model_type} has no such tensor; remove it from the weight files"
            )
        odd = next((name for name in rows if rows[name] != size), None)
        if odd is not None:
            raise ExportError(f"{folder}: {odd} has {rows[odd]} rows, and vocab_size in {CONFIG_FILE} is {size}")
        said, of_family = read_json(folder / CONFIG_FILE, CheckpointError), config.to_dict()
        said |= {key: value for key, value in of_family.items() if key.endswith(_ID) and value is not None}
        path = folder / GENERATION_CONFIG_FILE
        generation = read_json(path, CheckpointError) if path.is_file() else None
        _refuse_mixed(folder, said, generation or {})
        stored = sum(tensor.nbytes for file in _weights(folder) for tensor in map_file(file)[0].values())
        return cls(folder, size, frozenset(rows), said, generation, stored, prefix)

    @property
    def bare(self) -> frozenset[str]:
        """The names of the tensors, seen from the base model."""
        return frozenset(name.removeprefix(self.prefix) for name in self.tensors)

    def named(self) -> set[int]:
        """The ids that config and generation config name and that have a row."""
        found: set[int] = set()
        for said in (self.config, self.generation or {}):
            _with_ids(said, found.add)
        return found & set(range(self.rows))

    def write(self, out: Path, numbers: Mapping[int, int]) -> int:
        """Write weights and configs into a folder; the bytes of the tensors. numbers: old id → new id, rising."""
        old = torch.tensor(sorted(numbers))
        stored = 0
        for path in _weights(self.folder):
            tensors, metadata = map_file(path)
            kept = {name: tensor[old] if name in self.tensors else tensor for name, tensor in tensors.items()}
            stored += sum(tensor.nbytes for tensor in kept.values())
            write_tensors(kept, out / path.name, metadata)
        if (self.folder / INDEX_FILE).is_file():
            index = read_json(self.folder / INDEX_FILE, CheckpointError)
            write_json(out / INDEX_FILE, {**index, "metadata": {**index.get("metadata", {}), "total_size": stored}})

        def number(old: int) -> int:
            return numbers.get(old, old)  # one without a row, such as -1, says that there is none

        write_json(out / CONFIG_FILE, {**_with_ids(self.config, number), "vocab_size": len(numbers)})
        if self.generation is not None:
            write_json(out / GENERATION_CONFIG_FILE, _with_ids(self.generation, number))
        return stored


def _by_rows(config: Any) -> tuple[set[str], set[str]]:
    """The names, seen from the base model, of tensors that grow with the vocabulary, and of all; of every class."""
    import transformers

    larger = copy.deepcopy(config)
    larger.vocab_size += 1
    found = (getattr(transformers, name)._model_mapping.get(type(config), ()) for name in _CLASSES)
    kinds = {kind for each in found for kind in (each if isinstance(each, tuple) else (each,))}
    named = (getattr(transformers, str(name), None) for name in config.architectures or ())
    wanted: set[str] = set()
    known: set[str] = set()
    for kind in kinds | {kind for kind in named if hasattr(kind, "base_model_prefix")}:
        shapes, grown = _shapes(kind, config), _shapes(kind, larger)
        wanted |= {name for name, shape in shapes.items() if grown[name] != shape}
        known |= shapes.keys()
    return wanted, known


def _shapes(kind: Any, config: Any) -> dict[str, torch.Size]:
    with torch.device("meta"):
        model = kind(copy.deepcopy(config))
    prefix = f"{model.base_model_prefix}."
    return {name.removeprefix(prefix): tensor.shape for name, tensor in model.state_dict().items()}


def _prefix(config: Any) -> str:
    import transformers

    kind = transformers.AutoModel._model_mapping[type(config)]
    return str(kind.base_model_prefix)


def _table(config: Any) -> str:
    """The word table, seen from the base model."""
    return f"{architecture(config.model_type).tables[0]}.weight"


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _with_ids(said: Mapping[str, Any], number: Callable[[int], Any]) -> dict[str, Any]:
    """What a config says, with another number for each id."""
    return {key: _each(value, number) if key.endswith(_ID) or key in _LISTS else value for key, value in said.items()}


def _each(value: Any, number: Callable[[int], Any]) -> Any:
    if isinstance(value, list):
        return [_each(item, number) for item in value]
    return number(value) if type(value) is int else value


def _refuse_mixed(folder: Path, *configs: Mapping[str, Any]) -> None:
    for key in _MIXED:
        if any(said.get(key) for said in configs):
            raise ExportError(f"{folder}: {key} names ids among other numbers, which cannot be renumbered; remove it")
