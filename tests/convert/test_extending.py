"""Another package adds an architecture and a JSON layout: nothing here is edited, everything works on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import contributing
import numpy as np
import pytest

import llmconv
from llmconv import formats
from llmconv.convert import archs, layouts
from llmconv.convert.layouts.base import Field, Form, Layout
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Transpose
from llmconv.convert.translate import translate
from llmconv.errors import UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import entry_points

TOY = Architecture(
    "toy",
    (HfName("ToyModel", "toy"),),
    keys=keys("""
        block_count         u32   depth
        embedding_length    u32   width
        vocab_size          u32   words
    """),
    rows=(
        row("token_embd.weight", "{p}embed", "n_vocab, n_embd"),
        row("blk.{i}.ffn_up.weight", "{p}layers.{i}.up", "2 * n_embd, n_embd", Transpose()),
    ),
    prefixes=("toy.", ""),
)
TOY_JSON = Layout(
    "toy-json",
    "toy: net or model, [in][out]",
    "toy",
    marks=("{p}words", ("{p}up0", "{p}layer0.up")),
    prefixes=("net.", "model."),
    fields=(
        Field("block_count", ("depth", "nLayers")),
        Field("embedding_length", ("shape of {p}words@1",)),
        Field("vocab_size", ("shape of {p}words@0",)),
    ),
    rows=(
        row("token_embd.weight", "{p}words", "n_vocab, n_embd"),
        row(
            "blk.{i}.ffn_up.weight",
            "{p}up{i}",
            "2 * n_embd, n_embd",
            Transpose(),
            alt=(Form(("{p}layer{i}.up",)),),  # [out][in]
        ),
    ),
    roots=("net", "model"),
)


@pytest.fixture
def toys() -> Iterator[None]:
    archs.register(TOY)
    layouts.register(TOY_JSON)
    yield
    archs.unregister("toy")
    layouts.unregister("toy-json")


def folder() -> Checkpoint:
    rng = np.random.default_rng(0)
    config = {"architectures": ["ToyModel"], "model_type": "toy", "depth": 2, "width": 4, "words": 7}
    out = Checkpoint(dialect="hf", format="safetensors", files={"config.json": json.dumps(config).encode()})
    for name, shape in {"toy.embed": (7, 4), "toy.layers.0.up": (4, 8), "toy.layers.1.up": (4, 8)}.items():
        out.add(Tensor.from_array(name, rng.normal(0, 1, shape).astype(np.float32)))
    return out


@pytest.mark.usefixtures("toys")
def test_an_architecture_from_outside(tmp_path: Path) -> None:
    model = folder()
    gguf = translate(model, "gguf")
    assert gguf.tensors["blk.1.ffn_up.weight"].shape == (8, 4)
    formats.by_name("gguf").save(gguf, tmp_path / "toy.gguf")
    back = translate(formats.open(tmp_path / "toy.gguf"), "hf")
    assert back.files["config.json"] == model.files["config.json"]
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(back.tensors[name].numpy(), tensor.numpy())
    made = llmconv.convert_file(tmp_path / "toy.gguf", tmp_path / "toy")
    assert "toy" in json.dumps(llmconv.inspect_file(tmp_path / "toy.gguf"), default=str)
    assert llmconv.verify(tmp_path / "toy.gguf", made.target).same


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("at", ["net", "model"])
@pytest.mark.parametrize("apart", [False, True])
def test_a_layout_from_outside_in_its_spellings(at: str, apart: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words, ups = rng.normal(0, 1, (7, 4)), rng.normal(0, 1, (2, 8, 4))
    weights: dict[str, Any] = {"words": words.tolist()}
    for i, up in enumerate(ups):
        weights |= {f"layer{i}": {"up": up.tolist()}} if apart else {f"up{i}": up.T.tolist()}
    text = json.dumps({"nLayers" if apart else "depth": 2, at: weights})
    (tmp_path / "m.json").write_text(text)
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", outtype="f64")
    gguf = formats.open(tmp_path / "m.gguf")
    assert gguf.metadata["llmconv.json.layout"] == "toy-json"
    np.testing.assert_array_equal(gguf.tensors["blk.1.ffn_up.weight"].numpy(), ups[1])
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == text
    assert llmconv.verify(tmp_path / "m.json", tmp_path / "m.gguf").same


def test_entry_points_are_loaded_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken one, and one whose name is taken, are notes; the good one beside them works."""
    points = {
        "llmconv.architectures": [
            metadata.EntryPoint("toy", f"{__name__}:TOY", "llmconv.architectures"),
            metadata.EntryPoint("gone", "no_such_module_here:X", "llmconv.architectures"),
            metadata.EntryPoint("taken", "llmconv.convert.archs.llama.llama:LLAMA", "llmconv.architectures"),
        ]
    }
    monkeypatch.setattr(metadata, "entry_points", lambda group: points.get(group, []))
    monkeypatch.setattr(archs._REGISTRY, "_loaded", False)
    monkeypatch.setattr(entry_points, "_problems", {})
    try:
        assert archs.by_gguf("llama") is not None and not entry_points.problems()  # known here: nobody is asked
        gguf = translate(folder(), "gguf")
        assert gguf.metadata["general.architecture"] == "toy"
        said = [note for note in gguf.notes if "entry point" in note]
        assert len(said) == 2 and "no_such_module_here" in said[0] and "'llama' is taken" in said[1]
    finally:
        archs.unregister("toy")


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(UsageError, match="is no Architecture"):
        archs.register(TOY_JSON)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown pieces postions"):
        TOY.variant("toy2", decoder={"postions": "none"})


def test_contributing_shows_an_architecture() -> None:
    """The one above."""
    assert contributing.run("TOY = Architecture(")["TOY"] == TOY


@pytest.mark.usefixtures("toys")
def test_contributing_shows_a_layout(tmp_path: Path) -> None:
    """In the place of the one above, for documents that it is enough for."""
    layouts.unregister("toy-json")
    layouts.register(contributing.run("TOY_JSON = Layout(")["TOY_JSON"])
    up = np.random.default_rng(0).normal(0, 1, (4, 8))
    (tmp_path / "m.json").write_text(json.dumps({"depth": 1, "words": up.T.tolist(), "up0": up.tolist()}))
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf", outtype="f64")
    gguf = formats.open(tmp_path / "m.gguf")
    assert gguf.metadata["llmconv.json.layout"] == "toy-json"
    np.testing.assert_array_equal(gguf.tensors["blk.0.ffn_up.weight"].numpy(), up.T)
