"""Names of files that transformers, tokenizers and ONNX tools expect, and that several rooms read or write."""

from __future__ import annotations

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "GENERATION_CONFIG_FILE",
    "MODEL_FILE",
    "MODULES_FILE",
    "PREPROCESSOR_CONFIG_FILE",
    "TOKENIZER_CONFIG_FILE",
    "TOKENIZER_FILE",
]

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
PREPROCESSOR_CONFIG_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# Of sentence-transformers: which modules follow the model.
MODULES_FILE = "modules.json"
# Weights lie beside the graph in files whose names begin with the graph's.
MODEL_FILE = "model.onnx"
CARD_FILE = "README.md"
