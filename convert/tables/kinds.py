"""Of which kind the settings of a config.json are that hooks and conditions of the tables read; a `Key` says its own.

A flag that is a text counts as true, and a text of digits as a number, wherever Python is asked: so they are asked here
first, under the name that the setting has in any family.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from llmconv.convert.tables.keys import whole
from llmconv.errors import BadFile, cut

__all__ = ["check_kinds"]

_SETTINGS = """
flag:
    _remove_final_layer_norm add_bias_linear add_cross_attention add_qkv_bias alibi apply_mla_qkv_lora_rescale
    apply_query_key_layer_scaling apply_residual_connection_post_layernorm attention_bias attention_k_eq_v
    attention_layer_norm attention_out_bias attn_output_gate attn_temperature_tuning bias block_auto_adjust_ff_dim
    causal classifier_bias conv_bias do_layer_norm_before embed_norm enable_bias enable_confidence_head
    enable_moe_block expert_choice_router ffn_with_glu gate_bias gated_mlp gating head_bias headwise_attn_output_gate
    include_bias include_qkv_bias input_emb_norm input_layernorm is_causal is_decoder k_rope_only_layernorm
    kda_safe_gate layer_norm_elementwise_affine lm_head_bias mamba_conv_bias mamba_enabled mamba_norm_before_gate
    mamba_proj_bias mamba_rms_norm mla_use_nope mlp_bias mlp_fc1_bias mlp_fc2_bias moe_apply_router_weight_on_input
    moe_enable_early_router moe_enable_secondary_experts moe_normalize_expert_weights moe_primary_router_apply_softmax
    moe_router_enable_expert_bias mrope_interleaved multi_query multi_query_attention mup_enabled mup_scale_qk_dot_by_d
    new_decoder_architecture no_bias no_final_norm no_kda_lora no_learned_positions nope_on_global_attention norm
    norm_before_fc norm_bias norm_head norm_softmax norm_topk_prob norm_weights normalize_qk_projections
    output_projection parallel_attn parallel_attn_mlp_res parallel_block post_attention_norm post_layer_norm
    post_mlp_norm postnorm pre_mlp_layernorm prenorm projectors_bias qk_layernorm qkv_bias qkv_proj_bias rmsnorm
    rms_norm rope_interleave rotary_emb_interleaved route_norm scale_attn_by_inverse_layer_idx scale_attn_weights
    scale_logits scale_qk_dot_by_d share_input_output_layers skip_loop_final_norm tie_word_embeddings truncate
    up_gated_layer use_bias use_bidirectional_attention use_cla use_conv_bias use_double_wide_mlp use_dsa
    use_expert_bias use_head_wise_attn_gate use_mixed_mlp_moe use_mla use_ordered_embeddings
    use_predefined_initial_state use_qk_norm use_qkv_bias use_residual use_rmsnorm use_sliding_window weight_tying
    wkv_has_gate zero_centered
number:
    activation_sparsity_pattern alpha attention_factor attn_factor attn_output_multiplier attn_scale beta_fast beta_slow
    block_ffn_dim_multiplier dim_model_base embedding_fraction expansion_ratio extrapolation_factor factor
    full_attn_alpha_factor full_attn_beta_factor high_freq_factor layernorm_full_attention_alpha
    layernorm_full_attention_beta layernorm_linear_attention_alpha layernorm_linear_attention_beta layernorm_mlp_alpha
    layernorm_mlp_beta linear_attn_alpha_factor linear_attn_beta_factor llama_4_scaling_beta long_mscale lora_alpha
    low_freq_factor mixer_rms_eps mlp_alpha_factor mlp_beta_factor moe_norm_min moe_router_logit_softcapping mscale
    mscale_all_dim mup_output_alpha mup_width_scale original_max_position_embeddings partial_rotary_factor post_norm_eps
    moe_normalize_expert_weights query_pre_attn_scalar rope_pct rope_percent rope_ratio rope_scaling_factor rope_theta
    rotary_emb_fraction rotary_pct scale_depth scale_emb scaling_factor short_mscale swiglu_alpha swiglu_limit
whole:
    _sliding_window_pattern attention_chunk_size attn_layer_offset attn_layer_period attn_rotary_emb block_group_size
    block_multiple_of decoder_sparse_step expert_layer_offset expert_layer_period ffn_dim_divisor floor_scale
    global_attn_every_n_layers global_head_dim index_skip_topk_offset index_topk_freq indexer_compress_ratio
    indexer_kv_heads initial_context_length layer_group_size linear_num_heads linear_value_head_dim lora_rank
    make_ngram_vocab_size_divisible_by mamba_d_head mamba_d_ssm mamba_dt_rank mamba_expand mamba_head_dim mamba_step
    max_trained_positions max_window_layers moe_layer_end_index moe_layer_freq moe_layer_frequency moe_topk
    n_head_kv n_shared_head ngram_vocab_size_base no_rope_layer_interval num_centroids num_global_key_value_heads
    num_hash_layers num_kv_heads num_ln_in_parallel_attn num_loops num_shared_expert padded_vocab_size ple_embed_dim
    prefix_dense_sliding_window_pattern qk_nope_head_dim relative_attention_max_distance sliding_window_pattern
    swa_head_dim swa_kv_lora_rank swa_num_attention_heads swa_num_key_value_heads swa_q_lora_rank swa_qk_nope_head_dim
    rotary_dim swa_qk_rope_head_dim swa_v_head_dim time_step_rank wkv_version word_embed_proj_dim
text:
    activation activation_function activation_type attention_gate_type block_type classifier_activation
    feed_forward_proj feed_forward_type gate_attn_act_mode gating hidden_activation hybrid_override_pattern
    index_topk_pattern mamba_d_head mamba_dt_rank mamba_hidden_act markov_head_type moe_layers_enum norm_type
    output_gate_type position_embedding_type qk_norm_type rope_type shared_expert_combination_strategy
    sliding_window_pattern swa_attention_gate_type time_step_rank topk_method use_bidirectional_attention
texts:
    indexer_types layer_types layers_block_type mlp_layer_types
wholes:
    attn_layer_indices attn_type_list compress_ratios full_attn_idxs hybrid_layer_pattern mlp_only_layers moe_layer_freq
    moe_layers moe_topk mrope_section no_rope_layers num_attention_heads_per_layer num_key_value_heads_per_layer
    num_kv_heads num_shared_expert ple_layer_ids rope_layout sliding_window_layout target_layer_ids xdrope_section
numbers:
    activation_sparsity_pattern ffn_multipliers layer_rope_theta long_factor partial_rotary_factors rope_theta
    short_factor swiglu_limits swiglu_limits_shared
objects:
    block_configs
object:
    attention_other_setting attn_config compress compress_rates dflash_config eagle_config ffn_config full_attention
    indexed_attention linear_attn_config main per_layer_config sliding_attention sparse_attention_config
"""
"""Kind -> settings; one that is of several stands at each of them."""


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, int) and value in (0, 1))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    try:
        return whole(value) is not None
    except TypeError:
        return isinstance(value, bool)  # a list's flags, of which some programs make numbers


def _all(one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(each is None or one(each) for each in value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "flag": _is_flag,
    "number": _is_number,
    "whole": lambda value: _is_number(value) and _is_whole(value),
    "text": lambda value: isinstance(value, str),
    "texts": _all(lambda value: isinstance(value, str)),
    "wholes": _all(_is_whole),
    "numbers": _all(_is_number),
    "objects": _all(lambda value: isinstance(value, Mapping)),
    "object": lambda value: isinstance(value, Mapping),
}
_WORDS = {
    "flag": "true or false",
    "number": "a number",
    "whole": "a whole number",
    "text": "a text",
    "texts": "a list of texts",
    "wholes": "a list of whole numbers",
    "numbers": "a list of numbers",
    "objects": "a list of objects",
    "object": "an object",
}
_ROTARY = ("rope_parameters", "rope_scaling")


def _kinds() -> dict[str, tuple[str, ...]]:
    out: dict[str, tuple[str, ...]] = {}
    kind = ""
    for word in _SETTINGS.split():
        if word.endswith(":"):
            kind = word[:-1]
        else:
            out[word] = (*out.get(word, ()), kind)
    return out


KINDS = _kinds()


def check_kinds(config: Mapping[str, Any], read: Collection[str], source: str) -> None:
    """`BadFile` for a setting of another kind than it is of; null says nothing.

    config: as the file has it, or flat.   read: the settings that the family's table computes with.
    """
    objects: dict[str, set[str]] = {}
    for setting in read:
        outer, _, inner = setting.partition(".")
        if inner:
            objects.setdefault(outer, set()).add(inner)
    for name, value in config.items():
        if name in _ROTARY and isinstance(value, Mapping):
            _check_rotary(value, f"{source}: {name}.")
        elif name in read or name in objects:
            _check(name, value, f"{source}: ")
        if name in objects and isinstance(value, Mapping):
            for inner in value.keys() & objects[name]:
                _check(inner, value[inner], f"{source}: {name}.")


def _check_rotary(settings: Mapping[str, Any], start: str) -> None:
    for name, value in settings.items():
        _check(name, value, start)
        if isinstance(value, Mapping):
            _check_rotary(value, f"{start}{name}.")


def _check(name: str, value: Any, start: str) -> None:
    kinds = KINDS.get(name, ())
    if value is not None and kinds and not any(_CHECKS[kind](value) for kind in kinds):
        wanted = " or ".join(_WORDS[kind] for kind in kinds)
        raise BadFile(f"{start}{name} is {cut(value, 60)}, expected {wanted}")
