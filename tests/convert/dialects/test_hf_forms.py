"""Other ways of writing a model, families that transformers does not have, and stories260K as others convert it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
from hf_models import (
    BAICHUAN,
    CHATGLM,
    DEEPSEEK,
    ERNIE,
    EXAONE,
    GEMMA3,
    GPT2,
    GPT_OSS,
    INTERNLM2,
    LLAMA,
    QWEN3_MOE,
    assert_round_trip,
    model,
)

import llmconv
from llmconv import formats
from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.unread import unread
from llmconv.convert.dialects import hf
from llmconv.convert.tables import own_keys
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name


@pytest.mark.parametrize(
    ("config", "options"),
    [
        pytest.param(EXAONE, {}, id="exaone"),
        pytest.param(CHATGLM, {"form": 1, "all_rows": True, "without": "attn_q"}, id="chatglm"),
        pytest.param(ERNIE, {"form": 1}, id="ernie-fused"),
        pytest.param(INTERNLM2, {}, id="internlm2"),
        pytest.param(INTERNLM2 | {"bias": True}, {}, id="internlm2-bias"),
        pytest.param(BAICHUAN, {}, id="baichuan"),
        pytest.param(GPT_OSS, {}, id="gpt-oss-mxfp4"),
        pytest.param({k: v for k, v in GPT_OSS.items() if k != "quantization_config"}, {"form": 1}, id="gpt-oss-plain"),
        pytest.param(QWEN3_MOE, {"form": 1}, id="experts-stacked"),
        pytest.param(QWEN3_MOE, {"form": 2}, id="experts-of-mlx"),
        pytest.param(by_hand.CONFIGS["qwen3-vl-moe"], {"form": 1}, id="experts-in-out"),
        pytest.param(by_hand.CONFIGS["qwen3-vl-moe"], {"form": 2}, id="experts-out-in"),
        pytest.param(GEMMA3, {"prefix": "language_model.model."}, id="gemma3-inside-multimodal"),
        pytest.param(GPT2, {"prefix": ""}, id="gpt2-without-prefix"),
        pytest.param(GPT2, {"kind": "F32"}, id="gpt2-f32"),
        pytest.param(LLAMA, {"all_rows": True, "kind": "F16"}, id="llama-all-biases"),
        pytest.param(LLAMA | {"head_dim": 6}, {}, id="llama-head-dim"),
        pytest.param(LLAMA, {"kind": "F64"}, id="llama-f64"),
        pytest.param(LLAMA, {"kind": "F8_E4M3"}, id="llama-f8"),
    ],
)
def test_hand_made_models_come_back(config: dict[str, Any], options: dict[str, Any]) -> None:
    gguf = assert_round_trip(model(config, **options))
    arch = archs.by_hf(config)
    assert arch is not None and gguf.metadata["general.architecture"] == arch.gguf


_MIXTRAL = LLAMA | {
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("config", "at", "parts"),
    [
        (QWEN3_MOE, "mlp", ("gate_proj", "up_proj", "down_proj")),
        (_MIXTRAL, "block_sparse_moe", ("w1", "w3", "w2")),
    ],
)
def test_experts_as_mlx_stacks_them(config: dict[str, Any], at: str, parts: tuple[str, ...]) -> None:
    apart = model(config, kind="F32")
    stacked = apart.but(tensors={n: t for n, t in apart.tensors.items() if ".experts." not in n})
    for i in range(config["num_hidden_layers"]):
        for part, name in zip(parts, ("gate_proj", "up_proj", "down_proj"), strict=True):
            here = [apart.tensors[f"model.layers.{i}.{at}.experts.{e}.{part}.weight"].numpy() for e in range(3)]
            stacked.add(Tensor.from_array(f"model.layers.{i}.{at}.switch_mlp.{name}.weight", np.stack(here)))
    one, other = hf.to_gguf(apart).tensors, hf.to_gguf(stacked).tensors
    assert set(one) == set(other)
    assert all(np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)
    assert set(assert_round_trip(stacked).tensors) == set(one)


_HYBRID = QWEN3_MOE | {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 48,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "tie_word_embeddings": False,
}
_MAMBA = {
    **{"architectures": ["MambaForCausalLM"], "model_type": "mamba", "vocab_size": 96, "hidden_size": 32},
    **{"num_hidden_layers": 2, "state_size": 8, "conv_kernel": 4, "intermediate_size": 64, "time_step_rank": 2},
}


def _as_mlx_arranges(source: Checkpoint) -> Checkpoint:
    """What `sanitize` of mlx_lm.models.qwen3_next and .mamba does to the tensors that it does not rename."""
    kind = json.loads(source.file("config.json") or b"")["model_type"]
    norms = (
        *(".input_layernorm.weight", ".post_attention_layernorm.weight", "model.norm.weight"),
        *(".q_norm.weight", ".k_norm.weight"),
    )
    out = source.but(tensors={})
    for name, tensor in source.tensors.items():
        values = tensor.numpy()
        if "conv1d.weight" in name:
            values = np.moveaxis(values, 2, 1)
        if kind == "qwen3_next" and name.endswith(norms) and values.ndim == 1:
            values = values + np.float32(1)
        out.add(Tensor.from_array(name, values))
    return out


@pytest.mark.parametrize("config", [_HYBRID, _MAMBA], ids=["norms too", "turned alone"])
def test_convolutions_as_mlx_arranges_them(config: dict[str, Any], tmp_path: Path) -> None:
    source = model(config, kind="F32")
    arranged = _as_mlx_arranges(source)
    one, other = hf.to_gguf(source).tensors, hf.to_gguf(arranged).tensors
    assert set(one) == set(other)
    for name in one:
        assert np.allclose(one[name].numpy(), other[name].numpy(), rtol=0, atol=2e-7), name
    llmconv.save(arranged, tmp_path / "copy")
    assert all(t.shape == arranged.tensors[n].shape for n, t in llmconv.open(tmp_path / "copy").tensors.items())
    llmconv.save(arranged, tmp_path / "f16", outtype="f16")
    assert all(t.shape == source.tensors[n].shape for n, t in llmconv.open(tmp_path / "f16").tensors.items())


def test_factors_that_mlx_multiplies_into_weights_are_named() -> None:
    made = _as_mlx_arranges(model(_MAMBA, kind="F32"))
    made.files["config.json"] = json.dumps(_MAMBA | {"model_type": "falcon_h1"}).encode()
    with pytest.raises(Unsupported, match=r"multiplies config\.json's factors into the weights of falcon_h1"):
        hf.to_gguf(made)


@pytest.mark.parametrize("name", by_hand.CONFIGS)
def test_models_that_transformers_lacks_come_back(name: str) -> None:
    made = by_hand.finished(name, model(by_hand.CONFIGS[name], form=by_hand.FORMS.get(name, 0)))
    gguf = assert_round_trip(made)
    if not name.endswith(
        ("vl", "paddleocr", *by_hand.NOT_RUN)
    ):  # whose GGUFs are those of another program's text model
        decoder = describe(gguf)
        assert decoder.vocab_size == by_hand.CONFIGS[name].get("vocab_size", 96)
        assert not unread(decoder, gguf.metadata) or name.startswith("grok")  # what no program computes with
    keys = {k: v for k, v in gguf.metadata.items() if not k.startswith(own_keys.OWN)}
    back = hf.from_gguf(dataclasses.replace(gguf, metadata=keys))
    config = json.loads(back.file("config.json") or b"{}")
    config = config.get("talker_config", config.get("text_config", config))
    layers = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_transformer_layers")
    counts = {"deci": 4, "muse-glimmer": 4, "nemotron-h-puzzle": 4, "eagle3": 1, "eagle3-speculator": 1}
    counts |= dict.fromkeys(
        ("step3.5", "step3.7", "mimo2-published", "plamo2", "granite-switch", "nemotron-h-predicting"), 3
    )
    counts |= {"deepseek4": 4, "deepseek4-predicting": 4, "deepseek4-dspark": 3, "hy-v4": 3, "wavtokenizer": 6}
    counts |= dict.fromkeys(("dots3", "dots3-rescaled", "dots3-predicting"), 3)
    assert next(config[n] for n in layers if n in config) == counts.get(name, 2) and len(back.tensors) == len(
        model(by_hand.CONFIGS[name]).tensors
    )


@pytest.mark.parametrize("name", ["ling3", "qwen4exp", "dspark"])
def test_leading_ones_that_a_quantizer_leaves_out_come_back(name: str) -> None:
    """As ggml counts dimensions: a router of one number, and convolutions, are of fewer in the file."""
    made = by_hand.finished(name, model(by_hand.CONFIGS[name]))
    gguf = hf.to_gguf(made)
    lacking = [n for n, t in gguf.tensors.items() if len(t.shape) > 1 and t.shape[0] == 1]
    assert lacking
    fewer = {n: gguf.tensors[n].reshaped(gguf.tensors[n].shape[1:]) for n in lacking}
    back = hf.from_gguf(gguf.but(tensors=gguf.tensors | fewer))
    for name, tensor in made.tensors.items():
        other = back.tensors[name]
        assert tensor.shape == other.shape and tensor.blocks().tobytes() == other.blocks().tobytes(), name


def test_heads_of_plamo_2_are_one_number_and_read_from_a_list() -> None:
    """llama.cpp takes from the first layer's how much of a head turns, and never ends where that is nothing."""
    made = model(by_hand.CONFIGS["plamo2"])
    gguf = hf.to_gguf(made)
    key = "plamo2.attention.head_count"
    assert gguf.metadata[key] == 4 and list(gguf.metadata[f"{key}_kv"]) == [0, 2, 0]
    theirs = {k: v for k, v in gguf.metadata.items() if not k.startswith(own_keys.OWN)}
    for heads in (gguf.metadata[key], np.asarray([0, 4, 0], np.int32)):  # ours, the reference's
        back = hf.from_gguf(gguf.but(metadata=theirs | {key: heads}))
        config = json.loads(back.file("config.json") or b"")
        assert (config["num_attention_heads"], config["num_key_value_heads"], config["mamba_step"]) == (4, 2, 2)
        assert sorted(made.tensors) == sorted(back.tensors)


def test_experts_of_hy_v4_of_others_come_back_stacked() -> None:
    """As they are published, whatever other forms the table knows."""
    gguf = hf.to_gguf(model(by_hand.CONFIGS["hy-v4"]))
    keys = {k: v for k, v in gguf.metadata.items() if not k.startswith(own_keys.OWN)}
    names = {
        n
        for n in hf.from_gguf(gguf.but(metadata=keys)).tensors
        if n.startswith("model.layers.1.mlp.") and "gate_up" in n
    }
    assert names == {"model.layers.1.mlp.experts.gate_up_proj"}


def test_mixed_types_are_remembered_in_few_words() -> None:
    checkpoint = model(LLAMA)
    for i in range(2):
        name = f"model.layers.{i}.mlp.down_proj.weight"
        checkpoint.tensors[name] = checkpoint.tensors[name].astype(by_name("F32"))
    one = "model.layers.1.mlp.up_proj.weight"
    checkpoint.tensors[one] = checkpoint.tensors[one].astype(by_name("F16"))
    gguf = assert_round_trip(checkpoint)
    assert json.loads(gguf.metadata[own_keys.DTYPES]) == {
        "default": "BF16",
        "F32": ["model.layers.{}.mlp.down_proj.weight"],
        "F16": [one],
    }


def test_internlm2_is_split_as_its_own_code_reads_it() -> None:
    """modeling_internlm2: wqkv is (kv head, queries of the group + key + value, head_dim)."""
    checkpoint = model(INTERNLM2, kind="F32")
    wqkv = checkpoint.tensors["model.layers.0.attention.wqkv.weight"].numpy().reshape(2, 4, 4, 16)
    gguf = hf.to_gguf(checkpoint)

    def permuted(x: Any, heads: int) -> Any:
        return x.reshape(heads, 2, 2, 16).swapaxes(1, 2).reshape(-1, 16)

    assert np.array_equal(gguf.tensors["blk.0.attn_q.weight"].numpy(), permuted(wqkv[:, :2].reshape(-1, 16), 4))
    assert np.array_equal(gguf.tensors["blk.0.attn_k.weight"].numpy(), permuted(wqkv[:, 2].reshape(-1, 16), 2))
    assert np.array_equal(gguf.tensors["blk.0.attn_v.weight"].numpy(), wqkv[:, 3].reshape(-1, 16))


def test_gpt_oss_blocks_decode_to_the_same_values() -> None:
    """Decoding ggml's MXFP4 gives what the microscaling format defines: FP4 (E2M1) times a power of two."""
    checkpoint = model(GPT_OSS)
    scales = checkpoint.tensors["model.layers.0.mlp.experts.down_proj_scales"].numpy() % 20 + 120
    checkpoint.add(Tensor.from_array("model.layers.0.mlp.experts.down_proj_scales", scales.astype(np.uint8)))
    blocks = checkpoint.tensors["model.layers.0.mlp.experts.down_proj_blocks"].numpy()
    fp4 = np.asarray([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    values = np.stack([fp4[blocks & 15], fp4[blocks >> 4]], -1).reshape(*scales.shape, 32)
    expected = (values * 2.0 ** (scales.astype(np.float32) - 127)[..., None]).reshape(3, 64, 32)
    assert np.array_equal(hf.to_gguf(checkpoint).tensors["blk.0.ffn_down_exps.weight"].numpy(), expected)


def test_derived_buffers_are_dropped_and_noted() -> None:
    checkpoint = model(GPT2, kind="F32")
    for i in range(2):
        checkpoint.add(Tensor.from_array(f"transformer.h.{i}.attn.bias", np.ones((1, 1, 32, 32), np.bool_)))
    gguf = hf.to_gguf(checkpoint)
    assert any("computed from the configuration: transformer.h.0.attn.bias (and 1 more)" in n for n in gguf.notes)


def test_quantized_weights_come_back_in_their_old_type() -> None:
    wide = LLAMA | {"hidden_size": 64, "intermediate_size": 64}
    gguf = hf.to_gguf(model(wide))
    name = "blk.0.ffn_up.weight"
    gguf.tensors[name] = gguf.tensors[name].astype(by_name("Q8_0"))
    back = hf.from_gguf(gguf)
    assert back.tensors["model.layers.0.mlp.up_proj.weight"].type is by_name("BF16")
    assert "1 tensors decoded from Q8_0 are rounded to BF16" in back.notes


def test_quantized_q_and_k_are_unpermuted() -> None:
    wide = LLAMA | {"hidden_size": 64, "intermediate_size": 64}
    checkpoint = model(wide, kind="F32")
    q8 = by_name("Q8_0")
    direct = checkpoint.tensors["model.layers.0.self_attn.q_proj.weight"].astype(q8).numpy()
    gguf = hf.to_gguf(checkpoint)
    gguf.tensors["blk.0.attn_q.weight"] = gguf.tensors["blk.0.attn_q.weight"].astype(q8)
    assert np.array_equal(hf.from_gguf(gguf).tensors["model.layers.0.self_attn.q_proj.weight"].numpy(), direct)


def test_stories_are_the_reference_s(shared: Path) -> None:
    folder = shared / "stories260K"
    ours, theirs = hf.to_gguf(formats.open(folder / "hf")), formats.open(folder / "stories260K-f32.gguf")
    assert sorted(ours.tensors) == sorted(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape and ours.tensors[name].type is tensor.type
        assert ours.tensors[name].blocks().tobytes() == tensor.blocks().tobytes(), name
    for key, value in theirs.metadata.items():
        if key.startswith("llama."):
            assert ours.metadata.get(key, value) == value, key


def test_stories_come_back_from_somebody_else_s_gguf(shared: Path) -> None:
    folder = shared / "stories260K"
    original, back = formats.open(folder / "hf"), hf.from_gguf(formats.open(folder / "stories260K-f32.gguf"))
    assert sorted(original.tensors) == sorted(back.tensors)
    assert all(t.blocks().tobytes() == back.tensors[n].blocks().tobytes() for n, t in original.tensors.items())
    config, rebuilt = (
        json.loads((folder / "hf" / "config.json").read_text()),
        json.loads(back.file("config.json") or b""),
    )
    for key in (
        "hidden_size",
        "num_key_value_heads",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
        "vocab_size",
    ):
        assert rebuilt[key] == config[key]


def test_a_matrix_quantized_in_parts_of_two_types_comes_back() -> None:
    """Rows of some were no whole blocks, as of keys and values that a folder has in one matrix."""
    made = hf.to_gguf(model(DEEPSEEK | {"kv_lora_rank": 32}, kind="F32"))
    for name, kind in (("attn_k_b", "F16"), ("attn_v_b", "Q8_0")):
        made.add(made.tensors[f"blk.0.{name}.weight"].astype(by_name(kind)))
    back = hf.from_gguf(made).tensors["model.layers.0.self_attn.kv_b_proj.weight"].numpy()
    keys, values = (made.tensors[f"blk.0.attn_{n}_b.weight"].numpy() for n in "kv")
    assert np.array_equal(back, np.concatenate([keys.transpose(0, 2, 1), values], 1).reshape(back.shape))
