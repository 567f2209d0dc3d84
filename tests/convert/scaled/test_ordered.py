"""Act-order folded into attention: output projections' columns in order, the value projection's rows with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_layers import Arrays, gptq
from stored_models import folder, llama

import llmconv

GPTQ = {"quant_method": "gptq", "bits": 4, "desc_act": True}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}  # two heads see each pair of values
SHAPES = {"q_proj": (256, 64), "k_proj": (128, 64), "v_proj": (128, 64), "o_proj": (64, 256)}


def within_heads(rng: Any, agree: bool = True) -> Any:
    """Groups of 32 of 256 columns in heads of 64: each head's channels in two, the same for heads that share."""
    out = np.empty(256, int)
    channels: Any = None
    for head in range(4):
        if head % 2 == 0 or not agree:
            channels = rng.permutation(64)
        first, second = rng.permutation([2 * head, 2 * head + 1])  # whichever of the two comes first
        out[64 * head + channels[:32]], out[64 * head + channels[32:]] = first, second
    return out


def model(path: Path, group_of: Any, bias: bool = False, **more: Any) -> tuple[Path, dict[str, Any]]:
    """Values and outputs of the first layer are GPTQ's, the others floats; and what they stand for."""
    wants: dict[str, Any] = {}
    rng = np.random.default_rng(2)

    def layer(stem: str, shape: tuple[int, int]) -> Arrays:
        own = stem.rpartition(".")[2]
        shape = SHAPES.get(own, shape)
        made: Arrays = {f"{stem}.weight": rng.standard_normal(shape).astype(np.float16)}
        if "layers.0" in stem and own in ("o_proj", "v_proj"):
            groups = len(set(group_of))
            made, wants[own] = gptq(stem, shape, len(wants), group=256 // groups if own == "o_proj" else 32)
            if own == "o_proj":
                codes, scale = wants[own].reshape(64, groups, -1), made[f"{stem}.scales"].astype(np.float32).T
                steps = np.rint(codes / scale[..., None]).reshape(64, 256)
                wants[own] = (steps * scale[:, group_of]).astype(np.float32)
                made[f"{stem}.g_idx"] = group_of.astype(np.int32)
        if bias and "self_attn" in stem:
            made[f"{stem}.bias"] = rng.standard_normal(shape[0]).astype(np.float16)
            wants[f"{stem}.bias"] = made[f"{stem}.bias"].astype(np.float32)
        return made

    return folder(path, llama(layer), GPTQ, **HEADS | more), wants


def sums(v: Any, o: Any, x: Any, bias: Any) -> Any:
    """What an attention that sees one token computes: each head takes the values that it shares."""
    values = (v.astype(np.float64) @ x + bias).reshape(2, 64)
    return o.astype(np.float64) @ np.repeat(values, 2, axis=0).reshape(-1)


@pytest.mark.parametrize("bias", [False, True])
def test_within_heads_that_agree(tmp_path: Path, bias: bool) -> None:
    source, wants = model(tmp_path / "in", within_heads(np.random.default_rng(1)), bias, attention_bias=bias)
    result = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK")
    assert any("columns of 1 output projections" in note for note in result.notes)
    assert "4 bits, repacked, every weight equal" in result.output.proof
    tensors = llmconv.open(tmp_path / "o.gguf").tensors
    v, o = tensors["blk.0.attn_v.weight"], tensors["blk.0.attn_output.weight"]
    assert v.type.name == o.type.name == "Q4_0"
    x = np.random.default_rng(0).standard_normal(64)
    given = wants.get("model.layers.0.self_attn.v_proj.bias", 0)
    there = tensors["blk.0.attn_v.bias"].numpy() if bias else 0
    assert np.allclose(
        sums(v.numpy(), o.numpy(), x, there), sums(wants["v_proj"], wants["o_proj"], x, given), rtol=1e-12
    )
    assert not np.array_equal(v.numpy(), wants["v_proj"])


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "each its own": (lambda rng: within_heads(rng, agree=False), {}, "heads share values but not"),
    "over heads": (lambda rng: rng.permutation(np.arange(256) // 32), {}, "groups reach over heads"),
    "of more than a head": (lambda rng: rng.permutation(np.arange(256) // 128), {}, "groups of 128 columns"),
    "values that other layers see": (within_heads, {"num_kv_shared_layers": 1}, "can't be told apart"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_folded_is_said(tmp_path: Path, name: str) -> None:
    made, more, why = REFUSED[name]
    source, _ = model(tmp_path / "in", made(np.random.default_rng(1)), **more)
    grids = {g.name: g for g in llmconv.grids(source)}
    assert "act-order" in grids["model.layers.0.self_attn.o_proj.weight"].why
    result = llmconv.quantize(source, tmp_path / "o.gguf", "REPACK", dry_run=True)
    assert any(why in note and "1 weights" in note for note in result.notes), result.notes


def test_groups_that_are_only_numbered_otherwise(tmp_path: Path) -> None:
    """Whole already: their scales are put in order, in a GGUF and in a folder."""
    source, wants = model(tmp_path / "in", np.repeat([3, 0, 2, 1], 64))
    for kind, target in (("REPACK", "o.gguf"), ("W4A16", "o")):
        result = llmconv.quantize(source, tmp_path / target, kind)
        assert "every weight equal" in result.output.proof and not any("no type" in note for note in result.notes)
    found = llmconv.open(tmp_path / "o.gguf").tensors["blk.0.attn_output.weight"].numpy()
    assert np.array_equal(found, wants["o_proj"])
