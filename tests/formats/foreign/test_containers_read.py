"""PyTorch and llama2.c files are read."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmconv import formats
from llmconv.convert.translate import translate
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.foreign import llama2c_file

# --------------------------------------------------------------------------------------------------------- PyTorch


def test_torch_files_are_read_without_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "f32": base,
        "shared": base,
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "bf16": base.to(torch.bfloat16),
        "f16": base.half(),
        "ids": torch.arange(5),
        "flag": torch.tensor([True, False]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    torch.save(state, tmp_path / "model.pt")
    opened = formats.open(tmp_path / "model.pt")
    assert opened.format == "torch" and list(opened.tensors) == list(state)
    for name, tensor in state.items():
        ours = opened.tensors[name]
        assert ours.shape == tuple(tensor.shape)
        assert ours.blocks().tobytes() == tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for start, stop in ours.slabs(8):
            assert ours.blocks(start, stop).tobytes() == ours.blocks()[start:stop].tobytes()
    assert opened.tensors["f32"].extent is not None and opened.tensors["transposed"].extent is None


@pytest.mark.parametrize("wrap", [lambda s: {"model": s, "step": 3}, lambda s: {"state_dict": s}])
def test_a_state_dict_inside_a_training_checkpoint(tmp_path: Path, wrap: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.save(wrap({"w": torch.ones(2, 3)}), tmp_path / "c.pt")
    assert formats.open(tmp_path / "c.pt").tensors["w"].numpy().tolist() == [[1, 1, 1], [1, 1, 1]]


def test_the_old_format_is_read_through_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(6.0).reshape(2, 3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert formats.open(tmp_path / "old.bin").tensors["w"].numpy().tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_folder_of_shards_is_a_hugging_face_model(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    import json

    torch.save({"a": torch.ones(2, 2)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(2, 2)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "config.json").write_text('{"model_type": "mystery"}')
    opened = formats.open(tmp_path)
    assert opened.dialect == "hf" and set(opened.tensors) == {"a", "b"} and set(opened.files) == {"config.json"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../secret"}}))
    with pytest.raises(BadFile, match="has no 'weight_map'"):
        formats.open(tmp_path)


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("you have been run",)


def _zip(path: Path, program: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        for name, data in entries.items():
            archive.writestr(f"archive/data/{name.lstrip('_')}", data)
    return path


def test_pickles_that_run_code_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _zip(tmp_path / "evil.pt", pickle.dumps({"w": _Evil()}, protocol=2))
    with pytest.raises(BadFile, match=r"asks for (__builtin__|builtins).print, which no state dict needs"):
        formats.open(path)
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "program", [b"", b"\x80\x02", b"garbage", pickle.dumps([1, 2]), pickle.dumps({"a": 1}), b"\x80\x02(" * 9]
)
def test_broken_pickles_are_sentences(tmp_path: Path, program: bytes) -> None:
    with pytest.raises(BadFile) as error:
        formats.open(_zip(tmp_path / "broken.pt", program))
    assert "\n" not in str(error.value)


def test_views_beyond_their_storage_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(6.0)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as archive:
        names = {i.filename: archive.read(i) for i in archive.infolist()}
    program = next(data for name, data in names.items() if name.endswith("data.pkl"))
    for wrong in (program.replace(b"K\x06\x85", b"K\x60\x85"), program.replace(b"K\x06t", b"K\x60t")):
        assert wrong != program
        with pytest.raises(BadFile, match=r"'w' (reaches beyond its storage|needs 384 bytes)"):
            formats.open(_zip(tmp_path / "bad.pt", wrong, _0=names["good/data/0"]))


# -------------------------------------------------------------------------------------------------------- llama2.c


def test_stories_bin_is_the_reference_s_gguf(shared: Path) -> None:
    folder = shared / "stories260K"
    ours = translate(formats.open(folder / "stories260K.bin"), "gguf")
    theirs = formats.open(folder / "stories260K-f32.gguf")
    assert sorted(ours.tensors) == sorted(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert ours.tensors[name].shape == tensor.shape and ours.tensors[name].type is tensor.type
        assert ours.tensors[name].blocks().tobytes() == tensor.blocks().tobytes(), name
    for key, value in theirs.metadata.items():
        if key.startswith(("llama.", "tokenizer.")):
            assert np.array_equal(
                np.asarray(list(ours.metadata[key]) if key.endswith("tokens") else ours.metadata[key]),
                np.asarray(list(value) if key.endswith("tokens") else value),
            ), key


def test_stories_bin_is_the_hugging_face_model(shared: Path) -> None:
    folder = shared / "stories260K"
    ours, theirs = translate(formats.open(folder / "stories260K.bin"), "hf"), formats.open(folder / "hf")
    assert sorted(ours.tensors) == sorted(theirs.tensors)
    assert all(t.blocks().tobytes() == ours.tensors[n].blocks().tobytes() for n, t in theirs.tensors.items())


def made(version: int, tied: bool) -> bytes:
    """A llama2.c file of two layers."""
    sizes = dict(zip(llama2c_file._FIELDS, (8, 12, 2, 2, 1, 5, 4), strict=True))
    body = np.random.default_rng(0).normal(
        size=sum(int(np.prod(s)) for _, s in llama2c_file._tensors(version, sizes, tied))
    )
    numbers = list(sizes.values())
    if version == 0:
        numbers[5] *= 1 if tied else -1
        head = struct.pack("<7i", *numbers)
    else:
        head = (struct.pack("<Ii7i", 0x616B3432, version, *numbers) + bytes([tied])).ljust(256, b"\0")
    return head + body.astype(np.float32).tobytes()


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_both_versions(tmp_path: Path, version: int, tied: bool) -> None:
    (tmp_path / "m.bin").write_bytes(made(version, tied))
    opened = formats.open(tmp_path / "m.bin")
    gguf = translate(opened, "gguf")
    assert ("output.weight" in gguf.tensors) is not tied
    assert np.array_equal(gguf.tensors["blk.1.ffn_down.weight"].numpy(), opened.tensors["w2"].numpy()[1])
    assert "no tokenizer.bin beside the model: the GGUF has weights only" in gguf.notes


def test_cut_and_unknown_llama2c_files(tmp_path: Path) -> None:
    whole = made(1, True)
    (tmp_path / "m.bin").write_bytes(whole[:-4])
    with pytest.raises(BadFile, match=r"bytes, expected .* by its header"):
        formats.open(tmp_path / "m.bin")
    (tmp_path / "m.bin").write_bytes(whole[:4] + struct.pack("<i", 2) + whole[8:])
    with pytest.raises(Unsupported, match="version 2; export versions 0 and 1"):
        formats.open(tmp_path / "m.bin")
    (tmp_path / "m.bin").write_bytes(made(0, True)[:-4])
    with pytest.raises(BadFile, match="no model file of a known format"):
        formats.open(tmp_path / "m.bin")


def test_broken_tokenizers_are_sentences(shared: Path, tmp_path: Path) -> None:
    data = (shared / "stories260K" / "tok512.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes((shared / "stories260K" / "stories260K.bin").read_bytes())
    for broken in (data[:-1], data + b"x", data[:8] + b"\xff\xff\xff\x7f" + data[12:], b"", data[:100]):
        (tmp_path / "tok512.bin").write_bytes(broken)
        with pytest.raises(BadFile, match=r"tokenizer.bin"):
            translate(formats.open(tmp_path / "m.bin"), "gguf")


def torch_parts(folder: Path, count: int = 3) -> dict[str, str]:
    """A model folder of PyTorch parts without an index; what an index would say."""
    torch = pytest.importorskip("torch")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    names = {f"t{no}": f"pytorch_model-{no:05d}-of-{count:05d}.bin" for no in range(1, count + 1)}
    for name, file in names.items():
        torch.save({name: torch.full((2,), float(name[1]))}, folder / file)
    return names


def test_torch_parts_without_an_index(tmp_path: Path) -> None:
    names = torch_parts(tmp_path / "m")
    for opened in (tmp_path / "m", tmp_path / "m" / names["t2"]):
        found = formats.open(opened)
        assert [float(t.numpy()[0]) for t in found.tensors.values()] == [1, 2, 3] and found.dialect == "hf"
    (tmp_path / "m" / names["t2"]).unlink()
    with pytest.raises(BadFile, match=r"its file pytorch_model-00002-of-00003\.bin is missing"):
        formats.open(tmp_path / "m")
    (tmp_path / "m" / "pytorch_model-00002-of-00002.bin").write_bytes(b"")
    with pytest.raises(BadFile, match="parts of 00002 and of 00003 files"):
        formats.open(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(t9=m["t1"]), r"tensor 't9' should be in pytorch_model-00001-of-00003\.bin but is not"),
        (lambda m: m.update(t1=m["t3"]), "tensor 't1' should be in pytorch_model-00003"),
        (lambda m: m.update(t1="other.bin"), r"its file 'other\.bin' is missing"),
        (lambda m: m.clear(), "has no 'weight_map'"),
    ],
)
def test_torch_index_faults(tmp_path: Path, change: Any, says: str) -> None:
    names = torch_parts(tmp_path / "m")
    change(names)
    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(BadFile, match=says):
        formats.open(tmp_path / "m")


def test_a_tensor_that_a_torch_index_forgot_is_read(tmp_path: Path) -> None:
    names = torch_parts(tmp_path / "m")
    torch = pytest.importorskip("torch")
    torch.save({"t3": torch.ones(2), "more": torch.ones(1)}, tmp_path / "m" / names["t3"])
    index = tmp_path / "m" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    found = formats.open(index)
    assert "more" in found.tensors
    assert found.notes == ["pytorch_model.bin.index.json does not list 'more'; read all the same"]


@pytest.mark.parametrize("names", [["model.pt"], ["model.bin"], ["hf_model_0001_0.pt", "hf_model_0002_0.pt"]])
def test_weights_of_transformers_under_another_name(tmp_path: Path, names: list[str]) -> None:
    """As torchtune names them, and people; beside a configuration that is not transformers' they stay lone files."""
    torch = pytest.importorskip("torch")
    for i, name in enumerate(names):
        torch.save({"state_dict": {f"t{i}": torch.ones(2)}}, tmp_path / name)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    wanted = {f"t{i}" for i in range(len(names))}
    for path in (tmp_path, tmp_path / names[0]):
        found = formats.open(path)
        assert found.dialect == "hf" and set(found.tensors) == wanted and "config.json" in found.files
    (tmp_path / "config.json").write_text('{"n_layer": 1}')
    assert formats.open(tmp_path / names[0]).dialect == "plain"
    with pytest.raises(BadFile, match="give that file"):
        formats.open(tmp_path)


def test_a_torch_index_says_which_of_two_tensors_is_meant(tmp_path: Path) -> None:
    names = torch_parts(tmp_path / "m")
    torch = pytest.importorskip("torch")
    torch.save({"t3": torch.full((2,), 3.0), "t1": torch.full((2,), 9.0)}, tmp_path / "m" / names["t3"])
    torch.save({"t0": torch.zeros(2), "t1": torch.ones(2)}, tmp_path / "m" / names["t1"])
    index = {"weight_map": names | {"t1": names["t3"], "t0": names["t1"]}}
    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    found = formats.open(tmp_path / "m")
    assert [float(found.tensors[n].numpy()[0]) for n in ("t1", "t2", "t3")] == [9, 2, 3]
    assert found.notes == [
        f"{names['t1']} holds 't1', which pytorch_model.bin.index.json lists in another file; that one is read"
    ]


OTHERS = {
    "openvino_model.xml": "OpenVINO's folder",
    "mlc-chat-config.json": "MLC's folder",
    "model.mlpackage/Manifest.json": "Core ML's folder",
    "model.onnx": "is no model folder, but has 'model.onnx'; give that file",
    "notes.txt": "holds no model; known",
}


@pytest.mark.parametrize("name", OTHERS)
def test_folders_of_other_programs_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "m" / name).parent.mkdir(parents=True)
    (tmp_path / "m" / name).write_text("x")
    with pytest.raises(BadFile, match=OTHERS[name]):
        formats.open(tmp_path / "m")


def test_files_of_other_programs_are_named(tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(b"\x1c\0\0\0TFL3")
    with pytest.raises(BadFile, match="is TensorFlow Lite's file"):
        formats.open(tmp_path / "m.tflite")
