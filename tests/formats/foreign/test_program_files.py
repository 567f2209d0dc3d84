"""Training programs' files are written as they were: `.pt`, `.npz` and `.pkl`, and read by torch, numpy and pickle."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import Unsupported, UsageError

V, D, T, L, H = 11, 8, 6, 2, 2


def nanogpt(rng: Any) -> dict[str, Any]:
    """A state dict of nanoGPT's names, with minGPT's masks."""
    sizes = {"wte.weight": (V, D), "wpe.weight": (T, D), "ln_f.weight": (D,), "ln_f.bias": (D,)}
    for i in range(L):
        at = f"h.{i}."
        sizes |= {at + f"{n}.{x}": (D,) for n in ("ln_1", "ln_2") for x in ("weight", "bias")}
        sizes |= {at + "attn.c_attn.weight": (3 * D, D), at + "attn.c_attn.bias": (3 * D,)}
        sizes |= {at + "attn.c_proj.weight": (D, D), at + "attn.c_proj.bias": (D,)}
        sizes |= {at + "mlp.c_fc.weight": (4 * D, D), at + "mlp.c_fc.bias": (4 * D,)}
        sizes |= {at + "mlp.c_proj.weight": (D, 4 * D), at + "mlp.c_proj.bias": (D,)}
    state = {f"transformer.{n}": rng.normal(0, 0.3, s).astype(np.float32) for n, s in sizes.items()}
    for i in range(L):
        state[f"transformer.h.{i}.attn.bias"] = np.tri(T, dtype=np.float32)[None, None]
    return state | {"lm_head.weight": rng.normal(0, 0.3, (V, D)).astype(np.float32)}


def program(array: Any) -> dict[str, Any]:
    """What a training program saves; `array` makes its tensors."""
    state = {name: array(x) for name, x in nanogpt(np.random.default_rng(1)).items()}
    chars = "\n abcdefghi"
    return {
        "model": state,
        "model_args": {"n_layer": L, "n_head": H, "n_embd": D, "block_size": T, "bias": True, "vocab_size": V},
        "iter_num": 2000,
        "best_val_loss": 1.5,
        "stoi": {c: i for i, c in enumerate(chars)},
        "itos": dict(enumerate(chars)),
        "config": {"out_dir": "out", "betas": [0.9, 0.95], "compile": None},
    }


def same(a: Any, b: Any) -> None:
    """Alike in structure, types of keys, values and arrays."""
    if isinstance(a, dict):
        assert type(b) is not list and list(a) == list(b)
        for key, value in a.items():
            same(value, b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif hasattr(a, "dtype"):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    else:
        assert type(a) is type(b) and a == b


def unordered(value: dict[str, Any]) -> dict[str, Any]:
    """Its keys in the order of the alphabet: a document names its arrays behind everything else."""
    return {k: unordered(v) if isinstance(v, dict) and k == "model" else v for k, v in sorted(value.items())}


def test_an_npz_may_hold_its_settings_and_words(tmp_path: Path) -> None:
    """Numbers without dimensions, and an array of texts."""
    arrays = {**nanogpt(np.random.default_rng(1)), "n_head": np.array(H), "chars": np.array(list("\n abcdefghi"))}
    np.savez(tmp_path / "m.npz", **arrays)
    llmconv.convert_file(tmp_path / "m.npz", tmp_path / "m.gguf")
    metadata = llmconv.open(tmp_path / "m.gguf").metadata
    assert metadata["gpt2.attention.head_count"] == H and metadata["tokenizer.ggml.tokens"][2] == "a"
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.npz")
    with np.load(tmp_path / "back.npz") as back:
        same(dict(sorted(arrays.items())), {name: back[name] for name in sorted(back.files)})


@pytest.mark.parametrize("way", ["at once", "by a GGUF"])
def test_a_pt_comes_back_with_all_that_is_in_it(tmp_path: Path, way: str) -> None:
    torch = pytest.importorskip("torch")
    value = program(torch.from_numpy)
    torch.save(value, tmp_path / "m.pt")
    source = tmp_path / "m.pt"
    if way == "by a GGUF":
        llmconv.convert_file(source, tmp_path / "m.gguf")
        assert llmconv.open(tmp_path / "m.gguf").metadata["general.architecture"] == "gpt2"
        source = tmp_path / "m.gguf"
    result = llmconv.convert_file(source, tmp_path / "back.pt")
    assert not any("edited" in note for note in result.notes), result.notes
    same(unordered(value), unordered(torch.load(tmp_path / "back.pt", weights_only=True)))
    first = (tmp_path / "back.pt").read_bytes()
    llmconv.convert_file(source, tmp_path / "back.pt", force=True)
    assert (tmp_path / "back.pt").read_bytes() == first
    llmconv.convert_file(tmp_path / "back.pt", tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == first


def test_a_quantized_one_comes_back_as_float32(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    value = program(torch.from_numpy)
    torch.save(value, tmp_path / "m.pt")
    llmconv.quantize(tmp_path / "m.pt", tmp_path / "q.gguf", "F16")
    llmconv.convert_file(tmp_path / "q.gguf", tmp_path / "back.pt", outtype="f32")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(program(torch.from_numpy)) or set(back) == set(value)
    worst = max((back["model"][n] - x).abs().max() for n, x in value["model"].items())
    assert 0 < worst < 1e-3


NESTED: dict[str, Any] = {
    "flat": {"a": 1, "b.c": 2},
    "a list": [1, 2],
    "modules in lists": {"params": {"layers": [{"w": 1, "b": 2}, {"w": 3}], "head": 4}, "step": 7, "none": None},
    "a lone number": {"state_dict": {"w": 1, "num": 0}, "names": ["a", "b"]},
    "numbers as keys": {"w": {0: 1, 1: 2}, "itos": {0: "a", 5: "b"}},
}


def filled(node: Any, array: Any) -> Any:
    """The tree with arrays in the place of the small numbers."""
    if isinstance(node, dict):
        return {k: v if k in ("itos", "step") else filled(v, array) for k, v in node.items()}
    if isinstance(node, list):
        return [filled(v, array) for v in node]
    if type(node) is int:
        return array(np.full((node, 2), node, np.float32) if node else np.array(7, np.int64))
    return node


@pytest.mark.parametrize("kind", NESTED)
@pytest.mark.parametrize("way", ["at once", "by a GGUF"])
@pytest.mark.parametrize("ending", ["pt", "pkl"])
def test_any_nesting_comes_back(tmp_path: Path, kind: str, way: str, ending: str) -> None:
    torch = pytest.importorskip("torch") if ending == "pt" else None
    value = filled(NESTED[kind], torch.from_numpy if torch is not None else lambda x: x)
    if torch is not None:
        torch.save(value, tmp_path / "m.pt")
    else:
        (tmp_path / "m.pkl").write_bytes(pickle.dumps(value))
    source = tmp_path / f"m.{ending}"
    if way == "by a GGUF":
        llmconv.convert_file(source, tmp_path / "m.gguf")
        source = tmp_path / "m.gguf"
    llmconv.convert_file(source, tmp_path / f"back.{ending}")
    if torch is not None:
        back = torch.load(tmp_path / "back.pt", weights_only=True)
    else:
        back = pickle.loads((tmp_path / "back.pkl").read_bytes())
    assert type(back) is type(value) and len(back) == len(value)
    for key in value if isinstance(value, dict) else range(len(value)):
        same(value[key], back[key])


@pytest.mark.parametrize("way", ["at once", "by a GGUF"])
def test_an_npz_comes_back(tmp_path: Path, way: str) -> None:
    arrays = {
        "w": np.arange(6.0).reshape(2, 3),
        "b": np.ones(3, np.float16),
        "n": np.array(3),
        "vocab": np.array(["a", "é"]),
    }
    np.savez(tmp_path / "m.npz", **arrays)
    source = tmp_path / "m.npz"
    if way == "by a GGUF":
        llmconv.convert_file(source, tmp_path / "m.gguf", outtype="auto")
        source = tmp_path / "m.gguf"
    llmconv.convert_file(source, tmp_path / "back.npz")
    with np.load(tmp_path / "back.npz", allow_pickle=False) as back:
        assert set(back.files) == set(arrays)
        for name, array in arrays.items():
            same(array, back[name])


def test_a_bfloat16_is_what_numpy_saves(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.array([[1.5, -2]], np.float32))
    llmconv.convert_file(tmp_path / "m.npz", tmp_path / "b.npz", outtype="bf16")
    assert llmconv.open(tmp_path / "b.npz").tensors["w"].numpy().tolist() == [[1.5, -2]]


def test_a_document_is_written_as_a_program_would(tmp_path: Path) -> None:
    """The tree of a JSON document, its arrays as tensors; a layout can be asked for."""
    torch = pytest.importorskip("torch")
    document = {"config": {"n_head": 2}, "weights": {"wte": [[1.5, 2], [3, 4]]}, "chars": ["a", "b"]}
    (tmp_path / "m.json").write_text(json.dumps(document))
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.pt", layout="plain")
    back = torch.load(tmp_path / "m.pt", weights_only=True)
    assert back["config"] == {"n_head": 2} and back["chars"] == ["a", "b"]
    assert back["weights"]["wte"].tolist() == [[1.5, 2], [3, 4]]
    value = program(torch.from_numpy)
    torch.save(value, tmp_path / "n.pt")
    llmconv.convert_file(tmp_path / "n.pt", tmp_path / "n.gguf")
    plain = llmconv.open(tmp_path / "n.gguf")
    plain.metadata = {k: v for k, v in plain.metadata.items() if not k.startswith("llmconv.")}
    llmconv.save(plain, tmp_path / "anew.pt", layout="nanogpt")
    made = torch.load(tmp_path / "anew.pt", weights_only=True)
    torch.testing.assert_close(made["state_dict"]["transformer.wte.weight"], value["model"]["transformer.wte.weight"])
    assert made["model_args"]["n_head"] == H
    llmconv.save(plain, tmp_path / "names.pt")
    assert "transformer.wte.weight" in torch.load(tmp_path / "names.pt", weights_only=True)


def test_what_they_do_not_hold_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", w=np.ones((2, 2), np.uint64))
    with pytest.raises(Unsupported, match=r"which \.pt has no storage for here"):
        llmconv.convert_file(tmp_path / "m.npz", tmp_path / "m.pt")
    np.savez(tmp_path / "n.npz", w=np.ones((2, 2)))
    with pytest.raises(UsageError, match="names no format that can be written"):
        llmconv.convert_file(tmp_path / "n.npz", tmp_path / "m.npy")
    broken = llmconv.open(tmp_path / "n.npz")
    for text in ("[1]", '{"paths": {"w": [[-1]]}}', '{"under": [{}]}', "{"):
        broken.metadata["checkpoint.places"] = text
        with pytest.raises(llmconv.BadFile, match=r"checkpoint\.places"):
            llmconv.save(broken, tmp_path / "x.pt", force=True)


def test_complex_numbers_of_torch(tmp_path: Path) -> None:
    """As a model that keeps its rotary positions saves them."""
    torch = pytest.importorskip("torch")
    value = {"freqs_cis": torch.polar(torch.ones(3, 2), torch.arange(6.0).reshape(3, 2)), "w": torch.ones(2)}
    torch.save(value, tmp_path / "m.pt")
    for path in ("m.gguf", "m.safetensors"):
        llmconv.convert_file(tmp_path / "m.pt", tmp_path / path)
        llmconv.convert_file(tmp_path / path, tmp_path / f"{path}.pt")
        back = torch.load(tmp_path / f"{path}.pt", weights_only=True)
        assert back.keys() == value.keys() and torch.equal(back["freqs_cis"], value["freqs_cis"]), path
