"""Settings that change what a model computes, and what llama.cpp will not do: in the GGUF, back from it, in a note."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import by_hand
import numpy as np
import pytest
from hf_models import BAICHUAN, DEEPSEEK, GEMMA3, GPT2, GPT_OSS, LLAMA, QWEN3_MOE, model

from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.dialects import hf
from llmconv.convert.tables.config import normalized
from llmconv.convert.tables.settings import unaccounted
from llmconv.errors import LlmconvError, Unsupported
from llmconv.formats.checkpoint import Checkpoint

QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
SMOLLM3 = LLAMA | {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3"}
GEMMA2 = LLAMA | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 8}
COHERE2 = {k: v for k, v in LLAMA.items() if k != "rms_norm_eps"} | {
    "architectures": ["Cohere2ForCausalLM"],
    "model_type": "cohere2",
}
COHERE2_MOE = COHERE2 | {
    "architectures": ["Cohere2MoeForCausalLM"],
    "model_type": "cohere2_moe",
    "num_hidden_layers": 6,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "first_k_dense_replace": 1,
    "head_dim": 4,
    "sliding_window": 4,
}
LLAVA = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
MISTRAL3 = {"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3"}
PHIMOE = LLAMA | {
    "architectures": ["PhimoeForCausalLM"],
    "model_type": "phimoe",
    "num_local_experts": 2,
    "num_experts_per_tok": 2,
}
_LONG = {"rope_type": "longrope", "long_factor": [2.0, 3.0], "short_factor": [1.0, 1.0]} | {
    "original_max_position_embeddings": 8
}
_ALL = ["full_attention"] * 6
BLOOM = {
    "architectures": ["BloomForCausalLM"],
    "model_type": "bloom",
    "hidden_size": 16,
    "n_layer": 2,
    "n_head": 4,
    "vocab_size": 20,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4}


def converted(config: dict[str, Any], **changes: Any) -> Checkpoint:
    return hf.to_gguf(model(config | changes))


def by_keys_alone(gguf: Checkpoint) -> Decoder:
    """The decoder after a way there and back without the keys of our own."""
    keys = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.")}
    return describe(hf.to_gguf(hf.from_gguf(dataclasses.replace(gguf, metadata=keys))))


def said(gguf: Checkpoint, *words: str) -> bool:
    return any(all(word in note for word in words) for note in gguf.notes)


HONOURED: dict[str, tuple[dict[str, Any], dict[str, Any], Any, Any]] = {
    "qwen2 windows": (QWEN2, WINDOWS | {"max_window_layers": 1}, lambda d: [y.attention.window for y in d], [None, 4]),
    "qwen3moe windows": (QWEN3_MOE, WINDOWS, lambda d: [y.attention.window for y in d], [4, 4]),
    "qwen windows off": (QWEN2, {"sliding_window": 4}, lambda d: [y.attention.window for y in d], [None, None]),
    "gemma2 layers": (
        GEMMA2,
        {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
        lambda d: [y.attention.window for y in d],
        [None, 4],
    ),
    "cohere2 pattern": (
        COHERE2,
        {"sliding_window": 4, "sliding_window_pattern": 2},
        lambda d: [(y.attention.window, y.attention.rope is not None) for y in d],
        [(4, True), (None, False)],
    ),
    "smollm3 rope": (SMOLLM3, {"no_rope_layers": [0, 1]}, lambda d: [bool(y.attention.rope) for y in d], [False, True]),
    "smollm3 windows": (
        SMOLLM3,
        WINDOWS | {"no_rope_layer_interval": 2},
        lambda d: [y.attention.window for y in d],
        [None, 4],
    ),
    "gpt2 unscaled": (GPT2, {"scale_attn_weights": False}, lambda d: [y.attention.scale for y in d], [1.0, 1.0]),
    "gpt2 by layer": (
        GPT2,
        {"scale_attn_by_inverse_layer_idx": True},
        lambda d: [y.attention.scale for y in d],
        [0.5, 0.25],
    ),
    "bloom residual": (
        BLOOM,
        {"apply_residual_connection_post_layernorm": True},
        lambda d: [y.residual_after_norm for y in d],
        [True, True],
    ),
    "relu in a llama": (LLAMA, {"hidden_act": "relu"}, lambda d: [y.mlp.activation for y in d], ["relu", "relu"]),
    "silu by another name": (LLAMA, {"hidden_act": "swish"}, lambda d: [y.mlp.activation for y in d], ["silu", "silu"]),
    "moe every second": (
        QWEN3_MOE,
        {"decoder_sparse_step": 2},
        lambda d: [y.mlp.experts is not None for y in d],
        [False, True],
    ),
    "moe but one": (
        QWEN3_MOE,
        {"mlp_only_layers": [1]},
        lambda d: [y.mlp.experts is not None for y in d],
        [True, False],
    ),
    "cohere2moe windows": (
        COHERE2_MOE,
        {},
        lambda d: [(y.attention.window, y.attention.rope is not None) for y in d],
        [(None, True), (4, True), (4, True), (4, True), (None, False), (4, True)],
    ),
    "phimoe magnitude": (
        PHIMOE,
        {"rope_scaling": _LONG | {"short_mscale": 1.5, "long_mscale": 1.5}},
        lambda d: [y.attention.rope.attn_factor for y in d],
        [1.5, 1.5],
    ),
    "gemma2 without caps": (
        GEMMA2,
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        lambda d: [y.attention.softcap for y in d],
        [1e9, 1e9],
    ),
    "experts' weights as they are": (
        QWEN3_MOE,
        {"norm_topk_prob": None},
        lambda d: [y.mlp.experts.normalize for y in d],
        [False, False],
    ),
    "gemma rope": (
        LLAMA | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "head_dim": 8},
        {"rope_theta": 500.0},
        lambda d: [y.attention.rope.base for y in d],
        [500.0, 500.0],
    ),
}


@pytest.mark.parametrize("name", HONOURED)
def test_honoured_and_back(name: str) -> None:
    config, changes, part, expected = HONOURED[name]
    gguf = converted(config, **changes)
    assert part(describe(gguf).layers) == expected
    assert part(by_keys_alone(gguf).layers) == expected
    assert not said(gguf, "no effect here")


M4 = 1 + 0.1 * math.log(4)


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        ({}, M4),
        ({"attention_factor": 1.0}, 1.0),
        ({"attention_factor": 1.7}, 1.7),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 1.0}, (1 + 0.2 * math.log(4)) / M4),
        ({"mscale": 2.0}, M4),
        ({"attn_factor": 0.5}, 0.5 * M4),
    ],
)
@pytest.mark.parametrize("config", [LLAMA, QWEN2, GPT_OSS], ids=["llama", "qwen2", "gpt-oss"])
def test_yarn_magnitude(config: dict[str, Any], extra: dict[str, Any], wanted: float) -> None:
    gguf = converted(config, rope_scaling=YARN | extra)
    arch = gguf.metadata["general.architecture"]
    stated = gguf.metadata.get(f"{arch}.rope.scaling.attn_factor")
    assert (stated is None) == (wanted == M4)
    if stated is not None:
        assert float(stated) == pytest.approx(wanted / M4, rel=1e-6)
    for decoder in (describe(gguf), by_keys_alone(gguf)):
        rope = decoder.layers[-1].attention.rope
        assert rope is not None and rope.attn_factor == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(("mscale", "all_dim"), [(1.0, 1.0), (1.5, 0.5)])
@pytest.mark.parametrize("name", ["ling3", "deepseek"])
def test_yarn_magnitude_of_latent_attention(name: str, mscale: float, all_dim: float) -> None:
    """transformers' `yarn_apply_mscale`: its square goes over the scores, its quotient over the rotations."""
    config = by_hand.CONFIGS["ling3"] if name == "ling3" else DEEPSEEK
    gguf = converted(config, rope_scaling=YARN | {"mscale": mscale, "mscale_all_dim": all_dim})
    plainly = converted(config, rope_scaling=YARN)
    for decoder in (describe(gguf), by_keys_alone(gguf)):
        full = [i for i, layer in enumerate(decoder.layers) if layer.attention.rope is not None]
        attention, usual = (d.layers[full[0]].attention for d in (decoder, describe(plainly)))
        assert attention.rope is not None
        assert attention.scale == pytest.approx(usual.scale * (0.1 * all_dim * math.log(4) + 1) ** 2, rel=1e-6)
        wanted = (0.1 * mscale * math.log(4) + 1) / (0.1 * all_dim * math.log(4) + 1)
        assert attention.rope.attn_factor == pytest.approx(wanted, rel=1e-6)
    assert name != "ling3" or said(gguf, "attention scores times", "llama.cpp will not do")


@pytest.mark.parametrize(("config", "usual"), [(LLAMA, True), (GPT_OSS, False)], ids=["llama", "gpt-oss"])
@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramp(config: dict[str, Any], usual: bool, truncate: bool) -> None:
    gguf = converted(config, rope_scaling=YARN | {"truncate": truncate, "beta_fast": 16.0})
    for decoder in (describe(gguf), by_keys_alone(gguf)):
        rope = decoder.layers[0].attention.rope
        assert rope is not None and (rope.truncate, rope.beta_fast) == (truncate, 16.0)
    assert said(gguf, "truncate") is not truncate  # llama.cpp always does
    assert said(gguf, "beta_fast", "llama.cpp will not do")


NOT_BY_LLAMA_CPP: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "relu": (LLAMA, {"hidden_act": "relu"}, ("activation 'relu'", "configuration")),
    "window of a mistral": (MISTRAL, {"sliding_window": 8}, ("window of 8 tokens",)),
    "windows of a qwen": (QWEN2, WINDOWS | {"max_window_layers": 1}, ("layer 1 has", "window of 4")),
    "no positions": (SMOLLM3, {"no_rope_layers": [0, 1]}, ("rotary positions",)),
    "scores": (GPT2, {"scale_attn_weights": False}, ("scores times 1 (not 0.5)",)),
    "scores of gemma": (GEMMA2, {"query_pre_attn_scalar": 64}, ("scores times 0.125",)),
    "residuals": (BLOOM, {"apply_residual_connection_post_layernorm": True}, ("residuals",)),
    "dynamic": (LLAMA, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, ("dynamically",)),
    "not made to sum to 1": (QWEN3_MOE, {"norm_topk_prob": False}, ("sum to 1",)),
}


@pytest.mark.parametrize("name", NOT_BY_LLAMA_CPP)
def test_what_llama_cpp_will_not_do_is_said(name: str) -> None:
    config, changes, words = NOT_BY_LLAMA_CPP[name]
    assert said(converted(config, **changes), *words, "which llama.cpp will not do")


def _inside(cls: str, kind: str, text: dict[str, Any]) -> dict[str, Any]:
    return {"architectures": [cls], "model_type": kind, "text_config": text}


MIXTRAL = PHIMOE | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
INTERNLM3 = LLAMA | {"architectures": ["InternLM3ForCausalLM"], "model_type": "internlm3"}
IQUEST = LLAMA | {"architectures": ["IQuestCoderForCausalLM"], "model_type": "iquestcoder"}
_WINDOW = {"sliding_window": 4}
OF_A_CLASS: dict[str, tuple[dict[str, Any], bool, str]] = {
    "llama": (LLAMA | _WINDOW, False, "sliding_window has no effect in a 'llama' model: transformers ignores it"),
    "by its class": ({k: v for k, v in (LLAMA | _WINDOW).items() if k != "model_type"}, False, "has no effect in a"),
    "internlm3": (INTERNLM3 | _WINDOW, False, "has no effect in a 'internlm3' model"),
    "iquestcoder": (IQUEST | _WINDOW | {"use_sliding_window": True}, False, "no effect here has use_sliding_window"),
    "llava": (_inside("LlavaForConditionalGeneration", "llava", LLAMA | _WINDOW), False, "no effect in a 'llama'"),
    "voxtral": (_inside("VoxtralForConditionalGeneration", "voxtral", LLAMA | _WINDOW), False, "no effect in a"),
    "mistral": (MISTRAL | _WINDOW, True, ""),
    "mixtral": (MIXTRAL | _WINDOW, True, ""),
    "llava, a mistral": (_inside("LlavaForConditionalGeneration", "llava", MISTRAL | _WINDOW), True, ""),
}


@pytest.mark.parametrize("name", OF_A_CLASS)
def test_a_window_is_its_class_s(name: str) -> None:
    """transformers' Mistral and Mixtral compute one, its Llama does not (their `modeling_*.py`)."""
    config, windowed, note = OF_A_CLASS[name]
    folder = model(config)
    gguf = hf.to_gguf(folder)
    assert {layer.attention.window for layer in describe(gguf).layers} == ({4} if windowed else {None})
    assert ("llama.attention.sliding_window" in gguf.metadata) is windowed
    assert said(gguf, note) if note else not said(gguf, "no effect")
    assert hf.from_gguf(gguf).file("config.json") == folder.file("config.json")


def test_layers_of_its_own_are_said() -> None:
    """Releases that don't read the pattern take the family's; both kinds are about."""
    own = {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}
    assert said(converted(GEMMA2, **own), "layer 0 has", "releases of llama.cpp that read no pattern")
    usual = own | {"layer_types": ["sliding_attention", "full_attention"]}
    assert not said(converted(GEMMA2, **usual), "window")


@pytest.mark.parametrize("config", [QWEN2, SMOLLM3, GEMMA2, COHERE2], ids=lambda c: c["model_type"])
def test_biases_without_a_place_are_said(config: dict[str, Any]) -> None:
    gguf = hf.to_gguf(model(config, all_rows=True))
    assert said(gguf, "bias", "llama.cpp has no place for", "will not load")


ORDINARY = [LLAMA, QWEN2, GPT2, BLOOM, BAICHUAN, QWEN3_MOE | {"norm_topk_prob": True}, GPT_OSS, SMOLLM3]


@pytest.mark.parametrize("config", ORDINARY, ids=lambda c: c["model_type"])
def test_an_ordinary_model_needs_no_note(config: dict[str, Any]) -> None:
    assert not [note for note in converted(config).notes if "llama.cpp" in note or "no effect" in note]


@pytest.mark.parametrize(
    ("config", "changes", "named"),
    [
        (LLAMA, {"attention_temperature": 2.0}, "attention_temperature = 2.0"),
        (LLAMA, {"rope_scaling": YARN | {"sharpness": 3}}, "rope_scaling.sharpness = 3"),
        (LLAMA, {"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (GPT_OSS, {"swiglu_limit": 9.0}, "swiglu_limit = 9.0"),
        (GEMMA3, {"text_config": GEMMA3["text_config"] | {"moon": True}}, "moon = True"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        (LLAMA, {"rope_scaling": YARN | {"long_factor": [2.0, 3.0]}}, "rope_scaling.long_factor = [2.0, 3.0]"),
        (PHIMOE, {"rope_scaling": _LONG | {"rope_type": "default"}}, "rope_scaling.short_factor = [1.0, 1.0]"),
    ],
)
def test_an_unknown_setting_is_named(config: dict[str, Any], changes: dict[str, Any], named: str) -> None:
    arch = archs.by_hf(config)
    assert arch is not None
    assert any(named in text for text in unaccounted(arch, config | changes))
    inside = {"prefix": "language_model.model."} if "text_config" in config else {}
    assert said(hf.to_gguf(model(config | changes, **inside)), named, "no effect here")


def test_settings_without_effect_are_not_named() -> None:
    quiet = {"attention_dropout": 0.1, "use_cache": False, "initializer_range": 0.5, "mine": None, "also": False}
    assert not said(converted(LLAMA, **quiet), "no effect here")


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (QWEN2, WINDOWS | {"layer_types": ["linear_attention"] * 2}, "layer_types has 'linear_attention'"),
        (QWEN2, WINDOWS | {"layer_types": ["full_attention"]}, "layer_types has 1 entries, expected 2"),
        (QWEN2, {"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "'longrope' is not known of a qwen2 model"),
        (GPT_OSS, {"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "'llama3' is not known of a gpt-oss model"),
        (LLAMA, {"rope_scaling": {"rope_type": "proportional"}}, "'proportional' is not known of a llama model"),
        (COHERE2_MOE, {"prefix_dense_sliding_window_pattern": 3, "layer_types": _ALL}, "prefix_dense_sliding_window"),
        (COHERE2_MOE, {"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_scaling is not read"),
        (PHIMOE, {"rope_scaling": _LONG | {"short_mscale": 1.5, "long_mscale": 1.2}}, "short_mscale 1.5"),
        (LLAVA, {"text_config": LLAMA | {"model_type": "phi3"}}, "text model is 'phi3'"),
        (MISTRAL3, {"text_config": LLAMA | {"model_type": "mistral9"}}, "text model is 'mistral9'"),
        *(
            (PHIMOE, {"rope_scaling": {k: v for k, v in _LONG.items() if k != lone}}, f"has no {lone}")
            for lone in ("long_factor", "short_factor")
        ),
        (PHIMOE, {"num_experts_per_tok": 1}, "router chooses two"),
        (PHIMOE, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is not 1"),
        (LLAMA, {"rope_scaling": YARN | {"attention_factor": -1}}, "attention_factor is no positive number"),
    ],
)
def test_what_can_t_be_computed_is_refused(config: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LlmconvError, match=message) as error:
        converted(config, **changes)
    assert isinstance(error.value, Unsupported) or "\n" not in str(error.value)


@pytest.mark.parametrize(("kept", "other"), [("long", "short"), ("short", "long")])
def test_a_lone_tensor_of_factors_comes_back_as_llama_cpp_takes_it(kept: str, other: str) -> None:
    gguf = converted(PHIMOE, rope_scaling=_LONG | {f"{kept}_factor": [2.0, 3.0]})
    gguf.metadata = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.")}
    del gguf.tensors[f"rope_factors_{other}.weight"]
    rope = json.loads(hf.from_gguf(gguf).file("config.json") or b"")["rope_scaling"]
    assert (rope[f"{kept}_factor"], rope[f"{other}_factor"]) == ([2.0, 3.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("config", "changes", "noted"),
    [
        (LLAMA, {}, True),
        (GEMMA2, {}, True),
        (QWEN2, {}, False),
        (QWEN2, {"use_sliding_window": True}, True),
        (GPT2, {}, False),
    ],
)
def test_a_window_of_nothing_is_named(config: dict[str, Any], changes: dict[str, Any], noted: bool) -> None:
    gguf = converted(config, sliding_window=0, **changes)
    assert said(gguf, "sliding_window is 0") == noted
    assert all(layer.attention.window is None for layer in describe(gguf).layers)


def test_no_cap_of_the_logits_is_stated_where_its_absence_is_taken_for_one() -> None:
    """llama.cpp takes a Gemma 2 or 4 without the key for one whose logits are capped at 30, the scores at 50."""
    for name, cap in (("gemma2", 1e9), ("gemma4", 0.0)):
        arch = archs.by_gguf(name)
        assert arch is not None
        config = GEMMA2 | {"final_logit_softcapping": None}
        keys = arch.metadata(normalized(config | {"layer_types": ["sliding_attention", "full_attention"]}))
        assert keys[f"{name}.final_logit_softcapping"] == cap
        assert arch.config(keys)["final_logit_softcapping"] is None
        del keys[f"{name}.final_logit_softcapping"]
        assert arch.config(keys).get("final_logit_softcapping", 30.0) == 30.0
    bare = converted(GEMMA2)
    usual = describe(bare)
    bare.metadata = {key: value for key, value in bare.metadata.items() if "softcapping" not in key}
    assert describe(bare) == usual and usual.final_softcap == 30.0 and usual.layers[0].attention.softcap == 50.0


def test_bidirectional_gemma3_and_back() -> None:
    text = GEMMA3["text_config"] | {"use_bidirectional_attention": True, "sliding_window": 8, "layer_types": None}
    gguf = hf.to_gguf(model(GEMMA3 | {"text_config": text}, prefix="language_model.model."))
    for decoder in (describe(gguf), by_keys_alone(gguf)):
        attention = decoder.layers[0].attention
        assert (attention.causal, attention.window) == (False, 5)


def test_keys_of_a_gguf_that_a_folder_can_t_say_are_named_and_kept() -> None:
    gguf = converted(LLAMA)
    gguf.metadata["llama.final_logit_softcapping"] = np.float32(30)
    folder = hf.from_gguf(gguf)
    assert any("llama.final_logit_softcapping" in note for note in folder.notes)
    assert hf.to_gguf(folder).metadata["llama.final_logit_softcapping"] == 30


@pytest.mark.parametrize(("dims", "named"), [(2, True), (4, False)])
def test_a_part_of_a_head_that_turns_is_named_where_a_folder_can_t_say_it(dims: int, named: bool) -> None:
    gguf = converted(QWEN2)
    gguf.metadata = {key: value for key, value in gguf.metadata.items() if not key.startswith("llmconv.")}
    gguf.metadata["qwen2.rope.dimension_count"] = np.uint32(dims)
    assert any("qwen2.rope.dimension_count" in note for note in hf.from_gguf(gguf).notes) is named


def test_config_is_kept_whatever_it_says() -> None:
    config = LLAMA | {"hidden_act": "relu", "attention_temperature": 2.0}
    assert json.loads(hf.from_gguf(converted(config)).file("config.json") or b"") == config


NEEDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "divisors": (QWEN2, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "no place for rope_freqs.weight"),
    "no window": (GEMMA2, {"sliding_window": 4, "layer_types": ["full_attention"] * 2}, "it will stop"),
    "heads": (COHERE2, {"head_dim": 16}, "wants as many numbers"),
}


@pytest.mark.parametrize("name", NEEDS)
def test_files_that_llama_cpp_will_not_load_are_said(name: str) -> None:
    config, changes, words = NEEDS[name]
    assert said(converted(config, **changes), words)


def test_numbers_that_float32_rounds_are_the_same() -> None:
    """1 / sqrt(8) in float64 and from the configuration's 8 ** -0.5."""
    assert not said(converted(GEMMA2, query_pre_attn_scalar=8), "scores")


def test_dynamic_scaling_is_said_once() -> None:
    gguf = converted(LLAMA, rope_scaling={"type": "dynamic", "factor": 2.0})
    assert len([note for note in gguf.notes if "llama.cpp" in note]) == 1


def test_a_setting_that_transformers_ignores_is_said() -> None:
    config = {"model_type": "deepseek_v2", "norm_topk_prob": True}
    arch = archs.by_hf(config)
    assert arch is not None and arch.disputed(config) == ["norm_topk_prob"]
    assert arch.disputed({**config, "model_type": "deepseek_v3"}) == []


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "two objects": (
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
            "rope_scaling": {"type": "linear", "factor": 2},
        },
        "rope_parameters is followed; rope_scaling says otherwise",
    ),
    "two bases": (
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "the rope_theta within, 500000.0, is followed",
    ),
    "two types": (
        {"rope_scaling": YARN | {"type": "linear"}},
        "the rope_type 'yarn' is followed, not the type 'linear'",
    ),
    "another head": ({"tie_word_embeddings": True}, "another head, which is kept"),
    "no biases": ({"attention_bias": True}, "attention_bias is true, but the file has no such tensors"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_is_said_in_two_ways_is_named(name: str) -> None:
    changes, words = CONTRADICTIONS[name]
    folder = model(LLAMA)
    folder.files["config.json"] = json.dumps(LLAMA | changes).encode()
    assert said(hf.to_gguf(folder), words)


def test_a_head_that_is_the_embeddings_again_needs_no_note() -> None:
    folder = model(LLAMA)
    folder.tensors["lm_head.weight"] = folder.tensors["model.embed_tokens.weight"].renamed("lm_head.weight")
    folder.files["config.json"] = json.dumps(LLAMA | {"tie_word_embeddings": True}).encode()
    assert not said(hf.to_gguf(folder), "another head")


def test_an_activation_that_is_no_text_is_refused() -> None:
    with pytest.raises(LlmconvError, match="hidden_act is"):
        converted(LLAMA, hidden_act=["silu"])


@pytest.mark.parametrize(("eps", "own"), [(1e-6, None), (1e-5, 1e-6)])
def test_norms_of_latents_have_an_epsilon_of_their_own(eps: float, own: float | None) -> None:
    """As in transformers' classes; llama.cpp's have the model's."""
    gguf = converted(DEEPSEEK, rms_norm_eps=eps)
    assert describe(gguf).latent_eps == own
    assert said(gguf, "the norms inside its attention have the epsilon 1e-06") is (own is not None)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"is_causal": False}, "is_causal = False"),
        ({"rope_scaling": {"factor": 2.0}}, "rope_scaling.factor = 2.0"),
        ({"rope_scaling": {"type": None, "factor": 2.0}}, "rope_scaling.factor = 2.0"),
    ],
)
def test_settings_that_say_something_by_being_false_or_alone_are_named(changes: dict[str, Any], name: str) -> None:
    """Of models that look both ways, which their own code does; of a scaling whose kind is not said."""
    assert said(converted(LLAMA, **changes), "no effect here has", name)
    assert not said(converted(LLAMA, is_causal=True), "no effect here has is_causal = False")
