"""A container from outside the package: registered, or found at an entry point, it works as the built-in ones do."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import contributing
import numpy as np
import pytest

import llmconv
from llmconv import formats
from llmconv.errors import OutputError, Unsupported, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.source import Source
from llmconv.formats.tensor import Tensor
from llmconv.formats.writing.outputs import Output
from llmconv.formats.writing.stream import write_tensors
from llmconv.quant import by_name, entry_points

ROOT = Path(__file__).resolve().parents[2]


# The toy: GGUF's keys and tensors behind another magic number.  Its header is a GGUF without tensors' bytes.


def sniff(path: Path, head: bytes) -> bool:
    return head[:4] == b"TOY1"


def read(path: Path) -> Checkpoint:
    source = Source.of(path)
    (count,) = struct.unpack("<I", source.read(4, 4).tobytes())
    found, place = Checkpoint(format="toy", source=path, parts=[path]), 8
    for _ in range(count):
        name, kind, columns, rows, offset = struct.unpack("<32s8sQQQ", source.read(place, 64).tobytes())
        place += 64
        type = by_name(kind.rstrip(b"\0").decode())
        shape = (rows, columns) if rows else (columns,)
        found.add(source.tensor(name.rstrip(b"\0").decode(), shape, type, offset))
    found.metadata = dict(llmconv.open(path.with_suffix(".keys")).metadata)
    return found


def write(checkpoint: Checkpoint, path: Path, *, force: bool, jobs: Any, meter: Any, level: int = 0) -> list[Path]:
    offset, rows, plan = 8 + 64 * len(checkpoint.tensors), [], []
    for t in checkpoint.tensors.values():
        shape = (t.row_len, t.shape[0] if len(t.shape) > 1 else 0)
        rows.append(struct.pack("<32s8sQQQ", t.name.encode(), t.type.name.encode(), *shape, offset))
        plan.append((t, offset))
        offset += t.nbytes
    with Output(path, force=force, size=offset) as out:
        out.file.write(b"TOY1" + struct.pack("<I", len(rows)) + b"".join(rows))
        out.reserve(offset)
        write_tensors(out, plan, jobs=jobs, meter=meter)
    beside = Checkpoint(metadata=checkpoint.metadata)
    return [path, *formats.by_name("gguf").save(beside, path.with_suffix(".keys"), force=force)]


TOY = formats.Format("toy", "gguf", sniff, read, write, suffixes=(".toy",), options=("level",))


@pytest.fixture(params=["registered", "entry point"])
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[formats.Format]:
    if request.param == "registered":
        monkeypatch.setattr(formats, "_registered", [])
        formats.register(TOY)
        yield TOY
        return
    point = metadata.EntryPoint("toy", "test_extending_toy:TOY", "llmconv.formats")
    module = type(formats)("test_extending_toy")
    module.TOY = TOY  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "test_extending_toy", module)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point] if group == "llmconv.formats" else [])
    formats._installed.cache_clear()
    yield TOY
    formats._installed.cache_clear()


def model() -> Checkpoint:
    rng = np.random.default_rng(0)
    keys = {"general.architecture": "strange", "general.name": "n", "strange.block_count": np.uint32(1)}
    made = Checkpoint(metadata=keys)
    for name, shape in {"a.weight": (8, 64), "b.weight": (3, 32), "c.bias": (8,)}.items():
        made.add(Tensor.from_array(name, rng.standard_normal(shape).astype(np.float32)))
    return made


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return {n: t.numpy().tolist() for n, t in a.tensors.items()} == {
        n: t.numpy().tolist() for n, t in b.tensors.items()
    }


def test_a_format_from_outside(tmp_path: Path, toy: formats.Format) -> None:
    llmconv.save(model(), tmp_path / "m.gguf")
    result = llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "m.toy")
    assert (result.format, result.n_tensors, result.paths[0]) == ("toy", 3, tmp_path / "m.toy")
    report = llmconv.inspect_file(tmp_path / "m.toy")
    assert report["format"] == "toy" and report["architecture"] == "strange"
    assert llmconv.verify(tmp_path / "m.gguf", tmp_path / "m.toy").same
    for name in ("back.gguf", "back.safetensors", "folder", "back.json", "back.msgpack", "again.toy"):
        llmconv.convert_file(tmp_path / "m.toy", tmp_path / name, outtype="f32")
        assert name.startswith("back.") or same(llmconv.open(tmp_path / name), model())
        llmconv.convert_file(tmp_path / name, tmp_path / f"{name}.toy")
        assert llmconv.verify(tmp_path / "m.gguf", tmp_path / f"{name}.toy").same, name
    assert (tmp_path / "back.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    llmconv.convert_file(tmp_path / "m.gguf", to="toy", force=True)  # its name by default
    made = llmconv.quantize(tmp_path / "m.toy", tmp_path / "q.gguf", "Q8_0")
    assert {t.type for t in made.output.tensors} == {"Q8_0", "F32"}


def test_what_it_does_not_do_is_a_sentence(tmp_path: Path, toy: formats.Format) -> None:
    llmconv.save(model(), tmp_path / "m.toy", level=3)
    with pytest.raises(UsageError, match="toy has no option levels; it has level"):
        llmconv.save(model(), tmp_path / "n.toy", levels=3)
    with pytest.raises(OutputError, match="exists already"):
        llmconv.save(model(), tmp_path / "m.toy")
    with pytest.raises(UsageError, match="only GGUF and safetensors can be split"):
        llmconv.split(tmp_path / "m.toy", max_size=10)
    with pytest.raises(Unsupported, match="toy has no metadata to edit"):
        llmconv.edit(tmp_path / "m.toy", set={"a": "b"})


@pytest.mark.parametrize("name", [f.name for f in formats.formats() if f.write is not None])
def test_options_unknown_to_a_format_are_refused(tmp_path: Path, name: str) -> None:
    container = formats.by_name(name)
    path = tmp_path / f"m{container.suffixes[0]}"
    for value in (0, None, 7):
        with pytest.raises(UsageError, match=f"{name} has no option compression; it has "):
            llmconv.save(model(), path, compression=value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["no_such_module_at_all:FORMAT", "json:dumps"])
def test_a_broken_entry_point_is_a_sentence(tmp_path: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    llmconv.save(model(), tmp_path / "m.gguf")
    llmconv.save(model(), tmp_path / "m.json")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [metadata.EntryPoint("bad", value, group)])
    monkeypatch.setattr(entry_points, "_problems", {})
    formats._installed.cache_clear()
    try:
        llmconv.open(tmp_path / "m.gguf")
        assert entry_points.problems() == []  # nobody was asked
        made = llmconv.convert_file(tmp_path / "m.json", tmp_path / "again.gguf")
        assert [note for note in made.notes if value in note and "is left out" in note]
    finally:
        formats._installed.cache_clear()


def test_contributing_shows_one(tmp_path: Path) -> None:
    """The example in CONTRIBUTING runs, and reads."""
    found = contributing.run("FORMAT = Format(")["FORMAT"]
    path = tmp_path / "m.npz"
    np.savez(path, w=np.arange(6, dtype=np.float32).reshape(2, 3))
    assert found.sniff(path, path.read_bytes()[:64])
    np.testing.assert_array_equal(found.open(path).tensors["w"].numpy(), np.arange(6).reshape(2, 3))
