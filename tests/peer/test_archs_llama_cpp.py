"""Our GGUF of every family runs in llama.cpp (through llama-cpp-python), and its logits are transformers'."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from typing import Any

import by_hand
import numpy as np
import pytest
import test_archs
import tiny_models

import llmconv
from llmconv import formats
from llmconv.convert.dialects import hf
from llmconv.formats import gguf_file
from llmconv.formats.tensor import Tensor

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

# Models that llama.cpp does not run, or not as transformers does.
NOT_THERE = {
    "gptj": "no GPT-J",
    "phimoe": "chooses by a plain softmax",
    "opt": "no OPT",
    "opt-projected": "no OPT",
    "bert": "an encoder: no logits",
    "bert-mlm": "an encoder: no logits",
    "starcoder-heads-apart": "takes every StarCoder for multi-query",
    "command-r-plus": "looks for the norms of queries and keys in models of 64 layers only",
    "deepseek-v2": "knows the models without a query's latent by their number of layers",
    "exaone4": "has windows in a model of 64 layers only",
    "falcon-rw": "no ALiBi, no serial blocks in Falcon",
}

IDS = [1, 5, 9, 33, 70, 12, 95, 3, 8, 21, 44, 2, 60, 7]


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    pass


def llama_logits(path: Path) -> Any:
    """Logits of every position, by llama.cpp."""
    llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=1)
    model.eval(IDS)
    return np.array(model.scores[: len(IDS)])


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


@pytest.mark.parametrize("name", [n for n in tiny_models.MODELS if n not in NOT_THERE])
def test_logits_agree(name: str, tmp_path: Path) -> None:
    model = tiny_models.build(name, tmp_path / "hf")
    original = type(model).from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = original(torch.tensor([IDS])).logits[0].numpy()
    gguf = hf.to_gguf(formats.open(tmp_path / "hf"))
    gguf = dataclasses.replace(gguf, metadata=with_a_vocabulary(gguf.metadata, 96))
    gguf_file.save(gguf, tmp_path / "model.gguf")
    found = llama_logits(tmp_path / "model.gguf")
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 2e-2 * scale


@pytest.mark.parametrize("name", [name for name in by_hand.CONFIGS if name not in ("dream", "rnd1")])  # no cache
def test_what_transformers_lacks_agrees_with_ours(name: str, tmp_path: Path) -> None:
    folder = test_archs.model(by_hand.CONFIGS[name], kind="F32", form=by_hand.FORMS.get(name, 0))
    for key, tensor in list(folder.tensors.items()):
        values = tensor.numpy() * np.float32(0.1) + np.float32(0.5 if len(tensor.shape) == 1 else 0.0)
        folder.add(Tensor.from_array(key, values))
    with torch.no_grad():
        expected = llmconv.load(folder, "cpu", "f32")(torch.tensor([IDS]))[0].numpy()
    gguf = hf.to_gguf(folder)
    gguf_file.save(dataclasses.replace(gguf, metadata=with_a_vocabulary(gguf.metadata, 96)), tmp_path / "model.gguf")
    found = llama_logits(tmp_path / "model.gguf")
    assert np.abs(found - expected).max() <= 2e-2 * np.abs(expected).max()
