"""Outputs that go to a Hub on this machine: part by part, in one commit, and on from where a failure stopped it."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("huggingface_hub", reason="they need huggingface_hub")

from hub_taking import FullHub

import llmconv
from llmconv.cli import cli
from llmconv.convert.cards.head import read_head
from llmconv.errors import LlmconvError, OutputError, OutputExists, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import hub as hubs, outbox, ranges
from llmconv.formats.tensor import Tensor

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
RNG = np.random.default_rng(7)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
CARD = b"---\nlicense: mit\ntags: [tiny]\n---\n# Toy\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = Checkpoint(dialect="hf", files={"config.json": json.dumps(CONFIG).encode(), "README.md": CARD})
    shapes = {"model.embed_tokens": (64, 256), "lm_head": (64, 256), "model.norm": (256,)}
    for i in range(2):
        at = f"model.layers.{i}."
        shapes |= {at + "input_layernorm": (256,), at + "post_attention_layernorm": (256,)}
        shapes |= {at + f"self_attn.{n}_proj": (256 if n in "qo" else 128, 256) for n in "qkvo"}
        shapes |= {at + "mlp.gate_proj": (512, 256), at + "mlp.up_proj": (512, 256), at + "mlp.down_proj": (256, 512)}
    for name, shape in shapes.items():
        made.add(Tensor.from_array(f"{name}.weight", RNG.standard_normal(shape).astype(np.float32)))
    found = tmp_path_factory.mktemp("hub") / "toy"
    llmconv.save(made, found)
    return found


@pytest.fixture
def hub(folder, monkeypatch, tmp_path) -> Iterator[FullHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its protocol is another
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(hubs, "WAIT", 0.0)
    monkeypatch.setattr(hubs, "TRIES", 2)
    monkeypatch.setattr(ranges, "_pieces", ranges._Pieces())
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    with FullHub(folder, token="secret") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def joined(there: dict[str, bytes], folder: Path, start: str) -> Checkpoint:
    """The model in the parts of a repository."""
    folder.mkdir()
    for name, raw in there.items():
        (folder / name).write_bytes(raw)
    return llmconv.open(min(p for p in folder.iterdir() if p.name.startswith(start)))


def test_several_types_of_one_read_go_up_in_parts(hub, folder, tmp_path, monkeypatch):
    most = 0
    put = outbox.Outbox._send

    def sending(self, path):
        nonlocal most
        most = max(most, sum(p.stat().st_size for p in Path().rglob("*.gguf") if p.is_file()))
        put(self, path)

    monkeypatch.setattr(outbox.Outbox, "_send", sending)
    types = ["Q8_0", "Q4_0"]
    made = llmconv.quantize("hf://org/toy", "hf://me/toy-GGUF", types, split_max_size=300_000)
    there = hub.repos["me/toy-GGUF"]
    assert len(there) == sum(len(o.paths) for o in made.outputs) + 1 and len(made.outputs[0].paths) > 3
    assert made.url.endswith("/commit/" + "0123456789abcdef" * 2 + "01234567") and len(hub.messages) == 1
    assert hub.put == len(there) - 1
    assert (
        hub.sent < 1.7 * (folder / "model.safetensors").stat().st_size
    )  # read once, small tensors with what is by them
    assert str(made.output.paths[0]).startswith("hf://me/toy-GGUF/toy-Q8_0-00001-of-")
    assert not list(Path().iterdir())  # neither model nor output is left
    assert 0 < most <= 2 * sum(max(len(there[p.name]) for p in o.paths) for o in made.outputs)
    for output in made.outputs:
        llmconv.quantize(folder, tmp_path / "want.gguf", output.type, force=True)
        found, want = joined(there, tmp_path / output.type, f"toy-{output.type}"), llmconv.open(tmp_path / "want.gguf")
        assert list(found.tensors) == list(want.tensors)
        assert all(np.array_equal(found.tensors[n].blocks(), want.tensors[n].blocks()) for n in want.tensors)
        assert output.size == sum(len(there[p.name]) for p in output.paths)
    card = there["README.md"].decode()
    head = read_head(card)
    assert head["base_model"] == "org/toy" and head["base_model_relation"] == "quantized" and head["license"] == "mit"
    assert set(head["tags"]) >= {"tiny", "gguf"} and f"and {len(made.output.paths) - 1} more | Q8_0 |" in card


def test_whole_files_are_the_same_as_on_a_disk(hub, folder, tmp_path):
    hub.parts = 100_000  # of a multipart upload
    made = llmconv.quantize(folder, "hf://me/toy@dev/sub/mine.gguf", "Q8_0")
    llmconv.quantize(folder, tmp_path / "want.gguf", "Q8_0")
    assert hub.repos["me/toy"] == {"sub/mine.gguf": (tmp_path / "want.gguf").read_bytes()}
    assert str(made.output.paths[0]) == "hf://me/toy@dev/sub/mine.gguf"
    done = llmconv.convert_file("hf://org/toy", "hf://me/other", split_max_size=500_000)
    llmconv.convert_file(folder, tmp_path / "toy.gguf", split_max_size=500_000)
    there = hub.repos["me/other"]
    want = {p.name: p.read_bytes() for p in tmp_path.glob("toy-0*.gguf")}
    assert {n: raw for n, raw in there.items() if n != "README.md"} == want and len(want) > 3
    assert done.size == sum(map(len, want.values())) and done.url and str(done.target) == "hf://me/other/toy.gguf"
    assert not list(Path().iterdir())


def test_folders_and_what_is_compared_after(hub, folder, tmp_path):
    llmconv.convert_file(folder, "hf://me/copy", to="safetensors", max_shard_size=1_000_000)
    llmconv.convert_file(folder, tmp_path / "copy", max_shard_size=1_000_000)
    want = {p.name: p.read_bytes() for p in (tmp_path / "copy").iterdir()}
    assert hub.repos["me/copy"] == want and len(want) > 4
    llmconv.quantize(folder, "hf://me/int8", "INT8")
    assert "model.safetensors" in hub.repos["me/int8"] and hub.repos["me/int8"]["README.md"] == CARD
    assert not list(Path().iterdir())


def fails_after(hub: FullHub, number: int):
    return lambda method, path: 500 if method == "PUT" and hub.put >= number else 0


@pytest.mark.parametrize("resumable", [False, True])
def test_a_failed_upload_goes_on(hub, folder, resumable):
    def run():
        how = {"split_max_size": 300_000, "resumable": resumable}
        return llmconv.quantize("hf://org/toy", "hf://me/toy-GGUF", ["Q8_0", "Q4_0"], **how)

    hub.refuse = fails_after(hub, 5)
    with pytest.raises(OutputError, match="the same command goes on from here"):
        run()
    assert hub.put == 5 and hub.repos["me/toy-GGUF"] == {} and Path("toy-GGUF.upload/sent.json").is_file()
    hub.refuse = lambda method, path: 0
    made = run()
    total = sum(len(o.paths) for o in made.outputs)
    assert hub.put == total  # nothing was sent twice
    assert set(hub.repos["me/toy-GGUF"]) == {p.name for o in made.outputs for p in o.paths} | {"README.md"}
    assert made.output.size == sum(len(hub.repos["me/toy-GGUF"][p.name]) for p in made.output.paths)
    assert not list(Path().iterdir())


def test_what_the_hub_forgot_is_made_again(hub, folder):
    hub.refuse = fails_after(hub, 3)
    with pytest.raises(OutputError):
        llmconv.convert_file(folder, "hf://me/toy", split_max_size=500_000)
    first = next(iter(hub.objects))
    del hub.objects[first]
    hub.refuse = lambda method, path: 0
    llmconv.convert_file(folder, "hf://me/toy", split_max_size=500_000)
    assert first in hub.objects and len(hub.repos["me/toy"]) == len(hub.objects) + 1


def test_another_input_is_not_taken_for_the_same(hub, folder, tmp_path):
    hub.refuse = fails_after(hub, 3)
    with pytest.raises(OutputError):
        llmconv.quantize(folder, "hf://me/toy", "Q8_0", split_max_size=300_000)
    other = llmconv.open(folder)
    tensors = {n: Tensor.from_array(n, -np.asarray(t)) for n, t in other.tensors.items()}
    llmconv.save(other.but(tensors=tensors), tmp_path / "toy")
    hub.refuse = lambda method, path: 0
    llmconv.quantize(tmp_path / "toy", "hf://me/toy", "Q8_0", split_max_size=300_000)
    found = joined(hub.repos["me/toy"], tmp_path / "found", "toy-Q8_0")
    llmconv.quantize(tmp_path / "toy", tmp_path / "want.gguf", "Q8_0")
    want = llmconv.open(tmp_path / "want.gguf")
    assert all(np.array_equal(found.tensors[n].blocks(), want.tensors[n].blocks()) for n in want.tensors)


def test_what_is_there_stays(hub, folder):
    hub.repos["me/toy"] = {"toy-Q8_0.gguf": b"mine", "README.md": b"mine too"}
    with pytest.raises(OutputExists, match=r"hf://me/toy/toy-Q8_0\.gguf: exists already"):
        llmconv.quantize(folder, "hf://me/toy", "Q8_0")
    assert hub.put == 0 and not list(Path().iterdir())
    llmconv.quantize(folder, "hf://me/toy", "Q8_0", force=True)
    assert len(hub.repos["me/toy"]["toy-Q8_0.gguf"]) > 1000 and hub.repos["me/toy"]["README.md"] == b"mine too"


@pytest.mark.parametrize(
    ("target", "options", "error", "says"),
    [
        ("hf://me", {}, UsageError, "write hf://ORG/NAME"),
        ("hf://me/toy/x.gguf", {"type": ["Q8_0", "Q4_0"]}, UsageError, "one name for 2 outputs"),
        ("hf://me/toy", {"split_max_size": 9, "keep_split": True}, UsageError, "choose one"),
        ("hf://me/toy", {"split_max_size": 9, "type": "INT8"}, UsageError, "is for GGUF"),
    ],
)
def test_wrong_calls(hub, folder, target, options, error, says):
    with pytest.raises(error, match=says):
        llmconv.quantize(folder, target, **{"type": "Q8_0", **options})
    assert not hub.put and not list(Path().iterdir())


def test_no_room(hub, folder, monkeypatch):
    monkeypatch.setattr(outbox.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 400_000}))
    with pytest.raises(OutputError, match="give a smaller split_max_size"):
        llmconv.quantize(folder, "hf://me/toy", "Q8_0")
    llmconv.quantize(folder, "hf://me/toy", "Q8_0", split_max_size=200_000)
    assert len(hub.repos["me/toy"]) > 4


def test_no_token(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(OutputError, match="needs a token that may write there"):
        llmconv.quantize(folder, "hf://me/toy", "Q8_0")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("command", [["quantize", "-t", "Q8_0", "-o"], ["convert"]])
def test_the_commands_ask(hub, folder, command):
    name, *rest = command
    words = [name, str(folder), *rest, "hf://me/toy"]
    run = CliRunner().invoke(cli, words)
    assert run.exit_code == 2 and "say --yes" in run.output and not hub.repos
    run = CliRunner().invoke(cli, [*words, "--yes", "--json"])
    assert run.exit_code == 0, run.output
    assert "README.md" in hub.repos["me/toy"] and json.loads(run.output)["result"]["url"]
    run = CliRunner().invoke(cli, [name, str(folder), *rest, "here.gguf", "--yes"])
    assert run.exit_code == 2 and "--yes is for an output on the Hub" in run.output


def test_the_plan_is_shown_first(hub, folder, monkeypatch):
    monkeypatch.setattr("llmconv.cli.options.sys.stdin.isatty", lambda: True, raising=False)
    found = llmconv.quantize(folder, "hf://me/toy", ["Q8_0", "Q4_0"], dry_run=True)
    assert [str(o.paths[0]) for o in found.outputs] == ["hf://me/toy/toy-Q8_0.gguf", "hf://me/toy/toy-Q4_0.gguf"]
    assert not hub.repos and not list(Path().iterdir())
    plan = llmconv.convert_file(folder, "hf://me/toy", split_max_size=500_000, dry_run=True)
    copy = llmconv.convert_file("hf://org/toy", "hf://me/copy", to="safetensors", max_shard_size=10**6, dry_run=True)
    assert not hub.repos and not list(Path().iterdir()) and not plan.url
    monkeypatch.setattr("click.confirm", lambda question: said.append(question) or True)
    said = []
    words = ["convert", str(folder), "hf://me/toy", "--split-max-size", "500k"]
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), stderr=sys.stderr)
    monkeypatch.setattr("llmconv.cli.options.sys", terminal)
    shown = CliRunner().invoke(cli, words)
    assert said == ["Send this to hf://me/toy?"] and f"{plan.paths[0]}\n{plan.paths[1]}\n" in shown.output
    there = {n: raw for n, raw in hub.repos["me/toy"].items() if n != "README.md"}
    assert [path.name for path in plan.paths] == list(there) and plan.size == sum(map(len, there.values()))
    llmconv.convert_file(folder, "hf://me/copy", to="safetensors", max_shard_size=10**6)
    assert {p.name for p in copy.paths} == {*hub.repos["me/copy"]}
    assert copy.size == sum(map(len, hub.repos["me/copy"].values()))
    with pytest.raises(UsageError, match="dry_run is for a target on the Hub"):
        llmconv.convert_file(folder, "here.gguf", dry_run=True)


def test_the_hub_s_tutorial(hub, folder, tmp_path, monkeypatch):
    """Its commands, in order, with this Hub's one model in the place of the page's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    page = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "hub.md"
    text = (
        page.read_text().replace("hf://HuggingFaceTB/SmolLM2-135M", "hf://org/toy").replace("SmolLM2-135M-Q", "toy-Q")
    )
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) > 8
    for line in lines:
        words = line.split()
        done = CliRunner().invoke(cli, [word.replace("100M", "500k") for word in words[1:]])
        assert done.exit_code == 0, f"{line}\n{done.output}"
    assert len(hub.repos["me/SmolLM2-135M-parts"]) > 3 and "toy-Q4_K_M.gguf" in hub.repos["me/SmolLM2-135M-one"]


def test_parts_on_a_disk(folder, tmp_path):
    made = llmconv.quantize(folder, tmp_path / "q.gguf", "Q8_0", split_max_size=300_000)
    assert all(p.is_file() for p in made.output.paths) and len(made.output.paths) > 3
    llmconv.quantize(folder, tmp_path / "want.gguf", "Q8_0")
    llmconv.merge(made.output.paths[0], tmp_path / "merged.gguf")
    assert llmconv.verify(tmp_path / "merged.gguf", tmp_path / "want.gguf").same


def test_errors_are_the_hub_s_own(hub, folder):
    hub.refuse = lambda method, path: 403 if "/commit/" in path else 0
    with pytest.raises(LlmconvError, match="needs a token that may write there"):
        llmconv.quantize(folder, "hf://me/toy", "Q8_0")
    assert Path("toy.upload/sent.json").is_file()
