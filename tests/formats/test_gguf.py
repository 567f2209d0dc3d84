"""GGUF: read by the gguf package as we wrote it, written as the gguf package writes it, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from llmconv.errors import BadFile, OutputError, Unsupported, UsageError
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.gguf.gguf_types import CARRIED, Carried, ggml_type
from llmconv.formats.gguf.gguf_values import Arrays, Strings
from llmconv.formats.tensor import Tensor
from llmconv.quant import types

DTYPES = [np.float64, np.float32, np.float16, np.int8, np.int16, np.int32, np.int64]
EVERY_VALUE: dict[str, Any] = {
    "general.architecture": "llama",
    "u8": np.uint8(255),
    "i8": np.int8(-128),
    "u16": np.uint16(65535),
    "i16": np.int16(-32768),
    "u32": np.uint32(2**32 - 1),
    "i32": np.int32(-(2**31)),
    "u64": np.uint64(2**64 - 1),
    "i64": np.int64(-(2**63)),
    "f32": np.float32(1.5),
    "f64": np.float64(0.1),
    "yes": True,
    "no": False,
    "text": "süß\n\0 漢字",
    "u8s": np.arange(5, dtype=np.uint8),
    "i32s": np.arange(-3, 3, dtype=np.int32),
    "f64s": np.array([0.1, -np.inf], np.float64),
    "bools": np.array([True, False, True]),
    "words": ["a", "", "ßß", "x" * 300, "\0" * 20, "end"],
}


def random_blocks(number: int, rows: int, columns_in_blocks: int, seed: int = 0) -> Tensor:
    """A tensor of any ggml type, of random bytes."""
    kind = ggml_type(number)
    assert kind is not None
    size = columns_in_blocks * kind.layout.itemsize
    data = np.random.default_rng(seed).integers(0, 256, (rows, size), np.uint8)
    shape = (rows, columns_in_blocks * kind.block_size)
    return Tensor(f"t{number}", shape, kind, lambda a, b: data[a:b])


def model(*arrays: Any, **metadata: Any) -> Checkpoint:
    checkpoint = Checkpoint(metadata={"general.architecture": "llama", **metadata})
    for i, array in enumerate(arrays):
        checkpoint.add(Tensor.from_array(f"blk.{i}.weight", np.asarray(array)))
    return checkpoint


def same_value(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray | np.generic) or isinstance(b, np.ndarray | np.generic):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, str | bool) or isinstance(b, str | bool):
        return type(a) is type(b) and bool(a == b)
    return len(a) == len(b) and all(same_value(x, y) for x, y in zip(a, b, strict=True))


def assert_same(a: Checkpoint, b: Checkpoint) -> None:
    assert list(a.metadata) == list(b.metadata)
    for key, value in a.metadata.items():
        assert same_value(value, b.metadata[key]), key
    assert list(a.tensors) == list(b.tensors)
    for name, tensor in a.tensors.items():
        other = b.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        assert np.array_equal(tensor.blocks(), other.blocks()), name


def test_types_are_the_gguf_packages() -> None:
    for number, (block, size) in gguf.GGML_QUANT_SIZES.items():
        expected = (number.name, block, 36 if number.name == "Q8_1" else size)  # ggml's static_assert: 2 halves + 32
        kind = ggml_type(number)
        assert kind is not None and (kind.name, kind.block_size, kind.layout.itemsize) == expected


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_every_value_type_round_trips(tmp_path: Path, byte_order: str) -> None:
    made = Checkpoint(metadata=dict(EVERY_VALUE))
    gguf_file.save(made, tmp_path / "m.gguf", byte_order=byte_order)
    found = gguf_file.open(tmp_path / "m.gguf")
    assert found.info["byte_order"] == byte_order
    assert_same(made, found)


def test_nested_arrays_round_trip_exactly(tmp_path: Path) -> None:
    nested = Arrays([np.arange(3, dtype=np.int16), ["a", "b"], Arrays(), Arrays([np.empty(0, np.float32)]), []])
    gguf_file.save(Checkpoint(metadata={"n": nested, "l": [[1, 2], [3]]}), tmp_path / "m.gguf")
    found = gguf_file.open(tmp_path / "m.gguf").metadata
    assert same_value(found["n"], nested) and isinstance(found["n"][2], Arrays)
    assert isinstance(found["n"][4], Strings) and found["n"][3][0].dtype == np.float32
    assert found["l"][0].dtype == np.int32 and [x.tolist() for x in found["l"]] == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (4, np.uint32),
        (-4, np.int32),
        (2**40, np.uint64),
        (-(2**40), np.int64),
        (0.5, np.float32),
        ([1, 2], np.int32),
        ([2**31], np.uint32),
        ([-1, 2**31], np.int64),
        ([2**63], np.uint64),
        ([1, 0.5], np.float32),
        ([True, False], np.bool_),
        ([np.uint8(1), np.uint8(2)], np.uint8),
    ],
)
def test_python_values_take_the_documented_type(tmp_path: Path, value: Any, kind: Any) -> None:
    gguf_file.save(Checkpoint(metadata={"k": value}), tmp_path / "m.gguf")
    found = gguf_file.open(tmp_path / "m.gguf").metadata["k"]
    assert found.dtype == kind and np.array_equal(found, np.array(value, kind))


@pytest.mark.parametrize("value", [None, 2**64, {"a": 1}, b"raw", 1 + 2j, [1, "a"], [None], np.array(["a"]), "\ud800"])
def test_values_gguf_does_not_have_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(Unsupported):
        gguf_file.save(Checkpoint(metadata={"k": value}), tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == []


def written_by_the_package(path: Path, checkpoint: Checkpoint, big: bool = False, **options: Any) -> None:
    """The same content through gguf.GGUFWriter."""
    vtype = gguf.GGUFValueType
    order = gguf.GGUFEndian.BIG if big else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(path, "llama", endianess=order, **options)
    codes = {"f": "FLOAT", "i": "INT", "u": "UINT"}
    for key, value in checkpoint.metadata.items():
        if key == "general.architecture":
            continue
        if key == "general.alignment":
            writer.add_custom_alignment(int(value))
        elif isinstance(value, bool | str):
            writer.add_key_value(key, value, vtype.BOOL if isinstance(value, bool) else vtype.STRING)
        elif isinstance(value, list):
            writer.add_key_value(key, value, vtype.ARRAY, vtype.STRING)
        else:
            kind = vtype.BOOL if value.dtype == bool else vtype[f"{codes[value.dtype.kind]}{value.dtype.itemsize * 8}"]
            if value.ndim:
                writer.add_key_value(key, value.tolist(), vtype.ARRAY, kind)
            else:
                writer.add_key_value(key, value.item(), kind)
    for tensor in checkpoint.tensors.values():
        if tensor.type.dtype is not None and tensor.type.name != "BF16":
            writer.add_tensor(tensor.name, tensor.numpy())
        else:
            raw = gguf.GGMLQuantizationType(tensor.type.ggml_id)
            rows = tensor.blocks().reshape(*tensor.shape[:-1], -1)
            writer.add_tensor(tensor.name, rows, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rich_model() -> Checkpoint:
    rng = np.random.default_rng(1)
    made = model(
        rng.standard_normal((3, 5, 7), np.float32),
        rng.standard_normal((2, 3)).astype(np.float16),
        rng.standard_normal(9),
        *(rng.integers(-100, 100, (2, 3)).astype(d) for d in (np.int8, np.int16, np.int32, np.int64)),
        **{k: v for k, v in EVERY_VALUE.items() if k != "general.architecture"},
    )
    for number in (2, 8, 12, 14, 30):
        made.add(random_blocks(number, 3, 2))
    return made


def test_bytes_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    made = rich_model()
    written_by_the_package(tmp_path / "theirs.gguf", made)
    gguf_file.save(made, tmp_path / "ours.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert_same(made, gguf_file.open(tmp_path / "theirs.gguf"))


def test_big_endian_bytes_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    made = rich_model()
    made.tensors = {k: t for k, t in made.tensors.items() if t.type.is_plain() and t.type.name != "BF16"}
    written_by_the_package(tmp_path / "theirs.gguf", made, big=True)
    gguf_file.save(made, tmp_path / "ours.gguf", byte_order="big")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert_same(made, gguf_file.open(tmp_path / "theirs.gguf"))


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_alignment_is_honoured(tmp_path: Path, alignment: int) -> None:
    made = model([1.0, 2.0], [3.0], **{"general.alignment": np.uint32(alignment)})
    written_by_the_package(tmp_path / "theirs.gguf", made)
    gguf_file.save(made, tmp_path / "ours.gguf")
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()
    assert_same(made, gguf_file.open(tmp_path / "ours.gguf"))


@pytest.mark.parametrize("options", [{"split_max_tensors": 3}, {"split_max_size": 300}])
def test_split_files_are_those_of_the_gguf_package(tmp_path: Path, options: dict[str, int]) -> None:
    made = rich_model()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    written_by_the_package(tmp_path / "a" / "m.gguf", made, **options)
    written = gguf_file.save(made, tmp_path / "b" / "m.gguf", **options)
    names = sorted(os.listdir(tmp_path / "a"))
    assert [p.name for p in written] == names == sorted(os.listdir(tmp_path / "b")) and len(names) > 2
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for path in written:  # any part opens the whole
        assert_same(made, gguf_file.open(path))
        assert gguf_file.open(path).info["shards"] == len(names)


def test_parts_of_a_split_model_keep_their_alignment(tmp_path: Path) -> None:
    made = model([1.0], [2.0], [3.0], **{"general.alignment": np.uint32(256)})
    paths = gguf_file.save(made, tmp_path / "m.gguf", split_max_tensors=1)
    for path, expected in zip(paths, (1.0, 2.0, 3.0), strict=True):
        assert gguf.GGUFReader(path).tensors[0].data.tolist() == [expected]
    assert_same(made, gguf_file.open(paths[1]))


def test_split_keys_do_not_outlive_the_split(tmp_path: Path) -> None:
    made = model([1.0], [2.0], **{"split.count": np.uint16(7), "split.no": np.uint16(3)})
    gguf_file.save(made, tmp_path / "m.gguf")
    assert list(gguf_file.open(tmp_path / "m.gguf").metadata) == ["general.architecture"]
    assert gguf_file.planned_size(made) == (tmp_path / "m.gguf").stat().st_size


def test_resplitting_a_part_names_the_whole(tmp_path: Path) -> None:
    paths = gguf_file.save(model([1.0], [2.0], [3.0]), tmp_path / "m.gguf", split_max_tensors=1)
    again = gguf_file.save(gguf_file.open(paths[0]), tmp_path / paths[0].name.replace("m-", "n-"), split_max_tensors=2)
    assert [p.name for p in again] == ["n-00001-of-00002.gguf", "n-00002-of-00002.gguf"]


def test_gguf_package_reads_ours(tmp_path: Path) -> None:
    made = rich_model()
    gguf_file.save(made, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    for key, value in made.metadata.items():
        contents = reader.fields[key].contents()
        assert contents == (value.tolist() if isinstance(value, np.ndarray | np.generic) else value), key
    for theirs, ours in zip(reader.tensors, made.tensors.values(), strict=True):
        assert (theirs.name, tuple(theirs.shape[::-1])) == (ours.name, ours.shape)
        assert theirs.tensor_type == ours.type.ggml_id and theirs.data.tobytes() == ours.blocks().tobytes()


def test_gguf_dump_reads_ours(tmp_path: Path) -> None:
    gguf_file.save(rich_model(), tmp_path / "m.gguf")
    command = [sys.executable, "-m", "gguf.scripts.gguf_dump", "--json", str(tmp_path / "m.gguf")]
    dumped = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert list(dumped["tensors"]) == list(rich_model().tensors)
    assert (
        dumped["metadata"]["u64"]["value"] == 2**64 - 1 and dumped["metadata"]["text"]["value"] == EVERY_VALUE["text"]
    )


@pytest.mark.parametrize("number", sorted({t.ggml_id for t in types() if t.ggml_id is not None} | set(CARRIED)))
def test_every_type_is_carried(tmp_path: Path, number: int) -> None:
    made = Checkpoint(metadata={"general.architecture": "x"})
    made.add(random_blocks(number, 3, 2, seed=number))
    gguf_file.save(made, tmp_path / "m.gguf")
    found = gguf_file.open(tmp_path / "m.gguf")
    assert_same(made, found)
    kind = found.tensors[f"t{number}"].type
    if issubclass(kind, Carried):
        with pytest.raises(Unsupported, match="can't be decoded"):
            found.tensors[f"t{number}"].numpy()
    if kind.layout.fields is not None or kind.dtype is not None:
        gguf_file.save(found, tmp_path / "big.gguf", byte_order="big")
        assert_same(made, gguf_file.open(tmp_path / "big.gguf"))
    else:
        with pytest.raises(Unsupported, match="byte order"):
            gguf_file.save(found, tmp_path / "big.gguf", byte_order="big")
        assert sorted(os.listdir(tmp_path)) == ["m.gguf"]


def test_big_endian_swaps_the_scales_and_only_them(tmp_path: Path) -> None:
    made = Checkpoint()
    made.add(random_blocks(8, 1, 1))
    gguf_file.save(made, tmp_path / "b.gguf", byte_order="big")
    little, stored = made.tensors["t8"].blocks()[0], (tmp_path / "b.gguf").read_bytes()[-64:-30]
    assert stored[:2] == little[:2].tobytes()[::-1] and stored[2:] == little[2:].tobytes()


VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    st.booleans(),
    *(hnp.from_dtype(np.dtype(d)) for d in ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")),
    st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", "?"]).flatmap(
        lambda d: hnp.arrays(d, st.integers(0, 20))
    ),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=40),
)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    metadata=st.dictionaries(
        NAMES.filter(lambda k: k != "general.alignment" and not k.startswith("split.")), VALUES, max_size=6
    ),
    shapes=st.dictionaries(NAMES, st.tuples(SHAPES, st.sampled_from(DTYPES)), max_size=6),
    alignment=st.sampled_from([None, 1, 8, 32, 64]),
    byte_order=st.sampled_from(["little", "big"]),
    split=st.integers(0, 3),
)
def test_random_checkpoints_round_trip(
    tmp_path: Path, metadata: dict[str, Any], shapes: dict[str, Any], alignment: int | None, byte_order: str, split: int
) -> None:
    if alignment:
        metadata["general.alignment"] = np.uint32(alignment)
    made, rng = Checkpoint(metadata=metadata), np.random.default_rng(0)
    for name, (shape, dtype) in shapes.items():
        made.add(Tensor.from_array(name, (rng.standard_normal(shape) * 100).astype(dtype)))
    path = tmp_path / "m.gguf"
    written = gguf_file.save(made, path, force=True, byte_order=byte_order, split_max_tensors=split)
    assert_same(made, gguf_file.open(written[-1]))


@pytest.mark.parametrize("name", ["bert-bge", "deepseek-coder", "gpt-2", "llama-bpe", "llama-spm", "phi-3"])
def test_real_vocabularies_come_back_byte_for_byte(shared: Path, tmp_path: Path, name: str) -> None:
    source = shared / "vocabs" / f"ggml-vocab-{name}.gguf"
    found = gguf_file.open(source)
    gguf_file.save(found, tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == source.read_bytes()
    found.metadata["tokenizer.ggml.tokens"] = list(found.metadata["tokenizer.ggml.tokens"])  # decoded and encoded
    gguf_file.save(found, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == source.read_bytes()


def test_a_real_model_comes_back_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    source = shared / "stories260K" / "stories260K-f32.gguf"
    found = gguf_file.open(source)
    gguf_file.save(found, tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == source.read_bytes()
    for theirs in gguf.GGUFReader(source).tensors:
        assert np.array_equal(found.tensors[theirs.name].numpy(), theirs.data)


def test_strings_are_decoded_when_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["w" * int(n) + "é" for n in rng.integers(0, 400, 3000)]
    words[1000:1000] = ["\0" * int(n) for n in rng.integers(0, 40, 600)]
    gguf_file.save(Checkpoint(metadata={"words": words}), tmp_path / "m.gguf")
    found = gguf_file.open(tmp_path / "m.gguf").metadata["words"]
    assert isinstance(found, Strings) and len(found) == len(words)
    assert found[-1] == words[-1] and found[5:9] == words[5:9] and list(found) == words and found == words
    with pytest.raises(IndexError):
        found[len(words)]


def test_invalid_text_in_an_array_is_found(tmp_path: Path) -> None:
    gguf_file.save(Checkpoint(metadata={"words": ["good", "bad!", "good"]}), tmp_path / "m.gguf")
    raw = (tmp_path / "m.gguf").read_bytes().replace(b"bad!", b"ba\xff!")
    (tmp_path / "m.gguf").write_bytes(raw)
    with pytest.raises(BadFile, match=r"key 'words'\[1\] is not valid UTF-8"):
        gguf_file.open(tmp_path / "m.gguf")


def test_a_large_vocabulary_opens_quickly(tmp_path: Path) -> None:
    words = [f"token {i}" for i in range(100_000)]
    gguf_file.save(Checkpoint(metadata={"words": words}), tmp_path / "m.gguf")
    start = time.process_time()
    gguf_file.open(tmp_path / "m.gguf")
    assert time.process_time() - start < 0.5  # 8 ms on an idle machine; the gguf package takes a second


def test_type_gguf_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"'blk.0.weight' is of type U8, which GGUF does not have"):
        gguf_file.save(model(np.zeros(3, np.uint8)), tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == []


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="byte order"):
        gguf_file.save(model(), tmp_path / "m.gguf", byte_order="middle")
    with pytest.raises(UsageError, match="gguf has no option max_shard_size"):
        gguf_file.FORMAT.save(model(), tmp_path / "m.gguf", max_shard_size=1)
    for bad in (np.uint32(12), np.uint32(0), "32", np.uint32(2 * limits.GGUF_ALIGNMENT)):
        with pytest.raises(UsageError, match=r"general\.alignment"):
            gguf_file.save(model(**{"general.alignment": bad}), tmp_path / "m.gguf")
    assert os.listdir(tmp_path) == []


def test_parts_are_not_their_own_output(tmp_path: Path) -> None:
    paths = gguf_file.save(model([1.0], [2.0]), tmp_path / "m.gguf", split_max_tensors=1)
    before = [p.read_bytes() for p in paths]
    with pytest.raises(OutputError, match="is the input itself"):
        gguf_file.save(gguf_file.open(paths[0]), tmp_path / "m.gguf", split_max_tensors=1, force=True)
    assert [p.read_bytes() for p in paths] == before and len(os.listdir(tmp_path)) == 2


def test_planned_size_is_the_size(tmp_path: Path) -> None:
    gguf_file.save(rich_model(), tmp_path / "m.gguf")
    assert gguf_file.planned_size(rich_model()) == (tmp_path / "m.gguf").stat().st_size


def test_big_endian_blocks_are_those_of_gguf_convert_endian(tmp_path: Path) -> None:
    made = model(np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(5, dtype=np.float16), words=["a", "bb"])
    for number in (2, 8, 12, 14, 39):  # the block types that its converter knows
        made.add(random_blocks(number, 3, 2, seed=number))
    gguf_file.save(made, tmp_path / "ours.gguf", byte_order="big")
    gguf_file.save(made, tmp_path / "theirs.gguf")
    command = [sys.executable, "-m", "gguf.scripts.gguf_convert_endian", str(tmp_path / "theirs.gguf"), "big"]
    subprocess.run(command, check=True, capture_output=True, text=True, input="YES\n")
    assert gguf_file.open(tmp_path / "theirs.gguf").info["byte_order"] == "big"
    assert (tmp_path / "theirs.gguf").read_bytes() == (tmp_path / "ours.gguf").read_bytes()
    assert_same(made, gguf_file.open(tmp_path / "theirs.gguf"))
