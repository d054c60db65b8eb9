"""A Llama from its Hugging Face folder as llama.cpp reads it.

Names and the order of rows are those of llama.cpp's `convert_hf_to_gguf.py`: its rotary embedding turns neighbours,
where transformers turns the two halves of a head, so rows of q and k are interleaved. There is no tokenizer: ids go in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saten_runtime.records.folders import new_folder

__all__ = ["KINDS", "write_gguf"]

# What a file is called, and what its matrices are stored as, and the table, which is the head, too: llama.cpp's own
# 4-bit files keep it in more bits.
KINDS = {
    "f32": ("ALL_F32", "F32", "F32"),
    "q8_0": ("MOSTLY_Q8_0", "Q8_0", "Q8_0"),
    "q4_0": ("MOSTLY_Q4_0", "Q4_0", "Q8_0"),
}

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TABLES = ("token_embd.weight", "output.weight")


def write_gguf(checkpoint: Path, out: Path, kind: str) -> None:
    """Write `out`/model.gguf; kind: a key of `KINDS`."""
    import gguf

    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    file_type, *types = KINDS[kind]
    with new_folder(out) as folder:
        writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
        writer.add_file_type(gguf.LlamaFileType[file_type])
        _describe(writer, config)
        for name, values in _tensors(checkpoint, config):
            wanted = gguf.GGMLQuantizationType[types[name in TABLES] if values.ndim == 2 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def interleaved(rows: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """(heads · 2 · half, in) whose heads hold first halves and second halves → the same, pair by pair."""
    count, width = rows.shape
    return rows.reshape(heads, 2, count // heads // 2, width).swapaxes(1, 2).reshape(count, width)


def _describe(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("no_vocab")


def _tensors(checkpoint: Path, config: dict[str, Any]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Every weight by its name in the file, as float32."""
    from safetensors import safe_open

    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                layer, inner = re.fullmatch(r"(?:model\.layers\.(\d+)\.)?(.+)\.weight", name).groups()
                values = file.get_tensor(name).float().numpy()
                short = NAMES[inner]
                if short in heads:
                    values = interleaved(values, heads[short])
                yield f"{f'blk.{layer}.' if layer else ''}{short}.weight", values
