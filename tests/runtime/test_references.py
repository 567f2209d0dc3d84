"""Families that transformers does not have: logits against the published architecture, written out here in torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")
F = torch.nn.functional

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
INTERNLM2 = SIZES | {"architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "num_key_value_heads": 2}
BAICHUAN = SIZES | {"architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"}


def rms(x: Any, weight: Any) -> Any:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + SIZES["rms_norm_eps"]) * weight


def rotated(x: Any, base: float) -> Any:
    """Rotary positions of (heads, T, d), halves turning together (Su et al. 2021, in the form of GPT-NeoX)."""
    d, t = x.shape[-1], torch.arange(x.shape[-2], dtype=torch.float64)
    angles = torch.outer(t, base ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)).float()
    cos, sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
    return x * cos + torch.cat((-x[..., d // 2 :], x[..., : d // 2]), -1) * sin


def attended(q: Any, k: Any, v: Any, bias: Any) -> Any:
    """(heads, T, d) each, keys repeated for their group -> (T, heads * d)."""
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
    t = q.shape[1]
    scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(t, -1)


def internlm2(w: dict[str, Any], config: dict[str, Any], tokens: Any) -> Any:
    """modeling_internlm2.py: wqkv holds, for each key head, its queries, its key and its value."""
    heads, groups = config["num_key_value_heads"], config["num_attention_heads"] // config["num_key_value_heads"]
    x, zero, base = w["model.tok_embeddings.weight"][tokens], torch.zeros(()), config["rope_theta"]
    scaling = config.get("rope_scaling")
    if scaling and len(tokens) > config["max_position_embeddings"]:  # its dynamic NTK scaling
        d = config["hidden_size"] // config["num_attention_heads"]
        grown = scaling["factor"] * len(tokens) / config["max_position_embeddings"] - (scaling["factor"] - 1)
        base *= grown ** (d / (d - 2))
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        normed = rms(x, w[at + "attention_norm.weight"])
        fused = F.linear(normed, w[at + "attention.wqkv.weight"], w.get(at + "attention.wqkv.bias"))
        fused = fused.view(len(tokens), heads, groups + 2, -1)
        q = fused[:, :, :groups].flatten(1, 2).transpose(0, 1)
        k, v = fused[:, :, -2].transpose(0, 1), fused[:, :, -1].transpose(0, 1)
        out = attended(rotated(q, base), rotated(k, base), v, zero)
        x = x + F.linear(out, w[at + "attention.wo.weight"], w.get(at + "attention.wo.bias"))
        normed = rms(x, w[at + "ffn_norm.weight"])
        gate, up = (F.linear(normed, w[f"{at}feed_forward.{n}.weight"]) for n in ("w1", "w3"))
        x = x + F.linear(F.silu(gate) * up, w[at + "feed_forward.w2.weight"])
    return F.linear(rms(x, w["model.norm.weight"]), w["output.weight"])


def baichuan(w: dict[str, Any], config: dict[str, Any], tokens: Any) -> Any:
    """modeling_baichuan.py: W_pack holds q, k, v; 7B has rotary positions, 13B ALiBi; version 2 normalises its head."""
    n, t = config["num_attention_heads"], len(tokens)
    alibi = config["num_hidden_layers"] == 40
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / n) for h in range(n)]) if alibi else torch.zeros(n)
    bias = slopes[:, None, None] * torch.arange(t)[None, None]
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        fused = F.linear(rms(x, w[at + "input_layernorm.weight"]), w[at + "self_attn.W_pack.weight"])
        q, k, v = (part.view(t, n, -1).transpose(0, 1) for part in fused.chunk(3, -1))
        if not alibi:
            q, k = rotated(q, config["rope_theta"]), rotated(k, config["rope_theta"])
        x = x + F.linear(attended(q, k, v, bias), w[at + "self_attn.o_proj.weight"])
        normed = rms(x, w[at + "post_attention_layernorm.weight"])
        gate, up = (F.linear(normed, w[f"{at}mlp.{p}_proj.weight"]) for p in ("gate", "up"))
        x = x + F.linear(F.silu(gate) * up, w[at + "mlp.down_proj.weight"])
    head = w["lm_head.weight"]
    return F.linear(rms(x, w["model.norm.weight"]), F.normalize(head) if "z_loss_weight" in config else head)


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    d, ff, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    packed = d + 2 * d * config.get("num_key_value_heads", 4) // 4
    out: dict[str, tuple[int, ...]] = {"model.norm.weight": (d,)}
    layer: dict[str, tuple[int, ...]]
    if config["model_type"] == "internlm2":
        out |= {"model.tok_embeddings.weight": (vocab, d), "output.weight": (vocab, d)}
        layer = {"attention_norm": (d,), "ffn_norm": (d,), "attention.wqkv": (packed, d), "attention.wo": (d, d)}
        layer |= {"feed_forward.w1": (ff, d), "feed_forward.w3": (ff, d), "feed_forward.w2": (d, ff)}
    else:
        out |= {"model.embed_tokens.weight": (vocab, d), "lm_head.weight": (vocab, d)}
        layer = {"input_layernorm": (d,), "post_attention_layernorm": (d,), "self_attn.W_pack": (packed, d)}
        layer |= {
            "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (ff, d),
            "mlp.up_proj": (ff, d),
            "mlp.down_proj": (d, ff),
        }
    for i in range(config["num_hidden_layers"]):
        out |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
        if config.get("bias"):
            out |= {f"model.layers.{i}.attention.{n}.bias": (s,) for n, s in (("wqkv", packed), ("wo", d))}
    return out


_DYNAMIC = {"type": "dynamic", "factor": 2.0}
CASES = {
    "internlm2": INTERNLM2,
    "internlm2-bias": INTERNLM2 | {"bias": True},
    "internlm2-one-head-each": INTERNLM2 | {"num_key_value_heads": 4},
    "internlm2-dynamic": INTERNLM2
    | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 16},
    "baichuan-7b": BAICHUAN,
    "baichuan-13b": {k: v for k, v in BAICHUAN.items() if k != "max_position_embeddings"}
    | {"num_hidden_layers": 40, "model_max_length": 64},
    "baichuan2-7b": BAICHUAN | {"z_loss_weight": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_published_model_s(tmp_path: Path, name: str) -> None:
    config, rng = CASES[name], np.random.default_rng(7)
    weights = {
        n: (rng.standard_normal(s) * 0.2 + (0.5 if len(s) == 1 else 0)).astype(np.float32)
        for n, s in shapes(config).items()
    }
    made = Checkpoint({n: Tensor.from_array(n, a) for n, a in weights.items()}, {"format": "pt"}, "hf")
    made.files = {"config.json": json.dumps(config).encode()}
    safetensors_file.save(made, tmp_path / "hf")
    notes = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf").notes
    assert any("llama.cpp will not do" in note for note in notes) == (name in ("internlm2-dynamic", "baichuan2-7b"))
    assert llmconv.open(tmp_path / "m.gguf").metadata[f"{config['model_type']}.context_length"] in (16, 64)
    tokens = torch.arange(3, 35) * 5 % 96
    reference = internlm2 if config["model_type"] == "internlm2" else baichuan
    expected = reference({n: torch.from_numpy(a) for n, a in weights.items()}, config, tokens)
    with torch.no_grad():
        found = llmconv.load(tmp_path / "m.gguf", "cpu", "f32")(tokens[None])[0]
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)
