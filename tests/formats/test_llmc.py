"""llm.c's checkpoints of a GPT-2, against the arithmetic of its names in torch."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.errors import LlmconvError

N, L, H, T, V, PADDED = 4, 2, 2, 6, 11, 16


def parameters(rows: int) -> dict[str, Any]:
    """As train_gpt2.c lists them, all layers of a part together."""
    rng = np.random.default_rng(3)
    shapes = {"wte": (rows, N), "wpe": (T, N)}
    for name, shape in (
        *(("ln1w", (N,)), ("ln1b", (N,)), ("qkvw", (3 * N, N)), ("qkvb", (3 * N,)), ("attprojw", (N, N))),
        *(("attprojb", (N,)), ("ln2w", (N,)), ("ln2b", (N,)), ("fcw", (4 * N, N)), ("fcb", (4 * N,))),
        *(("fcprojw", (N, 4 * N)), ("fcprojb", (N,))),
    ):
        shapes[name] = (L, *shape)
    shapes |= {"lnfw": (N,), "lnfb": (N,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def written(path: Path, version: int) -> dict[str, Any]:
    rows = PADDED if version > 2 else V
    values = parameters(rows)
    if version in (2, 5):  # bfloat16 by cutting
        values = {k: (v.view(np.uint32) >> 16 << 16).view(np.float32) for k, v in values.items()}
        raw = b"".join((v.view(np.uint32) >> 16).astype("<u2").tobytes() for v in values.values())
    else:
        raw = b"".join(v.tobytes() for v in values.values())
    header = struct.pack("<256i", 20240326, version, T, V, L, H, N, PADDED if version > 2 else 0, *[0] * 248)
    path.write_bytes(header + raw)
    return values


@pytest.mark.parametrize("version", [1, 2, 3, 5])
def test_it_runs_as_llm_c_computes_it(tmp_path: Path, version: int) -> None:
    torch = pytest.importorskip("torch")
    w = {k: v.astype(np.float64) for k, v in written(tmp_path / "gpt2.bin", version).items()}
    ids = [1, 5, 2, 10]

    def norm(x: Any, g: Any, b: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return g * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) + b

    x = w["wte"][ids] + w["wpe"][: len(ids)]
    for i in range(L):
        q, k, v = np.split(norm(x, w["ln1w"][i], w["ln1b"][i]) @ w["qkvw"][i].T + w["qkvb"][i], 3, -1)
        out = []
        for h in range(H):
            s = slice(h * N // H, (h + 1) * N // H)
            scores = np.where(np.tri(len(ids), dtype=bool), q[:, s] @ k[:, s].T / np.sqrt(N // H), -np.inf)
            e = np.exp(scores - scores.max(-1, keepdims=True))
            out.append(e / e.sum(-1, keepdims=True) @ v[:, s])
        x = x + np.concatenate(out, -1) @ w["attprojw"][i].T + w["attprojb"][i]
        a = norm(x, w["ln2w"][i], w["ln2b"][i]) @ w["fcw"][i].T + w["fcb"][i]
        a = 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
        x = x + a @ w["fcprojw"][i].T + w["fcprojb"][i]
    wanted = norm(x, w["lnfw"], w["lnfb"]) @ w["wte"][:V].T
    result = llmconv.convert_file(tmp_path / "gpt2.bin", tmp_path / "m.gguf")
    assert any("5 rows of padding" in note for note in result.notes) == (version > 2)
    for path in (tmp_path / "gpt2.bin", tmp_path / "m.gguf"):
        with torch.no_grad():
            found = llmconv.load(path, "cpu", "f64")(torch.tensor([ids]))[0].numpy()
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def test_cut_and_impossible_files(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.bin"
    written(path, 3)
    whole = path.read_bytes()
    for raw, why in (
        (whole[:-4], "bytes, expected .* by its header"),
        (whole + b"\0" * 4, "bytes, expected .* by its header"),
        (struct.pack("<2i", 20240326, 9) + whole[8:], "llm.c's version 9, expected 1, 2, 3, 5"),
        (whole[:12] + struct.pack("<i", 1 << 30) + whole[16:], "impossible sizes"),
        (whole[:16] + struct.pack("<i", -1) + whole[20:], "impossible sizes"),
    ):
        path.write_bytes(raw)
        with pytest.raises(LlmconvError, match=why):
            llmconv.open(path)
