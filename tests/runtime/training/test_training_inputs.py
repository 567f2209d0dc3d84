"""What training reads besides text: settings, the record of a run, its checkpoints; whatever they hold, a sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import commands
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

import llmconv
from llmconv.errors import LlmconvError, cut
from llmconv.runtime.training.config import TrainConfig, read_config
from llmconv.runtime.training.inputs import LOCK
from llmconv.runtime.training.loop import train
from llmconv.runtime.training.parallel import Team, alone

DEEP = "[" * 900 + "]" * 900
VALUES = ["null", "true", "0", "-1", "0.5", "1e400", "-1e400", "NaN", "1e-320", "9e99", "[]", "{}", "[1]"]
VALUES += ['""', '"a\\u0000b"', '"\\ud800"', '"\\u001b"']
VALUES += ["1" + "0" * 400, "-1" + "0" * 400, "9" * 5000, DEEP, json.dumps("x" * 5000)]
FIELDS = [setting.name for setting in dataclasses.fields(TrainConfig)]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("field", FIELDS)
def test_a_setting_is_taken_or_refused_in_a_sentence(field: str, tmp_path: Path) -> None:
    """Of any value that JSON can hold; what is taken is of the field's type."""
    path = tmp_path / "settings.json"
    for value in VALUES:
        given = {"preset": "simple-36k", field: "@"}
        path.write_text(json.dumps(given).replace('"@"', value))
        try:
            config = TrainConfig(**read_config(path))
        except LlmconvError as error:
            assert len(str(error)) < 400 and "\n" not in str(error), value[:20]
        else:
            assert type(getattr(config, field)) is type(getattr(TrainConfig(preset="simple-36k"), field))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"seed = 0x" + b"f" * 6000, "seed is a number of 24000 bits"),
        (b"data" + b".a" * 3000 + b" = 1", ", expected text"),  # shown or not, by how deep Python may go
        (b"data = " + b"[" * 5000 + b"]" * 5000, "is no TOML"),
        (b"data = '\xe9'", "is no TOML"),
        ("data = 'x'".encode("utf-16"), "is no TOML"),
        (b"lr = 1e999", "lr is inf, expected a finite number"),
        (b"steps = 2020-01-01", "expected a whole number"),
        (b"optimizer = [[1]]", "optimizer is [[1]], expected adamw, sgd"),
        (b'"\\u001b[31m" = 1', "is no setting"),
    ],
)
def test_settings_in_toml(text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(text)
    result = commands.run("train", "--config", path)
    assert not commands.fault_of(result, ("",)), result
    assert said in result.err, result.err


def test_a_message_shows_any_value() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert cut(deep) == "a deep list"
    assert cut(1 << 20000) == "a number of 20001 bits"


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "texts" / "book.txt"
    path.parent.mkdir()
    path.write_text("the old man went to the sea and back\n" * 40)
    return path


def settings(data: Path, output: Path, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "data": str(data), "output": str(output), "preset": "simple-36k-causal", "steps": 4, "batch_size": 2,
        "context": 8, "vocab_size": 40, "dim": 16, "layers": 1, "tensorboard": False, "plot": False, "device": "cpu",
        "export": "", "log_every": 1, "save_every": 2, "schedule": "constant", "warmup": 1,
    }  # fmt: skip
    return TrainConfig(**{**base, **changes})


NEWEST = "checkpoints/step-00000004"
WRONG = ["", "null", "[]", "{}", "1", "[" * 5000 + "]" * 5000, "\xff", "{", '{"step": 1}']


def test_files_of_a_run_that_are_broken(book: Path, tmp_path: Path) -> None:
    """Resumed all the same, or refused in a sentence that names the file."""
    whole = tmp_path / "whole"
    train(settings(book, whole))
    state = json.loads((whole / NEWEST / "state.json").read_text())
    faults = [(name, text.encode("latin-1")) for name in ("config.json", "data/data.json") for text in WRONG]
    faults += [(f"{NEWEST}/state.json", text.encode("latin-1")) for text in WRONG]
    for key, value in [("step", -1), ("step", 3), ("tokens", -1), ("stale", 10**400), ("processes", 0), ("loss", None)]:
        faults.append((f"{NEWEST}/state.json", json.dumps({**state, key: value}).encode()))
    faults += [("log.csv", b"step,loss\n" + bad + b"\n") for bad in (b"9" * 5000, b"\x00", b"1,x", b"-1,2")]
    for name, raw in faults:
        copy = tmp_path / "copy"
        shutil.copytree(whole, copy)
        (copy / name).write_bytes(raw)
        try:
            train(settings(book, copy, steps=5), resume=True)
        except LlmconvError as error:
            assert Path(name).name in str(error) and len(str(error)) < 500, (name, raw[:20], str(error))
        else:
            assert name in ("log.csv", "data/data.json"), (name, raw[:20])
        shutil.rmtree(copy)


@pytest.mark.parametrize("name", ["state.json", "optimizer.pt", "random-0.pt", "model.gguf"])
def test_a_pipe_for_a_file_of_a_checkpoint(name: str, book: Path, tmp_path: Path) -> None:
    train(settings(book, tmp_path / "run"))
    path = tmp_path / "run" / NEWEST / name
    path.unlink()
    os.mkfifo(path)
    if name == "state.json":  # by which a checkpoint is known to be whole: the one before it serves
        assert train(settings(book, tmp_path / "run"), resume=True).steps == 4
    else:
        with pytest.raises(llmconv.BadFile, match="is not a regular file"):
            train(settings(book, tmp_path / "run"), resume=True)


# A run inside of its own data


def test_a_run_does_not_read_what_runs_wrote(book: Path, tmp_path: Path) -> None:
    data, run = book.parent, book.parent / "runs" / "1"
    first = train(settings(data, run))
    assert (run / "summary.md").is_file()
    (data / "runs" / "old").mkdir()
    (data / "runs" / "old" / "notes.md").write_text("what a summary says")
    (data / "runs" / "old" / LOCK).touch()
    done = train(settings(data, run, steps=6), resume=True)
    assert done.steps == 6
    for notes, names in ((first.notes, "runs/1"), (done.notes, "runs/1, runs/old")):
        assert f"{data}: {names}: what a run of training wrote is no data, and is left out" in notes
    apart = train(settings(book, tmp_path / "apart", steps=6))
    assert apart.loss == done.loss


def test_a_source_is_unchanged_by_a_run_inside_of_it(book: Path, tmp_path: Path) -> None:
    made = train(settings(book, tmp_path / "made", steps=1, export="safetensors")).exports[0]
    config = settings(
        book, made / "further", preset="", vocab_size=0, dim=0, layers=0, from_checkpoint=str(made), steps=2
    )
    train(config)
    assert train(dataclasses.replace(config, steps=3), resume=True).steps == 3


def test_the_data_are_not_written_over(book: Path) -> None:
    with pytest.raises(llmconv.UsageError, match="is where the data are; choose another output folder"):
        train(settings(book.parent, book.parent))
    assert [p.name for p in book.parent.iterdir()] == ["book.txt"]


# Another process of the run that ended


@pytest.mark.parametrize(
    "said",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5047.",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer",
        "NCCL error in: ProcessGroupNCCL.cpp:1, remote process exited or there was a network error",
    ],
)
def test_the_end_of_another_process_is_a_sentence(said: str) -> None:
    team = Team(1, 2, torch.device("cpu"))
    sentence = r"run: another of the run's 2 processes ended.*; .* go on with resume=True"
    with pytest.raises(LlmconvError, match=sentence), alone(team, "run"):
        raise RuntimeError(said)
    with pytest.raises(LlmconvError, match="another of the run's 2"), alone(team, "run"):
        raise torch.distributed.DistNetworkError("failed to recv, got 0 bytes")
    with pytest.raises(RuntimeError, match="a fault of ours"), alone(team, "run"):
        raise RuntimeError("a fault of ours")
    with pytest.raises(RuntimeError, match="gloo"), alone(Team(0, 1, torch.device("cpu")), "run"):
        raise RuntimeError("gloo/ is no other process's fault when there is none")
