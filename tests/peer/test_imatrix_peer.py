"""Importance matrices against llama.cpp: the sums that llama-imatrix would take, read out of its own computation.

Its program is a callback of the scheduler (`cb_eval`) that squares the second operand of matrix products; the same
callback is written here over the library that llama-cpp-python brings, in numpy.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv.convert.quantizing.importance import read_sums

torch = pytest.importorskip("torch")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

CONTEXT, CHUNKS = 128, 6


class _Node(ctypes.Structure):
    """ggml.h's `struct ggml_tensor`."""


_Node._fields_ = [
    ("type", ctypes.c_int32),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int32),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Node) * 10),
    ("view_src", ctypes.c_void_p),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
]


def sums_of_llama_cpp(path: Path, chunks: list[list[int]]) -> dict[str, tuple[Any, int]]:
    """Name -> sums of squared inputs and tokens, of every product with a matrix of a layer."""
    found: dict[str, tuple[Any, int]] = {}
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(folder.glob("libggml-base.*"))))
    library.ggml_op_name.restype, library.ggml_op_name.argtypes = ctypes.c_char_p, [ctypes.c_int32]

    @ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    def see(address: int, ask: bool, _: Any) -> bool:
        node = _Node.from_address(address)
        if library.ggml_op_name(node.op) != b"MUL_MAT":
            return not ask
        weights, x = node.src[0].contents, node.src[1].contents
        name = weights.name.decode()
        if not name.startswith("blk.") or x.type != 0 or x.ne[1] < 16:
            return not ask
        if ask:
            return True
        columns, rows = x.ne[0], x.ne[1]
        raw = (ctypes.c_uint8 * (x.nb[1] * (rows - 1) + 4 * columns)).from_address(x.data)
        values = np.lib.stride_tricks.as_strided(np.frombuffer(raw, np.float32), (rows, columns), (x.nb[1], 4)).astype(
            np.float64
        )
        sums, count = found.get(name, (0, 0))
        found[name] = sums + np.square(values).sum(0), count + rows
        return True

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = CONTEXT
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = 0  # float32, and no flash: float16 there moves sums by up to a thousandth
    params.flash_attn_type = 0
    params.cb_eval = ctypes.cast(see, type(params.cb_eval))
    context = llama_cpp.llama_init_from_model(model, params)
    batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
    for ids in chunks:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert llama_cpp.llama_decode(context, batch) == 0
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


def test_sums_are_llama_cpps(shared: Path, tmp_path: Path) -> None:
    path, text = shared / "stories260K" / "stories260K-f32.gguf", shared / "text" / "tinystories-sample.txt"
    llmconv.imatrix(path, text, tmp_path / "i.gguf", context=CONTEXT, chunks=CHUNKS, device="cpu")
    ours = read_sums(tmp_path / "i.gguf", CONTEXT).entries
    tokenizer = llmconv.load(path, "cpu").tokenizer
    ids = tokenizer.encode(text.read_text(), add_special=True)
    chunks = [[tokenizer.bos, *ids[i * CONTEXT + 1 : (i + 1) * CONTEXT]] for i in range(CHUNKS)]
    theirs = sums_of_llama_cpp(path, chunks)
    assert theirs.keys() == ours.keys()
    for name, (sums, count) in theirs.items():
        assert ours[name].counts.tolist() == [count] == [CHUNKS * CONTEXT]
        np.testing.assert_allclose(ours[name].sums[0], sums, rtol=1e-4, err_msg=name)
