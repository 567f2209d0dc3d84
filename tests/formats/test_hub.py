"""`hf://`: read by ranges from a Hub on this machine, whatever goes wrong on the line."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("huggingface_hub", reason="they need huggingface_hub")

from hub_server import COMMIT, Hub

import llmconv
from llmconv import formats
from llmconv.errors import BadFile, LlmconvError, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import hub as hubs, names, passing, ranges
from llmconv.formats.tensor import Tensor

RNG = np.random.default_rng(11)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip


def model(folder: Path) -> None:
    """A small Llama in three shards."""
    shapes = {"model.embed_tokens": (512, 256), "lm_head": (512, 256), "model.norm": (256,)}
    for i in range(2):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm": (256,), at + "post_attention_layernorm": (256,)}
        shapes |= {at + f"self_attn.{n}_proj": (256 if n in "qo" else 128, 256) for n in "qkvo"}
        shapes |= {at + "mlp.gate_proj": (512, 256), at + "mlp.up_proj": (512, 256), at + "mlp.down_proj": (256, 512)}
    made = Checkpoint(dialect="hf", files={"config.json": json.dumps(CONFIG).encode(), "README.md": b"# Toy\n"})
    for name, shape in shapes.items():
        made.add(Tensor.from_array(f"{name}.weight", RNG.standard_normal(shape).astype(np.float32)))
    llmconv.save(made, folder, max_shard_size=2_500_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    found = tmp_path_factory.mktemp("hub") / "toy"
    model(found)
    llmconv.convert_file(found, found / "gguf.gguf")
    (found / "sub").mkdir()
    (found / "gguf.gguf").rename(found / "sub" / "toy.gguf")
    return found


@pytest.fixture
def hub(folder, monkeypatch, tmp_path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hubs, "WAIT", 0.0)
    monkeypatch.setattr(ranges, "_pieces", ranges._Pieces())
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
    with Hub(folder) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.chdir(tmp_path)
        yield server


def same(a: Checkpoint, b: Checkpoint) -> None:
    assert list(a.tensors) == list(b.tensors) and a.files.keys() == b.files.keys()
    assert all(np.array_equal(a.tensors[n].blocks(), b.tensors[n].blocks()) for n in a.tensors)
    assert all(a.file(n) == b.file(n) for n in a.files)


def test_a_folder_and_a_file(hub, folder):
    same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    same(llmconv.open("hf://org/toy@v1/sub/toy.gguf"), llmconv.open(folder / "sub" / "toy.gguf"))
    same(llmconv.open(f"hf://org/toy@{COMMIT}"), llmconv.open(folder))
    assert hub.asked["tree"] == 3
    path = names.place("hf://org/toy")
    assert (names.called(path), names.beside(path), str(path)) == ("toy", Path(), "hf://org/toy")


def test_quantizing_is_the_same_as_of_the_folder(hub, folder, tmp_path):
    made = llmconv.quantize("hf://org/toy", type=["Q4_K_M", "Q8_0"], dst=tmp_path)
    for output in made.outputs:
        llmconv.quantize(folder, tmp_path / "want.gguf", output.type, force=True)
        assert output.paths[0].read_bytes() == (tmp_path / "want.gguf").read_bytes()
    assert [o.paths[0].name for o in made.outputs] == ["toy-Q4_K_M.gguf", "toy-Q8_0.gguf"]
    weights = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert hub.sent < 1.5 * weights  # two types of one read
    assert not (tmp_path / "home").exists() or not list((tmp_path / "home").rglob("*.safetensors"))


def test_converting_and_default_names(hub, folder, tmp_path):
    assert llmconv.convert_file("hf://org/toy/sub/toy.gguf", to="gguf").target == Path("toy.gguf")
    assert Path("toy.gguf").read_bytes() == (folder / "sub" / "toy.gguf").read_bytes()
    assert llmconv.convert_file("hf://org/toy", "copy").target == Path("copy")
    same(llmconv.open("copy"), llmconv.open(folder))


def test_inspecting_reads_headers_alone(hub, folder):
    found = llmconv.inspect_file("hf://org/toy")
    assert len(found["tensors"]) == len(llmconv.open(folder).tensors)
    assert all(stop - start <= 256 << 10 for name, start, stop in hub.ranges if name.endswith(".safetensors"))


def first(what: str, every: int = 1):
    """What goes wrong with the first request of every so many ranges: threads must not take turns with the faults."""

    def make():
        seen: dict[tuple[str, int], int] = {}

        def fault(name: str, start: int, number: int) -> str:
            is_new = (name, start) not in seen
            return what if is_new and seen.setdefault((name, start), len(seen)) % every == 0 else ""

        return fault

    return make


FAULTS = {
    "cut": lambda: lambda name, start, number: "cut" if number <= 3 else "",
    "busy": first("503"),
    "too many": first("429"),
    "short": lambda: lambda name, start, number: "short" if number <= 3 else "",
    "in an hour": first("wait Wed, 21 Oct 2015 07:28:00 GMT", 5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_tried_again(hub, folder, tmp_path, fault):
    hub.faults = FAULTS[fault]()
    llmconv.quantize("hf://org/toy", tmp_path / "a.gguf", "Q8_0")
    llmconv.quantize(folder, tmp_path / "b.gguf", "Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    if fault == "cut":  # and what came before the cut is not asked for again
        first = hub.ranges[0]
        assert any(name == first[0] and start > first[1] and stop == first[2] for name, start, stop in hub.ranges)


def later(what: str, first: int = 2):
    return lambda name, start, number: what if name.endswith(".safetensors") and number >= first else ""


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        (later("other size"), "it changed"),
        (later("other tag"), "changed while it was being read"),
        (later("503"), r"tried 6 times"),
        (later("cut"), r"tried 6 times"),
        (lambda name, start, number: "flipped" if name == "config.json" else "", "another hash"),
        (later("404"), "no such repository, revision or file"),
        (later("403"), "needs a token"),
        (later("401"), "needs a token"),
        (later("gated"), "is gated; ask for access on its page"),
        (later("flipped"), "another hash"),
    ],
)
def test_what_does_not_pass_is_said_and_leaves_nothing(hub, folder, tmp_path, faults, says):
    hub.faults = faults
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadFile, match=says):
        llmconv.quantize("hf://org/toy", tmp_path / "a.gguf", "Q8_0")
    assert sorted(tmp_path.iterdir()) == before


def test_a_stated_wait_is_kept(hub, monkeypatch):
    waits = []
    monkeypatch.setattr(hubs.time, "sleep", waits.append)
    hub.faults = lambda name, start, number: "wait 7" if name == "config.json" and number < 3 else ""
    assert llmconv.open("hf://org/toy").file("config.json")
    assert waits.count(7.0) == 2


def test_a_slow_link(hub, folder):
    hub.rate = 50e6
    same(llmconv.open("hf://org/toy"), llmconv.open(folder))


def test_hashes_are_checked_on_the_way(hub, folder, tmp_path):
    """Of files that pass whole; nothing is read again for it."""
    made = llmconv.quantize("hf://org/toy", tmp_path / "a.gguf", "Q8_0")
    shards = len(list(folder.glob("*.safetensors")))
    assert f"the weights' files have the SHA-256 that the Hub states, {shards} of {shards}" in made.notes
    assert hub.sent < 1.5 * sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    made = llmconv.convert_file("hf://org/toy/sub/toy.gguf", tmp_path / "b.gguf")
    assert any("1 of 1" in note for note in made.notes)
    made = llmconv.convert_file("hf://org/toy", tmp_path / "c.gguf", layout="plain", exclude=["*embed*"])
    assert any("by size and tag alone: " in note or "of 3" in note for note in made.notes)


def test_what_was_read_before_is_not_taken_for_what_is_there(hub, folder, tmp_path, monkeypatch):
    """Who opens it again sees what was changed meanwhile, and its hash is taken of all of it."""
    other = tmp_path / "other"
    other.mkdir()
    raw = (folder / "sub" / "toy.gguf").read_bytes()
    (other / "toy.gguf").write_bytes(raw)
    monkeypatch.setattr(hub, "folder", other)
    first = llmconv.open("hf://org/toy/toy.gguf")
    (other / "toy.gguf").write_bytes(raw.replace(b"llama", b"klama"))
    hub._digests.clear()
    again = llmconv.open("hf://org/toy/toy.gguf")
    assert again.metadata["general.architecture"] == "klama" != first.metadata["general.architecture"]
    with pytest.raises(BadFile, match="changed since it was opened"):
        next(iter(first.tensors.values())).blocks()
    (other / "toy.gguf").write_bytes(raw)
    hub._digests.clear()
    llmconv.open("hf://org/toy/toy.gguf")
    made = llmconv.quantize("hf://org/toy/toy.gguf", tmp_path / "q.gguf", "Q8_0")
    assert any("1 of 1" in note for note in made.notes)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (0, 0, 2, 1, 1, 3)])
def test_pieces_in_any_order(order):
    data = bytes(range(40))
    passed = passing.Passing(40)
    for i in order:
        passed(10 * i, data[max(0, 10 * i - 3) + 3 * (i > 0) : 10 * i + 10])
    assert passed.digest == hashlib.sha256(data).hexdigest()


def test_pieces_that_would_wait_too_long(monkeypatch):
    monkeypatch.setattr(passing, "_MOST", 15)
    passed = passing.Passing(40)
    for start in (20, 30, 0, 10):
        passed(start, bytes(10))
    assert not passed.digest and not passed._early
    passed = passing.Passing(40)
    for start, length in ((0, 12), (8, 12), (18, 22)):  # overlapping
        passed(start, bytes(length))
    assert passed.digest == hashlib.sha256(bytes(40)).hexdigest()


def test_the_token_stays_with_its_host(hub, monkeypatch, folder):
    """Weights are had by a redirect to other hosts, which must not see it."""
    hub.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.cdn = hub.url.replace("127.0.0.1", "localhost")
    same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    asked = [token for path, token in hub.seen if path.startswith("/cdn/")]
    assert asked and not any(asked)
    assert all(token == "Bearer hf_secret" for path, token in hub.seen if not path.startswith("/cdn/"))


def test_an_interrupted_run_goes_on(hub, folder, tmp_path):
    hub.faults = lambda name, start, number: "404" if "-00003-" in name and number > 1 else ""
    with pytest.raises(BadFile):
        llmconv.quantize("hf://org/toy", tmp_path / "a.gguf", "Q8_0", resumable=True, jobs=1)
    assert (tmp_path / "a.gguf.partial").exists()
    done = json.loads((tmp_path / "a.gguf.partial.journal").read_text().split("\n")[1])["done"]
    assert done
    hub.faults, before = lambda name, start, number: "", hub.sent
    ranges._pieces.__init__()
    llmconv.quantize("hf://org/toy", tmp_path / "a.gguf", "Q8_0", resumable=True)
    llmconv.quantize(folder, tmp_path / "b.gguf", "Q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert hub.sent - before < before  # what was done is not fetched again


def test_tokens(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(BadFile, match="needs a token"):
        llmconv.open("hf://org/toy")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert llmconv.open("hf://org/toy").tensors


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("hf://org/none", BadFile, "no such repository"),
        ("hf://org/toy@none", BadFile, "no such repository"),
        ("hf://org/toy/none.gguf", BadFile, "no such file"),
        ("hf://toy", UsageError, "write hf://ORG/NAME"),
        ("hf://org/../x", UsageError, "write hf://ORG/NAME"),
        ("hf://", UsageError, "write hf://ORG/NAME"),
        ("hf://datasets/org/toy", UsageError, "one of the Hub's datasets"),
        ("hf://org/toy@no/ne", BadFile, "write %2F for a / in a revision"),
    ],
)
def test_names_that_stand_for_nothing(hub, name, error, says):
    with pytest.raises(error, match=re.escape(says)):
        llmconv.open(name)


def test_a_repository_named_as_a_path():
    with pytest.raises(LlmconvError, match=re.escape("write hf://meta-llama/Llama-3.2-1B")):
        llmconv.open("meta-llama/Llama-3.2-1B")


def test_offline(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadFile, match="HF_HUB_OFFLINE is set"):
        llmconv.open("hf://org/toy")
    assert not hub.asked


def test_latency_is_hidden(hub, folder):
    """Pieces are asked for before they are needed: several are on their way at once."""
    hub.delay = 0.05
    found = llmconv.open("hf://org/toy")
    assert hub.most > 1  # the shards' headers
    same(found, llmconv.open(folder))


def test_memory_has_a_bound(monkeypatch):
    """Pieces are forgotten when their room is needed."""
    monkeypatch.setattr(ranges, "_MOST", 10)
    kept = ranges._Pieces()

    class Path:
        within = "x"

        class store:
            read = staticmethod(lambda name, offset, size: bytes(size))

    for i in range(20):
        kept.ask(Path, 4 * i, 4).result()
    assert len(kept._found) <= 3 and kept._kept <= 12


def test_formats_are_recognised_by_content(hub):
    assert formats.sniff(names.place("hf://org/toy/sub/toy.gguf")).name == "gguf"


@pytest.fixture
def bucket(monkeypatch):
    """fsspec's own system in memory, by whatever scheme it is asked for."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setattr(ranges, "_pieces", ranges._Pieces())
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme: system)
    system.store.clear()
    return system


def test_other_addresses(folder, tmp_path, monkeypatch, bucket):
    """What fsspec opens: a file by its whole address, and nothing beside it is asked for in vain."""
    monkeypatch.chdir(tmp_path)
    data = (folder / "sub" / "toy.gguf").read_bytes()
    bucket.pipe_file("s3://bucket/deep/toy.gguf", data)
    same(llmconv.open("s3://bucket/deep/toy.gguf"), llmconv.open(folder / "sub" / "toy.gguf"))
    made = llmconv.quantize("s3://bucket/deep/toy.gguf", type="Q8_0")
    assert made.output.paths == (Path("toy-Q8_0.gguf"),)
    with pytest.raises(BadFile, match="no such file"):
        llmconv.open("s3://bucket/deep/none.gguf")
    names.place("s3://bucket/deep/toy.gguf")
    bucket.pipe_file("s3://bucket/deep/toy.gguf", data + b"x" * 40)
    with pytest.raises(BadFile, match="goes on after its last tensor"):
        llmconv.open("s3://bucket/deep/toy.gguf")


@pytest.mark.parametrize("scheme", ["gs", "https"])
def test_folders_at_other_addresses(folder, bucket, scheme):
    """Listed where that can be done; on the web the usual names are asked for."""
    for path in (p for p in folder.rglob("*") if p.is_file()):
        bucket.pipe_file(f"{scheme}://bucket/deep/{path.relative_to(folder)}", path.read_bytes())
    same(llmconv.open(f"{scheme}://bucket/deep"), llmconv.open(folder))
    assert (str(names.place(f"{scheme}://bucket/deep/sub")), names.place(f"{scheme}://bucket/deep").is_dir()) == (
        f"{scheme}://bucket/deep/sub",
        True,
    )
    with pytest.raises(BadFile, match="no such file" if scheme == "https" else "give that file"):
        llmconv.open(f"{scheme}://bucket/deep/sub")


class Line(Exception):
    """What aiohttp raises."""

    __module__ = "aiohttp.client_exceptions"

    def __init__(self, status: int = 0):
        super().__init__(f"status {status}")
        if status:
            self.status = status


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ([Line(), Line(503), Line(429)], ""),
        ([Line()] * 6, "can't be read ('status 0')"),
        ([Line(403)], "can't be read ('status 403')"),
        ([PermissionError("none of yours")], "can't be read ('none of yours')"),
        ([FileNotFoundError()], "no such file any more"),
    ],
)
def test_faults_at_other_addresses(folder, bucket, monkeypatch, what, says):
    monkeypatch.setattr(hubs, "WAIT", 0.0)
    bucket.pipe_file("https://host/toy.gguf", (folder / "sub" / "toy.gguf").read_bytes())
    read, faults = bucket.cat_file, list(what)

    def cat(*args, **how):
        if faults:
            raise faults.pop(0)
        return read(*args, **how)

    monkeypatch.setattr(bucket, "cat_file", cat)
    if not says:
        return same(llmconv.open("https://host/toy.gguf"), llmconv.open(folder / "sub" / "toy.gguf"))
    with pytest.raises(BadFile, match=re.escape(says)):
        llmconv.open("https://host/toy.gguf")
    assert not faults


@pytest.mark.parametrize(("met", "says"), [(Line(), "can't be read"), (Line(404), "no such file")])
def test_a_host_that_can_t_be_reached(bucket, monkeypatch, met, says):
    """Of which fsspec says the same as of a file that is not there."""
    monkeypatch.setattr(hubs, "WAIT", 0.0)

    def info(address, **how):
        raise FileNotFoundError(address) from met

    monkeypatch.setattr(bucket, "info", info)
    with pytest.raises(BadFile, match=says):
        llmconv.open("https://host/toy.gguf")


def test_a_server_that_gives_no_ranges(bucket, monkeypatch):
    bucket.pipe_file("https://host/toy.gguf", b"GGUF" + bytes(1 << 20))
    monkeypatch.setattr(bucket, "cat_file", lambda *args, **how: b"GGUF" + bytes(1 << 20))
    with pytest.raises(BadFile, match="gives no parts of files; download it first"):
        llmconv.open("https://host/toy.gguf")


PAGES = "https://huggingface.co/org/toy"


@pytest.mark.parametrize(
    ("given", "means"),
    [
        ("hf:org/toy", "hf://org/toy"),
        ("HF://org/toy/", "hf://org/toy"),
        ("hf://org/toy@refs/pr/3/sub", "hf://org/toy@refs%2Fpr%2F3/sub"),
        (PAGES, "hf://org/toy"),
        (f"{PAGES}/tree/v1", "hf://org/toy@v1"),
        (f"{PAGES}/blob/main/sub/a%20b.gguf", "hf://org/toy@main/sub/a b.gguf"),
        ("http://hf.co/org/toy/resolve/refs%2Fpr%2F3/x.gguf?download=true", "hf://org/toy@refs%2Fpr%2F3/x.gguf"),
        (f"{PAGES}/discussions", f"{PAGES}/discussions"),
    ],
)
def test_other_spellings(given, means):
    """Of the same thing, as people type it or copy it out of a browser."""
    assert str(names.place(given)) == means


def test_files_in_xet_s_storage(hub, folder, tmp_path, monkeypatch):
    """Ranges of them come as of any other file, checked by the same hash, and nobody is asked for Xet's tokens.

    What `hf_xet` does with `--cache` is between it and Xet's servers; without it the Hub's library reads whole files.
    """
    from huggingface_hub import constants

    hub.xet = True
    made = llmconv.quantize("hf://org/toy", "a.gguf", "Q8_0")
    llmconv.quantize(folder, "b.gguf", "Q8_0")
    assert Path("a.gguf").read_bytes() == Path("b.gguf").read_bytes() and any("SHA-256" in n for n in made.notes)
    assert not any("xet" in address for address, _ in hub.seen)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv(names.KEEP, "1")
    if hasattr(constants, "HF_HUB_DISABLE_XET"):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    assert not any("xet" in address for address, _ in hub.seen)


@pytest.mark.slow
def test_a_model_larger_than_its_memory(tmp_path):
    """Straight from a Hub, in a process of its own: memory, the disk, the bytes on the line, and the hash."""
    import os
    import subprocess
    import sys

    settings = CONFIG | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
    settings |= {"num_key_value_heads": 32}
    folder, work = tmp_path / "toy", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    (folder / "config.json").write_text(json.dumps(settings))
    shapes = {"model.embed_tokens": (512, 4096), "lm_head": (512, 4096), "model.norm": (4096,)}
    for i in range(2):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm": (4096,), at + "post_attention_layernorm": (4096,)}
        shapes |= {at + f"self_attn.{n}_proj": (4096, 4096) for n in "qkvo"}
        shapes |= {at + "mlp.gate_proj": (11008, 4096), at + "mlp.up_proj": (11008, 4096)}
        shapes[at + "mlp.down_proj"] = (4096, 11008)
    place, head = 0, {}
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        head[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [place, place + size]}
        place += size
    raw = json.dumps(head).encode()
    with (folder / "model.safetensors").open("wb") as file:  # of zeros, which take no room
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + place)
    assert place > 8e8
    code = (
        "import llmconv; made = llmconv.quantize('hf://org/toy', 'out.gguf', 'Q4_0'); "
        "assert any('SHA-256' in note for note in made.notes); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )  # not ru_maxrss: a child begins with its parent's
    with Hub(folder) as server:
        env = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
        run = subprocess.run([sys.executable, "-c", code], cwd=work, capture_output=True, text=True, env=env)
        assert run.returncode == 0, run.stderr
        assert int(run.stdout) < 400_000 and place < server.sent < 1.01 * place
    assert [p.name for p in tmp_path.rglob("*") if p.is_file() and folder not in p.parents] == ["out.gguf"]
    assert (work / "out.gguf").stat().st_size < 0.3 * place


def test_the_cache_on_demand(hub, folder, tmp_path, monkeypatch):
    """Kept where the Hub's own programs keep them, and read from there when there is no line."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setenv(names.KEEP, "1")
    same(llmconv.open("hf://org/toy"), llmconv.open(folder))
    assert llmconv.quantize("hf://org/toy", type="Q8_0").output.paths == (Path("toy-Q8_0.gguf"),)
    assert list((tmp_path / "home" / "hub" / "models--org--toy" / "blobs").iterdir())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(names.KEEP)
    before = hub.asked.total()
    same(llmconv.open("hf://org/toy/sub/toy.gguf"), llmconv.open(folder / "sub" / "toy.gguf"))
    assert hub.asked.total() == before


def test_the_cache_by_an_option(hub, folder, tmp_path, monkeypatch):
    from click.testing import CliRunner
    from huggingface_hub import constants

    from llmconv.cli import cli

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    kept = tmp_path / "home" / "hub" / "models--org--toy"
    for words, file in ((["inspect"], False), (["quantize", "-t", "Q8_0", "-o", "q.gguf"], True)):
        run = CliRunner().invoke(cli, [*words, "hf://org/toy/sub/toy.gguf"])
        assert run.exit_code == 0 and not kept.exists(), run.output
        run = CliRunner().invoke(cli, [*words, *["-f"] * file, "hf://org/toy/sub/toy.gguf", "--cache"])
        assert run.exit_code == 0 and list((kept / "blobs").iterdir()), run.output
        shutil.rmtree(kept)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "other"))
    llmconv.open("hf://org/toy")
    assert not (tmp_path / "other").exists()  # the option was of those commands


def test_other_outputs_are_written_to_a_disk(hub, folder):
    for way in (lambda to: llmconv.split(folder, to, max_size=10**6), lambda to: llmconv.view(folder, to)):
        with pytest.raises(LlmconvError, match="then llmconv upload it"):
            way("hf://me/toy.gguf")
