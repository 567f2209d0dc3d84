"""RWKV 6 and 7, and Qwen 2 with their states, token by token in numpy as their papers have them, from a folder's names.

arXiv:2404.05892 (6), arXiv:2503.14456 (7).  All in float64.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from llmconv.formats.checkpoint import Checkpoint

Array = Any


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def layer_norm(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean() + eps) * weight


def group_norm(x: Array, heads: int, weight: Array, bias: Array, eps: float) -> Array:
    parts = x.reshape(heads, -1)
    normed = (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + eps)
    return normed.reshape(-1) * weight + bias


class Folder:
    """A folder's tensors in float64 by name; `at(prefix)` names those of a part."""

    def __init__(self, folder: Checkpoint):
        self.config = json.loads(folder.file("config.json") or b"{}")
        self.tensors = {name: tensor.numpy().astype(np.float64) for name, tensor in folder.tensors.items()}

    def at(self, prefix: str) -> Any:
        return lambda name: self.tensors[prefix + name]


def logits(folder: Checkpoint, ids: list[int]) -> Array:
    """(tokens, vocabulary)."""
    model = Folder(folder)
    return np.stack(list(_MODELS[model.config["architectures"][0]](model, ids)))


def _rwkv6(model: Folder, ids: list[int]) -> Iterator[Array]:
    config, top = model.config, model.at("rwkv.")
    n, size, eps = config["num_hidden_layers"], config["head_size"], config["layer_norm_epsilon"]
    dim = config["hidden_size"]
    heads = dim // size
    seen = [(np.zeros(dim), np.zeros(dim), np.zeros((heads, size, size))) for _ in range(n)]
    for token in ids:
        x = top("embeddings.weight")[token]
        x = layer_norm(x, top("blocks.0.pre_ln.weight"), top("blocks.0.pre_ln.bias"), eps)
        for i in range(n):
            at = model.at(f"rwkv.blocks.{i}.")
            mix, feed = (model.at(f"rwkv.blocks.{i}.{part}.") for part in ("attention", "feed_forward"))
            every = config["rescale_every"]
            scale = 2.0 ** (i // every)  # what goes on is halved every so many layers, and what later ones add
            (before, last, state), y = seen[i], layer_norm(x, at("ln1.weight"), at("ln1.bias"), eps)
            gone = before - y
            low = np.tanh((y + gone * mix("time_maa_x")[0, 0]) @ mix("time_maa_w1")).reshape(5, -1)
            parts = {}
            for j, letter in enumerate("wkvrg"):
                share = mix(f"time_maa_{letter}")[0, 0] + low[j] @ mix("time_maa_w2")[j]
                parts[letter] = y + gone * share
            w = mix("time_decay")[0, 0] + np.tanh(parts["w"] @ mix("time_decay_w1")) @ mix("time_decay_w2")
            w = np.exp(-np.exp(w)).reshape(heads, size)
            r, k, v = (
                (mix(f"{name}.weight") @ parts[name[0]]).reshape(heads, size) for name in ("receptance", "key", "value")
            )
            g = mix("gate.weight") @ parts["g"]
            pair = k[:, :, None] * v[:, None, :]
            out = np.einsum("hk,hkv->hv", r, state + mix("time_faaaa")[:, :, None] * pair)
            state = w[:, :, None] * state + pair
            out = group_norm(out.reshape(-1), heads, mix("ln_x.weight"), mix("ln_x.bias"), 64e-5)
            x = x + mix("output.weight") @ (out * g * sigmoid(g)) / scale
            z = layer_norm(x, at("ln2.weight"), at("ln2.bias"), eps)
            into = [z + (last - z) * feed(f"time_maa_{part}")[0, 0] for part in "kr"]
            inner = np.maximum(feed("key.weight") @ into[0], 0) ** 2
            x = x + sigmoid(feed("receptance.weight") @ into[1]) * (feed("value.weight") @ inner) / scale
            x = x / 2 if (i + 1) % every == 0 else x
            seen[i] = (y, z, state)
        yield model.tensors["head.weight"] @ layer_norm(x, top("ln_out.weight"), top("ln_out.bias"), eps)


def _rwkv7(model: Folder, ids: list[int]) -> Iterator[Array]:
    config, top = model.config, model.at("model.")
    n, size, eps, dim = config["num_hidden_layers"], config["head_dim"], config["norm_eps"], config["hidden_size"]
    heads = dim // size
    seen = [(np.zeros(dim), np.zeros(dim), np.zeros((heads, size, size))) for _ in range(n)]
    for token in ids:
        first: Array = None
        x = top("embeddings.weight")[token]
        x = layer_norm(x, top("layers.0.pre_norm.weight"), top("layers.0.pre_norm.bias"), eps)
        for i in range(n):
            at = model.at(f"model.layers.{i}.")
            mix, feed = (model.at(f"model.layers.{i}.{part}.") for part in ("attn", "ffn"))
            y = layer_norm(x, at("attn_norm.weight"), at("attn_norm.bias"), eps)

            def low(letter: str, given: Array, between: Any = lambda a: a) -> Array:
                first, second = (mix(f"{letter}_lora.lora.{j}.weight") for j in (0, 2))  # noqa: B023
                out = second @ between(first @ given)
                return out if letter == "g" else out + mix(f"{letter}_lora.lora.2.bias")  # noqa: B023

            parts = {c: y + (seen[i][0] - y) * mix(f"x_{c}").reshape(-1) for c in "rwkvag"}
            r, k, v = (mix(f"{c}_proj.weight") @ parts[c] for c in "rkv")
            if i == 0:
                first = v
            else:
                v = v + (first - v) * sigmoid(low("v", parts["v"]))
            out, state = _relearned(
                *(r, k, v, low("w", parts["w"], np.tanh), sigmoid(low("a", parts["a"])), seen[i][2], heads),
                *(mix(name).reshape(-1) for name in ("k_k", "k_a", "r_k")),
                lambda out: group_norm(out, heads, mix("g_norm.weight"), mix("g_norm.bias"), size * eps),  # noqa: B023
            )
            x = x + mix("o_proj.weight") @ (out * low("g", parts["g"], sigmoid))
            z = layer_norm(x, at("ffn_norm.weight"), at("ffn_norm.bias"), eps)
            inner = feed("key.weight") @ (z + (seen[i][1] - z) * feed("x_k").reshape(-1))
            x = x + feed("value.weight") @ np.maximum(inner, 0) ** 2
            seen[i] = (y, z, state)
        yield model.tensors["lm_head.weight"] @ layer_norm(x, top("norm.weight"), top("norm.bias"), eps)


def _relearned(
    r: Array, k: Array, v: Array, w: Array, a: Array, state: Array, heads: int, k_k: Array, k_a: Array, r_k: Array,
    norm: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """One token of RWKV 7's time mixing; the state is (heads, values, keys)."""
    decay = np.exp(-np.exp(-0.5) * sigmoid(w)).reshape(heads, -1)
    aim = (k * k_k).reshape(heads, -1)
    aim = aim / np.sqrt((aim * aim).sum(1, keepdims=True))
    k = (k * (1 + (a - 1) * k_a)).reshape(heads, -1)
    r, v, rate = (t.reshape(heads, -1) for t in (r, v, a))
    held = np.einsum("hvk,hk->hv", state, -aim)
    state = state * decay[:, None] + held[:, :, None] * (aim * rate)[:, None] + v[:, :, None] * k[:, None]
    out = norm(np.einsum("hvk,hk->hv", state, r).reshape(-1))
    own = (r * k * r_k.reshape(heads, -1)).sum(1, keepdims=True) * v
    return out + own.reshape(-1), state


def _qwen(model: Folder, ids: list[int], mixed: Any, size: int) -> Iterator[Array]:
    """Qwen 2 with something in attention's place: `mixed` is given a layer's number, input, the one before, state."""
    config = model.config
    n, dim, eps = config["num_hidden_layers"], config["hidden_size"], config["rms_norm_eps"]
    seen = [(np.zeros(dim), np.zeros((dim // size, size, size))) for _ in range(n)]
    for token in ids:
        x, memory = model.tensors["model.embed_tokens.weight"][token], dict[str, Array]()
        for i in range(n):
            at = model.at(f"model.layers.{i}.")
            y = rms_norm(x, at("input_layernorm.weight"), eps)
            out, state = mixed(i, y, *seen[i], memory)
            seen[i] = (y, state)
            x = x + out
            z = rms_norm(x, at("post_attention_layernorm.weight"), eps)
            gate = at("mlp.gate_proj.weight") @ z
            x = x + at("mlp.down_proj.weight") @ (gate * sigmoid(gate) * (at("mlp.up_proj.weight") @ z))
        yield model.tensors["lm_head.weight"] @ rms_norm(x, model.tensors["model.norm.weight"], eps)


def _qrwkv6(model: Folder, ids: list[int]) -> Iterator[Array]:
    config = model.config
    size, heads = config["hidden_size"] // config["num_attention_heads"], config["num_attention_heads"]

    def mixed(i: int, y: Array, before: Array, state: Array, memory: Any) -> tuple[Array, Array]:
        mix, gone = model.at(f"model.layers.{i}.self_attn."), before - y
        low = np.tanh((y + gone * mix("time_maa_x")[0, 0]) @ mix("time_maa_w1")).reshape(5, -1)
        parts = {  # in the order in which Qwen's own code has them
            c: y + gone * (mix(f"time_maa_{c}")[0, 0] + low[j] @ mix("time_maa_w2")[j]) for j, c in enumerate("rkvwg")
        }
        w = mix("time_decay")[0, 0] + np.tanh(parts["w"] @ mix("time_decay_w1")) @ mix("time_decay_w2")
        w = np.exp(-np.exp(w)).reshape(heads, size)
        r, k, v = (mix(f"{c}_proj.weight") @ parts[d] + mix(f"{c}_proj.bias") for c, d in ("qr", "kk", "vv"))
        k, v = (np.repeat(t.reshape(-1, size), heads * size // len(t), 0) for t in (k, v))
        state = w[:, :, None] * state + (k * (1 - w))[:, :, None] * v[:, None]
        out = np.einsum("hk,hkv->hv", r.reshape(heads, size) * size**-0.5, state).reshape(-1)
        return mix("o_proj.weight") @ (out * sigmoid(mix("gate.weight") @ parts["g"])), state

    return _qwen(model, ids, mixed, size)


def _arwkv7(model: Folder, ids: list[int]) -> Iterator[Array]:
    size = model.config["head_size"]
    heads = model.config["hidden_size"] // size

    def mixed(i: int, y: Array, before: Array, state: Array, memory: Any) -> tuple[Array, Array]:
        mix = model.at(f"model.layers.{i}.self_attn.time_mixer.")

        def low(letter: str, given: Array, between: Any = lambda a: a) -> Array:
            out = between(given @ mix(f"{letter}1")) @ mix(f"{letter}2")
            return out if letter == "g" else out + mix(f"{letter}0").reshape(-1)

        def norm(out: Array) -> Array:
            return group_norm(out, heads, mix("ln_x.weight"), mix("ln_x.bias"), 64e-5)

        parts = {c: y + (before - y) * mix(f"x_{c}").reshape(-1) for c in "rwkvag"}
        r, k, v = (mix(f"{name}.weight") @ parts[c] for name, c in (("receptance", "r"), ("key", "k"), ("value", "v")))
        if i == 0:
            memory["first"] = v
        else:
            v = v + (memory["first"] - v) * sigmoid(low("v", parts["v"]))
        out, state = _relearned(
            *(r, k, v, low("w", parts["w"], np.tanh), sigmoid(low("a", parts["a"])), state, heads),
            *(mix(name).reshape(-1) for name in ("k_k", "k_a", "r_k")),
            norm if f"model.layers.{i}.self_attn.time_mixer.ln_x.weight" in model.tensors else lambda out: out,
        )
        return mix("output.weight") @ (out * low("g", parts["g"], sigmoid)), state

    return _qwen(model, ids, mixed, size)


_MODELS = {
    "Rwkv6ForCausalLM": _rwkv6,
    "RWKV6Qwen2ForCausalLM": _qrwkv6,
    "RWKV7ForCausalLM": _rwkv7,
    "RwkvHybridForCausalLM": _arwkv7,
}
