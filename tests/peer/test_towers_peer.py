"""Our mmproj files against those that llama.cpp's own converter makes (`--mmproj`) of the same tiny folders.

llama.cpp's Python files come from the folder that LLMCONV_LLAMA_CPP names, as in test_archs_peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_quantize
import numpy as np
import pytest
import tiny_towers
import tower_folders

import llmconv
from llmconv import formats
from llmconv.convert import towers
from llmconv.convert.towers import translate
from llmconv.formats.checkpoint import Checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

ROUNDED = ("mm.input_projection.weight", "mm.a.input_projection.weight", "a.conv1d.", "a.conv2d.", "a.gen.wav.")
"""Tensors that the reference rounds to F16 whatever it was asked for; we keep them exactly."""

COMPUTED = ("a.position_embd.weight", "per_dim_scale.weight", "a.gen.wav.dac.", ".conv_norm.")
"""Tensors that are computed, by another library's sines, logarithms and roots: the last bits may differ."""

COMPUTES = ("gemma4v", "granite_speech", "lfm2a", "qwen3tts_spkenc")
"""Projectors of which it computes something in the stored type: logarithms, batch norms."""

MORE = {
    "pixtral": {"v.token_embd.img_break"},
    "mistral3": {"v.token_embd.img_break"},
    "muse-glimmer": {"model.vision_tower.patch_embedder.patch_embedding.weight"},
}
"""What the reference means to write and loses on the way, by dropping all tensors of language models first;
and what ours keep beside."""


def _as_meant(name: str, key: str) -> str:
    """A tensor under the name that llama.cpp loads it by, where the reference gives it that of another model's."""
    if name == "llama4":
        return key.replace("attn_post_norm", "ln2")
    return key.replace("conv_norm_var", "conv_norm") if name.lower().startswith("granite") else key


DRIVER = """
import json, sys
from pathlib import Path
import torch
from conversion import ModelBase, get_model_architecture, get_model_class, ModelType, load_all_models
import gguf
load_all_models()
kinds = {"float32": gguf.LlamaFileType.ALL_F32, "float16": gguf.LlamaFileType.MOSTLY_F16,
         "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}
result = {}
for name, folder, out, dtype in json.loads(sys.stdin.read()):
    try:
        with torch.inference_mode():
            hparams = ModelBase.load_hparams(Path(folder), False)
            cls = get_model_class(get_model_architecture(hparams, ModelType.MMPROJ), mmproj=True)
            vision = hparams.get("vision_config") or {}
            names = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
            for size in ("hidden_size", "intermediate_size", "num_layers", "num_heads"):
                if hasattr(cls, "_vit_" + size):  # RADIO's sizes stand in its program
                    setattr(cls, "_vit_" + size, vision[names.get(size, size)])
            cls(Path(folder), kinds[dtype], Path(out)).write()
        result[name] = None
    except Exception as error:
        result[name] = f"{type(error).__name__}: {error}"
print("RESULT " + json.dumps(result))
"""


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K_M", "Q5_0"])
def test_quantized_as_llama_quantize_does(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not llama_quantize.available():
        pytest.skip(llama_quantize.MISSING)
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8}
    monkeypatch.setattr(tower_folders, "SEES", tower_folders.SEES | wide)
    tower = next(tower for tower in towers.all() if tower.projector == "gemma3")
    made = translate.to_gguf(tower_folders.tower_folder(tower, tower.classes[0], "F16"))
    llmconv.save(made, tmp_path / "m.gguf", portable=True)
    llama_quantize.quantize(tmp_path / "m.gguf", tmp_path / "theirs.gguf", kind)
    llmconv.quantize(tmp_path / "m.gguf", tmp_path / "ours.gguf", kind)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every tiny tower, converted by the reference: name -> (folder, GGUF, error)."""
    root = tmp_path_factory.mktemp("peer")
    jobs = []
    for name, tiny in tiny_towers.MODELS.items():
        if not tiny.ours_alone:
            tiny_towers.build(name, root / name)
            jobs.append((name, str(root / name), str(root / f"{name}.gguf"), tiny.dtype))
    return _converted(jobs)


def _converted(jobs: list[tuple[str, str, str, str]], **env: str) -> dict[str, tuple[Path, Path, str | None]]:
    """What the reference made of each folder (name, folder, GGUF, type): name -> (folder, GGUF, error)."""
    home = Path(os.environ.get("LLMCONV_LLAMA_CPP", ""))
    if not (home / "conversion" / "base.py").is_file():
        pytest.skip("LLMCONV_LLAMA_CPP does not name a folder with llama.cpp's conversion/")
    path = os.pathsep.join([str(home / "gguf-py"), str(home)])
    done = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **env},
        timeout=600,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stderr[-3000:]
    errors = json.loads(lines[-1].removeprefix("RESULT "))
    return {name: (Path(folder), Path(out), errors[name]) for name, folder, out, _ in jobs}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Folders made of the tables' rows under the names that published files have: class -> (folder, GGUF, error)."""
    root = tmp_path_factory.mktemp("written")
    jobs = []
    for i, cls in enumerate(tower_folders.MORE):
        tower = next(tower for tower in towers.all() if cls in tower.classes)
        hears = any(side.table.gguf == "clip.audio" for side in tower.sides)
        kind = "F16" if hears else ("BF16", "F16", "F32")[i % 3]  # what hears has F16 convolutions there, always
        kind = "BF16" if tower.projector in COMPUTES else kind
        made = tower_folders.published(tower, cls, kind)
        stops = tower_folders.UNKNOWN.get(cls, ())
        made.tensors = {name: tensor for name, tensor in made.tensors.items() if not name.endswith(stops)}
        llmconv.save(made, root / cls)
        tower_folders.put_beside(cls, root / cls, kind)
        jobs.append((cls, str(root / cls), str(root / f"{cls}.gguf"), tower_folders.DTYPES[kind]))
    return _converted(jobs, PYTHONOPTIMIZE="1")  # it asserts that Step 3 has one size


@pytest.mark.parametrize("cls", tower_folders.MORE)
def test_a_written_folder_is_converted_as_by_the_reference(cls: str, written: dict[str, Any]) -> None:
    folder, gguf, error = written[cls]
    assert error is None, error
    ours, theirs = translate.to_gguf(formats.open(folder)), formats.open(gguf)
    kept = {name for name in ours.tensors if name.startswith("kept.")}
    _same_tensors(ours, _meant(cls, theirs), kept | set(llmconv.open(folder).tensors))
    _same_keys(ours.metadata, theirs.metadata, tower_folders.OWN_KEYS.get(cls, ()))


def _meant(name: str, theirs: Checkpoint) -> Checkpoint:
    renamed = {_as_meant(name, key): tensor for key, tensor in theirs.tensors.items()}
    return theirs.but(tensors={key: tensor.renamed(key) for key, tensor in renamed.items()})


def _same_tensors(ours: Checkpoint, theirs: Checkpoint, more: set[str]) -> None:
    assert sorted(ours.tensors.keys() - more) == sorted(theirs.tensors)
    for key, their in theirs.tensors.items():
        our = ours.tensors[key]
        if key.startswith(ROUNDED) and not key.endswith(".bias") and our.type.name == "F32":
            our = our.astype(their.type)
        assert (our.shape, our.type.name) == (their.shape, their.type.name), key
        if any(piece in key for piece in COMPUTED):
            assert np.allclose(our.numpy(), their.numpy(), rtol=2e-6, atol=2e-4 if "position" in key else 1e-7), key
        else:
            assert np.array_equal(our.blocks(), their.blocks()), key


def _same_keys(ours: dict[str, Any], theirs: dict[str, Any], apart: tuple[str, ...]) -> None:
    mine = {k: v for k, v in ours.items() if k.startswith(("clip.", "vision.", "general."))}
    assert sorted(set(mine) ^ set(theirs) - {"GGUF.version"}) == sorted(apart)
    for key, value in theirs.items():
        if key in apart or key in ("general.size_label", "GGUF.version"):
            continue
        assert type(mine[key]) is type(value), key
        assert np.array_equal(np.asarray(mine[key]), np.asarray(value)), (key, mine[key], value)


@pytest.mark.parametrize("name", [name for name, tiny in tiny_towers.MODELS.items() if not tiny.ours_alone])
def test_same_as_reference(name: str, reference: dict[str, Any]) -> None:
    folder, gguf, error = reference[name]
    assert error is None, error
    ours, theirs = translate.to_gguf(formats.open(folder)), formats.open(gguf)
    _same_tensors(ours, _meant(name, theirs), MORE.get(name, set()))
    _same_keys(ours.metadata, theirs.metadata, tiny_towers.MODELS[name].keys)
