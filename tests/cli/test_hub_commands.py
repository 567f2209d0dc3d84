"""`hf://` in the place of a path, in every command: the same as of the file, or refused in a sentence."""

from collections.abc import Iterator
from pathlib import Path

import commands
import pytest

pytest.importorskip("huggingface_hub", reason="they need huggingface_hub")
pytest.importorskip("torch", reason="half of the commands run a model")

import runnable
from hub_server import Hub

import llmconv
from llmconv.cli import COMMANDS
from llmconv.convert.translate import translate
from llmconv.formats.places import hub as hubs, ranges

FILE, FOLDER = "hf://org/toy/llama.gguf", "hf://org/toy"
# command -> what it is given; {m} the model.  Outputs lie in the folder where it runs.
RIGHT = {
    "convert": "{m} out.gguf",
    "gguf-to-json": "{m} out.json",
    "gguf-to-safetensors": "{m} out",
    "quantize": "{m} -o out.gguf -t Q8_0",
    "tokenize": "{m} w1",
    "detokenize": "{m} 3",
    "embed": "{m} w1 --device cpu",
    "inspect": "{m} --tensors --hash",
    "view": "{m} -o out.html",
    "verify": "{m} {m}",
    "diff": "{m} {m}",
    "size": "{m}",
    "edit": "{m} --set general.name=x -o out.gguf",
    "split": "{m} out --max-tensors 3",
    "merge": "{m} out.gguf",
    "ollama": "{m} out",
    "perplexity": "{m} text.txt -c 16 --chunks 1 --device cpu",
    "compare": "{m} {m} text.txt -c 16 --chunks 1 --device cpu",
    "imatrix": "{m} text.txt -o out.gguf -c 16 --chunks 1 --device cpu",
    "calibrate": "{m} text.txt -o out -c 16 --chunks 1 --device cpu",
    "generate": "{m} -p w1 -n 4 --device cpu --greedy",
    "sweep": "{m} text.txt --types Q8_0 -o out --no-plot -c 16 --chunks 1 --device cpu",
    "train": "text.txt -o out --from {m} --context 8 --steps 2 --batch-size 2 --warmup 1 --eval-sequences 2"
    " --device cpu --no-plot --no-tensorboard",
}
ELSEWHERE = {"json-to-gguf", "json-to-safetensors", "safetensors-to-gguf", "safetensors-to-json", "warmup", "presets"}
ELSEWHERE |= {"upload"}
SLOW = ("sweep", "train", "calibrate")


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "toy"
    llama = runnable.checkpoint()
    llmconv.save(translate(llama, "hf"), folder)
    runnable.write(llama, folder / "llama.gguf")
    return folder


@pytest.fixture
def hub(served, monkeypatch, tmp_path) -> Iterator[Hub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(hubs, "WAIT", 0.0)
    monkeypatch.setattr(ranges, "_pieces", ranges._Pieces())
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(runnable.text())
    with Hub(served) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_every_command_is_here():
    assert set(RIGHT) | ELSEWHERE == set(COMMANDS)


@pytest.mark.parametrize("command", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in RIGHT])
def test_the_same_as_of_the_file(hub, served, tmp_path, command):
    found = []
    for model in (FILE, served / "llama.gguf"):
        run = commands.run(command, *RIGHT[command].format(m=model).split())
        assert run.code == 0, run.err
        made = {}
        for path in sorted(p for p in tmp_path.rglob("*") if "out" in p.relative_to(tmp_path).parts[0]):
            if path.is_file():
                made[path.relative_to(tmp_path)] = path.read_bytes()
                path.unlink()
        found.append((run.out.count("\n"), made))
    if command not in ("sweep", "train", "view", "calibrate"):  # they write times and names
        assert found[0] == found[1]
    assert found[0][1].keys() == found[1][1].keys()
    assert all(p.name in ("text.txt", "home") or p.is_dir() for p in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            f"edit {FILE} --set general.name=x",
            "lies on another machine, where nothing is changed; write a copy with -o",
        ),
        (f"split {FOLDER} hf://me/x --max-size 1M", "this is written to a disk"),
        (f"train text.txt -o hf://me/x --from {FILE}", "hf://me/x"),
        (f"verify {FILE} hf://org/toy/none.gguf", "no such file"),
        ("inspect hf://org/none", "no such repository"),
        ("quantize hf://org/toy/text.txt -t Q8_0", "no such file"),
    ],
)
def test_refused_in_a_sentence(hub, tmp_path, words, says):
    run = commands.run(*words.split())
    assert run.code and not commands.fault_of(run, (says,)), run.err
    assert sorted(p.name for p in tmp_path.iterdir()) in (["text.txt"], ["home", "text.txt"])


NAME = "meta-llama/Llama-3.2-1B"


@pytest.mark.parametrize("command", [c for c in RIGHT if c not in ("tokenize", "detokenize")])
def test_a_repository_named_as_a_path(hub, command):
    run = commands.run(command, *RIGHT[command].format(m=NAME).split())
    assert run.code and f"for the Hub's repository write hf://{NAME}" in run.err, run.err
    assert not commands.fault_of(run, (NAME,))
