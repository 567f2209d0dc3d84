"""safetensors: read by the safetensors library as we wrote it and the other way round, nothing lost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import llmconv
from llmconv.errors import BadFile, OutputError, Unsupported, UsageError
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf.gguf_types import ggml_type
from llmconv.formats.safetensors_header import DTYPES
from llmconv.formats.tensor import Tensor

NUMPY = [np.float64, np.float32, np.float16, np.int64, np.uint64, np.int32, np.uint32, np.int16, np.uint16]
NUMPY += [np.int8, np.uint8, np.bool_, np.complex64]


def arrays(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {f"t.{np.dtype(d).name}": (rng.standard_normal((3, 5)) * 50).astype(d) for d in NUMPY}


def checkpoint_of(values: dict[str, Any], **fields: Any) -> Checkpoint:
    made = Checkpoint(dialect="plain", **fields)
    for name, value in values.items():
        made.add(Tensor.from_array(name, value))
    return made


def random_tensor(name: str, kind: Any, shape: tuple[int, ...]) -> Tensor:
    rows, size = int(np.prod(shape[:-1])), kind.row_bytes(shape[-1] if shape else 1)
    data = np.random.default_rng(len(name)).integers(0, 2, (rows, size), np.uint8)  # 0 or 1: valid booleans too
    return Tensor(name, shape, kind, lambda a, b: data[a:b])


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert set(a.tensors) == set(b.tensors)
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        assert np.array_equal(tensor.blocks(), other.blocks()), name
    assert a.metadata == b.metadata and list(a.metadata) == list(b.metadata)


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_bytes_are_those_of_the_safetensors_library(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file(arrays(), tmp_path / "theirs.safetensors", metadata or None)
    found = safetensors_file.open(tmp_path / "theirs.safetensors")
    safetensors_file.save(found, tmp_path / "ours.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    for name, value in arrays().items():
        assert np.array_equal(found.tensors[name].numpy(), value) and found.tensors[name].numpy().dtype == value.dtype


def test_the_library_reads_ours(tmp_path: Path) -> None:
    values = arrays()
    safetensors_file.save(checkpoint_of(values, metadata={"a": "ü", "format": "pt"}), tmp_path / "m.safetensors")
    found = load_file(tmp_path / "m.safetensors")
    for name, value in values.items():
        assert np.array_equal(found[name], value) and found[name].dtype == value.dtype
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert file.metadata() == {"a": "ü", "format": "pt"}
        assert sorted(file.keys()) == sorted(values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_is_carried(tmp_path: Path, dtype: str) -> None:
    kind = DTYPES[dtype]
    made = Checkpoint(dialect="plain")
    made.add(random_tensor("t", kind, (3, 8)))
    safetensors_file.save(made, tmp_path / "m.safetensors")
    assert_same(made, safetensors_file.open(tmp_path / "m.safetensors"))
    with safe_open(tmp_path / "m.safetensors", "np") as file:  # the library accepts it, and calls it so
        assert (file.get_slice("t").get_dtype(), file.get_slice("t").get_shape()) == (dtype, [3, 8])


@pytest.mark.parametrize("number", [2, 8, 9, 12, 14, 35])
def test_block_types_are_stored_as_bytes_and_come_back(tmp_path: Path, number: int) -> None:
    kind = ggml_type(number)
    assert kind is not None
    made = Checkpoint(dialect="plain", metadata={"format": "pt"})
    made.add(random_tensor("q", kind, (2, 3, 2 * kind.block_size)))
    safetensors_file.save(made, tmp_path / "m.safetensors")
    assert_same(made, safetensors_file.open(tmp_path / "m.safetensors"))
    assert load_file(tmp_path / "m.safetensors")["q"].shape == (2, 3, 2 * kind.layout.itemsize)


def test_wide_types_go_first_only_where_alignment_asks(tmp_path: Path) -> None:
    even = checkpoint_of({"b": np.zeros(4, np.int8), "a": np.zeros(2, np.float32)})
    safetensors_file.save(even, tmp_path / "even.safetensors")
    assert list(safetensors_file.open(tmp_path / "even.safetensors").tensors) == ["b", "a"]
    odd = checkpoint_of({"b": np.zeros(3, np.int8), "a": np.zeros(2, np.float32), "c": np.zeros(1, np.float64)})
    safetensors_file.save(odd, tmp_path / "odd.safetensors")
    assert list(safetensors_file.open(tmp_path / "odd.safetensors").tensors) == ["c", "a", "b"]


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda n: n != "__metadata__")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
TENSORS = st.tuples(
    st.sampled_from([DTYPES[d] for d in DTYPES if not d.startswith("F6") and d != "F4"]),
    st.lists(st.integers(0, 4), max_size=5).map(tuple),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(NAMES.filter(bool), TENSORS, max_size=8),
    metadata=st.dictionaries(NAMES.filter(lambda k: not k.startswith("llmconv.")), TEXTS, max_size=4),
    shard=st.sampled_from([0, 1, 100]),
)
def test_random_checkpoints_round_trip(
    tmp_path: Path, tensors: dict[str, Any], metadata: dict[str, str], shard: int
) -> None:
    made = Checkpoint(dialect="plain", metadata=metadata)
    for name, (kind, shape) in tensors.items():
        made.add(random_tensor(name, kind, shape))
    safetensors_file.save(made, tmp_path / "m.safetensors", force=True)
    assert_same(made, safetensors_file.open(tmp_path / "m.safetensors"))
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert set(file.keys()) == set(tensors) and (file.metadata() or {}) == metadata
    safetensors_file.save(made, tmp_path / "folder", force=True, max_shard_size=shard)
    assert_same(made, safetensors_file.open(tmp_path / "folder"))


FILES: dict[str, Path | bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": "{“ü”}".encode(),
    "tokenizer.model": bytes(range(256)),
    "empty.txt": b"",
}


def test_a_folder_keeps_its_side_files(tmp_path: Path) -> None:
    made = checkpoint_of(arrays(), files=dict(FILES), metadata={"format": "pt"})
    written = safetensors_file.save(made, tmp_path / "model")
    assert (
        sorted(p.name for p in written)
        == sorted([*FILES, "model.safetensors"])
        == sorted(os.listdir(tmp_path / "model"))
    )
    for extra in ("pytorch_model.bin", ".gitattributes", "x.safetensors.index.json"):
        (tmp_path / "model" / extra).write_bytes(b"x")
    (tmp_path / "model" / "original").mkdir()
    found = safetensors_file.open(tmp_path / "model")
    assert found.dialect == "hf" and {name: found.file(name) for name in found.files} == FILES
    assert_same(made, found)
    same = safetensors_file.open(tmp_path / "model" / "model.safetensors")  # the file opens its folder
    assert same.dialect == "hf" and same.source == tmp_path / "model"


def test_a_lone_file_carries_its_side_files(tmp_path: Path) -> None:
    made = checkpoint_of(arrays(), files=dict(FILES), metadata={"format": "pt"})
    assert safetensors_file.save(made, tmp_path / "m.safetensors") == [tmp_path / "m.safetensors"]
    found = safetensors_file.open(tmp_path / "m.safetensors")
    assert found.dialect == "hf" and found.files == FILES and found.metadata == {"format": "pt"}
    assert_same(made, found)
    safetensors_file.save(found, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    with safe_open(tmp_path / "m.safetensors", "np") as file:
        assert file.metadata()["llmconv.file.config.json"] == '{"model_type": "llama"}'


def test_shards_and_their_index(tmp_path: Path) -> None:
    made = checkpoint_of(arrays(), files={"config.json": b"{}"}, metadata={"format": "pt"})
    made.info["index_metadata"] = {"total_size": 7, "total_parameters": 195}
    written = safetensors_file.save(made, tmp_path / "model", max_shard_size=200)
    assert written[-1].name == "model.safetensors.index.json" and len(written) > 4
    index = json.loads(written[-1].read_text())
    assert index["metadata"] == {"total_size": made.nbytes, "total_parameters": 195}
    for path in written[1:-1]:
        for name in load_file(path):
            assert index["weight_map"].pop(name) == path.name
        assert os.path.getsize(path) < 200 + 2000
    assert not index["weight_map"]
    for source in (tmp_path / "model", written[-1], written[2]):  # the folder, the index, a shard
        found = safetensors_file.open(source)
        assert_same(made, found)
        assert found.dialect == "hf" and found.info["index_metadata"]["total_parameters"] == 195


def test_hub_cache_links_are_followed(tmp_path: Path) -> None:
    """A hub cache keeps blobs apart and links to them by `..`."""
    made = checkpoint_of(arrays(), files={"config.json": b"{}"})
    safetensors_file.save(made, tmp_path / "plain", max_shard_size=300)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for path in sorted((tmp_path / "plain").iterdir()):
        path.rename(tmp_path / "blobs" / f"blob-{path.name[:9]}-{len(os.listdir(tmp_path / 'blobs'))}")
        blob = max((tmp_path / "blobs").iterdir(), key=lambda p: int(p.name.rsplit("-", 1)[1]))
        (tmp_path / "snapshot" / path.name).symlink_to(Path("..") / "blobs" / blob.name)
    found = safetensors_file.open(tmp_path / "snapshot")
    assert_same(made, found)
    assert found.dialect == "hf"
    assert found.source == tmp_path / "snapshot"


def test_a_real_model_comes_back_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    source = shared / "stories260K" / "hf"
    safetensors_file.save(safetensors_file.open(source), tmp_path / "same")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "same" / name).read_bytes() == (source / name).read_bytes()


def test_forcing_a_smaller_model_removes_the_old_shards(tmp_path: Path) -> None:
    safetensors_file.save(checkpoint_of(arrays(), files={"config.json": b"{}"}), tmp_path / "m", max_shard_size=200)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        safetensors_file.save(checkpoint_of(arrays(1), files={"config.json": b"{}"}), tmp_path / "m")
    safetensors_file.save(checkpoint_of(arrays(1), files={"config.json": b"{}"}), tmp_path / "m", force=True)
    assert sorted(os.listdir(tmp_path / "m")) == ["config.json", "model.safetensors", "notes.txt"]


def test_a_failing_shard_leaves_nothing(tmp_path: Path) -> None:
    made = checkpoint_of(arrays(), files={"config.json": b"{}"})

    def broken(start: int, stop: int) -> Any:
        raise BadFile("the source broke")

    made.add(Tensor("z", (3, 5), DTYPES["F32"], broken))
    with pytest.raises(BadFile, match="the source broke"):
        safetensors_file.save(made, tmp_path / "model", max_shard_size=200)
    assert os.listdir(tmp_path) == []


def test_the_input_is_never_the_output(tmp_path: Path) -> None:
    made = checkpoint_of(arrays(), files={"config.json": b"{}"})
    for options in ({}, {"max_shard_size": 200}):
        folder = tmp_path / f"m{len(options)}"
        safetensors_file.save(made, folder, **options)  # type: ignore[arg-type]
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        found = safetensors_file.open(folder)
        found.tensors = {k: t.map(lambda x: x, t.type) for k, t in found.tensors.items()}  # no extents left
        for target in (folder, folder / next(name for name in before if name.endswith(".safetensors"))):
            with pytest.raises(OutputError, match="is the input itself"):
                safetensors_file.save(found, target, force=True)
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda c: c.metadata.update(n=1), Unsupported, "metadata 'n' is no text"),
        (lambda c: c.metadata.update(n="\ud800"), Unsupported, "no valid Unicode"),
        (lambda c: c.add(c.tensors["t.int8"].renamed("__metadata__")), Unsupported, "keeps for itself"),
        (lambda c: c.files.update({"../x": b""}), BadFile, "expected a plain file name"),
        (lambda c: c.files.update({"model.safetensors": b""}), UsageError, "is a name of the weights"),
    ],
)
def test_what_the_format_can_not_hold_is_refused(tmp_path: Path, change: Any, error: Any, says: str) -> None:
    for name in ("m.safetensors", "m"):
        made = checkpoint_of(arrays())
        change(made)
        if "weights" in says and name != "m":
            continue
        with pytest.raises(error, match=says):
            safetensors_file.save(made, tmp_path / name)
        assert os.listdir(tmp_path) == []


def test_a_lone_file_is_not_split(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be split"):
        safetensors_file.save(checkpoint_of(arrays()), tmp_path / "m.safetensors", max_shard_size=100)


def test_planned_size_is_the_size(tmp_path: Path) -> None:
    made = checkpoint_of(arrays(), files={"config.json": b"{}"})
    safetensors_file.save(made, tmp_path / "m")
    assert safetensors_file.planned_size(made) == (tmp_path / "m" / "model.safetensors").stat().st_size


def test_shards_without_an_index(tmp_path: Path) -> None:
    """Their names say how many there are: all of them are a model, fewer are not."""
    made = Checkpoint(
        {f"t{i}": Tensor.from_array(f"t{i}", np.full(4, i, np.float32)) for i in range(3)}, dialect="plain"
    )
    safetensors_file.save(made, tmp_path / "m", max_shard_size=16)
    (tmp_path / "m" / safetensors_file.INDEX).unlink()
    assert set(safetensors_file.open(tmp_path / "m").tensors) == {"t0", "t1", "t2"}
    (tmp_path / "m" / safetensors_file.shard_name(1, 3)).unlink()
    with pytest.raises(BadFile, match=r"its file model-00002-of-00003\.safetensors is missing"):
        safetensors_file.open(tmp_path / "m")


def test_endings_in_capitals(tmp_path: Path) -> None:
    made = Checkpoint({"t": Tensor.from_array("t", np.ones(4, np.float32))}, dialect="plain")
    llmconv.save(made, tmp_path / "M.SAFETENSORS")
    assert (tmp_path / "M.SAFETENSORS").is_file()
    (tmp_path / "m").mkdir()
    (tmp_path / "M.SAFETENSORS").rename(tmp_path / "m" / "MODEL.SAFETENSORS")
    assert set(llmconv.open(tmp_path / "m").tensors) == {"t"} and not llmconv.open(tmp_path / "m").files
