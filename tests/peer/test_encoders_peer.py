"""Encoders against llama.cpp: what its converter makes of the same folder beside the model's own tensors (adapters for
tasks, layers behind pooling), and the vectors that it computes of our files, through llama-cpp-python.

llama.cpp's Python files come from the folder that LLMCONV_LLAMA_CPP names, as in test_archs_peer.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders
import tiny_models
from tiny_encoders import TEXTS, unigram, wordpiece

import llmconv
from llmconv.formats.gguf import gguf_file

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]

DRIVER = """
import json, sys
from pathlib import Path
import torch
from conversion import ModelBase, TextModel, get_model_architecture, get_model_class, ModelType, load_all_models
import gguf
load_all_models()
def every(cls):
    for sub in cls.__subclasses__():
        yield sub
        yield from every(sub)
for cls in [TextModel, *every(TextModel)]:
    if "set_vocab" in cls.__dict__:
        cls.set_vocab = lambda self: None
folder, out = map(Path, sys.argv[1:])
with torch.inference_mode():
    hparams = {k: v for k, v in ModelBase.load_hparams(folder, False).items() if v is not None}
    cls = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    cls(folder, gguf.LlamaFileType.ALL_F32, out, hparams=hparams, sentence_transformers_dense_modules=True).write()
"""


def reference(folder: Path, out: Path) -> None:
    home = Path(os.environ.get("LLMCONV_LLAMA_CPP", ""))
    if not (home / "conversion" / "base.py").is_file():
        pytest.skip("LLMCONV_LLAMA_CPP does not name a folder with llama.cpp's conversion/")
    path = os.pathsep.join([str(home / "gguf-py"), str(home)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, folder, out],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert not done.returncode, done.stderr[-3000:]


def same(ours: Path, theirs: Path, *, without: tuple[str, ...] = ()) -> None:
    """The same tensors, and of the reference's keys the same values."""
    mine, peer = llmconv.open(ours), llmconv.open(theirs)
    assert sorted(mine.tensors) == sorted(peer.tensors)
    for name, tensor in peer.tensors.items():
        other = mine.tensors[name]
        assert (other.shape, other.type.name) == (tensor.shape, tensor.type.name), name
        assert other.blocks().tobytes() == tensor.blocks().tobytes(), name
    for key, value in peer.metadata.items():
        if not key.startswith("general.") and key not in without:
            assert np.array_equal(np.asarray(mine.metadata[key]), np.asarray(value)), key


def test_a_task_s_adapters(tmp_path: Path) -> None:
    tiny_encoders.folder_by_hand(tmp_path / "hf", "jina3", unigram)
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    reference(tmp_path / "hf", tmp_path / "theirs.gguf")
    same(tmp_path / "m.gguf", tmp_path / "theirs.gguf")
    for task in ("retrieval.query", "text-matching"):
        ours, theirs = tmp_path / f"lora-{task}-m.gguf", tmp_path / f"lora-{task}-theirs.gguf"
        same(ours, theirs)
        general = {k: v for k, v in llmconv.open(theirs).metadata.items() if k.startswith("general.")}
        assert general.items() <= llmconv.open(ours).metadata.items()


def with_layers(folder: Path, sizes: tuple[tuple[int, int], ...], first: int) -> None:
    """Dense modules, behind what there is."""
    rng = np.random.default_rng(8)
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    for n, (out, into) in enumerate(sizes, first):
        where = folder / f"{n}_Dense"
        where.mkdir()
        made = llmconv.Checkpoint()
        made.add(llmconv.Tensor.from_array("linear.weight", rng.normal(0, 0.2, (out, into)).astype(np.float32)))
        llmconv.save(made, where / "model.safetensors")
        kind = "torch.nn.modules.linear.Identity"
        config = {"in_features": into, "out_features": out, "bias": False, "activation_function": kind}
        (where / "config.json").write_text(json.dumps(config))
        steps.append((where.name, "Dense"))
    listing = [
        {"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(steps)
    ]
    (folder / "modules.json").write_text(json.dumps(listing))


def test_layers_behind_pooling(tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    tiny_models.build("embeddinggemma", folder).float().save_pretrained(folder)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    with_layers(folder, ((96, width), (32, 96)), 2)
    folder_words = {"model": {"vocab": {f"w{i}": i for i in range(96)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(folder_words))
    reference(folder, tmp_path / "theirs.gguf")
    (folder / "tokenizer.json").unlink()
    llmconv.convert_file(folder, tmp_path / "m.gguf", outtype="f32")
    same(tmp_path / "m.gguf", tmp_path / "theirs.gguf")
    assert llmconv.open(tmp_path / "m.gguf").metadata["gemma-embedding.dense_3_feat_in"] == 96
    tiny_encoders.folder_by_hand(tmp_path / "lfm2", "lfm2-bidirectional", unigram)
    with_layers(tmp_path / "lfm2", ((32, 64),), 1)
    reference(tmp_path / "lfm2", tmp_path / "theirs2.gguf")
    llmconv.convert_file(tmp_path / "lfm2", tmp_path / "m2.gguf")
    same(tmp_path / "m2.gguf", tmp_path / "theirs2.gguf")


MODELS = [
    ("neobert", wordpiece, "cls"), ("jina2", wordpiece, "mean"), ("jina2-code", unigram, "mean"),
    ("jina3", unigram, "mean"), ("nomic-moe", unigram, "mean"), ("llama-embed", unigram, "mean"),
    ("lfm2-bidirectional", unigram, "mean"),
]  # fmt: skip


def _compute(path: str, texts: list[str], pooling: int, pipe: Any) -> None:
    import llama_cpp

    model = llama_cpp.Llama(path, embedding=True, pooling_type=pooling, verbose=False, n_threads=1, n_ctx=64)
    pipe.send(np.array([model.embed(text, normalize=True) for text in texts], np.float32))


def theirs(path: Path, pooling: str) -> Any:
    """In a process of its own, which llama.cpp may stop."""
    here, there = multiprocessing.Pipe()
    number = {"mean": 1, "cls": 2}[pooling]
    process = multiprocessing.get_context("spawn").Process(target=_compute, args=(str(path), TEXTS, number, there))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise AssertionError("llama.cpp stopped") from None
    finally:
        process.join()


@pytest.mark.parametrize(("name", "tokenizer", "pooling"), MODELS)
def test_vectors(tmp_path: Path, name: str, tokenizer: Any, pooling: str) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    tiny_encoders.folder_by_hand(tmp_path / "hf", name, tokenizer)
    llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    if name == "nomic-moe":  # whose experts' bias llama.cpp leaves out
        made = llmconv.open(tmp_path / "m.gguf")
        keys = {k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")}
        gguf_file.save(dataclasses.replace(made, metadata=keys), tmp_path / "n.gguf")
        (tmp_path / "n.gguf").replace(tmp_path / "m.gguf")
    found = llmconv.embed(tmp_path / "m.gguf", TEXTS, pooling=pooling, device="cpu")
    assert np.abs(found - theirs(tmp_path / "m.gguf", pooling)).max() < 2e-3
