"""Repositories in Xet's storage, with `hf_xet` itself on one end and its servers' protocol on the other.

Ranges are read past it, by the Hub's redirects; uploads and `--cache` go through it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="they need huggingface_hub")
pytest.importorskip("hf_xet", reason="they need hf_xet")

import xet_server
from huggingface_hub import constants
from huggingface_hub.utils import _xet

import llmconv
from llmconv.errors import BadFile, OutputError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import hub as hubs, names, ranges
from llmconv.formats.tensor import Tensor

if not hasattr(_xet, "XetSessionHolder"):
    pytest.skip("this huggingface_hub calls hf_xet in another way", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the Hub's library's own call
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model of nobody's, in two files of several chunks."""
    found = tmp_path_factory.mktemp("xet") / "toy"
    made = Checkpoint(dialect="plain")
    for name in ("a", "b", "c"):
        made.add(Tensor.from_array(f"{name}.weight", RNG.standard_normal((128, 512)).astype(np.float32)))
    llmconv.save(made, found, max_shard_size=600_000)
    return found


@pytest.fixture
def hub(folder, monkeypatch, tmp_path) -> Iterator[xet_server.XetHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "home" / "xet"))
    for name, value in xet_server.SETTINGS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())  # it keeps the settings of its first use
    monkeypatch.setattr(hubs, "WAIT", 0.0)
    monkeypatch.setattr(hubs, "TRIES", 2)
    monkeypatch.setattr(ranges, "_pieces", ranges._Pieces())
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with xet_server.XetHub(folder, token="secret") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return list(a.tensors) == list(b.tensors) and all(
        np.array_equal(a.tensors[n].blocks(), b.tensors[n].blocks()) for n in a.tensors
    )


def test_reading(hub, folder, monkeypatch):
    """By ranges nobody asks Xet's servers; into the cache `hf_xet` fetches chunks from them."""
    assert same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    assert not hub.reads and not any("xet" in path for path, _ in hub.seen)
    large = [p.name for p in folder.iterdir() if p.stat().st_size > 1000]
    before = [hub.asked[name] for name in large]
    monkeypatch.setenv(names.KEEP, "1")
    assert same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    assert hub.reads >= len(large) > 1 and before == [hub.asked[name] for name in large]


def test_what_is_made_arrives_by_xet(hub, folder, tmp_path):
    made = llmconv.quantize("hf://org/toy", "hf://me/toy", "Q8_0", layout="plain")
    llmconv.quantize(folder, tmp_path / "want.gguf", "Q8_0", layout="plain")
    name = made.output.paths[0].name
    assert hub.repos["me/toy"][name] == (tmp_path / "want.gguf").read_bytes()
    assert (hub.xorbs, hub.shards, hub.put) == (1, 1, 0) and not list(Path().iterdir())


def test_an_upload_goes_on(hub, folder):
    """Bytes that arrived by Xet are only named, though the file that was sent is gone."""
    hub.refuse = lambda method, path: 500 if "/xorbs/" in path and hub.xorbs == 1 else 0
    with pytest.raises(OutputError, match="the same command goes on from here"):
        llmconv.convert_file(folder, "hf://me/toy", layout="plain", to="safetensors", max_shard_size=600_000)
    assert hub.xorbs == 1 and not hub.repos["me/toy"]
    hub.refuse = lambda method, path: 0
    llmconv.convert_file(folder, "hf://me/toy", layout="plain", to="safetensors", max_shard_size=600_000)
    assert hub.xorbs == 2 and len(hub.repos["me/toy"]) > 2


@pytest.mark.parametrize(
    ("part", "status", "says"),
    [
        ("/xet-write-token/", 401, "needs a token that may write there"),
        ("/xet-write-token/", 403, "needs a token that may write there"),
        ("/xet-write-token/", 404, "no such repository or branch"),
        ("/xorbs/", 403, "needs a token that may write there"),
        ("/xorbs/", 503, "the upload failed"),
        ("/shards", 500, "the upload failed"),
    ],
)
def test_what_xet_s_servers_refuse(hub, folder, part, status, says):
    asked = []
    hub.refuse = lambda method, path: status if part in path and not asked.append(path) else 0
    file = next(p for p in folder.iterdir() if p.stat().st_size > 1000)
    with pytest.raises(OutputError, match=says):
        llmconv.upload(file, "hf://me/toy")
    assert not hub.repos["me/toy"]


def test_what_can_t_be_kept(hub, monkeypatch):
    monkeypatch.setenv(names.KEEP, "1")
    hub.refuse = lambda method, path: 403 if "/xet-read-token/" in path else 0
    with pytest.raises(BadFile, match="needs a token that may read it"):
        llmconv.open("hf://org/toy")


def test_without_it(hub, folder, monkeypatch):
    """HF_HUB_DISABLE_XET: whole files, by the way that every Hub has."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv(names.KEEP, "1")
    assert same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    llmconv.upload(next(p for p in folder.iterdir() if p.stat().st_size > 1000), "hf://me/toy")
    assert hub.put == 1 and not hub.reads and not hub.xorbs
