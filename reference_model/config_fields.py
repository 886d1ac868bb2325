"""Fields of a `config.json` that open-mythos does not have, and what they mean for an export."""

from __future__ import annotations

from typing import Any

__all__ = ["MODEL_TYPES", "problem_of", "without_foreign_fields"]

MODEL_TYPES = ("openmythos", "open_mythos", "open-mythos", "mythos")

# Of other tools (transformers, the Hub) and of forks' training and memory management: no tensor, no arithmetic.
_PASSED_OVER = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path architectures auto_map bos_token_id
    decoder_start_token_id dtype eos_token_id finetuning_task id2label initializer_range is_decoder label2id
    language license name output_attentions output_hidden_states pad_token_id prefix problem_type return_dict
    sep_token_id task_specific_params tokenizer_class torch_dtype torchscript transformers_version unk_token_id
    use_bfloat16 use_cache version

    begin_suppress_tokens bad_words_ids diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values
    repetition_penalty return_dict_in_generate suppress_tokens temperature tf_legacy_loss top_k top_p typical_p

    activation_checkpointing attention_dropout attn_dropout aux_loss_coef aux_loss_weight balance_loss_weight
    bias_update_rate compile embd_dropout flash_attention gradient_checkpointing hidden_dropout init_std kv_max_pages
    kv_page_size label_smoothing load_balance_loss_weight moe_aux_loss_coef ponder_loss_weight resid_dropout
    router_aux_loss_coef router_bias_update_rate router_z_loss_coef seed use_checkpoint use_checkpointing use_compile
    use_flash use_flash_attention use_flash_attn use_gradient_checkpointing use_sdpa z_loss_weight
    """.split()
)
# Fields that would change the model, and the one value at which they do not.
_NEUTRAL: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None,
    "hidden_act": "silu",
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "pruned_heads": {},
    "quantization_config": None,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "sliding_window": None,
    "tie_encoder_decoder": False,
    "tie_word_embeddings": True,
}


def without_foreign_fields(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that are open-mythos' own, or unknown here; the others change nothing for an export."""
    harmless = _PASSED_OVER | _NEUTRAL.keys() | {"model_type"}
    return {name: value for name, value in values.items() if name not in harmless}


def problem_of(values: dict[str, Any]) -> str | None:
    """What says that this is another model than open-mythos'."""
    model_type = values.get("model_type")
    if model_type is not None and model_type not in MODEL_TYPES:
        return f"model_type is {str(model_type)[:80]!r}, which is another model; known: {', '.join(MODEL_TYPES)}"
    for name, neutral in _NEUTRAL.items():
        if name in values and values[name] != neutral:
            return f"{name} is {str(values[name])[:80]!r}; open-mythos has {neutral!r}"
    return None
