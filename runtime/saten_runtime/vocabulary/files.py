"""Names of files that transformers, tokenizers and ONNX tools expect, and that several rooms read or write."""

from __future__ import annotations

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "GENERATION_CONFIG_FILE",
    "MODEL_FILE",
    "MODULES_FILE",
    "PREPROCESSOR_CONFIG_FILE",
    "PROMPTS_FILE",
    "TOKENIZER_CONFIG_FILE",
    "TOKENIZER_FILE",
    "TRANSFORMER_FILE",
    "TRANSFORMER_FILES",
]

CONFIG_FILE = "config.json"
GENERATION_CONFIG_FILE = "generation_config.json"
PREPROCESSOR_CONFIG_FILE = "preprocessor_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# Of sentence-transformers: which modules follow the model, the prompts put before texts, and settings of the model.
MODULES_FILE = "modules.json"
PROMPTS_FILE = "config_sentence_transformers.json"
TRANSFORMER_FILE = "sentence_bert_config.json"
# Its first versions named the last one after the family; the first counts that says anything.
TRANSFORMER_FILES = (
    TRANSFORMER_FILE,
    *(
        f"sentence_{family}_config.json"
        for family in ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
    ),
)
# Weights lie beside the graph in files whose names begin with the graph's.
MODEL_FILE = "model.onnx"
CARD_FILE = "README.md"
