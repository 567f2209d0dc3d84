"""GGUFs with matrices in one that a table has apart, fused by numpy here, become the folders of the separate ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import CHATGLM, DEEPSEEK, GPT_OSS, LLAMA, QWEN3_MOE, model

import llmconv
from llmconv.convert.dialects import hf
from llmconv.convert.tables import own_keys
from llmconv.errors import BadFile
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name


def somebodys(config: dict[str, Any], **changes: Any) -> Checkpoint:
    gguf = hf.to_gguf(model(config, kind="F32", **changes))
    gguf.metadata = {k: v for k, v in gguf.metadata.items() if not k.startswith("llmconv.")}
    return gguf


def fused(gguf: Checkpoint, whole: str, parts: tuple[str, ...], axis: int) -> Checkpoint:
    out = gguf.but(tensors=dict(gguf.tensors))
    for i in range(2):
        values = [out.tensors.pop(f"blk.{i}.{part}").numpy() for part in parts]
        out.add(Tensor.from_array(f"blk.{i}.{whole}", np.concatenate(values, axis)))
    return out


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert sorted(one.tensors) == sorted(other.tensors)
    for name, tensor in one.tensors.items():
        assert tensor.shape == other.tensors[name].shape, name
        assert np.array_equal(tensor.numpy(), other.tensors[name].numpy()), name


QKV = tuple(f"attn_{n}.weight" for n in "qkv")
QKV_BIAS = tuple(f"attn_{n}.bias" for n in "qkv")
EXPERTS = ("ffn_gate_exps.weight", "ffn_up_exps.weight")


@pytest.mark.parametrize(
    ("config", "changes", "pieces"),
    [
        (LLAMA, {}, [("attn_qkv.weight", QKV, 0)]),
        (
            LLAMA | {"attention_bias": True},
            {},
            [("attn_qkv.weight", QKV, 0), ("attn_qkv.bias", QKV_BIAS, 0)],
        ),
        (LLAMA | {"attention_bias": True}, {}, [("attn_qkv.weight", QKV, 0)]),
        (QWEN3_MOE, {}, [("ffn_gate_up_exps.weight", EXPERTS, 1), ("attn_qkv.weight", QKV, 0)]),
    ],
    ids=["llama", "with biases", "biases apart", "experts"],
)
def test_fused_by_somebody(
    config: dict[str, Any], changes: dict[str, Any], pieces: list[tuple[str, tuple[str, ...], int]], tmp_path: Path
) -> None:
    separate = somebodys(config, **changes)
    gguf = separate
    for whole, parts, axis in pieces:
        gguf = fused(gguf, whole, parts, axis)
    folder = hf.from_gguf(gguf)
    assert_same(folder, hf.from_gguf(separate))
    llmconv.save(folder, tmp_path / "hf")
    assert_same(hf.to_gguf(llmconv.open(tmp_path / "hf")), gguf)


def test_a_quantized_one_is_taken_apart_by_rows() -> None:
    wide = LLAMA | {"hidden_size": 64, "head_dim": 16}
    gguf = fused(somebodys(wide), "attn_qkv.weight", QKV, 0)
    whole = gguf.tensors["blk.0.attn_qkv.weight"]
    gguf.add(whole.astype(by_name("Q8_0")))
    rounded = gguf.tensors["blk.0.attn_qkv.weight"].numpy()
    folder = hf.from_gguf(gguf)
    assert np.array_equal(folder.tensors["model.layers.0.self_attn.v_proj.weight"].numpy(), rounded[-32:])


def test_one_of_another_shape_is_refused() -> None:
    gguf = fused(somebodys(LLAMA), "attn_qkv.weight", QKV, 0)
    gguf.add(Tensor.from_array("blk.1.attn_qkv.weight", np.zeros((5, 16), np.float32)))
    with pytest.raises(BadFile, match=r"'blk.1.attn_qkv.weight' has shape \[5, 16\]"):
        hf.from_gguf(gguf)


def test_a_folder_s_list_is_checked() -> None:
    folder = hf.from_gguf(fused(somebodys(LLAMA), "attn_qkv.weight", QKV, 0))
    folder.metadata[own_keys.GGUF_FUSED] = '{"names": [3]}'
    with pytest.raises(BadFile, match=r"llmconv.gguf.fused is no list of names"):
        hf.to_gguf(folder)


def test_types_that_differ_stay_apart() -> None:
    folder = hf.from_gguf(fused(somebodys(LLAMA), "attn_qkv.weight", QKV, 0))
    name = "model.layers.0.self_attn.k_proj.weight"
    folder.add(folder.tensors[name].astype(by_name("BF16")))
    again = hf.to_gguf(folder)
    assert "blk.0.attn_k.weight" in again.tensors and "blk.1.attn_qkv.weight" in again.tensors


def test_chatglm_s_own() -> None:
    gguf = somebodys(CHATGLM, form=1, without="attn_q.")
    assert "blk.0.attn_qkv.weight" in gguf.tensors
    assert_same(hf.to_gguf(hf.from_gguf(gguf)), gguf)


def test_deepseek_of_older_releases() -> None:
    """attn_kv_b, and the heads' numbers and widths as the model's configuration states them."""
    new = somebodys(DEEPSEEK)
    old = new.but(tensors=dict(new.tensors), metadata=dict(new.metadata))
    at = "deepseek2.attention."
    for i in range(2):
        k, v = (old.tensors.pop(f"blk.{i}.attn_{n}_b.weight").numpy() for n in "kv")
        rows = [np.concatenate([k[h].T, v[h]]) for h in range(len(k))]
        old.add(Tensor.from_array(f"blk.{i}.attn_kv_b.weight", np.concatenate(rows)))
    for name in ("key_length", "value_length"):
        old.metadata[at + name] = old.metadata.pop(f"{at}{name}_mla")
    old.metadata[at + "head_count_kv"] = old.metadata[at + "head_count"]
    folder = hf.from_gguf(old)
    assert_same(folder, hf.from_gguf(new))
    assert folder.file("config.json") == hf.from_gguf(new).file("config.json")
    assert any("attn_kv_b is the matrix of older releases" in note for note in folder.notes)
    again = hf.to_gguf(folder)
    assert_same(again, new)
    assert {k: v for k, v in again.metadata.items() if k.startswith(at)} == {
        k: v for k, v in new.metadata.items() if k.startswith(at)
    }


def test_scales_of_packed_experts_unpack_them() -> None:
    gguf = somebodys(GPT_OSS)
    gguf.add(Tensor.from_array("blk.0.ffn_up_exps.scale", np.float32([0.5, 0.25, 1])))
    folder = hf.from_gguf(gguf)
    both = folder.tensors["model.layers.0.mlp.experts.gate_up_proj"].numpy()
    up = gguf.tensors["blk.0.ffn_up_exps.weight"].numpy() * np.float32([0.5, 0.25, 1])[:, None, None]
    assert np.array_equal(both[..., 1::2], up.transpose(0, 2, 1), equal_nan=True)
    assert "model.layers.1.mlp.experts.gate_up_proj_blocks" in folder.tensors


def test_divisors_that_no_configuration_says_are_refused() -> None:
    """Llama 3.1's come back, of any original context; others have no place in a config.json."""
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LLAMA | {"hidden_size": 64, "head_dim": 32, "rope_theta": 1e4}
    for original in (8192, 300):
        gguf = somebodys(config | {"rope_scaling": scaled | {"original_max_position_embeddings": original}})
        assert_same(hf.to_gguf(hf.from_gguf(gguf)), gguf)
    gguf.add(Tensor.from_array("rope_freqs.weight", np.linspace(1, 3, 16, dtype=np.float32)))
    with pytest.raises(BadFile, match=r"'rope_freqs.weight' has values that no config.json of a llama model says"):
        hf.from_gguf(gguf)


def test_experts_of_qwen_3_vl_stay_normalized() -> None:
    """A GGUF from somebody else, whose family makes the chosen weights sum to one without a key."""
    vision = {"deepstack_visual_indexes": [0, 1]}
    text = {k: v for k, v in QWEN3_MOE.items() if k not in ("architectures", "model_type")}
    config = {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "model_type": "qwen3_vl_moe",
        "text_config": text | {"norm_topk_prob": True},
        "vision_config": vision,
    }
    gguf = somebodys(config)
    again = hf.to_gguf(hf.from_gguf(gguf)).metadata
    mine = {k: v for k, v in gguf.metadata.items() if k.startswith("qwen3vlmoe.")}
    assert mine["qwen3vlmoe.n_deepstack_layers"] == 2
    assert {k: v for k, v in again.items() if k.startswith("qwen3vlmoe.")} == mine
