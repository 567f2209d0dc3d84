"""Models in other programs' libraries: Ollama's, the Hub's cache, llamafiles; old GGUFs and what came before them."""

import hashlib
import json
import re
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

import llmconv
from llmconv.errors import BadFile, MissingTensor, Unsupported, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.places import names as places
from llmconv.formats.tensor import Tensor

RNG = np.random.default_rng(3)


def model(**more) -> Checkpoint:
    arrays = {"token_embd.weight": RNG.standard_normal((4, 32)), "output_norm.weight": RNG.standard_normal(32)} | more
    tensors = {n: Tensor.from_array(n, a.astype(np.float32)) for n, a in arrays.items()}
    return Checkpoint(tensors, {"general.architecture": "toy", "tokenizer.ggml.tokens": ["a", "é", ""]})


def saved(path: Path, checkpoint: Checkpoint | None = None) -> Path:
    llmconv.save(checkpoint or model(), path)
    return path


def same(a: Checkpoint, b: Checkpoint) -> None:
    assert list(a.tensors) == list(b.tensors)
    assert all(np.array_equal(a.tensors[n].numpy(), b.tensors[n].numpy()) for n in a.tensors)


# ---------------------------------------------------------------------------------------------------------- Ollama


@pytest.fixture
def ollama(tmp_path, monkeypatch):
    """A library with `toy` and `someone/toy:2b`; the folder of the caller is another."""
    root, home = tmp_path / "models", tmp_path / "home"
    (root / "blobs").mkdir(parents=True)
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    gguf = saved(tmp_path / "x.gguf").read_bytes()
    layers = [layer(root, "model", gguf), layer(root, "template", b"{{ .Prompt }}"), layer(root, "system", b"Be kind.")]
    for name in ("library/toy/latest", "someone/toy/2b"):
        path = root / "manifests" / "registry.ollama.ai" / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"schemaVersion": 2, "mediaType": "x", "config": {}, "layers": layers}))
    return root


def layer(root: Path, kind: str, data: bytes) -> dict:
    digest = hashlib.sha256(data).hexdigest()
    (root / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def test_ollama(ollama, tmp_path):
    found = llmconv.open("ollama://toy")
    same(found, llmconv.open(tmp_path / "x.gguf"))
    assert found.info["ollama"] == {"template": "{{ .Prompt }}", "system": "Be kind."}
    assert llmconv.quantize("ollama://toy", type="Q8_0").output.paths == (Path("toy-Q8_0.gguf"),)
    assert llmconv.convert_file("ollama://someone/toy:2b", to="gguf").target == Path("toy-2b.gguf")
    assert llmconv.inspect_file("ollama://toy")["format"] == "ollama"


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("toi", BadFile, "did you mean ollama://toy:latest?"),
        ("toy:3b", BadFile, "no such model"),
        ("../../../etc/passwd", UsageError, "no name of Ollama's"),
        ("a/b/c/d:e", UsageError, "no name of Ollama's"),
        ("", UsageError, "no name of Ollama's"),
    ],
)
def test_names_that_ollama_has_not(ollama, name, error, says):
    with pytest.raises(error, match=re.escape(says)):
        llmconv.open(f"ollama://{name}")


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda m: m["layers"].pop(0), Unsupported, "has 0 layers of weights"),
        (lambda m: m["layers"][0].update(size=5), BadFile, "missing or not 5 bytes"),
        (lambda m: m["layers"][0].update(digest="sha256:../../x"), BadFile, "no digest"),
        (lambda m: m.update(layers=None), BadFile, "no manifest"),
    ],
)
def test_broken_manifests(ollama, change, error, says):
    path = places.place("ollama://toy")
    whole = json.loads(path.read_text())
    change(whole)
    path.write_text(json.dumps(whole | {"note": "application/vnd.ollama.image."}))
    with pytest.raises(error, match=re.escape(says)):
        llmconv.open("ollama://toy")


def test_what_lies_beside_the_weights_is_said(ollama):
    path = places.place("ollama://toy")
    whole = json.loads(path.read_text())
    whole["layers"].append(layer(ollama, "projector", b"GGUF"))
    path.write_text(json.dumps(whole))
    assert any("projector is left out" in note for note in llmconv.open("ollama://toy").notes)


# ------------------------------------------------------------------------------------------------- the Hub's cache


def test_the_hubs_cache(tmp_path, monkeypatch):
    """The name is the repository's, not the commit's or a blob's; the output is the caller's."""
    root, commit = tmp_path / "hub" / "models--org--Toy-1B", "0123456789" * 4
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(commit)
    (root / "snapshots" / ("f" * 40)).mkdir()
    saved(root / "blobs" / "abc.gguf").rename(root / "blobs" / "abc")
    (snapshot / "toy.gguf").symlink_to("../../blobs/abc")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    assert places.place(root) == snapshot
    assert (places.called(snapshot), places.beside(snapshot)) == ("Toy-1B", Path())
    assert llmconv.quantize(snapshot / "toy.gguf", type="Q8_0").output.paths == (Path("toy-Q8_0.gguf"),)
    (root / "refs" / "main").unlink()
    with pytest.raises(BadFile, match="2 snapshots"):
        llmconv.open(root)


# ------------------------------------------------------------------------------------------------------- llamafile


def llamafile(path: Path, *files: Path, packed=zipfile.ZIP_STORED) -> Path:
    path.write_bytes(b"MZqFpD='\n" + b"\x7f" * 5000)
    with zipfile.ZipFile(path, "a", packed) as archive:
        for file in files:
            archive.write(file, file.name)
        archive.writestr(".args", "-m\n")
    return path


def test_llamafile(tmp_path):
    one, other = saved(tmp_path / "one.gguf"), saved(tmp_path / "two.gguf")
    eyes = saved(tmp_path / "mmproj-one.gguf")
    found = llmconv.open(llamafile(tmp_path / "one.llamafile", one, eyes))
    same(found, llmconv.open(one))
    assert found.notes == ["left out of the llamafile: mmproj-one.gguf"]
    made = llmconv.convert_file(tmp_path / "one.llamafile", tmp_path / "out.gguf")
    same(llmconv.open(made.target), llmconv.open(one))
    both = llamafile(tmp_path / "both.llamafile", one, other)
    with pytest.raises(UsageError, match=r"one\.gguf, two\.gguf"):
        llmconv.open(both)
    same(llmconv.open(both, key="two.gguf"), llmconv.open(other))
    with pytest.raises(UsageError, match="holds no 'three'"):
        llmconv.open(both, key="three")


def test_llamafiles_without_a_model(tmp_path):
    with pytest.raises(BadFile, match="holds no GGUF"):
        llmconv.open(llamafile(tmp_path / "a.llamafile"))
    with pytest.raises(Unsupported, match="compressed"):
        llmconv.open(llamafile(tmp_path / "b.llamafile", saved(tmp_path / "m.gguf"), packed=zipfile.ZIP_DEFLATED))
    (tmp_path / "c.llamafile").write_bytes((tmp_path / "a.llamafile").read_bytes()[:3000])
    with pytest.raises(BadFile, match="no zip archive"):
        llmconv.open(tmp_path / "c.llamafile")


# -------------------------------------------------------------------------------------------------------- old GGUFs


def text(value: str) -> bytes:
    return struct.pack("<I", len(value.encode())) + value.encode()


def test_version_1(tmp_path):
    """32 bits for counts, lengths and dimensions, by the first version of the specification."""
    words = ["a", "é", ""]
    keys = [
        text("general.architecture") + struct.pack("<I", 8) + text("toy"),
        text("words") + struct.pack("<III", 9, 8, len(words)) + b"".join(map(text, words)),
        text("numbers") + struct.pack("<III2f", 9, 6, 2, 1.5, 2.5),
    ]
    values = np.arange(8, dtype="<f4")
    tensors = [text("t") + struct.pack("<IIIIQ", 2, 4, 2, 0, 0)]
    raw = b"GGUF" + struct.pack("<III", 1, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
    raw += b"\0" * (-len(raw) % 32) + values.tobytes()
    (tmp_path / "old.gguf").write_bytes(raw)
    found = llmconv.open(tmp_path / "old.gguf")
    assert list(found.metadata["words"]) == words and found.metadata["numbers"].tolist() == [1.5, 2.5]
    assert np.array_equal(found.tensors["t"].numpy(), values.reshape(2, 4))
    llmconv.convert_file(tmp_path / "old.gguf", tmp_path / "new.gguf")
    same(llmconv.open(tmp_path / "new.gguf"), found)
    for end in range(4, len(raw) - 4, 3):
        (tmp_path / "cut.gguf").write_bytes(raw[:end])
        with pytest.raises(BadFile):
            llmconv.open(tmp_path / "cut.gguf")


def test_an_expert_a_tensor(tmp_path):
    apart = {
        f"blk.{i}.ffn_{kind}.{e}.weight": RNG.standard_normal((3, 32)) for i in (0, 1) for e in (1, 0)
        for kind in ("gate", "up")
    }  # fmt: skip
    path = saved(tmp_path / "old.gguf", model(**apart))
    found = llmconv.open(path)
    assert [n for n in found.tensors if "ffn" in n] == [
        f"blk.{i}.ffn_{kind}_exps.weight" for i in (0, 1) for kind in ("gate", "up")
    ]
    for i in (0, 1):
        want = np.stack([apart[f"blk.{i}.ffn_up.{e}.weight"] for e in (0, 1)]).astype(np.float32)
        assert np.array_equal(found.tensors[f"blk.{i}.ffn_up_exps.weight"].numpy(), want)
    llmconv.edit(path, set={"general.name": "x"})  # in the file they stay apart
    assert apart.keys() <= gguf_file.open_alone(path).tensors.keys()
    del apart["blk.1.ffn_up.0.weight"]
    with pytest.raises(MissingTensor, match=r"blk\.1\.ffn_up\.0\.weight"):
        llmconv.open(saved(tmp_path / "less.gguf", model(**apart)))


@pytest.mark.parametrize("name", ["ggml", "ggmf", "ggjt", "ggla"])
def test_what_came_before(tmp_path, name):
    (tmp_path / "m.bin").write_bytes(name[::-1].encode() + struct.pack("<II", 3, 32000) * 40)
    with pytest.raises(Unsupported, match=f"is {name.upper()}, a format of before GGUF"):
        llmconv.open(tmp_path / "m.bin")
