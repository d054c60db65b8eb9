"""A small configuration of every family in `ARCHITECTURES`."""

from __future__ import annotations

from typing import Any

# The smallest BERT all of whose linear layers (64 × 64 and up) and whose vocabulary table are compressed.
VOCABULARY, WIDTH, INNER, LAYERS, HEADS, POSITIONS = 1200, 64, 128, 2, 4, 96
VISION_SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "image_size": 32,
    "patch_size": 8,
}
TEXT_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
# Two heads share each key and value.
DECODER_SIZES = {**TEXT_SIZES, "num_key_value_heads": HEADS // 2}
# A head that shares a table of large rows repeats the last token of a prompt: that one must not end the text.
GEMMA_SIZES = {**DECODER_SIZES, "tie_word_embeddings": True, "head_dim": WIDTH // HEADS, "eos_token_id": 4}
# A small configuration of every family in `ARCHITECTURES`; decoders with and without a tied head.
TINY: dict[str, dict[str, Any]] = {
    "bert": TEXT_SIZES,
    "roberta": {**TEXT_SIZES, "pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": {**TEXT_SIZES, "pad_token_id": 1, "type_vocab_size": 1},
    "camembert": {**TEXT_SIZES, "pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": {
        "vocab_size": VOCABULARY,
        "dim": WIDTH,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "hidden_dim": INNER,
        "max_position_embeddings": POSITIONS,
    },
    "electra": {**TEXT_SIZES, "embedding_size": WIDTH // 2},
    "mpnet": {**TEXT_SIZES, "pad_token_id": 1},
    "modernbert": {
        **TEXT_SIZES,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "vit": VISION_SIZES,
    "deit": VISION_SIZES,
    "dinov2": {**VISION_SIZES, "mlp_ratio": INNER // WIDTH},
    "dinov2_with_registers": {**VISION_SIZES, "mlp_ratio": INNER // WIDTH, "num_register_tokens": 3},
    "siglip_vision_model": {**VISION_SIZES, "vision_use_head": False},
    "llama": {**DECODER_SIZES, "tie_word_embeddings": False},
    "qwen2": {**DECODER_SIZES, "tie_word_embeddings": True},
    "qwen3": {**DECODER_SIZES, "tie_word_embeddings": True, "head_dim": WIDTH // HEADS},
    "mistral": {**DECODER_SIZES, "sliding_window": None, "head_dim": WIDTH // HEADS},
    "gemma": GEMMA_SIZES,
    # A window, then none; scores have a factor of their own.
    "gemma3_text": {
        **GEMMA_SIZES,
        "sliding_window_pattern": 2,
        "sliding_window": 8,
        "query_pre_attn_scalar": 24,
    },
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "n_positions": POSITIONS,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    },
}
