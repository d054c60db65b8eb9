"""A small sound Llama as a GGUF file, by the writer of llama.cpp's own package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CHAT_TEMPLATE", "SPECIAL", "save_gguf"]

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "Ġ th", "Ġth e", "a n", "o u", "e r"]
WIDTH, HEADS, KV_HEADS, LAYERS, INNER, CONTEXT = 64, 4, 2, 2, 96, 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def save_gguf(
    path: Path,
    kind: str = "F32",
    *,
    seed: int = 7,
    template: str | None = CHAT_TEMPLATE,
    split: str = "smollm",
    **more: Any,
) -> Path:
    """A small random Llama with a byte-level tokenizer; kind: what its matrices are stored as. more: settings of it.

    split: how its tokenizer says that it splits texts.
    """
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    tokens = [*SPECIAL, *_bytes(), *(merge.replace(" ", "") for merge in MERGES)]
    _describe(writer, tokens, template, split)
    for name, value in more.items():
        writer.add_float32(f"llama.{name}", value)
    random = np.random.default_rng(seed)
    stored = gguf.GGMLQuantizationType[kind]
    for name, shape in _shapes(len(tokens)).items():
        values = (0.3 * random.standard_normal(shape) + (len(shape) == 1)).astype(np.float32)
        if len(shape) == 2:
            writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: Any, tokens: list[str], template: str | None, split: str) -> None:
    writer.add_context_length(CONTEXT)
    writer.add_vocab_size(len(tokens))
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    if template is not None:
        writer.add_chat_template(template)


def _shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    keys = KV_HEADS * WIDTH // HEADS
    layer = {
        "attn_norm": (WIDTH,),
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (keys, WIDTH),
        "attn_v": (keys, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_norm": (WIDTH,),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    blocks = {f"blk.{n}.{name}.weight": shape for n in range(LAYERS) for name, shape in layer.items()}
    return {"token_embd.weight": (vocabulary, WIDTH), **blocks, "output_norm.weight": (WIDTH,)}


def _bytes() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return list(bytes_to_unicode().values())
