"""A GGUF file as a folder of transformers: config, tokenizer with its chat template, and weights as float32.

transformers knows the names and sizes, and undoes what llama.cpp does to rows of q and k; the package gguf undoes the
rounding. What neither of them would say is refused here by name: tensors and settings that they leave out, and a
tokenizer that splits texts in a way they do not know. Weights go to the disk one by one, so that no two copies of a
model are in memory.
"""

from __future__ import annotations

import contextlib
import json
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from saten_edge.checkpoints.gguf_header import GgufHeader, StoredTensor, read_gguf_header
from saten_edge.checkpoints.guard import WEIGHTS_FILE, Entry, check_sizes, refuse_bomb
from saten_runtime.errors import CheckpointError, ExportError, SatenError, UsageError
from saten_runtime.records.plain_text import one_line
from saten_runtime.vocabulary.files import CONFIG_FILE

__all__ = ["FAMILIES", "unpacked_gguf"]

# What the file calls its architecture; a Mistral is called llama.
FAMILIES = ("llama", "qwen2", "qwen3")
# Settings of an architecture, beside those that transformers reads: they say again what others say, …
_HEAD_WIDTHS = ("rope.dimension_count", "attention.key_length", "attention.value_length")
_REPEATED = ("vocab_size", *_HEAD_WIDTHS)
# … or would change numbers, and are read by nobody but where they say that there is nothing.
_NEUTRAL: Mapping[str, object] = {
    "rope.scaling.type": "none",
    "rope.scaling.factor": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "attention.causal": True,
}
# llama.cpp's own; all other sizes must be there. None: as many as there are heads.
_DEFAULTS: Mapping[str, object] = {"rope.freq_base": 10000.0, "attention.head_count_kv": None}
_STOPS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
_SPECIAL = {"bos_token_id": "tokenizer.ggml.bos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
# Every digit is a token of its own, then GPT-2's splits, which are what transformers takes where it knows no better.
# "default" is not among them: llama.cpp then cuts out punctuation and threes of digits first.
_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r")
_AS_GPT2 = ("gpt-2", "gpt2")


@contextlib.contextmanager
def unpacked_gguf(path: Path) -> Iterator[Path]:
    """A folder, there within the block, with the model of a GGUF file.

    Raises:
        CheckpointError: the file is damaged or hostile, or holds what transformers does not read.
        ExportError: a family that is not in `FAMILIES`.
        UsageError: the package gguf is not installed.
    """
    header = read_gguf_header(path)
    family = header.metadata.get("general.architecture")
    if family not in FAMILIES:
        raise ExportError(f"{path}: its architecture {family!r:.40} is not known; there are: {', '.join(FAMILIES)}")
    _refuse_without_package(path)
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / path.stem
        folder.mkdir()
        try:
            _write_config(header, family, folder)
            _write_tokenizer(header, folder)
            _write_weights(header, folder)
        except SatenError:
            raise
        except Exception as cause:  # transformers raises almost anything on what it cannot read
            raise CheckpointError(f"{path}: transformers cannot read it ({one_line(cause, 200)})") from cause
        yield folder


def _refuse_without_package(path: Path) -> None:
    from transformers.utils.import_utils import is_gguf_available

    if not is_gguf_available():
        raise UsageError(f"{path}: GGUF files are read by the package gguf; pip install 'saten-edge[gguf]'")


def _write_config(header: GgufHeader, family: str, folder: Path) -> None:
    """config.json, with the ids that transformers leaves in the file."""
    import transformers

    _refuse_deep(header, family)
    config = transformers.AutoConfig.for_model(family, **_sizes(header, family))
    config.architectures = [f"{family.capitalize()}ForCausalLM"]
    config.to_json_file(folder / CONFIG_FILE, use_diff=False)
    check_sizes(folder / CONFIG_FILE, len(header.tensors))


def _sizes(header: GgufHeader, family: str) -> dict[str, Any]:
    """What config.json says of sizes and ids, under transformers' names.

    Raises:
        ExportError: a setting of the architecture that nothing is made of, and that would change the numbers.
        CheckpointError: one is missing, or the table has another shape.
    """
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    said = {key.partition(".")[2]: value for key, value in header.metadata.items() if key.startswith(f"{family}.")}
    names = {name: own for name, own in GGUF_CONFIG_MAPPING[family].items() if own and name not in _REPEATED}
    if missing := sorted(name for name in names if name not in said and name not in _DEFAULTS):
        raise CheckpointError(f"{header.path}: does not say {family}.{missing[0]}; download the file again")
    values = {own: said.get(name, _DEFAULTS.get(name)) for name, own in names.items()}
    values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
    tokens, tables = header.metadata.get("tokenizer.ggml.tokens", []), ("token_embd.weight", "output.weight")
    repeated = {"vocab_size": said.get("vocab_size", len(tokens))}
    head = said.get("attention.key_length", values["hidden_size"] // values["num_attention_heads"])
    repeated |= dict.fromkeys(_HEAD_WIDTHS, head)
    for name, value in said.items():
        if name not in names and value != {**_NEUTRAL, **repeated}.get(name):
            raise ExportError(f"{header.path}: {family}.{name} = {value!r:.60} cannot be expressed")
    wanted = (repeated["vocab_size"], values["hidden_size"])
    if any(header.tensors[name].shape != wanted for name in tables if name in header.tensors):
        raise CheckpointError(f"{header.path}: its table is not {list(wanted)}, as its metadata say")
    stops = list(dict.fromkeys(header.metadata[key] for key in _STOPS if key in header.metadata))
    ids = {name: header.metadata.get(key) for name, key in _SPECIAL.items()}
    ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops or None
    tied = "output.weight" not in header.tensors
    return {**values, **ids, "head_dim": head, "vocab_size": wanted[0], "tie_word_embeddings": tied}


def _refuse_deep(header: GgufHeader, family: str) -> None:
    """Refuse more layers than tensors before transformers makes an entry for each."""
    layers = header.metadata.get(f"{family}.block_count")
    if type(layers) is not int or not 0 < layers <= len(header.tensors):
        raise CheckpointError(
            f"{header.path}: {family}.block_count is {layers!r:.40}, and the file holds {len(header.tensors)} tensors"
        )


def _write_tokenizer(header: GgufHeader, folder: Path) -> None:
    """The tokenizer's files, its chat template among them."""
    import transformers
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    kind, split = (header.metadata.get(f"tokenizer.ggml.{name}") for name in ("model", "pre"))
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(f"{header.path}: its tokenizer {kind!r:.40} is not known; there are gpt2 and llama")
    known = (*_AS_GPT2, *_DIGITS_FIRST, *GGUF_PRE_TOKENIZER_SPLITS)
    if kind == "gpt2" and split not in known:
        raise CheckpointError(
            f"{header.path}: its tokenizer splits texts as {split!r:.40}, which is not known; there are "
            f"{', '.join(known)}"
        )
    _refuse_loose_tokens(header)
    family, said, settings = get_gguf_tokenizer(str(header.path))
    backend, more = convert_gguf_tokenizer(family, said)
    if kind == "gpt2" and split in _DIGITS_FIRST:
        steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **settings, **more).save_pretrained(folder)


def _refuse_loose_tokens(header: GgufHeader) -> None:
    """Refuse ids without a token, and lists of the tokenizer that are no lists or not of one length."""
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise CheckpointError(f"{header.path}: holds no tokens; expected a file with its tokenizer")
    for name in ("token_type", "scores"):
        listed = header.metadata.get(f"tokenizer.ggml.{name}", tokens)
        if not isinstance(listed, list) or len(listed) != len(tokens):
            raise CheckpointError(f"{header.path}: tokenizer.ggml.{name} does not have one entry for each token")
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id") and value not in range(len(tokens)):
            raise CheckpointError(f"{header.path}: {key} is {value!r:.40}, and there are {len(tokens)} tokens")


def _write_weights(header: GgufHeader, folder: Path) -> None:
    """model.safetensors: every weight of the model that the file holds, as float32."""
    import transformers
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    config = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    stored = {name: Entry("F32", tensor.shape) for name, tensor in header.tensors.items()}
    refuse_bomb(str(header.path), model, stored)
    family = str(header.metadata["general.architecture"])
    processor = TENSOR_PROCESSORS.get(family, TensorProcessor)(config=config.to_dict())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = _own_names(family, int(config.num_hidden_layers), shapes)
    if unread := sorted(header.tensors.keys() - names.keys()):
        raise ExportError(f"{header.path}: {unread[0]} is no weight of a {family} that transformers knows")

    def values() -> Iterator[npt.NDArray[np.float32]]:
        for name, tensor in header.tensors.items():
            found = processor.process(weights=_dequantized(header.path, tensor), name=name).weights
            if found.shape != shapes[names[name]]:
                wanted = list(shapes[names[name]])
                raise CheckpointError(f"{header.path}: {name} has the shape {list(found.shape)}, expected {wanted}")
            yield found

    _write_safetensors(folder / WEIGHTS_FILE, {names[name]: shapes[names[name]] for name in header.tensors}, values())


def _own_names(family: str, layers: int, weights: Iterable[str]) -> dict[str, str]:
    """The file's name of every weight → transformers'."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    known = get_tensor_name_map(next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == family), layers)
    named = ((*weight.rpartition(".")[::2], weight) for weight in weights)
    return {f"{known.get_name(layer)}.{suffix}": weight for layer, suffix, weight in named}


def _dequantized(path: Path, tensor: StoredTensor) -> npt.NDArray[np.float32]:
    """The values of a tensor, in torch's shape."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data = np.memmap(path, np.uint8, "r", tensor.offset, (tensor.size_bytes,))
    rows = data.reshape(*tensor.shape[:-1], -1)
    values: npt.NDArray[np.float32] = dequantize(rows, GGMLQuantizationType(tensor.type))
    return values


def _write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], values: Iterator[npt.NDArray[np.float32]]
) -> None:
    """A safetensors file of float32, whose values come one after the other in the order of `shapes`.

    Source of the format: https://github.com/huggingface/safetensors#format
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in values:
            file.write(np.ascontiguousarray(array, np.float32).tobytes())
