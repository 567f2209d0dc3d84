"""Which settings of a config.json a table computes with, which have no effect, and which nobody here knows.

A setting that changes what a model computes is honoured, refused or named in a note, never ignored.  What is honoured
stands in the table: the names of its keys, the flags of its rows, and `reads` for its hooks; `fixed` says of which
settings only one value is computed, `inert` which change nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llmconv.convert.tables.config import text_config
from llmconv.errors import cut

if TYPE_CHECKING:
    from llmconv.convert.tables.architecture import Architecture

__all__ = ["INERT", "ignored_by_transformers", "unaccounted"]

_NO_EFFECT = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation _experts_implementation_internal _flash_attn_2_enabled _name_or_path architectures attn_impl
    auto_map base_model_tp_plan base_model_pp_plan custom_pipelines dtype ep_size experts_implementation model_type
    torch_dtype torchscript transformers_version tf_legacy_loss unsloth_version unsloth_fixed unsloth_processing
    use_bfloat16 use_cache use_cache_quantization use_cache_kernel use_flash_attn use_flash_attention
    use_flash_attention_2 quantization_config compression_config

    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id unk_token_id decoder_start_token_id
    begin_suppress_tokens suppress_tokens forced_bos_token_id forced_eos_token_id bad_words_ids tokenizer_class
    tokenizer_name prefix

    do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty length_penalty max_length
    max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    diversity_penalty remove_invalid_values repetition_penalty temperature top_k top_p typical_p

    attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout dropout embd_dropout embd_pdrop
    emb_pdrop embedding_dropout ffn_dropout ffn_pdrop hidden_dropout hidden_dropout_prob layerdrop resid_pdrop
    residual_dropout resid_dropout summary_first_dropout summary_last_dropout

    initializer_range initializer_factor init_device init_std init_config gradient_checkpointing
    aux_loss_alpha output_router_logits pretraining_tp router_aux_loss_coef router_jitter_noise router_z_loss_coef
    seq_aux

    chunk_size_feed_forward is_encoder_decoder output_attentions output_hidden_states output_past output_scores
    return_dict return_dict_in_generate
    id2label label2id num_labels problem_type finetuning_task task_specific_params pruned_heads
    summary_activation summary_proj_to_labels summary_type summary_use_proj

    tie_word_embeddings vocab_size
"""

INERT = frozenset(_NO_EFFECT.split())
"""Settings of any family that change nothing in a forward pass, or that conversion reads whatever the family."""

_OF_ROPE = """
    rope_type type rope_theta factor original_max_position_embeddings attention_factor attn_factor mscale mscale_all_dim
    beta_fast beta_slow truncate low_freq_factor high_freq_factor full_attention sliding_attention finetuned
"""

_ROPE = frozenset(_OF_ROPE.split())
"""Settings inside `rope_parameters` (or `rope_scaling`) that are computed with."""

_LONG, _WITHOUT_FACTORS = ("long_factor", "short_factor"), (None, "default", "linear", "dynamic")
"""Factors of each rotary frequency, and kinds of scaling that take none."""

_DENIED = {"is_causal", "causal"}
"""Settings of any family that say something by being false."""

_ROTARY = {"rope_parameters", "rope_scaling", "rope_theta", "rope_embedding_base", "rotary_emb_base"}


def unaccounted(arch: Architecture, config: Mapping[str, Any]) -> list[str]:
    """The settings, "name = value", that the table neither computes with nor knows to be without effect."""
    return [
        f"{name if len(name) <= 80 else cut(name)} = {cut(value, 40)}"
        for name, value in _unaccounted(arch, text_config(config))
    ]


def ignored_by_transformers(arch: Architecture, config: Mapping[str, Any]) -> list[str]:
    """Notes about settings that no class of transformers reads: followed as in the model's own code, or not at all."""
    config = text_config(config)
    names = list(arch.disputed(config))
    for key in arch.keys:
        usual = arch.decoder.get("gating") if key.default is None else key.default
        if key.gguf == "expert_gating_func" and usual == "sigmoid":  # which their classes always take
            names += [name for name in key.names if config.get(name, "sigmoid") not in (None, "sigmoid")]
    if "route_norm" in arch.settings and config.get("route_norm") is False:
        names.append("route_norm")
    kind = cut(config.get("model_type", arch.gguf))
    return [
        *(
            f"config.json: {name} is followed, as in the model's own code; transformers ignores it"
            for name in dict.fromkeys(names)
        ),
        *(
            f"config.json: {name} has no effect in a {kind} model: transformers ignores it"
            for name in arch.ignored(config)
            if name in arch.settings
        ),
    ]


def _unaccounted(arch: Architecture, config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    known = arch.settings | _long_factors(arch)
    objects = {name.split(".")[0] for name in known if "." in name}
    rotary = known & {"rope_theta"}
    for name, value in config.items():
        if name in ("rope_parameters", "rope_scaling") and rotary:
            yield from _rope(name, value, known)
        elif name in objects and isinstance(value, Mapping):
            yield from _inside(arch, name, value)
        elif name in arch.fixed:
            if not _is_fixed(value, arch.fixed[name]):
                yield name, value
        elif name in known or name in INERT or (rotary and name in _ROTARY):
            continue
        elif not _empty(value) or (value is False and name in _DENIED):
            yield name, value


def _long_factors(arch: Architecture) -> set[str]:
    """Where a table has tensors for them, lists of a factor for each rotary frequency."""
    tensors = {made.gguf for made in arch.made}
    return {name for name in _LONG if f"rope_factors_{name.removesuffix('_factor')}.weight" in tensors}


def _inside(arch: Architecture, name: str, value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The same for the settings of an object (MPT's attn_config)."""
    for inner, found in value.items():
        full = f"{name}.{inner}"
        if full in arch.fixed:
            if not _is_fixed(found, arch.fixed[full]):
                yield full, found
        elif full not in arch.settings and inner not in INERT and not _empty(found):
            yield full, found


def _rope(name: str, value: Any, known: frozenset[str]) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return
    for inner, found in value.items():
        if isinstance(found, Mapping) and inner in ("full_attention", "sliding_attention"):
            yield from _rope(f"{name}.{inner}", found, known)
            if inner == "sliding_attention" and found.get("rope_type", "default") != "default":
                full = value.get("full_attention")
                if not isinstance(full, Mapping) or "windowed rope scaling" not in known:
                    yield f"{name}.{inner}.rope_type", found["rope_type"]
        elif inner == "partial_rotary_factor":
            if inner not in known and found not in (None, 1, 1.0):
                yield f"{name}.{inner}", found
        elif (
            (inner not in _ROPE and inner not in known and not _empty(found))
            or (inner in _LONG and value.get("rope_type", value.get("type")) in _WITHOUT_FACTORS)
            or (inner == "factor" and value.get("rope_type", value.get("type")) is None and found not in (None, 1))
        ):
            yield f"{name}.{inner}", found


def _empty(value: Any) -> bool:
    """Whether a setting that nobody knows says nothing: null, false, or empty."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _is_fixed(value: Any, computed: Any) -> bool:
    """Whether it is the value that is computed with (one of several, in a tuple), or states none; null is no flag."""
    if value is None:
        return computed is not True
    return value in computed if isinstance(computed, tuple) else bool(value == computed)
