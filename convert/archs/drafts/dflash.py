"""DFlash and DSpark: several tokens at once, by layers that read what chosen layers of another model give.

DSpark's have a head beside it that makes each token wait for the one before (a Markov chain of low rank), and some one
that says how sure it is.  Muse Glimmer's assistant is one of these too; `dspark` has what is DeepSeek V4's
and Gemma 4's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.drafts import dspark
from llmconv.convert.archs.drafts.eagle3 import DRAFTS, known_words
from llmconv.convert.archs.experts.deepseek4 import KEYS
from llmconv.convert.archs.parts import COMMON, HEAD_DIM, NORMS, QK_NORMS, attention, gated_mlp
from llmconv.convert.archs.recurrent.parts import only
from llmconv.convert.tables.architecture import Architecture, Form, HfName, Key, Row, keys, row
from llmconv.convert.tables.config import look_up
from llmconv.convert.tables.ops import Dims, Offsets
from llmconv.convert.tables.windows import PATTERN
from llmconv.errors import BadFile, Unsupported

_at = "{p}layers.{i}."

_SPARK = (
    *("Qwen3DSparkModel", "DSparkDraftModel", "DSparkSpeculator", "Lfm2DSparkDraftModel", "LingDSparkModel"),
    "Gemma4DSparkModel",
)


def _layers_read(config: Mapping[str, Any]) -> list[int]:
    """Which layers' inputs are read, counted from 0: settings list those whose outputs are."""
    if isinstance(after := config.get("aux_hidden_state_layer_ids"), list):
        return [int(i) for i in after]
    found = look_up(config, ("dflash_config.target_layer_ids", "target_layer_ids", "dspark_target_layer_ids"))
    if not isinstance(found, list) or not found:
        raise BadFile("config.json: target_layer_ids does not list the layers that are read; correct it")
    return [int(i) + 1 for i in found]


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if config.get("rope_is_neox_style", True) is False:
        raise Unsupported("config.json: rope_is_neox_style is false, which is not known of a dflash model here")
    if look_up(config, ("markov_head_type", "dflash_config.markov_head_type")) not in (None, "vanilla"):
        raise Unsupported("config.json: markov_head_type is not 'vanilla', the only one that llama.cpp's drafts have")
    own["target_layers"] = np.asarray(_layers_read(config), np.int32)
    part = config.get("partial_rotary_factor")
    if part is not None:
        own["rope.dimension_count"] = np.uint32(int(dims["head_dim"] * float(part)))
    own_settings = config.get("dflash_config") or {}
    count = min(int(own["block_count"]), 1 << 16)
    all_of_them, kinds = bool(own_settings.get("use_swa")), config.get("layer_types") or []
    window = own_settings.get("swa_window_size") or config.get("sliding_window")
    muse = config.get("model_type") == "muse_glimmer_assistant"
    if window and (all_of_them or config.get("use_sliding_window") or (muse and kinds)):
        own["attention.sliding_window"] = np.uint32(window)
        windows = [True] * count if all_of_them else [kind == "sliding_attention" for kind in kinds]
        own[PATTERN] = np.asarray(windows, np.bool_)
    if (config.get("target") or {}).get("mrope"):
        own["rope.dimension_sections"] = np.asarray([dims["head_dim"] // 2, 0, 0, 0], np.int32)
    classes = config.get("architectures")
    if isinstance(classes, list) and set(classes) & set(_SPARK):
        theirs = "transformer_layer_config" in config or "aux_hidden_state_layer_ids" in config
        own.setdefault("sample_from_anchor", not theirs)
        own.setdefault("has_confidence_head", bool(config.get("enable_confidence_head")))
    mask = look_up(config, ("dflash_config.mask_token_id", "mask_token_id", "dspark_noise_token_id"))
    if mask is not None:
        own["/tokenizer.ggml.mask_token_id"] = np.uint32(mask)
    if dspark.is_of(config, dspark.DEEPSEEK4):
        dspark.deepseek4_keys(own, config)
    elif dspark.is_of(config, dspark.GEMMA4):
        dspark.gemma4_keys(own, config, dims)


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["target_layer_ids"] = [int(i) - 1 for i in own["target_layers"]]
    if "draft_vocab_size" in own:
        config["draft_vocab_size"] = dims["n_draft"]
    if "sample_from_anchor" in own:
        config.update(architectures=["DSparkDraftModel"], model_type="qwen3")
        config["sample_from_anchor"] = bool(own["sample_from_anchor"])
        config["enable_confidence_head"] = bool(own.get("has_confidence_head", False))
    if own.get("attention.sliding_window"):
        windows = np.broadcast_to(own.get(PATTERN, True), (dims["n_layer"],))
        config["use_sliding_window"] = True
        config["layer_types"] = ["sliding_attention" if on else "full_attention" for on in windows]
    config["head_dim"] = dims["head_dim"]
    if dims["n_hc"]:
        dspark.deepseek4_back(config, own, dims)
    elif dims["own_scale"]:
        dspark.gemma4_back(config, own, dims)


def _told(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """The sizes that GGUFs of others leave to their tensors."""
    sizes = known_words(tensors, dims)
    for name in ("selector_predecessor.weight", "markov_w1.weight"):
        if name in tensors and len(tensors[name].shape) == 2:
            sizes["vocab_size"] = np.uint32(tensors[name].shape[0])
    if "markov_w1.weight" in tensors:
        sizes["markov_rank"] = np.uint32(tensors["markov_w1.weight"].shape[-1])
    return sizes


def _convolution(part: str, theirs: str) -> tuple[Any, ...]:
    """Rows of a convolution along the tokens of a block, whose kernels depend on them."""
    groups = "n_embd // conv_group"
    return (
        row(f"blk.{{i}}.{part}_conv_base", _at + f"{theirs}.base_kernel", "2, conv_kernel, n_embd", when="conv_kernel"),
        row(
            f"blk.{{i}}.{part}_conv_proj.weight",
            _at + f"{theirs}.kernel_projection.weight",
            f"2 * conv_kernel * ({groups}), n_embd",
            when="conv_kernel",
        ),
    )


def _selector(gguf: str, theirs: str) -> Any:
    return row(f"selector_{gguf}.weight", "{p}candidate_selector." + theirs, "n_vocab, n_selector", when="n_selector")


def _layers() -> tuple[Row, ...]:
    """The rows of a layer of any draft but those of DeepSeek V4's; Gemma 4's have norms of their own, and no values."""
    alike = (NORMS[0], *attention(), *QK_NORMS, *gated_mlp())
    weights = tuple(each for each in alike if each.gguf[0].endswith(".weight"))
    others = tuple(each for each in weights if each.gguf[0] == "blk.{i}.attn_v.weight")
    return (
        *only(tuple(each for each in weights if each not in others), "not n_hc"),
        *only((*others, NORMS[1]), "not n_hc and not own_scale"),
        row("blk.{i}.attn_sinks.weight", _at + "self_attn.sinks", "n_head", when="not n_hc", optional=True),
        *dspark.GEMMA4_ROWS,
        *dspark.deepseek4_rows(),
    )


def _confident(config: Mapping[str, Any]) -> bool:
    return bool(config.get("enable_confidence_head") or dspark.is_of(config, dspark.DEEPSEEK4))


DFLASH = Architecture(
    "dflash",
    (
        HfName("DFlashDraftModel", "dflash"),
        HfName("DFlash2DraftModel", "dflash"),
        *(HfName(name, "dspark") for name in _SPARK),
        HfName("MuseGlimmerAssistantModel", "muse_glimmer_assistant"),
        HfName("DeepseekV4DSparkModel", "deepseek_v4_dspark"),
    ),
    keys=(
        *(key for key in COMMON if key.gguf != "rope.freq_base"),
        *HEAD_DIM,
        *keys("""
            rope.freq_base             f32    rope_theta
            vocab_size                 u32    vocab_size
            block_size                 u32    block_size|dflash_config.block_size|dspark_block_size                  16
            conv_kernel_size           u32    dflash_config.conv_kernel_size
            conv_group_size            u32    dflash_config.conv_group_size
            selector_rank              u32    dflash_config.selector_rank
            selector_top_k             u32    dflash_config.selector_top_k
            attention.value_scale      f32    dflash_config.attention_value_scale
            attention.causal           bool   is_causal|dflash_config.causal
            logit_scale                f32    output_multiplier|dflash_config.output_multiplier
            embedding_scale            f32    input_embedding_scale|dflash_config.input_embedding_scale
            sample_from_anchor         bool   sample_from_anchor
            draft_vocab_size           u32    draft_vocab_size
                    """),
        Key(
            "markov_rank",
            ("markov_rank", "dflash_config.markov_rank", "dspark_config.markov_rank", "dspark_markov_rank"),
        ),
        Key("final_logit_softcapping", ("final_logit_softcapping", "dflash_config.final_logit_softcapping"), "f32"),
    ),
    rows=(
        row("token_embd.weight", "{p}embed_tokens.weight", "n_vocab, n_embd", optional=True),
        dspark.staged(row("output_norm.weight", "{p}norm.weight", "n_embd"), "norm.weight"),
        row("output.weight", "{p}lm_head.weight", "n_draft, n_embd", optional=True, alt=(Form(("lm_head.weight",)),)),
        dspark.staged(
            row("fc.weight", "{p}fc.weight", "n_embd, n_read * n_embd", alt=(Form(("{p}encoder.fc.weight",)),)),
            "main_proj.weight",
        ),
        dspark.staged(
            row(
                "enc.output_norm.weight",
                "{p}hidden_norm.weight",
                "n_embd",
                alt=(Form(("{p}encoder.output_norm_enc.weight",)),),
            ),
            "main_norm.weight",
        ),
        row("d2t", "d2t", "n_draft", Offsets(), optional=lambda config: bool(config.get("draft_vocab_size"))),
        *(
            dspark.staged(
                row(f"markov_{w}.weight", f"{{p}}markov_head.markov_{w}.weight", shape, when="n_markov"),
                f"markov_head.markov_{w}.weight",
            )
            for w, shape in (("w1", "n_vocab, n_markov"), ("w2", "n_draft, n_markov"))
        ),
        dspark.staged(
            row(
                "conf_proj.weight",
                "{p}confidence_head.proj.weight",
                "1, n_embd + n_markov",
                optional=_confident,
                alt=(Form(("{p}confidence_proj.weight",)),),
            ),
            "confidence_head.proj.weight",
        ),
        row(
            "conf_proj.bias",
            "{p}confidence_head.proj.bias",
            "1",
            optional=True,
            alt=(Form(("{p}confidence_proj.bias",)),),
        ),
        _selector("predecessor", "predecessor_codebook"),
        _selector("successor", "successor_codebook"),
        row(
            "selector_hidden.weight",
            "{p}candidate_selector.hidden_projection.weight",
            "n_selector, n_embd",
            when="n_selector",
        ),
        *_layers(),
        *_convolution("attn", "attention_conv"),
        *_convolution("ffn", "mlp_conv"),
    ),
    made=(dspark.FREQS,),
    prefixes=("", "model."),
    kept=("t2d", "model.t2d", r"mtp\.\d+\.ffn\.gate\.bias_vl"),
    told=_told,
    finish=_finish,
    rebuild=_rebuild,
    decoder={"not_run": DRAFTS},
    reads="target target_layer_ids dflash_config.mask_token_id dflash_config.target_layer_ids dflash_config.use_swa"
    " dflash_config.swa_window_size dflash_config.markov_head_type dspark_config aux_hidden_state_layer_ids layer_types"
    " sliding_window use_sliding_window mask_token_id enable_confidence_head architectures partial_rotary_factor"
    " markov_head_type transformer_layer_config global_head_dim num_global_key_value_heads attention_k_eq_v"
    " hidden_activation dspark_noise_token_id dspark_target_layer_ids qk_rope_head_dim swiglu_limit"
    + "".join(f" {name}" for key in KEYS for name in key.names),
    inert="num_target_layers max_window_layers speculators_config speculators_model_type speculators_version"
    " confidence_head_with_markov num_hash_layers compress_ratios compress_rates mlp_layer_types expert_dtype",
)

ARCHITECTURES = (DFLASH,)
