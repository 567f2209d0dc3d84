"""A preset for every layout of small models that is written anew: fresh weights, its document, the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import llmconv
from llmconv.convert import layouts
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.vocabulary import make_vocab

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "simple-llm": ("simple-36k", {"dim": 8, "ffn": 12}),
    "simple-llm-multi-head": ("simple-1m", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "microgpt": ("microgpt", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "flat": ("microgpt", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "nanogpt": ("small-10m", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "dotted": ("small-10m", {"dim": 8, "heads": 2, "ffn": 32, "layers": 2}),
    "lecture": ("lecture", {"dim": 8, "heads": 2, "ffn": 32, "layers": 2}),
    "ndarray": ("lecture", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "playground": ("lecture", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "desde-cero": ("desde-cero", {"dim": 8, "heads": 2, "ffn": 12}),
    "forge": ("forge", {"dim": 8, "ffn": 12}),
    "blocks": ("blocks", {"dim": 8, "heads": 2, "ffn": 12, "layers": 2}),
    "char-rnn": ("char-rnn", {"dim": 8}),
    "recurrentjs": ("char-lstm", {"dim": 8}),
    "recurrentjs-rnn": ("char-relu-rnn", {"dim": 8}),
    "brain-lstm": ("char-lstm", {"dim": 8}),
    "brain-gru": ("char-gru", {"dim": 8}),
    "brain-rnn": ("char-relu-rnn", {"dim": 8}),
    "named": ("llama-15m", {"dim": 8, "heads": 2, "ffn": 12, "layers": 1}),
}
TEXT = "the cat sat on the mat\n"


def test_every_layout_that_is_written_has_a_preset() -> None:
    assert {table.name for table in layouts.all() if table.build is not None} | {"named"} == set(PRESETS)


@pytest.mark.parametrize("layout", PRESETS)
def test_a_fresh_model_goes_to_its_page_and_back(tmp_path: Path, layout: str) -> None:
    name, sizes = PRESETS[layout]
    settings = TrainConfig(data="t.txt", output="run", preset=name, context=8, **sizes)
    words = {"simple-llm", "simple-llm-multi-head", "desde-cero", "blocks", "dotted"}
    sentences = {"recurrentjs", "recurrentjs-rnn", "brain-lstm", "brain-gru", "brain-rnn"}
    documents = {"microgpt", "flat"}
    kind = (
        "word" if layout in words else "sentences" if layout in sentences else
        "documents" if layout in documents else "characters"
    )  # fmt: skip
    model = fresh_checkpoint(settings, make_vocab(kind, 40, [TEXT]))
    tensors = {n: t.map(lambda x: x * 8, t.type) if len(t.shape) > 1 else t for n, t in model.tensors.items()}
    model = model.but(tensors=tensors)
    result = llmconv.save(model, tmp_path / "page.json", layout=layout, outtype="f32")
    if layout != "named":
        read = llmconv.open(tmp_path / "page.json")
        assert layouts.recognise(read.metadata["document"], read.tensors).name == layout  # type: ignore[union-attr]
    ours, again = llmconv.load(model, "cpu", "f64"), llmconv.load(tmp_path / "page.json", "cpu", "f64")
    ids = torch.tensor([[1, 4, 2, 5]])
    with torch.no_grad():
        torch.testing.assert_close(again(ids), ours(ids), atol=1e-6, rtol=0)
    if layout == "forge":
        assert any("has no place for the vocabulary" in note for note in result.notes)
    else:
        assert again.tokenizer.encode("the cat") == ours.tokenizer.encode("the cat")
    if layout == "named":  # its keys say what file it was made from
        return
    llmconv.convert_file(tmp_path / "page.json", tmp_path / "m.gguf")
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.json")
    assert (tmp_path / "back.json").read_bytes() == (tmp_path / "page.json").read_bytes()
