"""One microgpt in the many ways in which people's programs write the same weights: each gives the same GGUF."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import BadFile

VOCAB, DIM, LAYERS, CONTEXT = 9, 8, 2, 6
CHARS = [*"abcdefgh", "\n"]
SIZES = {"n_embd": DIM, "n_head": 2, "n_layer": LAYERS, "block_size": CONTEXT, "vocab_size": VOCAB}
Weights = dict[str, Any]


def weights() -> Weights:
    rng = np.random.default_rng(0)
    shapes = {"wte": (VOCAB, DIM), "wpe": (CONTEXT, DIM), "lm_head": (VOCAB, DIM)}
    for i in range(LAYERS):
        shapes |= {f"layer{i}.attn_w{x}": (DIM, DIM) for x in "qkvo"}
        shapes |= {f"layer{i}.mlp_fc1": (4 * DIM, DIM), f"layer{i}.mlp_fc2": (DIM, 4 * DIM)}
    return {name: rng.standard_normal(shape).astype(np.float32).astype(np.float64) for name, shape in shapes.items()}


def lists(w: Weights) -> Weights:
    return {name: x.tolist() for name, x in w.items()}


def flat(x: Any) -> list[float]:
    return list(x.reshape(-1).tolist())


def raw(x: Any) -> bytes:
    return bytes(x.astype("<f4").tobytes())


def text(x: Any) -> str:
    return base64.b64encode(raw(x)).decode()


def each(w: Weights, how: Callable[[Any], Any]) -> Weights:
    return {name: how(x) for name, x in w.items()}


def shaped(w: Weights, data: Callable[[Any], Any], **more: Any) -> Weights:
    return each(w, lambda x: {"shape": list(x.shape), **more, "data": data(x)})


def blocks(w: Weights) -> list[Weights]:
    return [{n.split(".")[1]: x for n, x in lists(w).items() if n.startswith(f"layer{i}.")} for i in range(LAYERS)]


def apart(w: Weights) -> list[Any]:
    def part(block: Weights, start: str) -> Weights:
        return {name.removeprefix(start): x for name, x in block.items() if name.startswith(start)}

    return [{"attn": part(block, "attn_"), "mlp": part(block, "mlp_")} for block in blocks(w)]


def camel(name: str) -> str:
    return name.replace("_w", "W").replace("_fc", "Fc").replace("_h", "H")


CAMEL = {"nEmbd": DIM, "nHead": 2, "nLayer": LAYERS, "blockSize": CONTEXT, "vocabSize": VOCAB}
ENDS = ("wte", "wpe", "lm_head")
FORMS: dict[str, Callable[[Weights], Any]] = {
    "other order": lambda w: {"chars": CHARS, "weights": dict(reversed(lists(w).items())), "config": SIZES},
    "hyperparameters, state_dict": lambda w: {"hyperparameters": SIZES, "state_dict": lists(w), "vocab": CHARS},
    "hparams, params": lambda w: {"hparams": SIZES, "params": lists(w), "uchars": CHARS},
    "model.params": lambda w: {"model": {"params": lists(w), "config": SIZES}, "chars": CHARS},
    "model.state_dict": lambda w: {"model": {"state_dict": lists(w)}, "config": SIZES, "tokenizer": {"chars": CHARS}},
    "checkpoint": lambda w: {"step": 3, "checkpoint": {"config": SIZES, "weights": lists(w)}, "chars": CHARS},
    "two objects further in": lambda w: {"data": {"net": {"config": SIZES, "weights": lists(w), "chars": CHARS}}},
    "module.": lambda w: {"config": SIZES, "model": {f"module.{n}": x for n, x in lists(w).items()}, "chars": CHARS},
    "at the top": lambda w: {**SIZES, **lists(w), "chars": CHARS},
    "camelCase": lambda w: {"config": CAMEL, "weights": {camel(n): x for n, x in lists(w).items()}, "vocab": CHARS},
    "capitals": lambda w: {"CONFIG": {n.upper(): x for n, x in SIZES.items()}, "WEIGHTS": lists(w), "CHARS": CHARS},
    "numbers as texts": lambda w: {"config": each(SIZES, str), "weights": lists(w), "chars": CHARS},
    "blocks": lambda w: {
        "config": SIZES, "embedding": {n: lists(w)[n] for n in ENDS[:2]}, "blocks": blocks(w),
        "lm_head": lists(w)["lm_head"], "chars": CHARS,
    },
    "attn and mlp": lambda w: {"config": SIZES, **{n: lists(w)[n] for n in ENDS}, "layers": apart(w), "chars": CHARS},
    "base64": lambda w: {"config": SIZES, "weights": shaped(w, text, dtype="float32"), "chars": CHARS},
    "base64 without dtype": lambda w: {"config": SIZES, "weights": shaped(w, text), "chars": CHARS},
    "base64, said once": lambda w: {
        "config": SIZES, "dtype": "float32", "shapes": each(w, lambda x: list(x.shape)), "weights": each(w, text),
        "chars": CHARS,
    },
    "data URLs": lambda w: {
        "config": SIZES, "weights": shaped(w, lambda x: "data:;base64," + text(x), dtype="f32"), "chars": CHARS,
    },
    "Node's Buffers": lambda w: {
        "config": SIZES, "chars": CHARS,
        "weights": shaped(w, lambda x: {"type": "Buffer", "data": list(raw(x))}, dtype="float32"),
    },
    "typed arrays as objects": lambda w: {
        "config": SIZES, "weights": shaped(w, lambda x: {str(i): v for i, v in enumerate(flat(x))}), "chars": CHARS,
    },
    "typed arrays with a class": lambda w: {
        "config": SIZES, "weights": shaped(w, flat, type="Float32Array"), "chars": CHARS,
    },
    "rows and cols": lambda w: {
        "config": SIZES, "chars": CHARS,
        "weights": each(w, lambda x: {"rows": x.shape[0], "cols": x.shape[1], "data": flat(x)}),
    },
    "a list of {name, shape, data}": lambda w: {
        "config": SIZES, "weights": [{"name": n, **x} for n, x in shaped(w, flat).items()], "chars": CHARS,
    },
    "a list of {name, data}": lambda w: {
        "config": SIZES, "weights": [{"name": n, "data": x} for n, x in lists(w).items()], "chars": CHARS,
    },
    "a list of base64": lambda w: {
        "config": SIZES, "chars": CHARS,
        "tensors": [{"name": n, **x} for n, x in shaped(w, text, dtype="float32").items()],
    },
    "pairs": lambda w: {"config": SIZES, "weights": [[n, x] for n, x in lists(w).items()], "chars": CHARS},
    "values with more": lambda w: {
        "config": SIZES, "weights": each(w, lambda x: {"value": x.tolist(), "requires_grad": True}), "chars": CHARS,
    },
    "[in][out]": lambda w: {
        "config": SIZES, "weights": {n: (x if n in ENDS[:2] else x.T).tolist() for n, x in w.items()}, "chars": CHARS,
    },
    "stoi": lambda w: {"config": SIZES, "weights": lists(w), "stoi": {c: i for i, c in enumerate(CHARS)}},
    "itos": lambda w: {"config": SIZES, "weights": lists(w), "itos": {str(i): c for i, c in enumerate(CHARS)}},
}  # fmt: skip


def arrays(path: Path) -> dict[str, Any]:
    return {name: tensor.numpy() for name, tensor in llmconv.open(path).tensors.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_is_the_same_model_and_comes_back(tmp_path: Path, form: str) -> None:
    plain = {"config": SIZES, "weights": lists(weights()), "chars": CHARS}
    (tmp_path / "plain.json").write_text(json.dumps(plain))
    (tmp_path / "m.json").write_text(json.dumps(FORMS[form](weights())))
    for name in ("plain", "m"):
        llmconv.convert_file(tmp_path / f"{name}.json", tmp_path / f"{name}.gguf", outtype="f64")
    found, wanted = arrays(tmp_path / "m.gguf"), arrays(tmp_path / "plain.gguf")
    assert set(found) == set(wanted) and all(np.array_equal(found[n], x) for n, x in wanted.items())
    metadata = [llmconv.open(tmp_path / f"{n}.gguf").metadata for n in ("m", "plain")]
    own = [{k: v for k, v in m.items() if k.startswith("microgpt.")} for m in metadata]
    assert own[0] == own[1] and metadata[0]["general.architecture"] == "microgpt"
    assert list(metadata[0]["tokenizer.ggml.tokens"]) == CHARS
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "m.json").read_bytes()


REFUSED: dict[str, tuple[Callable[[Weights], Any], str]] = {
    "inside a list": (lambda w: [{"config": SIZES, "weights": lists(w)}], "is inside a list of 1; take it out"),
    "settings as a text": (
        lambda w: {"config": json.dumps(SIZES), "weights": lists(w)}, "config is a text, expected an object",
    ),
    "a hole": (lambda w: {"config": SIZES, "weights": {**lists(w), "wte": None}}, "the nearest is 'microgpt'"),
    "a missing matrix": (
        lambda w: {"config": SIZES, "weights": {n: x for n, x in lists(w).items() if n != "layer1.attn_wk"}},
        "'blk.1.attn_k.weight' is missing",
    ),
    "three heads": (lambda w: {"config": {**SIZES, "n_head": 3}, "weights": lists(w)}, "expected [6, 8]"),
    "no shapes": (lambda w: {"config": SIZES, "weights": each(w, flat)}, "vocab_size says 9"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_can_t_be_read_right_is_refused_by_name(tmp_path: Path, fault: str) -> None:
    make, said = REFUSED[fault]
    (tmp_path / "m.json").write_text(json.dumps(make(weights())))
    with pytest.raises(BadFile) as error:
        llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")
    assert said in str(error.value) and not (tmp_path / "m.gguf").exists()


OTHERWISE: dict[str, dict[str, Any]] = {
    "queries normed": {"qk_norm": True},
    "capped": {"logitSoftcap": 15.0},
    "ALiBi": {"pos_encoding": "alibi"},
    "both ways": {"causal": False},
    "norms behind": {"norm_first": False},
    "LayerNorms without weights": {"norm": "layernorm"},
    "a window": {"window_size": 3},
    "scaled embeddings": {"embedding_scale": 2.8},
    "rotary beside a table": {"use_rope": True},
    "other heads": {"head_dim": 8},
    "another activation": {"hidden_activation": "selu"},
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_settings_that_make_it_another_model_are_refused(tmp_path: Path, what: str) -> None:
    name = next(iter(OTHERWISE[what]))
    (tmp_path / "m.json").write_text(json.dumps({"config": {**SIZES, **OTHERWISE[what]}, "weights": lists(weights())}))
    with pytest.raises(BadFile, match=name):
        llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", layout="plain")


def test_the_same_settings_as_the_model_has_them_are_no_matter(tmp_path: Path) -> None:
    more: dict[str, Any] = {
        **{"qk_norm": False, "softcap": None, "position_embedding": "learned", "causal": True, "norm": "RMSNorm"},
        **{"window_size": CONTEXT, "head_dim": DIM // 2, "use_rope": False, "attention_scale": 0.5, "n_experts": 1},
    }
    (tmp_path / "m.json").write_text(json.dumps({"config": {**SIZES, **more}, "weights": lists(weights())}))
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")


BESIDE: dict[str, tuple[Any, str]] = {
    "a vector": ({"resid_lambdas": [1.0, 0.5]}, "resid_lambdas"),
    "a norm": ({"emb_norm": [1.0] * DIM}, "emb_norm"),
    "further down": ({"value_embeds": {"0": [[1.0] * DIM] * VOCAB}}, "value_embeds"),
    "its losses": ({"losses": [3.0, 2.0]}, ""),
    "gradients": ({"wte": {"data": weights()["wte"].tolist(), "grad": weights()["wte"].tolist()}}, ""),
}


@pytest.mark.parametrize("what", BESIDE)
def test_what_lies_among_the_weights_is_a_part_or_a_record(tmp_path: Path, what: str) -> None:
    more, refused = BESIDE[what]
    (tmp_path / "m.json").write_text(json.dumps({"config": SIZES, "weights": {**lists(weights()), **more}}))
    if refused:
        with pytest.raises(BadFile, match=refused):
            llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")
        return
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", outtype="f64")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "m.json").read_bytes()


def test_nanochat_is_no_microgpt(tmp_path: Path) -> None:
    """It norms queries and keys and caps its logits, which no weight shows (karpathy/nanochat, gpt.py)."""
    names = {"attn_wq": "attn.c_q", "attn_wk": "attn.c_k", "attn_wv": "attn.c_v", "attn_wo": "attn.c_proj"}
    names |= {"mlp_fc1": "mlp.c_fc", "mlp_fc2": "mlp.c_proj"}
    theirs = {
        f"transformer.h.{name[5]}.{names[name[7:]]}.weight" if name.startswith("layer") else f"{name}.weight": x
        for name, x in lists(weights()).items()
        if name != "wpe"
    }
    (tmp_path / "m.json").write_text(json.dumps({"model_config": SIZES, "state_dict": theirs}))
    with pytest.raises(BadFile, match="nanochat"):
        llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("stated", "chars", "first"),
    [
        ({}, CHARS[:-1], VOCAB - 1),
        ({"BOS": 0}, CHARS[:-1], 0),
        ({"bos_token_id": 3}, CHARS, 3),
        ({"BOS": 4}, CHARS[1:], None),
    ],
)
def test_the_token_that_begins_a_text_stands_where_it_is_stated(
    tmp_path: Path, stated: dict[str, int], chars: list[str], first: int | None
) -> None:
    document = {"config": {**SIZES, **stated}, "weights": lists(weights()), "uchars": chars}
    (tmp_path / "m.json").write_text(json.dumps(document))
    if first is None:
        with pytest.raises(BadFile, match="uchars lists 8 of 9 tokens"):
            llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")
        return
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", outtype="f64")
    metadata = llmconv.open(tmp_path / "m.gguf").metadata
    assert metadata["tokenizer.ggml.bos_token_id"] == first
    assert [t for t in metadata["tokenizer.ggml.tokens"] if t != "[BOS]"] == chars
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "m.json").read_bytes()
