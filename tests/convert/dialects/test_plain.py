"""Models without a table keep their own names, and come back whole; kept keys of ours are not trusted."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from good_models import write_hf
from simple_model import document

import llmconv
from llmconv.convert.dialects import own_names
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, Unsupported, UsageError
from llmconv.formats import safetensors_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.safetensors_header import DTYPES
from llmconv.formats.tensor import Tensor

ARRAYS = {
    "encoder.w": np.arange(12, dtype=np.float16).reshape(3, 4),
    "b": np.array([1.5, -0.0], ml_dtypes.bfloat16),
    "mask": np.array([[True, False]]),
    "bytes": np.array([0, 255], np.uint8),
    "count": np.array(7, np.int64),
    "eighth": np.array([[0.5, 448.0]], ml_dtypes.float8_e4m3fn),
    "five": np.ones((1, 2, 1, 2, 3), np.float32),
    "empty": np.ones((0, 4), np.float16),
    "complex": np.array([[1 + 2j, 3 - 4j]], np.complex64),
    "large": np.array([2**64 - 1, 5], np.uint64),
}
BELOW_A_BYTE = {"F4": (3, 4), "F6_E2M3": (2, 8), "F6_E3M2": (4,)}


def saved(path: Path, config: dict[str, object] | None) -> Checkpoint:
    c = Checkpoint(dialect="plain", metadata={"format": "pt", "note": "é"})
    for name, array in ARRAYS.items():
        c.add(Tensor.from_array(name, array))
    for name, shape in BELOW_A_BYTE.items():
        raw = np.arange(DTYPES[name].row_bytes(shape[-1]) * math.prod(shape[:-1]), dtype=np.uint8)
        raw = raw.reshape(math.prod(shape[:-1]), -1)
        c.add(Tensor(name, shape, DTYPES[name], lambda start, stop, raw=raw: raw[start:stop]))
    if config is not None:
        c.files = {"config.json": json.dumps(config).encode(), "README.md": b"about it\n"}
    llmconv.save(c, path)
    return c


@pytest.mark.parametrize("way", [["m.gguf"], ["m.gguf", "n.safetensors", "o.gguf"]])
@pytest.mark.parametrize("config", [None, {"model_type": "unheard-of", "hidden_size": 4}])
def test_an_unknown_model_comes_back_whole(tmp_path: Path, way: list[str], config: dict[str, object] | None) -> None:
    here = tmp_path / ("folder" if config else "lone.safetensors")
    original = saved(here, config)
    for name in way:
        llmconv.convert_file(here, tmp_path / name)
        here = tmp_path / name
        if name.endswith(".gguf"):
            wanted = "unheard-of" if config else "plain"
            assert llmconv.open(here).metadata["general.architecture"] == wanted
    llmconv.convert_file(here, tmp_path / "back.safetensors")
    back = llmconv.open(tmp_path / "back.safetensors")
    assert back.metadata == original.metadata
    assert {n: back.file(n) for n in back.files} == {n: original.file(n) for n in original.files}
    for name, tensor in original.tensors.items():
        assert (back.tensors[name].type, back.tensors[name].shape) == (tensor.type, tensor.shape), name
        assert np.array_equal(back.tensors[name].blocks(), tensor.blocks()), name


@pytest.mark.parametrize("config", [None, {"model_type": "weird"}])
def test_a_quantized_unknown_model_comes_back_in_its_types(tmp_path: Path, config: dict[str, object] | None) -> None:
    c = Checkpoint(dialect="plain", metadata={"format": "pt"})
    rng = np.random.default_rng(3)
    c.add(Tensor.from_array("layer.w", rng.standard_normal((8, 64)).astype(np.float32)))
    c.add(Tensor.from_array("layer.h", rng.standard_normal((8, 64)).astype(ml_dtypes.bfloat16)))
    c.add(Tensor.from_array("layer.b", np.ones(64, np.float32)))
    if config is not None:
        c.files = {"config.json": json.dumps(config).encode()}
    source = tmp_path / ("folder" if config else "lone.safetensors")
    llmconv.save(c, source)
    made = llmconv.quantize(source, tmp_path / "q.gguf", "Q8_0").output
    assert {t.name: t.type for t in made.tensors} == {"layer.w": "Q8_0", "layer.h": "Q8_0", "layer.b": "F32"}
    result = llmconv.convert_file(tmp_path / "q.gguf", tmp_path / ("back" if config else "back.safetensors"))
    assert "1 tensors decoded from Q8_0 are rounded to BF16" in result.notes
    again = llmconv.open(result.target).tensors
    assert {n: t.type for n, t in again.items()} == {n: t.type for n, t in c.tensors.items()}
    assert np.abs(again["layer.w"].numpy() - c.tensors["layer.w"].numpy()).max() < 0.02


def test_somebodys_gguf_comes_back_with_its_keys(tmp_path: Path) -> None:
    keys = {
        "general.architecture": "unheard-of",
        "unheard-of.block_count": np.uint32(3),
        "unheard-of.scale": np.float32(0.1),
        "a.big": np.uint64(2**64 - 1),
        "a.flag": True,
        "a.bytes": np.array([1, 2, 255], np.uint8),
        "a.nan": np.float64("nan"),
        "a.strings": ["x", "é", ""],
    }
    c = Checkpoint({"w": Tensor.from_array("w", np.ones((2, 32), np.float32))}, keys)
    llmconv.save(c, tmp_path / "a.gguf")
    for middle in ("b.safetensors", "b.json", "b.msgpack"):
        llmconv.convert_file(tmp_path / "a.gguf", tmp_path / middle)
        llmconv.convert_file(tmp_path / middle, tmp_path / "c.gguf", force=True)
        assert (tmp_path / "c.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes(), middle


def test_a_known_architecture_under_its_own_names(tmp_path: Path) -> None:
    """Somebody's variant, whose table says otherwise, is no dead end."""
    original = saved(tmp_path / "hf", {"model_type": "llama", "num_hidden_layers": 1})
    with pytest.raises(BadFile, match=r"is missing.* layout=.plain. converts any tensors"):
        llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf")
    result = llmconv.convert_file(tmp_path / "hf", tmp_path / "m.gguf", layout="plain")
    assert any(n.startswith("as asked: ") for n in result.notes)
    llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back")
    back = llmconv.open(tmp_path / "back")
    assert back.file("config.json") == original.file("config.json") and set(back.tensors) == set(original.tensors)


@pytest.mark.parametrize("record", ['{"c": ["U64", [2, 2]]}', '{"c": ["C64"]}', '{"c": 1}', '{"c": ["F4", [-1, 2]]}'])
def test_kept_bits_are_checked(tmp_path: Path, record: str) -> None:
    c = Checkpoint({"c": Tensor.from_array("c", ARRAYS["complex"])}, dialect="plain")
    llmconv.save(c, tmp_path / "m.gguf")
    llmconv.edit(tmp_path / "m.gguf", set={"llmconv.plain.bits": record})
    with pytest.raises(BadFile, match="does not describe tensor 'c'"):
        llmconv.convert_file(tmp_path / "m.gguf", tmp_path / "back.safetensors")


def test_tensors_are_left_out_when_asked(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors", None)
    result = llmconv.convert_file(tmp_path / "m.safetensors", tmp_path / "m.json", exclude=["comp*", "large"])
    assert "2 tensors left out, as asked" in result.notes
    llmconv.convert_file(tmp_path / "m.json", tmp_path / "back.safetensors")
    back = llmconv.open(tmp_path / "back.safetensors").tensors
    assert set(back) == {*ARRAYS, *BELOW_A_BYTE} - {"complex", "large"} and back["empty"].shape == (0, 4)
    with pytest.raises(UsageError, match="'nosuch' fits no tensor"):
        llmconv.convert_file(tmp_path / "m.safetensors", tmp_path / "n.gguf", exclude="nosuch")
    (tmp_path / "d.json").write_text(json.dumps(document()))
    with pytest.raises(UsageError, match="needs all of its tensors"):
        llmconv.convert_file(tmp_path / "d.json", tmp_path / "n.gguf", exclude=["weights*"])


def test_nothing_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="holds no tensors, so there is nothing to convert"):
        llmconv.save(Checkpoint(dialect="plain", metadata={"a": "b"}), tmp_path / "m.json")
    (tmp_path / "e.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadFile, match="holds no tensors, so there is nothing to convert"):
        llmconv.convert_file(tmp_path / "e.safetensors", tmp_path / "m.gguf")
    with pytest.raises(BadFile, match="holds no tensors, so there is nothing to convert"):
        llmconv.quantize(tmp_path / "e.safetensors", tmp_path / "m.gguf", "Q8_0")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    shutil.copy(tmp_path / "e.safetensors", folder / "model.safetensors")
    for to in ("m.gguf", "copy"):
        with pytest.raises(BadFile, match="holds no tensors, so there is nothing to convert"):
            llmconv.convert_file(folder, tmp_path / to)
    one = Checkpoint({"w": Tensor.from_array("w", np.ones(2, np.float32))})
    safetensors_file.save(one, folder / "model.safetensors", force=True)
    with pytest.raises(BadFile, match="holds no tensors, so there is nothing to convert"):
        llmconv.convert_file(folder, tmp_path / "m.gguf", exclude="*")
    torch_like = Checkpoint({"": Tensor.from_array("", np.ones(2, np.float32))}, dialect="plain")
    with pytest.raises(BadFile, match="a tensor has no name"):
        llmconv.save(torch_like, tmp_path / "m.safetensors")
    for text, kind in (("{}", "object"), (" [ ]", "list")):
        (tmp_path / "e.json").write_text(text)
        with pytest.raises(BadFile, match=f"is an empty {kind}, expected a model"):
            llmconv.convert_file(tmp_path / "e.json", tmp_path / "m.gguf", layout="plain")
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        (tmp_path / index[:5]).mkdir()
        (tmp_path / index[:5] / index).write_text('{"weight_map": {}}')
        with pytest.raises(BadFile, match="'weight_map'"):
            llmconv.convert_file(tmp_path / index[:5], tmp_path / "m.gguf")
    assert not list(tmp_path.glob("m.*"))


@pytest.mark.parametrize("shape", ["0x-4", "4", "x", "", "0x100000000000", [0, 4], None])
def test_empty_tensors_of_a_document_are_checked(tmp_path: Path, shape: object) -> None:
    both = {name: Tensor.from_array(name, array) for name, array in (("e", ARRAYS["empty"]), ("w", np.ones(2, "f4")))}
    llmconv.save(Checkpoint(both, dialect="plain"), tmp_path / "m.json")
    made = json.loads((tmp_path / "m.json").read_text())
    made["tensors"]["e"]["shape"] = shape
    (tmp_path / "m.json").write_text(json.dumps(made))
    with pytest.raises(BadFile, match=r"tensors\.e(\.shape)? is not part of"):
        llmconv.convert_file(tmp_path / "m.json", tmp_path / "m.gguf")


def test_a_folder_without_config_says_what_it_can_not_do(tmp_path: Path) -> None:
    saved(tmp_path / "m.safetensors", None)
    result = llmconv.convert_file(tmp_path / "m.safetensors", tmp_path / "m.gguf")
    assert any("there is no config.json" in n and "not run here" in n for n in result.notes)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "m.safetensors").rename(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    result = llmconv.convert_file(tmp_path / "adapter", tmp_path / "a.gguf")
    assert any("PEFT adapter" in n and "with lora" in n for n in result.notes)


def test_whole_numbers_that_json_would_round_are_refused(tmp_path: Path) -> None:
    for value in (2**53 + 2, -(2**53) - 2):
        c = Checkpoint({"w": Tensor.from_array("w", np.array([1, value]))}, dialect="plain")
        with pytest.raises(Unsupported, match="'w' holds whole numbers beyond 2\\^53"):
            llmconv.save(c, tmp_path / "x.json")
    c = Checkpoint({"w": Tensor.from_array("w", np.array([1, 2**53, -(2**53)]))}, dialect="plain")
    llmconv.save(c, tmp_path / "x.json")
    llmconv.convert_file(tmp_path / "x.json", tmp_path / "x.safetensors")
    assert llmconv.open(tmp_path / "x.safetensors").tensors["w"].numpy().tolist() == [1, 2**53, -(2**53)]


def test_a_document_that_contradicts_its_types(tmp_path: Path) -> None:
    c = Checkpoint({"w": Tensor.from_array("w", np.array([1, 2], np.int8))}, dialect="plain")
    llmconv.save(c, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    for old, new, message in (
        ("[1,2]", "[1,300]", "w is not all numbers of type I8, as it says"),
        ("[1,2]", "[1,2.5]", "w is not all numbers of type I8, as it says"),
        ('"I8"', '"I7"', "unknown type 'I7'"),
        ('["str","plain"]', '["str",5]', "is not \\[type, value\\] as this program writes it"),
    ):
        assert old in text
        (tmp_path / "y.json").write_text(text.replace(old, new))
        with pytest.raises(BadFile, match=message):
            llmconv.convert_file(tmp_path / "y.json", tmp_path / "y.gguf")


TAMPERED = {
    "no JSON": ({"llmconv.json.document": "{"}, "its kept document can't be read"),
    "too deep": ({"llmconv.json.document": "[" * 5000 + "]" * 5000}, "its kept document can't be read"),
    "unknown mark": ({"llmconv.json.document": '{"a":{"$run":"x"}}'}, "its kept document can't be read"),
    "no such key": ({"llmconv.json.document": '{"a":{"$ref":"x"}}'}, "its kept document can't be read"),
    "no such tensor": (
        {"llmconv.json.document": '{"a":{"$tensor":"x","shape":[2]}}'},
        "no tensor fits the place of 'x'",
    ),
    "another shape": (
        {"llmconv.json.document": '{"a":{"$tensor":"weights.embedding","shape":[2]}}'},
        "no tensor fits the place of 'weights.embedding'",
    ),
    "bad shape": ({"llmconv.json.document": '{"a":{"$tensor":"x","shape":[-2]}}'}, "its kept document can't be read"),
    "bad style": ({"llmconv.json.style": '{"indent": "boo"}'}, "llmconv.json.style is not what this program writes"),
    "no document": ({"llmconv.json.document": None}, "has the key llmconv.json.layout but not llmconv.json.document"),
    "wrong size": ({"simple-llm.embedding_length": np.uint32(8)}, "has shape [7, 4], expected [7, 8] by"),
    "no layers": ({"simple-llm.block_count": np.uint32(2**31)}, "tensor 'blk.2.attn_q.weight' is missing"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_kept_keys_are_not_trusted(tmp_path: Path, case: str) -> None:
    changes, message = TAMPERED[case]
    (tmp_path / "m.json").write_text(json.dumps(document()))
    model = translate(llmconv.open(tmp_path / "m.json"), "gguf")
    model.metadata |= changes
    model.metadata = {k: v for k, v in model.metadata.items() if v is not None}
    with pytest.raises(BadFile) as error:
        llmconv.save(model, tmp_path / "out.json")
    assert message in str(error.value) and not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("key", ["tokenizer.chat_template", "general.author", "tokenizer.ggml.eos_token_id"])
def test_an_edited_key_that_nothing_says_is_named(tmp_path: Path, key: str) -> None:
    source = llmconv.open(write_hf(tmp_path / "a", tokenizer_config__json={"chat_template": "old"}))
    gguf = own_names.to_gguf(source)
    assert not [note for note in own_names.from_gguf(gguf).notes if "edit them too" in note]
    gguf.metadata[key] = np.uint32(3) if key.endswith("id") else "new"
    note = f"the files do not say what {key!r} of the GGUF says; edit them too"
    assert note in own_names.from_gguf(gguf).notes
