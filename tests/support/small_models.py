"""GPTs as people's own programs save them, with random numbers, and what those programs compute, in numpy and float64.

Each `*_logits` is its program's arithmetic over the names of its own document: nothing of ours is used.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

V, D, FF, L, H, T = 11, 8, 32, 2, 2, 6
CHARACTERS = list("\n abcdefghi")


def numbers(*shape: int, seed: int) -> Any:
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.5).round(4).tolist()


def gain(seed: int) -> Any:
    return (1 + np.array(numbers(D, seed=seed)) / 2).round(4).tolist()


def arrays(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: np.array(value, np.float64) for name, value in weights.items()}


# Arithmetic that they share.


def softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q: Any, k: Any, v: Any, heads: int, causal: bool = True) -> Any:
    """q, k, v (T, heads * size) -> (T, heads * size)."""
    n, size, out = len(q), q.shape[1] // heads, np.zeros_like(v)
    for h in range(heads):
        s = slice(h * size, (h + 1) * size)
        scores = q[:, s] @ k[:, s].T / math.sqrt(size)
        if causal:
            scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        out[:, s] = softmax(scores) @ v[:, s]
    return out


def layer_norm(x: Any, g: Any, b: Any = 0.0) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return g * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + b


def rms(x: Any) -> Any:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)


def relu(x: Any) -> Any:
    return np.maximum(x, 0)


def gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


# microgpt: names [out][in], RMSNorm without weights, also behind the embedding; none before the head.


def microgpt_weights() -> dict[str, Any]:
    out = {"wte": numbers(V, D, seed=1), "wpe": numbers(T, D, seed=2), "lm_head": numbers(V, D, seed=3)}
    for i in range(L):
        out |= {f"layer{i}.attn_w{x}": numbers(D, D, seed=10 * i + k) for k, x in enumerate("qkvo", 4)}
        out |= {f"layer{i}.mlp_fc1": numbers(FF, D, seed=i), f"layer{i}.mlp_fc2": numbers(D, FF, seed=i)}
    return out


SIZES = {"n_embd": D, "n_head": H, "n_layer": L, "block_size": T, "vocab_size": V}


def microgpt(place: str = "config") -> Any:
    """The spellings: settings under "config" or "metadata", or at the top; weights or state_dict; uchars or chars."""
    uchars = CHARACTERS[:-1]
    if place == "config":
        return {"config": {**SIZES, "uchars": uchars, "BOS": V - 1}, "weights": microgpt_weights()}
    if place == "metadata":
        return {"metadata": {"uchars": uchars, **SIZES, "BOS": V - 1}, "weights": microgpt_weights()}
    if place == "camel":
        sizes = {"nEmbd": D, "nHead": H, "nLayer": L, "blockSize": T, "vocabSize": V}
        return {"hyperParameters": sizes, "vocab": "".join(uchars), "params": microgpt_weights()}
    if place == "nested":
        layers: list[Any] = [{} for _ in range(L)]
        flat = microgpt_weights()
        for name in list(flat):
            if name.startswith("layer"):
                layers[int(name[5])][name.split(".")[1]] = flat.pop(name)
        stoi = {c: i for i, c in enumerate(uchars)}
        return {"nHead": H, "stoi": stoi, "model": {**flat, "layers": layers}}
    return {**SIZES, "chars": uchars, "state_dict": microgpt_weights()}


def microgpt_logits(weights: dict[str, Any], ids: list[int], squared: bool = False) -> Any:
    w = arrays(weights)
    x = rms(w["wte"][ids] + w["wpe"][: len(ids)])
    for i in range(L):
        at, n = f"layer{i}.", rms(x)
        q, k, v = (n @ w[f"{at}attn_w{c}"].T for c in "qkv")
        x = x + attend(q, k, v, H) @ w[at + "attn_wo"].T
        hidden = relu(rms(x) @ w[at + "mlp_fc1"].T)
        x = x + (hidden**2 if squared else hidden) @ w[at + "mlp_fc2"].T
    return x @ w["lm_head"].T


def modern() -> Any:
    """microgpt grown up: rotary positions, a gate, norms with weights, fewer heads of keys; as one program saves it."""
    out = {"wte": numbers(V, D, seed=1), "lm_head": numbers(V, D, seed=3), "rms_final": gain(5)}
    for i in range(L):
        at, half = f"layer{i}.", D // 2
        out |= {at + "attn_wq": numbers(D, D, seed=20 + i), at + "attn_wo": numbers(D, D, seed=30 + i)}
        out |= {at + "attn_wk": numbers(half, D, seed=40 + i), at + "attn_wv": numbers(half, D, seed=50 + i)}
        out |= {at + "mlp_gate": numbers(FF, D, seed=i), at + "mlp_up": numbers(FF, D, seed=i + 9)}
        out |= {at + "mlp_down": numbers(D, FF, seed=i), at + "rms_1": gain(i), at + "rms_2": gain(i + 20)}
    return {**SIZES, "chars": CHARACTERS[:-1], "state_dict": out}


def rope(x: Any, heads: int) -> Any:
    n, size = x.shape[0], x.shape[1] // heads
    angle = np.arange(n)[:, None] / 10000 ** (np.arange(size // 2) * 2 / size)
    x = x.reshape(n, heads, size)
    a, b, cos, sin = x[..., : size // 2], x[..., size // 2 :], np.cos(angle)[:, None], np.sin(angle)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1).reshape(n, -1)


def modern_logits(document: Any, ids: list[int]) -> Any:
    w = arrays(document["state_dict"])
    x = w["wte"][ids]
    for i in range(L):
        at = f"layer{i}."
        n = rms(x) * w[at + "rms_1"]
        q, k, v = (n @ w[f"{at}attn_w{c}"].T for c in "qkv")
        k, v = np.tile(rope(k, 1), 2), np.tile(v, 2)  # one head of keys and values for two of queries
        x = x + attend(rope(q, H), k, v, H) @ w[at + "attn_wo"].T
        n = rms(x) * w[at + "rms_2"]
        gate = n @ w[at + "mlp_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (n @ w[at + "mlp_up"].T)) @ w[at + "mlp_down"].T
    return rms(x) * w["rms_final"] @ w["lm_head"].T


# Karpathy's lecture: a state dict of torch, a matrix for each head; no biases there, ReLU.


def lecture() -> dict[str, Any]:
    out: dict[str, Any] = {"token_embedding_table.weight": numbers(V, D, seed=1)}
    out["position_embedding_table.weight"] = numbers(T, D, seed=2)
    for i in range(L):
        for h in range(H):
            at = f"blocks.{i}.sa.heads.{h}."
            out[at + "tril"] = np.tri(T).tolist()
            out |= {
                f"{at}{x}.weight": numbers(D // H, D, seed=100 * i + 10 * h + k)
                for k, x in enumerate(("key", "query", "value"))
            }
        at = f"blocks.{i}."
        out |= {at + "sa.proj.weight": numbers(D, D, seed=i), at + "sa.proj.bias": numbers(D, seed=i)}
        out |= {at + "ffwd.net.0.weight": numbers(FF, D, seed=i), at + "ffwd.net.0.bias": numbers(FF, seed=i)}
        out |= {at + "ffwd.net.2.weight": numbers(D, FF, seed=i), at + "ffwd.net.2.bias": numbers(D, seed=i + 5)}
        out |= {f"{at}ln{n}.weight": gain(i + n) for n in (1, 2)}
        out |= {f"{at}ln{n}.bias": numbers(D, seed=i + 8 + n) for n in (1, 2)}
    out |= {"ln_f.weight": gain(7), "ln_f.bias": numbers(D, seed=70)}
    return out | {"lm_head.weight": numbers(V, D, seed=71), "lm_head.bias": numbers(V, seed=72)}


def lecture_logits(document: Any, ids: list[int]) -> Any:
    w = arrays(document)
    x = w["token_embedding_table.weight"][ids] + w["position_embedding_table.weight"][: len(ids)]
    for i in range(L):
        at, heads = f"blocks.{i}.", []
        n = layer_norm(x, w[at + "ln1.weight"], w[at + "ln1.bias"])
        for h in range(H):
            q, k, v = (n @ w[f"{at}sa.heads.{h}.{c}.weight"].T for c in ("query", "key", "value"))
            heads.append(attend(q, k, v, 1))
        x = x + np.concatenate(heads, -1) @ w[at + "sa.proj.weight"].T + w[at + "sa.proj.bias"]
        n = layer_norm(x, w[at + "ln2.weight"], w[at + "ln2.bias"])
        hidden = relu(n @ w[at + "ffwd.net.0.weight"].T + w[at + "ffwd.net.0.bias"])
        x = x + hidden @ w[at + "ffwd.net.2.weight"].T + w[at + "ffwd.net.2.bias"]
    return layer_norm(x, w["ln_f.weight"], w["ln_f.bias"]) @ w["lm_head.weight"].T + w["lm_head.bias"]


# A numpy GPT: [in][out], names such as b0_wq.


def playground() -> Any:
    p: dict[str, Any] = {"wte": numbers(V, D, seed=1), "wpe": numbers(T, D, seed=2)}
    for i in range(L):
        p |= {f"b{i}_w{x}": numbers(D, D, seed=10 * i + k) for k, x in enumerate("qkvo")}
        p |= {f"b{i}_ln1g": gain(i), f"b{i}_ln1b": numbers(D, seed=i + 3)}
        p |= {f"b{i}_w1": numbers(D, FF, seed=i), f"b{i}_b1": numbers(FF, seed=i)}
        p |= {f"b{i}_w2": numbers(FF, D, seed=i), f"b{i}_b2": numbers(D, seed=i + 4)}
        p |= {f"b{i}_ln2g": gain(i + 2), f"b{i}_ln2b": numbers(D, seed=i + 6)}
    p |= {"lng": gain(9), "lnb": numbers(D, seed=90), "wh": numbers(D, V, seed=91), "bh": numbers(V, seed=92)}
    cfg = {"V": V, "T": T, "L": L, "H": H, "E": D, "D": D // H, "quant": "float16-rounded"}
    return {"cfg": cfg, "chars": CHARACTERS, "params": p}


def playground_logits(document: Any, ids: list[int]) -> Any:
    w = arrays(document["params"])
    x = w["wte"][ids] + w["wpe"][: len(ids)]
    for i in range(L):
        n = layer_norm(x, w[f"b{i}_ln1g"], w[f"b{i}_ln1b"])
        q, k, v = (n @ w[f"b{i}_w{c}"] for c in "qkv")
        x = x + attend(q, k, v, H) @ w[f"b{i}_wo"]
        n = layer_norm(x, w[f"b{i}_ln2g"], w[f"b{i}_ln2b"])
        x = x + gelu_tanh(n @ w[f"b{i}_w1"] + w[f"b{i}_b1"]) @ w[f"b{i}_w2"] + w[f"b{i}_b2"]
    return layer_norm(x, w["lng"], w["lnb"]) @ w["wh"] + w["bh"]


# A Rust GPT: ndarrays [in][out], queries, keys and values in one matrix, ReLU.


def ndarray(array: Any = lambda values: values) -> Any:
    """array: how it writes one."""

    def block(i: int) -> Any:
        return {
            "ln1_g": array(gain(i)), "ln1_b": array(numbers(D, seed=i)),
            "w_qkv": array(numbers(D, 3 * D, seed=i)), "b_qkv": array(numbers(3 * D, seed=i)),
            "w_o": array(numbers(D, D, seed=i)), "b_o": array(numbers(D, seed=i + 4)),
            "ln2_g": array(gain(i + 2)), "ln2_b": array(numbers(D, seed=i + 6)),
            "w_1": array(numbers(D, FF, seed=i)), "b_1": array(numbers(FF, seed=i)),
            "w_2": array(numbers(FF, D, seed=i)), "b_2": array(numbers(D, seed=i + 7)),
        }  # fmt: skip

    config = {"vocab": V, "context": T, "dim": D, "heads": H, "layers": L}
    model = {"config": config, "tok_emb": array(numbers(V, D, seed=1)), "pos_emb": array(numbers(T, D, seed=2))}
    model |= {"blocks": [block(i) for i in range(L)], "lnf_g": array(gain(9)), "lnf_b": array(numbers(D, seed=90))}
    model |= {"head": array(numbers(D, V, seed=91)), "head_b": array(numbers(V, seed=92))}
    return {"tokenizer": {"chars": CHARACTERS}, "model": model}


def ndarray_logits(document: Any, ids: list[int]) -> Any:
    m = document["model"]
    x = np.array(m["tok_emb"])[ids] + np.array(m["pos_emb"])[: len(ids)]
    for b in map(arrays, m["blocks"]):
        q, k, v = np.split(layer_norm(x, b["ln1_g"], b["ln1_b"]) @ b["w_qkv"] + b["b_qkv"], 3, -1)
        x = x + attend(q, k, v, H) @ b["w_o"] + b["b_o"]
        x = x + relu(layer_norm(x, b["ln2_g"], b["ln2_b"]) @ b["w_1"] + b["b_1"]) @ b["w_2"] + b["b_2"]
    return layer_norm(x, np.array(m["lnf_g"]), np.array(m["lnf_b"])) @ np.array(m["head"]) + np.array(m["head_b"])


# The flat array of microgpt in JavaScript.


def flat() -> Any:
    w = microgpt_weights()
    order = ["wte", "wpe", "lm_head", *(n for n in w if n.startswith("layer"))]
    values = np.concatenate([np.array(w[n]).reshape(-1) for n in order]).tolist()
    config = {"nLayer": L, "nEmbd": D, "blockSize": T, "nHead": H, "vocabSize": V}
    return {"config": config, "vocab": CHARACTERS, "weights": values}


# Post-norm, sinusoidal positions (not stored), one block.


def desde_cero_logits(document: Any, ids: list[int]) -> Any:
    w, n = arrays(document["weights"]), document["d_model"]
    angle = np.arange(len(ids))[:, None] * np.exp(np.arange(n) // 2 * 2 * (-math.log(10000) / n))
    x = w["E"][ids] + np.where(np.arange(n) % 2 == 0, np.sin(angle), np.cos(angle))
    attended = attend(x @ w["WQ"], x @ w["WK"], x @ w["WV"], document["n_heads"]) @ w["WO"]
    x = layer_norm(x + attended, w["gamma1"], w["beta1"])
    x = layer_norm(x + relu(x @ w["W1"] + w["bias1"]) @ w["W2"] + w["bias2"], w["gamma2"], w["beta2"])
    return x @ w["Wlm"] + w["blm"]


# One block without norms, no mask.


def forge_logits(document: Any, ids: list[int]) -> Any:
    w = {name: np.array(t["data"]).reshape(t["shape"]) for name, t in document.items()}

    def linear(x: Any, name: str) -> Any:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    x = w["embedding.weight"][ids]
    q, k, v = (linear(x, f"transformer.attention.{c}") for c in ("query", "key", "value"))
    x = x + attend(q, k, v, 1, causal=False)
    x = x + linear(relu(linear(x, "transformer.ff1")), "transformer.ff2")
    return linear(x, "output_proj")


# {meta, weights: {projection, blocks, embedding}}: pre-norm, causal, [in][out]; no norm before its head.


def blocks() -> Any:
    def linear(n_in: int, n_out: int, seed: int) -> Any:
        return {"weights": numbers(n_in, n_out, seed=seed), "bias": numbers(n_out, seed=seed + 50)}

    def block(i: int) -> Any:
        return {
            "attention": {f"w{x}": linear(D, D, 10 * i + k) for k, x in enumerate("qkvo")},
            "feedforward": {"linear1": linear(D, FF, i + 4), "linear2": linear(FF, D, i + 5)},
            **{f"norm{n}": {"gamma": gain(i + n), "beta": numbers(D, seed=i + 6 + n)} for n in (1, 2)},
        }

    embedding = {"tokenWeights": numbers(V, D, seed=1), "positionWeights": numbers(T, D, seed=2)}
    weights = {"projection": linear(D, V, 90), "blocks": [block(i) for i in range(L)], "embedding": embedding}
    return {"config": {"numHeads": H, "vocab": WORDS}, "meta": {"epoch": 3}, "weights": weights}


WORDS = ["[UNK]", *(f"w{i}" for i in range(V - 1))]


def blocks_logits(document: Any, ids: list[int], act: Any = gelu_tanh) -> Any:
    w = document["weights"]

    def linear(x: Any, at: Any) -> Any:
        return x @ np.array(at["weights"]) + np.array(at["bias"])

    def norm(x: Any, at: Any) -> Any:
        return layer_norm(x, np.array(at["gamma"]), np.array(at["beta"]))

    x = np.array(w["embedding"]["tokenWeights"])[ids] + np.array(w["embedding"]["positionWeights"])[: len(ids)]
    for b in w["blocks"]:
        n = norm(x, b["norm1"])
        q, k, v = (linear(n, b["attention"][f"w{c}"]) for c in "qkv")
        x = x + linear(attend(q, k, v, H), b["attention"]["wo"])
        x = x + linear(act(linear(norm(x, b["norm2"]), b["feedforward"]["linear1"])), b["feedforward"]["linear2"])
    return linear(x, w["projection"])


# Dotted keys, [in][out], GPT-2's arithmetic with the embedding for a head.


def dotted() -> Any:
    w: dict[str, Any] = {"wte": numbers(V, D, seed=1), "wpe": numbers(T, D, seed=2)}
    for i in range(L):
        at = f"block{i}."
        for k, (name, n_in, n_out) in enumerate(
            [*((x, D, D) for x in "qkvo"), ("ffn.lin1", D, FF), ("ffn.lin2", FF, D)]
        ):
            w |= {f"{at}{name}.W": numbers(n_in, n_out, seed=10 * i + k), f"{at}{name}.b": numbers(n_out, seed=i + k)}
        w |= {f"{at}ln{n}.g": gain(i + n) for n in (1, 2)} | {f"{at}ln{n}.b": numbers(D, seed=i + n) for n in (1, 2)}
    w |= {"ln_f.g": gain(9), "ln_f.b": numbers(D, seed=90)}
    config = {"d_model": D, "n_heads": H, "d_ff": FF, "n_layers": L, "max_seq_len": T}
    return {"config": config, "vocab": WORDS, **w}


def dotted_logits(document: Any, ids: list[int], act: Any = gelu_tanh) -> Any:
    w = arrays({name: value for name, value in document.items() if name not in ("config", "vocab")})
    x = w["wte"][ids] + w["wpe"][: len(ids)]

    def linear(x: Any, at: str) -> Any:
        return x @ w[at + ".W"] + w[at + ".b"]

    for i in range(L):
        at = f"block{i}."
        n = layer_norm(x, w[at + "ln1.g"], w[at + "ln1.b"])
        x = x + linear(attend(*(linear(n, at + c) for c in "qkv"), H), at + "o")
        n = layer_norm(x, w[at + "ln2.g"], w[at + "ln2.b"])
        x = x + linear(act(linear(n, at + "ffn.lin1")), at + "ffn.lin2")
    return layer_norm(x, w["ln_f.g"], w["ln_f.b"]) @ w["wte"].T
