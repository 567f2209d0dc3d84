"""What llama.cpp computes with a GGUF, through llama-cpp-python, in a process of its own: it may stop altogether."""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np

from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file

_ONE_THREAD = {"n_threads": 1, "n_threads_batch": 1}
_BY_THE_FILE = {f"yarn_{name}": -1.0 for name in ("ext_factor", "attn_factor", "beta_fast", "beta_slow")}
"""Else llama-cpp-python says what YaRN is, whatever the file does."""
_EXACT = {"type_k": 0, "type_v": 0}
"""Keys and values kept as float32 (ggml's type 0): in float16, experts that all but tie are chosen otherwise, and what
latent attention makes of them is off by some percent."""


def with_a_vocabulary(metadata: dict[str, Any], n: int) -> dict[str, Any]:
    """llama.cpp wants one: sentencepiece's special tokens and bytes would do, here words."""
    return metadata | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, n))],
        "tokenizer.ggml.scores": np.zeros(n, np.float32),
        "tokenizer.ggml.token_type": np.asarray([2, 3, 3] + [1] * (n - 3), np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.eos_token_id": np.uint32(2),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        "tokenizer.ggml.add_bos_token": False,
    }


def logits(gguf: Checkpoint, ids: list[int], path: Path, causal: bool = True) -> Any:
    """Logits of every position, [len(ids), n_vocab]; None where llama.cpp does not load the model, or stops.

    path: where the GGUF is written.   causal: whether tokens see those before them alone.
    """
    import llama_cpp  # here, so that the children find it loaded

    os.environ["GGML_NO_BACKTRACE"] = "1"  # else a debugger is started for each file that it stops at
    n_vocab = gguf.tensors["token_embd.weight"].shape[0]
    gguf_file.save(dataclasses.replace(gguf, metadata=with_a_vocabulary(gguf.metadata, n_vocab)), path)
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_compute if causal else _at_once, args=(llama_cpp, str(path), ids, there)
    )
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _at_once(llama_cpp: Any, path: str, ids: list[int], pipe: Any) -> None:
    """Of a model that sees all tokens, which llama-cpp-python's own class can't evaluate."""
    faulthandler.disable()
    parts, size = llama_cpp, len(ids)
    try:
        model = parts.llama_model_load_from_file(path.encode(), parts.llama_model_default_params())
        settings = parts.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
        settings.n_threads = settings.n_threads_batch = 1
        context = parts.llama_init_from_model(model, settings)
        parts.llama_set_causal_attn(context, False)
        batch = parts.llama_batch_init(64, 0, 1)
        batch.n_tokens = size
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if parts.llama_decode(context, batch):
            pipe.send(None)
        else:
            words = parts.llama_vocab_n_tokens(parts.llama_model_get_vocab(model))
            found = np.ctypeslib.as_array(parts.llama_get_logits(context), shape=(size * words,))
            pipe.send(np.array(found).reshape(size, words))
    except Exception:
        pipe.send(None)
    os._exit(0)


def _compute(llama_cpp: Any, path: str, ids: list[int], pipe: Any) -> None:
    faulthandler.disable()  # what llama.cpp asserts is none of pytest's business
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)

    @llama_cpp.llama_log_callback
    def silent(level: int, text: bytes, data: Any) -> None:
        pass

    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    try:
        model = llama_cpp.Llama(path, n_ctx=64, logits_all=True, verbose=False, **_ONE_THREAD, **_EXACT, **_BY_THE_FILE)
        model.eval(ids)
        pipe.send(np.array(model.scores[: len(ids)]))
    except Exception:
        pipe.send(None)
    os._exit(0)  # without what pytest would do at the end of its own process
