"""Files sent to a Hub on this machine: what arrives, the card, and going on after a failure."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("huggingface_hub", reason="they need huggingface_hub")

from hub_taking import TakingHub

import llmconv
from llmconv.cli import cli
from llmconv.convert.cards.head import read_head
from llmconv.errors import BadFile, LlmconvError, OutputError, UsageError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.places import hub as hubs
from llmconv.formats.tensor import Tensor

# huggingface_hub's own call of httpx.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
WEIGHT = np.random.default_rng(3).standard_normal((8, 256)).astype(np.float32)


def model(path: Path, type: str = "Q8_0", **more: object) -> Path:
    keys = {"general.architecture": "toy", "general.name": "Toy", "general.license": "mit", "general.tags": ["tiny"]}
    made = Checkpoint(dialect="gguf", metadata=keys | {f"general.{k}": v for k, v in more.items()})
    made.add(Tensor.from_array("w.weight", WEIGHT))
    llmconv.save(made, path.with_name(f"{path.stem}-f32.gguf"), force=True)
    llmconv.quantize(path.with_name(f"{path.stem}-f32.gguf"), path, type, pure=True)
    path.with_name(f"{path.stem}-f32.gguf").unlink()
    return path


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[TakingHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its protocol is another
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(hubs, "WAIT", 0.0)
    monkeypatch.setattr(hubs, "TRIES", 2)
    monkeypatch.chdir(tmp_path)
    with TakingHub(tmp_path, token="secret") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_folder_arrives_with_a_card(hub, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    model(out / "toy-Q8_0.gguf")
    model(out / "toy-Q4_0.gguf", "Q4_0")
    (out / ".cache").mkdir()
    (out / ".cache" / "x").write_bytes(b"x")
    (out / "toy-Q6_K.gguf.partial").write_bytes(b"x")
    steps = []
    done = llmconv.upload(out, "hf://me/toy-GGUF", base_model="org/toy", private=True, progress=steps.append)
    there = hub.repos["me/toy-GGUF"]
    assert set(there) == {"toy-Q8_0.gguf", "toy-Q4_0.gguf", "README.md"} == set(done.files)
    assert all(there[name] == (out / name).read_bytes() for name in there if name != "README.md")
    assert hub.private["me/toy-GGUF"] in (True, "private") and hub.put == 2
    assert done.url.endswith("/commit/" + "0123456789abcdef" * 2 + "01234567")
    assert steps[-1].done == steps[-1].total == sum(map(len, there.values()))
    assert done.notes == ["not sent: .cache/x (and 1 more), hidden or unfinished"]
    card = there["README.md"].decode()
    head = read_head(card)
    assert head["base_model"] == "org/toy" and head["base_model_relation"] == "quantized"
    assert head["license"] == "mit" and head["tags"] == ["tiny", "gguf"] and head["library_name"] == "gguf"
    assert re.search(r"\| `toy-Q8_0.gguf` \| Q8_0 \| 0\.0 MB \| 8\.50 \|", card)
    assert re.search(r"\| `toy-Q4_0.gguf` \| Q4_0 \| 0\.0 MB \| 4\.50 \|", card)


def test_what_arrived_is_not_sent_again(hub, tmp_path):
    """The second file's upload fails: the first is only named when the same call runs again."""
    paths = [model(tmp_path / f"{name}.gguf", name) for name in ("Q8_0", "Q4_0", "Q5_0")]
    hub.refuse = lambda method, path: 500 if method == "PUT" and hub.put == 1 else 0
    with pytest.raises(OutputError, match="the same command goes on from here"):
        llmconv.upload(paths, "hf://me/toy")
    assert hub.put == 1 and hub.repos["me/toy"] == {}
    hub.refuse = lambda method, path: 0
    llmconv.upload(paths, "hf://me/toy")
    assert hub.put == 3 and len(hub.repos["me/toy"]) == 4
    again = llmconv.upload(paths, "hf://me/toy")
    assert again.url == "" and len(again.already) == 3 and hub.put == 3 and len(hub.messages) == 1


def test_somebody_s_card_stays(hub, tmp_path):
    hub.repos["me/toy"] = {"README.md": b"mine"}
    done = llmconv.upload(model(tmp_path / "a.gguf"), "hf://me/toy")
    assert hub.repos["me/toy"]["README.md"] == b"mine" and done.card == ""
    (tmp_path / "README.md").write_text("also mine")
    llmconv.upload([tmp_path / "a.gguf", tmp_path / "README.md"], "hf://me/other")
    assert hub.repos["me/other"]["README.md"] == b"also mine"


def test_branches_and_folders(hub, tmp_path):
    done = llmconv.upload(model(tmp_path / "a.gguf"), "hf://me/toy@refs%2Fpr%2F1/sub", message="Try")
    assert done.target == "hf://me/toy@refs%2Fpr%2F1/sub" and set(hub.repos["me/toy"]) == {"sub/a.gguf"}
    assert hub.messages == ["Try"]


def test_all_parts_of_a_split_model(hub, tmp_path):
    whole = model(tmp_path / "a.gguf")
    merged = llmconv.open(whole)
    merged.add(Tensor.from_array("v.weight", WEIGHT))
    llmconv.save(merged, tmp_path / "b.gguf")
    parts = llmconv.split(tmp_path / "b.gguf", max_tensors=1)
    llmconv.upload(parts[0], "hf://me/toy")
    assert set(hub.repos["me/toy"]) == {p.name for p in parts} | {"README.md"}
    assert f"`{parts[0].name}` and 1 more" in hub.repos["me/toy"]["README.md"].decode()
    parts[1].unlink()
    with pytest.raises(BadFile, match="another part of the same model"):
        llmconv.upload(parts[0], "hf://me/toy")


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("a.gguf", "me/toy", "write hf://ORG/NAME"),
        ("a.gguf", "hf://me", "no repository of the Hub"),
        ("a.gguf", "s3://me/toy", "no place to upload to"),
        ("a.gguf", "hf://me/toy/../x", "can't be . or .."),
        ("none.gguf", "hf://me/toy", "no such file"),
        ("empty", "hf://me/toy", "nothing to upload"),
    ],
)
def test_wrong_calls(hub, tmp_path, source, target, says):
    model(tmp_path / "a.gguf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LlmconvError, match=re.escape(says)):
        llmconv.upload(tmp_path / source, target)
    assert not hub.repos


def test_two_files_of_one_name(hub, tmp_path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        model(tmp_path / folder / "a.gguf")
    with pytest.raises(UsageError, match=r"would both be 'a\.gguf' there"):
        llmconv.upload([tmp_path / "x" / "a.gguf", tmp_path / "y" / "a.gguf"], "hf://me/toy")


def test_no_token(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(OutputError, match="needs a token that may write there"):
        llmconv.upload(model(tmp_path / "a.gguf"), "hf://me/toy")


def test_the_command_asks(hub, tmp_path):
    path = str(model(tmp_path / "a.gguf"))
    run = CliRunner().invoke(cli, ["upload", path, "hf://me/toy"])
    assert run.exit_code == 2 and "say --yes" in run.output and not hub.repos
    run = CliRunner().invoke(cli, ["upload", path, "hf://me/toy", "--dry-run"])
    assert run.exit_code == 0 and "library_name: gguf" in run.output and "nothing was sent" in run.output
    assert not hub.repos
    run = CliRunner().invoke(cli, ["upload", path, "hf://me/toy", "--yes", "--json"])
    assert run.exit_code == 0 and set(json.loads(run.output)["result"]["files"]) == {"a.gguf", "README.md"}
    assert set(hub.repos["me/toy"]) == {"a.gguf", "README.md"}
