"""Whatever lies in a model's folder goes through a GGUF and back, or into a copy; or a note names it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from good_models import write_gguf, write_hf

import llmconv
from llmconv.convert.dialects import hf
from llmconv.convert.tables import own_keys
from llmconv.errors import LlmconvError, cut
from llmconv.formats import safetensors_file, side_files
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

POOL = "1_Pooling/config.json"
TEXTS = {
    "LICENSE": "MIT",
    "README.md": "# Größe",
    "USE (old).txt": "a name with spaces",
    "sentence_bert_config.json": "{}",
    "notes/deep/er.txt": "x",
    "2_Dense/config.json": '{"in_features": 32}',
    POOL: '{"word_embedding_dimension": 32, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}',
}
STEPS = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))


def modules(steps: tuple[tuple[str, str], ...] = STEPS) -> str:
    start = "sentence_transformers.models."
    return json.dumps([{"idx": i, "path": p, "type": start + t} for i, (p, t) in enumerate(steps)])


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    folder = write_hf(tmp_path / "a")
    for name, text in {**TEXTS, "modules.json": modules()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    weights = Checkpoint({"linear.weight": Tensor.from_array("linear.weight", np.ones((4, 32), np.float32))})
    safetensors_file.save(weights, folder / "2_Dense" / "model.safetensors")
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the model's own weights."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if name != "model.safetensors"}


@pytest.mark.parametrize("through", ["m.gguf", "copy", "m.safetensors"])
def test_files_of_an_embedding_model_come_back(embedding: Path, tmp_path: Path, through: str) -> None:
    llmconv.convert_file(embedding, tmp_path / through)
    llmconv.convert_file(tmp_path / through, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(embedding)


@pytest.mark.parametrize(
    ("config", "number"),
    [
        ({"pooling_mode_mean_tokens": True}, 1),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 2),
        ({"pooling_mode_lasttoken": True}, 3),
        ({"pooling_mode": "lasttoken"}, 3),
        ({"pooling_mode_max_tokens": True}, None),
        ({"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": True}, None),
    ],
)
def test_pooling_has_its_number(embedding: Path, config: Any, number: int | None) -> None:
    (embedding / POOL).write_text(json.dumps(config))
    gguf = hf.to_gguf(llmconv.open(embedding))
    assert gguf.metadata.get("llama.pooling_type") == number
    assert any("way of pooling" in note for note in gguf.notes) is (number is None)
    assert any("2_Dense" in note for note in gguf.notes)
    if number is not None:
        gguf.metadata["llama.pooling_type"] = np.uint32(edited := number % 3 + 1)
        back = hf.from_gguf(gguf)
        assert hf.to_gguf(back).metadata["llama.pooling_type"] == edited
        assert any("pooling by" in note for note in back.notes)


def test_pooling_in_a_folder_as_windows_writes_it_and_in_none(embedding: Path) -> None:
    modules = (embedding / "modules.json").read_text()
    (embedding / "modules.json").write_text(modules.replace("1_Pooling", "1_Pooling\\\\"))
    assert hf.to_gguf(llmconv.open(embedding)).metadata["llama.pooling_type"] == 1
    (embedding / POOL).unlink()
    assert any("1_Pooling" in note and "how it pools" in note for note in hf.to_gguf(llmconv.open(embedding)).notes)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_pooling_of_somebodys_gguf(tmp_path: Path, number: int) -> None:
    def somebodys(made: Checkpoint) -> None:
        made.metadata = {k: v for k, v in made.metadata.items() if not k.startswith("llmconv.")}
        made.metadata["llama.pooling_type"] = np.uint32(number)

    llmconv.convert_file(write_gguf(tmp_path / "a.gguf", somebodys), tmp_path / "b")
    assert json.loads((tmp_path / "b" / POOL).read_text())["word_embedding_dimension"] == 32
    assert llmconv.convert_file(tmp_path / "b", tmp_path / "c.gguf")
    assert llmconv.open(tmp_path / "c.gguf").metadata["llama.pooling_type"] == number


def test_another_models_folder_is_named(embedding: Path, tmp_path: Path) -> None:
    (embedding / "checkpoint-5").mkdir()
    (embedding / "checkpoint-5" / "optimizer.pt").write_bytes(b"x")
    (tmp_path / "secret").write_text("s")
    (embedding / "notes" / "link.txt").symlink_to(tmp_path / "secret")
    (embedding / "away").symlink_to(tmp_path, target_is_directory=True)
    found = llmconv.open(embedding)
    assert "notes/link.txt" not in found.files and "notes/deep/er.txt" in found.files
    (note,) = (n for n in found.notes if "left out" in n)
    assert note == "left out, not of this model's folder or too large: 'away/' (and 2 more)"


def test_program_text_is_said(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "a", modeling_x__py=b"print()")
    said = "carried along is program text, which nothing here runs: 'modeling_x.py'; read it before use"
    for source, target in (("a", "copy"), ("a", "m.gguf"), ("m.gguf", "back")):
        assert said in llmconv.convert_file(tmp_path / source, tmp_path / target).notes
    assert tree(tmp_path / "back") == tree(folder)


NAMES = [
    "../x",
    "/x",
    "C:x",
    "C:\\x",
    "a\\b",
    "a\0b",
    "a//b",
    "a/../b",
    ".hidden",
    "a/.ssh",
    "x.",
    "a\nb",
    "a/b/c/d/e",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_would_lead_out_is_not_written_and_named(tmp_path: Path, name: str) -> None:
    assert not side_files.is_name(name)
    gguf = hf.to_gguf(llmconv.open(write_hf(tmp_path / "a")))
    gguf.metadata[own_keys.FILE + name] = "x"
    back = hf.from_gguf(gguf)
    assert name not in back.files
    assert any("its name is none for a file" in note for note in back.notes)
    back.files[name] = b"x"
    with pytest.raises(LlmconvError, match="expected a plain file name"):
        safetensors_file.save(back, tmp_path / "out")


@pytest.mark.parametrize("version", [True, False])
def test_a_model_in_a_folder_of_its_own_as_sentence_transformers_kept_it(
    embedding: Path, tmp_path: Path, version: bool
) -> None:
    """Until release 2.3 the model lay in 0_Transformer, and config.json at the top said the release alone."""
    now = tree(embedding)
    inner = embedding / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "model.safetensors", "sentence_bert_config.json"):
        (embedding / name).rename(inner / name)
    (embedding / "modules.json").write_text(modules((("0_Transformer", "Transformer"), *STEPS[1:])))
    if version:
        (embedding / "config.json").write_text('{"__version__": "0.2.5"}')
    made = llmconv.convert_file(embedding, tmp_path / "m.gguf")
    assert any("its model lies in 0_Transformer/" in note for note in made.notes)
    assert made.source_size is not None and made.source_size > (inner / "model.safetensors").stat().st_size
    assert llmconv.open(tmp_path / "m.gguf").metadata["llama.pooling_type"] == 1
    assert llmconv.quantize(embedding, tmp_path / "q.gguf", "Q8_0").written
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    llmconv.convert_file(embedding, tmp_path / "copy")
    for folder in ("back", "copy"):
        found = tree(tmp_path / folder)
        assert json.loads(found.pop("modules.json")) == json.loads(now["modules.json"])
        assert found == {name: data for name, data in now.items() if name != "modules.json"}


@pytest.mark.skipif(os.name == "nt", reason="no such names there")
@pytest.mark.parametrize("name", [".env", "a:b.txt", "back\\slash.md", "line\nbreak.json", "end.", "x" * 201])
def test_a_file_whose_name_is_not_carried_is_named_wherever_the_folder_goes(tmp_path: Path, name: str) -> None:
    folder = write_hf(tmp_path / "a")
    for each in (name, ".gitattributes", "LICENSE"):
        (folder / each).write_text("{}")
    said = f"left out, no name that files are carried by: {cut(name)}"
    for to in ("m.gguf", "copy"):
        assert said in llmconv.convert_file(folder, tmp_path / to).notes
    assert said in llmconv.quantize(folder, tmp_path / "int8", "INT8").notes
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    for made in ("copy", "int8", "back"):
        there = {path.name for path in (tmp_path / made).iterdir()}
        assert "LICENSE" in there and not there & {name, ".gitattributes"}


def test_nothing_is_written_through_a_link(embedding: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1_Pooling").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(LlmconvError, match="is a link to another folder"):
        llmconv.convert_file(embedding, tmp_path / "out", force=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def index(**weight_map: str) -> str:
    return json.dumps({"weight_map": weight_map})


@pytest.mark.parametrize(
    ("beside", "text", "said"),
    [
        ("model.safetensors.index.json", index(absent="model.safetensors"), "names tensor 'absent', which is not in"),
        ("model.safetensors.index.json", index(absent="m-00001-of-00002.safetensors"), "names tensor 'absent'"),
        ("model.safetensors.index.json", "{", "is damaged; model.safetensors is read without it"),
        ("model-00001-of-00002.safetensors", "x", "not read, the weights are taken from 'model.safetensors'"),
        ("model.safetensors.part", "x", "a download that was not finished: 'model.safetensors.part'"),
        ("abcdef.incomplete", "x", "a download that was not finished: 'abcdef.incomplete'"),
        ("model-q8.gguf", "x", "left out, no part of these weights: 'model-q8.gguf'"),
        ("training_args.bin", "x", "left out, no part of these weights: 'training_args.bin'"),
    ],
)
def test_what_lies_beside_a_whole_file_is_named(tmp_path: Path, beside: str, text: str, said: str) -> None:
    folder = write_hf(tmp_path / "a")
    before = llmconv.open(folder)
    (folder / beside).write_text(text)
    found = llmconv.open(folder)
    assert found.tensors.keys() == before.tensors.keys() and found.files.keys() == before.files.keys()
    new = [note for note in found.notes if note not in before.notes]
    assert len(new) == 1 and said in new[0]


def test_an_index_that_only_names_the_whole_file_is_no_news(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "a")
    names = dict.fromkeys(llmconv.open(folder).tensors, "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index(**names))
    assert llmconv.open(folder).notes == []
    names = dict.fromkeys(names, "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(index(**names))
    assert "names 'other.safetensors', which is not in it" in llmconv.open(folder).notes[0]
