"""T5 and its kin in llama.cpp: a text through the encoder, words out of the decoder, as transformers computes them."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import llmconv
from llmconv.formats.gguf import gguf_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

READ, SAID = [5, 9, 33, 71, 12, 1], [0, 7, 60, 4]


def batch_of(ids: list[int]) -> Any:
    batch = llama_cpp.llama_batch_init(64, 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    return batch


def compute(path: str, pipe: Any) -> None:
    """Logits of each word said; in a process of its own, which llama.cpp may stop."""
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
    settings.n_threads = settings.n_threads_batch = 1
    settings.type_k = settings.type_v = 0  # float32
    context = llama_cpp.llama_init_from_model(model, settings)
    failed = llama_cpp.llama_encode(context, batch_of(READ)) or llama_cpp.llama_decode(context, batch_of(SAID))
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    found = None if failed else np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(SAID) * words,))
    pipe.send(None if found is None else np.array(found).reshape(len(SAID), words))
    os._exit(0)


@pytest.mark.parametrize("name", ["t5", "t5-gated-untied", "umt5"])
def test_logits(tmp_path: Path, name: str) -> None:
    built = tiny_models.build(name, tmp_path / "hf")
    model = type(built).from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor([READ]), decoder_input_ids=torch.tensor([SAID])).logits[0].numpy()
    result = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf", outtype="f32")
    scaled = bool(getattr(model.config, "scale_decoder_outputs", False))  # mT5 has no such thing
    assert any("its logits are divided by the root of its width" in note for note in result.notes) == scaled
    wanted *= model.config.d_model**0.5 if scaled else 1.0
    made = llmconv.open(tmp_path / "m.gguf")
    n = wanted.shape[1]
    made.metadata |= {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": ["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(3, n))],
        "tokenizer.ggml.scores": np.zeros(n, np.float32),
        "tokenizer.ggml.token_type": np.asarray([3, 3, 2] + [1] * (n - 3), np.int32),
    }
    gguf_file.save(made, tmp_path / "words.gguf")
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=compute, args=(str(tmp_path / "words.gguf"), there))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = None
    process.join()
    assert found is not None, "llama.cpp did not run it"
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted).max()
