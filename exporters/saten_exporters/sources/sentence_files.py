"""The settings in the files that sentence-transformers writes.

"pooling", "dense" and so on stand for the config.json in the folder of such a module.
"""

from __future__ import annotations

from saten_exporters.sources.setting import (
    HARMLESS,
    HONOURED,
    NAMES,
    REFUSAL,
    REFUSED,
    REPORTED,
    SPEED,
    TRAINING,
    rows,
)
from saten_runtime.vocabulary.files import MODULES_FILE, PROMPTS_FILE, TRANSFORMER_FILE

__all__ = ["ROWS"]

ROWS = [
    *rows(
        MODULES_FILE,
        HONOURED,
        "Transformer Pooling Dense LayerNorm Normalize",
        "the manifest's postprocess",
        "test_vectors_are_those_of_sentence_transformers",
    ),
    *rows(MODULES_FILE, HARMLESS, "Dropout", TRAINING, "test_vectors_are_those_of_sentence_transformers"),
    *rows(
        MODULES_FILE,
        REFUSED,
        "BoW CLIPModel CNN LSTM Router Asym StaticEmbedding WeightedLayerPooling WordEmbeddings WordWeights "
        "InputModule Module MultiVectorMask SpladePooling SparseAutoEncoder SparseStaticEmbedding MLMTransformer "
        "CSRSparsity LogitScore BaseTokenPooling HierarchicalTokenPooling LambdaTokenPooling",
        "no layer of the device does it",
        "test_a_module_that_cannot_be_expressed_is_refused",
    ),
    *rows(
        PROMPTS_FILE,
        HONOURED,
        "default_prompt_name",
        "the device puts the prompt before every text, and before the first of a pair",
        "test_vectors_are_those_of_sentence_transformers",
    ),
    *rows(
        PROMPTS_FILE,
        HONOURED,
        "truncate_dim",
        "the first numbers of a vector are kept",
        "test_the_first_numbers_are_kept_after_normalization",
    ),
    *rows(
        PROMPTS_FILE,
        REPORTED,
        "prompts",
        "the device puts only the default prompt before texts; sentence-transformers takes the others from the bundle",
    ),
    *rows(
        PROMPTS_FILE,
        REPORTED,
        "similarity_fn_name",
        "saten-run eval compares vectors by their cosine; sentence-transformers takes it from the bundle",
        neutral=("cosine",),
    ),
    *rows(
        PROMPTS_FILE,
        REPORTED,
        "activation_fn",
        "a cross-encoder's activation is not applied to the logits",
        neutral=("torch.nn.modules.linear.Identity",),
    ),
    *rows(PROMPTS_FILE, HARMLESS, "keep_in_fp32_modules", "weights are read as float32, or the export is refused"),
    *rows(PROMPTS_FILE, HARMLESS, "__version__ model_type requirements", NAMES),
    *rows(
        TRANSFORMER_FILE, HONOURED, "max_seq_length", "texts are cut to it", "test_a_text_is_cut_where_python_cuts_it"
    ),
    *rows(
        TRANSFORMER_FILE,
        HONOURED,
        "do_lower_case",
        "the bundle's tokenizer.json makes texts lower case",
        "test_texts_are_made_lower_case",
    ),
    *rows(
        TRANSFORMER_FILE,
        REFUSED,
        "transformer_task",
        "a bundle that embeds has the base model",
        REFUSAL,
        neutral=("feature-extraction",),
    ),
    *rows(
        TRANSFORMER_FILE,
        REFUSED,
        "modality_config",
        "a bundle reads texts, by the base model",
        REFUSAL,
        neutral=({"text": {"method": "forward", "method_output_name": "last_hidden_state"}},),
    ),
    *rows(
        TRANSFORMER_FILE,
        REFUSED,
        "module_output_name",
        "pooling reads the vectors of tokens",
        REFUSAL,
        neutral=("token_embeddings",),
    ),
    *rows(
        TRANSFORMER_FILE,
        REFUSED,
        "processing_kwargs model_args tokenizer_args config_args model_kwargs processor_kwargs config_kwargs "
        "tokenizer_name_or_path query_length document_length query_expansion",
        "the model's own files say how it is read",
        REFUSAL,
        neutral=({},),
    ),
    *rows(TRANSFORMER_FILE, HARMLESS, "unpad_inputs backend", SPEED),
    *rows(
        "pooling",
        HONOURED,
        "pooling_mode pooling_mode_cls_token pooling_mode_max_tokens pooling_mode_mean_tokens "
        "pooling_mode_mean_sqrt_len_tokens pooling_mode_weightedmean_tokens pooling_mode_lasttoken",
        "the manifest's postprocess.pooling",
        "test_poolings",
    ),
    *rows(
        "pooling",
        REFUSED,
        "include_prompt",
        "pooling takes all tokens in",
        REFUSAL,
        neutral=(True,),
    ),
    *rows("pooling", HARMLESS, "embedding_dimension word_embedding_dimension", "the model says it"),
    *rows(
        "dense",
        HONOURED,
        "activation_function bias",
        "the manifest's postprocess.modules",
        "test_vectors_are_those_of_sentence_transformers",
    ),
    *rows(
        "dense",
        REFUSED,
        "use_residual",
        "no layer of the device does it",
        REFUSAL,
        neutral=(False,),
    ),
    *rows(
        "dense",
        REFUSED,
        "module_input_name module_output_name",
        "one vector goes from layer to layer",
        REFUSAL,
        neutral=("sentence_embedding",),
    ),
    *rows("dense", HARMLESS, "in_features out_features", "the weights say it"),
    *rows("layernorm", HARMLESS, "dimension", "the weights say it"),
    *rows(
        "normalize",
        REFUSED,
        "module_input_name module_output_name",
        "one vector goes from layer to layer",
        REFUSAL,
        neutral=("sentence_embedding",),
    ),
    *rows("dropout", HARMLESS, "dropout", TRAINING),
]
