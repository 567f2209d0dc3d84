"""What a file leaves out: of a config.json what its class in transformers takes, of a GGUF what llama.cpp takes.

The values are those classes' and llama.cpp's (its `llama-hparams.h`, and the loader of each family).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hf_models import LLAMA, model
from tiny_models import MODELS

from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.dialects import hf
from llmconv.convert.tables.config import normalized
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint


def of_class(name: str, **changes: Any) -> dict[str, Any]:
    """The configuration of a tiny model, with what stands in every file of its class."""
    tiny = MODELS[name]
    arch = archs.by_gguf(tiny.gguf)
    assert arch is not None
    cls = next(found.cls for found in arch.hf if found.model_type == tiny.model_type)
    return {"architectures": [cls], "model_type": tiny.model_type} | tiny.config | changes


def keys_of(config: dict[str, Any]) -> dict[str, Any]:
    arch = archs.by_hf(config)
    assert arch is not None
    return {key.partition(".")[2]: value for key, value in arch.metadata(normalized(config)).items()}


MIXTRAL = LLAMA | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
GRANITE = LLAMA | {"architectures": ["GraniteForCausalLM"], "model_type": "granite"}
LEFT_OUT: list[tuple[dict[str, Any], str, str, float]] = [
    (MIXTRAL, "rms_norm_eps", "attention.layer_norm_rms_epsilon", 1e-5),
    (MIXTRAL, "rope_theta", "rope.freq_base", 1e6),
    (GRANITE, "attention_multiplier", "attention.scale", 1.0),
    (of_class("mistral"), "sliding_window", "attention.sliding_window", 4096),
    (of_class("phi3"), "rms_norm_eps", "attention.layer_norm_rms_epsilon", 1e-5),
    (of_class("exaone-moe"), "routed_scaling_factor", "expert_weights_scale", 2.5),
    (of_class("gpt-oss", rope_parameters=None), "rope_parameters", "rope.scaling.factor", 32.0),
]


@pytest.mark.parametrize("case", range(len(LEFT_OUT)))
def test_a_setting_that_is_left_out(case: int) -> None:
    config, setting, key, value = LEFT_OUT[case]
    bare = {name: stated for name, stated in config.items() if name != setting}
    assert math.isclose(keys_of(bare)[key], value, rel_tol=1e-6)


def test_a_stated_one_stays_and_so_does_one_of_another_name() -> None:
    assert keys_of(MIXTRAL | {"rms_norm_eps": 1e-3})["attention.layer_norm_rms_epsilon"] == np.float32(1e-3)
    moe = of_class("mellum")
    del moe["num_experts_per_tok"]
    assert keys_of(moe | {"num_experts_per_token": 3})["expert_used_count"] == 3
    inside = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava", "text_config": MIXTRAL}
    assert "attention.layer_norm_rms_epsilon" in keys_of(inside)


def without(config: dict[str, Any], *names: str, **keys: Any) -> Checkpoint:
    """The model's GGUF as somebody else would have written it, without keys, and with others."""
    whole = hf.to_gguf(model(config, "F32"))
    start = whole.metadata["general.architecture"] + "."
    bare = {key: value for key, value in whole.metadata.items() if not key.startswith("llmconv.")}
    added = {start + key.replace("__", "."): value for key, value in keys.items()}
    return whole.but(metadata={k: v for k, v in (bare | added).items() if k.removeprefix(start) not in names})


def decoder(name: str, key: str) -> Decoder:
    return describe(without(of_class(name), key))


def test_keys_that_a_gguf_leaves_out() -> None:
    mimo = decoder("mimo2", "rope.freq_base_swa")
    bases = [layer.attention.rope.base for layer in mimo.layers if layer.attention.window and layer.attention.rope]
    assert bases == [10000.0]
    for name in ("laguna", "cohere2-moe"):
        found = [layer.mlp.experts for layer in decoder(name, "expert_weights_norm").layers if layer.mlp]
        assert {experts.normalize for experts in found if experts} == {False}
    cohere = decoder("cohere2-moe", "expert_gating_func")
    assert {layer.mlp.experts.gating for layer in cohere.layers if layer.mlp and layer.mlp.experts} == {"sigmoid"}
    windows = decoder("cohere2-moe", "attention.sliding_window_pattern")
    assert [layer.attention.window is None for layer in windows.layers[:2]] == [True, False]


def config_of(folder: Checkpoint) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(folder.file("config.json") or b"{}")
    return found


def test_a_folder_says_what_a_gguf_leaves_out() -> None:
    granite = config_of(hf.from_gguf(without(GRANITE, "attention.scale")))
    assert math.isclose(granite["attention_multiplier"], 0.5)  # its heads are of 4 numbers; its class would take 1
    mellum = config_of(hf.from_gguf(without(of_class("mellum"), "attention.sliding_window_pattern")))
    assert mellum["layer_types"] == ["sliding_attention"] * 2  # of every four layers the last sees everything

    hrm = config_of(hf.from_gguf(without(of_class("hrm-text"), "embedding_scale")))
    assert hrm["embedding_scale"] == 1.0  # its class would take 1 / initializer_range


def test_what_llama_cpp_takes_for_a_key() -> None:
    assert {layer.attention.alibi for layer in decoder("mpt", "attention.max_alibi_bias").layers} == {None}
    key = {"attention__sliding_window": np.uint32(8)}
    lfm2 = describe(without(of_class("lfm2"), **key)).layers
    assert [layer.attention.window for layer in lfm2] == [None, 8]  # the first is a convolution
    moe = describe(without(of_class("lfm2-moe"), **key)).layers  # of which its loader reads no window
    assert {layer.attention.window for layer in moe} == {None}


def test_what_no_class_can_say_is_noted() -> None:
    lfm2 = hf.from_gguf(without(of_class("lfm2"), attention__causal=False))
    assert any("Lfm2BidirectionalModel" in note and "transformers ignores it" in note for note in lfm2.notes)
    mpt = hf.from_gguf(without(of_class("mpt"), "attention.max_alibi_bias"))
    assert any("attn_config.alibi is" in note and "transformers ignores it" in note for note in mpt.notes)
    bamba = hf.from_gguf(without(of_class("bamba"), embedding_scale=np.float32(2)))
    assert any("granitehybrid.embedding_scale" in note for note in bamba.notes)
    laguna = hf.from_gguf(without(of_class("laguna"), "expert_weights_norm"))
    assert any("which config.json does not say" in note for note in laguna.notes)
    hy = hf.from_gguf(without(of_class("hy3"), expert_weights_norm=False))
    assert any("route_norm" in note and "transformers ignores it" in note for note in hy.notes)
    minimax = hf.from_gguf(without(of_class("minimax-m2"), expert_gating_func=np.uint32(1)))
    assert any("scoring_func" in note and "transformers ignores it" in note for note in minimax.notes)


def test_a_bias_that_llama_cpp_loads_in_vain_is_said() -> None:
    ernie = hf.to_gguf(model(of_class("ernie4.5", use_bias=True)))
    assert any("llama.cpp computes without blk.0.attn_output.bias" in note for note in ernie.notes)


def test_layers_that_can_t_be_parallel_are_refused() -> None:
    with pytest.raises(BadFile, match="no feed-forward beside attention"):
        describe(without(of_class("mamba2"), use_parallel_residual=True))


def test_yarn_of_mistral_3_is_llama_cpp_s() -> None:
    """Its magnitude: (1 + 0.1 ln f) / (1 + 0.1 m ln f), of which m = 1 leaves nothing (llama-context.cpp)."""
    yarn = {"rope__scaling__type": "yarn", "rope__scaling__factor": np.float32(4)}
    for multiplier in (1.0, 1.5):
        keys = yarn | {"rope__scaling__yarn_log_multiplier": np.float32(multiplier)}
        rope = describe(without(of_class("ministral3"), **keys)).layers[0].attention.rope
        wanted = (1 + 0.1 * math.log(4)) / (1 + 0.1 * multiplier * math.log(4))
        assert rope is not None and math.isclose(rope.attn_factor, wanted, rel_tol=1e-6)
