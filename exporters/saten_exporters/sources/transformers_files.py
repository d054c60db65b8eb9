"""The settings in the files that transformers and tokenizers write."""

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
from saten_runtime.vocabulary.files import (
    CONFIG_FILE,
    GENERATION_CONFIG_FILE,
    PREPROCESSOR_CONFIG_FILE,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
)

__all__ = ["ROWS"]

_GRAPH = "the graph is traced from the model that transformers builds with it"
_IN_TOKENIZER = "the bundle's tokenizer.json is the tokenizer that transformers builds with it"
_BEAMS = "one text is continued, by one token at a time"
_ELSEWHERE = "as in transformers 5, only generation_config.json says how tokens are chosen"

_CONFIG = [
    *rows(
        CONFIG_FILE,
        HONOURED,
        "activation activation_function attention_bias classifier_activation classifier_bias classifier_pooling dim "
        "embedding_size head_dim hidden_act hidden_activation hidden_dim hidden_size image_size intermediate_size "
        "layer_norm_eps layer_norm_epsilon local_attention mlp_bias mlp_ratio n_embd n_head n_heads n_inner n_layer "
        "n_layers norm_bias norm_eps num_attention_heads num_channels num_hidden_layers num_key_value_heads "
        "num_register_tokens patch_size query_pre_attn_scalar final_logit_softcapping qkv_bias "
        "relative_attention_num_buckets rms_norm_eps "
        "scale_attn_by_inverse_layer_idx scale_attn_weights sinusoidal_pos_embds tie_word_embeddings "
        "type_vocab_size vocab_size",
        _GRAPH,
        "test_an_export_is_whole_and_computes_what_torch_does",
    ),
    *rows(
        CONFIG_FILE,
        HONOURED,
        "max_position_embeddings n_positions",
        "texts are cut to it, prompts refused",
        "test_a_prompt_beyond_the_context_is_refused",
    ),
    *rows(
        CONFIG_FILE,
        HONOURED,
        "rope_parameters rope_theta rope_scaling global_rope_theta local_rope_theta partial_rotary_factor "
        "sliding_window use_sliding_window attention_chunk_size layer_types global_attn_every_n_layers "
        "max_window_layers is_decoder is_causal add_cross_attention position_embedding_type "
        "use_bidirectional_attention use_swiglu_ffn vision_use_head attn_logit_softcapping sliding_window_pattern "
        "_sliding_window_pattern rope_local_base_freq",
        _GRAPH + "; what no graph of ours expresses is refused by name",
        "test_an_option_we_cannot_express",
    ),
    *rows(CONFIG_FILE, HONOURED, "id2label label2id num_labels", "the manifest's labels", "test_labels_by_index"),
    *rows(CONFIG_FILE, HONOURED, "model_type architectures", "they choose family and task"),
    *rows(
        CONFIG_FILE,
        HONOURED,
        "problem_type",
        "several classes or numbers per item are refused",
        "test_several_classes_at_once",
    ),
    *rows(CONFIG_FILE, REFUSED, "per_layer_config", "every layer has the same sizes", REFUSAL, neutral=({},)),
    *rows(
        CONFIG_FILE,
        HONOURED,
        "quantization_config",
        "it describes a Saten model's layers; other quantizers are refused by transformers",
    ),
    *rows(
        CONFIG_FILE,
        HONOURED,
        "pad_token_id cls_token_id sep_token_id bos_token_id eos_token_id",
        "padding and ends of texts",
        "test_the_settings_of_generation",
    ),
    *rows(
        CONFIG_FILE,
        HARMLESS,
        "output_attentions output_hidden_states return_dict _output_attentions",
        "a bundle gives its task's outputs; they are switched off before tracing",
        "test_output_flags_change_nothing",
    ),
    *rows(
        CONFIG_FILE,
        HARMLESS,
        "attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout dropout embd_pdrop "
        "embedding_dropout hidden_dropout_prob mlp_dropout qa_dropout resid_pdrop seq_classif_dropout "
        "summary_first_dropout summary_last_dropout drop_path_rate layerscale_value use_mask_token "
        "initializer_cutoff_factor initializer_range gradient_checkpointing",
        TRAINING,
    ),
    *rows(CONFIG_FILE, HARMLESS, "dtype torch_dtype", "weights are read as float32, or the export is refused"),
    *rows(
        CONFIG_FILE,
        HARMLESS,
        "use_cache chunk_size_feed_forward deterministic_flash_attn reorder_and_upcast_attn pretraining_tp "
        "_attn_implementation_internal _experts_implementation_internal _post_init_done attn_implementation "
        "experts_implementation reference_compile repad_logits_with_grad num_assistant_tokens "
        "num_assistant_tokens_schedule assistant_confidence_threshold assistant_lookbehind target_lookbehind",
        SPEED,
    ),
    *rows(
        CONFIG_FILE,
        HARMLESS,
        "decoder_bias encoder_stride sparse_pred_ignore_index sparse_prediction pooler_act pooler_output_size "
        "summary_activation summary_proj_to_labels summary_type summary_use_proj apply_layernorm "
        "reshape_hidden_states out_features out_indices _out_features _out_indices stage_names",
        "only heads have it that no task of ours uses",
    ),
    *rows(CONFIG_FILE, HARMLESS, "is_encoder_decoder", "no family of ours has both"),
    *rows(
        CONFIG_FILE,
        HARMLESS,
        "_name_or_path name_or_path _commit_hash transformers_version task_specific_params finetuning_task language "
        "tokenizer_class transformers.js_config",
        NAMES,
    ),
    *rows(
        CONFIG_FILE,
        HARMLESS,
        "directionality n_ctx output_past pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers "
        "pooler_size_per_head pooler_type tie_weights_ pruned_heads torchscript use_bfloat16 is_llama_config "
        "rope_interleaved unsloth_fixed unsloth_version",
        "transformers 5 does not read it",
        "test_what_transformers_does_not_read_changes_nothing",
    ),
    *rows(CONFIG_FILE, HARMLESS, "output_scores return_dict_in_generate", "only tokens are given"),
    *rows(CONFIG_FILE, REPORTED, "max_length", _ELSEWHERE, neutral=(20,)),
    *rows(CONFIG_FILE, REPORTED, "top_k", _ELSEWHERE, neutral=(50,)),
    *rows(
        CONFIG_FILE,
        REPORTED,
        "temperature top_p typical_p repetition_penalty encoder_repetition_penalty length_penalty num_beams "
        "num_beam_groups num_return_sequences",
        _ELSEWHERE,
        neutral=(1,),
    ),
    *rows(
        CONFIG_FILE,
        REPORTED,
        "do_sample early_stopping remove_invalid_values min_length no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size epsilon_cutoff eta_cutoff diversity_penalty",
        _ELSEWHERE,
        neutral=(0,),
    ),
    *rows(
        CONFIG_FILE,
        REPORTED,
        "bad_words_ids forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty suppress_tokens "
        "begin_suppress_tokens",
        _ELSEWHERE,
    ),
    *rows(
        CONFIG_FILE,
        REPORTED,
        "sentence_transformers sbert_ce_default_activation_function",
        "a cross-encoder's activation is not applied to the logits",
        neutral=("torch.nn.modules.linear.Identity",),
    ),
    *rows(CONFIG_FILE, REPORTED, "auto_map", "a model's own code is not run"),
]

_TOKENIZER = [
    *rows(
        TOKENIZER_CONFIG_FILE,
        HONOURED,
        "add_bos_token add_eos_token add_prefix_space do_lower_case strip_accents tokenize_chinese_chars trim_offsets "
        "added_tokens_decoder additional_special_tokens extra_special_tokens model_specific_special_tokens bos_token "
        "eos_token unk_token sep_token cls_token mask_token vocab merges unk_id post_processor fix_mistral_regex "
        "image_token audio_token video_token",
        _IN_TOKENIZER,
        "test_the_tokenizer_of_a_bundle_is_that_of_transformers",
    ),
    *rows(TOKENIZER_CONFIG_FILE, HONOURED, "pad_token model_input_names", "padding, and the inputs of the graph"),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HONOURED,
        "model_max_length",
        "texts are cut to it",
        "test_a_text_is_cut_where_python_cuts_it",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HONOURED,
        "truncation_side",
        "the side on which texts are cut",
        "test_a_text_is_cut_where_python_cuts_it",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HONOURED,
        "split_special_tokens",
        "special tokens in texts are read as text",
        "test_special_tokens_in_a_text_are_text",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        REFUSED,
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
        "generated text is not repaired",
        REFUSAL,
        neutral=(False,),
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HARMLESS,
        "clean_up_tokenization_spaces spaces_between_special_tokens",
        "generated text comes from BPE, which transformers does not clean up either",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HARMLESS,
        "padding_side pad_to_multiple_of pad_token_type_id padding",
        "padding is masked: a text gets the answer that it gets alone",
        "test_a_batch_is_padded_as_on_a_device",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HARMLESS,
        "max_length stride truncation truncation_strategy max_len max_target_length tokenizer_padding "
        "tokenizer_truncation return_token_type_ids",
        "every call of Python says it anew",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HONOURED,
        "chat_template",
        "the manifest's generation.chat, where texts around the messages are all of it",
        "test_a_common_template_is_rendered_as_transformers_renders_it",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HARMLESS,
        "chat_control_tokens response_schema response_template save_jinja_files use_default_system_prompt",
        "a prompt is taken as it is given, as by the tokenizer itself",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HARMLESS,
        "errors never_split do_basic_tokenize legacy sp_model_kwargs sanitize_control_tokens wordpieces_prefix "
        "use_fast from_slow add_dummy_prefix_space",
        "tokenizers of the `tokenizers` library do not read it",
    ),
    *rows(
        TOKENIZER_CONFIG_FILE,
        HARMLESS,
        "name_or_path tokenizer_class processor_class tokenizer_file vocab_file merges_file "
        "special_tokens_map_file gguf_file backend is_local local_files_only init_inputs files_loaded "
        "tokenizer_object tokenizer cache_dir commit_message force_download proxies repo_id revision subfolder "
        "token verbose use_source_tokenizer _commit_hash _from_auto _from_pipeline _json_padding _json_truncation "
        "_spm_precompiled_charsmap transformers_version full_tokenizer_file added_tokens_file trust_remote_code",
        NAMES,
    ),
    *rows(TOKENIZER_CONFIG_FILE, REPORTED, "auto_map", "a tokenizer's own code is not run"),
]

_TOKENIZER_JSON = [
    *rows(
        TOKENIZER_FILE,
        HONOURED,
        "version added_tokens normalizer pre_tokenizer post_processor decoder model",
        "the device reads the file",
        "test_the_tokenizer_of_a_bundle_is_that_of_transformers",
    ),
    *rows(TOKENIZER_FILE, HARMLESS, "truncation padding", "every call of Python says it anew"),
]

_GENERATION = [
    *rows(
        GENERATION_CONFIG_FILE,
        HONOURED,
        "repetition_penalty no_repeat_ngram_size bad_words_ids min_length min_new_tokens suppress_tokens "
        "begin_suppress_tokens do_sample temperature top_k top_p min_p",
        "the manifest's generation.choice; what generate refuses is refused by name",
        "test_rules_are_those_of_transformers",
    ),
    *rows(
        GENERATION_CONFIG_FILE, HONOURED, "eos_token_id", "the manifest's stop_ids", "test_the_settings_of_generation"
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "num_beams num_beam_groups num_return_sequences",
        _BEAMS,
        REFUSAL,
        neutral=(1,),
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "guidance_scale",
        "a token takes one run",
        REFUSAL,
        neutral=(1,),
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "sequence_bias forced_bos_token_id forced_eos_token_id exponential_decay_length_penalty stop_strings "
        "max_time watermarking_config top_h penalty_alpha dola_layers constraints force_words_ids cache_config",
        "no rule of the device does it",
        REFUSAL,
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "typical_p",
        "no rule of the device does it",
        REFUSAL,
        neutral=(1,),
    ),
    # Of a decoder, transformers takes the prompt for what the encoder read.
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "encoder_repetition_penalty",
        "no rule of the device does it",
        REFUSAL,
        neutral=(1,),
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "epsilon_cutoff eta_cutoff diversity_penalty encoder_no_repeat_ngram_size",
        "no rule of the device does it",
        REFUSAL,
        neutral=(0,),
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "token_healing",
        "no rule of the device does it",
        REFUSAL,
        neutral=(False,),
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        REFUSED,
        "cache_implementation",
        "only an exact cache gives the same numbers",
        REFUSAL,
        neutral=("dynamic", "static", "offloaded", "offloaded_static", "hybrid", "sliding_window"),
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        HARMLESS,
        "max_length max_new_tokens",
        "--max-tokens takes its place, as max_new_tokens of a call does",
    ),
    *rows(
        GENERATION_CONFIG_FILE, HARMLESS, "length_penalty early_stopping", "it only acts on beams, which are refused"
    ),
    *rows(GENERATION_CONFIG_FILE, HARMLESS, "renormalize_logits", "it changes no probability"),
    *rows(GENERATION_CONFIG_FILE, HARMLESS, "remove_invalid_values", "a logit that is NaN or infinite ends the run"),
    *rows(
        GENERATION_CONFIG_FILE,
        HARMLESS,
        "decoder_start_token_id",
        "no family of ours has an encoder beside a decoder",
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        HARMLESS,
        "pad_token_id bos_token_id",
        "prompts are continued one by one, and must have a token",
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        HARMLESS,
        "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate",
        "only tokens are given",
    ),
    *rows(
        GENERATION_CONFIG_FILE,
        HARMLESS,
        "use_cache use_mtp max_cache_len compile_config disable_compile continuous_batching_config low_memory "
        "prefill_chunk_size is_assistant num_assistant_tokens num_assistant_tokens_schedule "
        "assistant_confidence_threshold assistant_early_exit assistant_lookbehind target_lookbehind "
        "assistant_ensemble_weight speculation_type prompt_lookup_num_tokens max_matching_ngram_size",
        SPEED,
    ),
    *rows(GENERATION_CONFIG_FILE, HARMLESS, "transformers_version _from_model_config", NAMES),
]

_PICTURES = [
    *rows(
        PREPROCESSOR_CONFIG_FILE,
        HONOURED,
        "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std",
        "the manifest's image",
        "test_a_device_prepares_pictures_as_transformers_does",
    ),
    *rows(
        PREPROCESSOR_CONFIG_FILE,
        REFUSED,
        "do_pad",
        "no step of the device does it",
        REFUSAL,
        neutral=(False,),
    ),
    *rows(PREPROCESSOR_CONFIG_FILE, HARMLESS, "pad_size", "only padding reads it, which is refused"),
    *rows(
        PREPROCESSOR_CONFIG_FILE,
        HARMLESS,
        "do_convert_rgb default_to_square",
        "pictures arrive with three channels; sizes are written out",
    ),
    *rows(
        PREPROCESSOR_CONFIG_FILE,
        HARMLESS,
        "data_format input_data_format return_tensors device disable_grouping image_seq_length use_fast "
        "_valid_processor_keys",
        "it is a matter of one call",
    ),
    *rows(PREPROCESSOR_CONFIG_FILE, HARMLESS, "image_processor_type feature_extractor_type processor_class", NAMES),
    *rows(PREPROCESSOR_CONFIG_FILE, REPORTED, "auto_map", "a processor's own code is not run"),
]

ROWS = (*_CONFIG, *_TOKENIZER, *_TOKENIZER_JSON, *_GENERATION, *_PICTURES)
