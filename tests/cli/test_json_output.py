"""`--json`: one envelope over all commands, with what docs/json-output.md says is in it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import llmconv
from llmconv import cli
from llmconv.cli import envelope

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "json-output.md").read_text()
KEYS = {
    name: re.findall(r"`(\w+)`", keys)
    for names, keys in re.findall(r"^\| (`[^|]+) \| [^|]+ \| ([^|]+) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`([\w-]+)`", names)
}
LINES = [
    "json-to-gguf m.json c.gguf", "quantize m.gguf -t Q8_0 --dry-run", "inspect m.gguf", "inspect m.json",
    "verify m.json m.gguf", "diff m.gguf n.gguf", "size m.gguf", "size gpt2-small", "tokenize m.gguf the",
    "edit n.gguf --set general.name=str:x -o e.gguf", "split m.gguf s.gguf --max-tensors 9", "merge m.gguf all.gguf",
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(line: str) -> tuple[int, dict[str, Any], str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([*line.split(), "--json"])
        out, err = capsys.readouterr()
        shape = json.loads(out)
        assert list(shape)[:2] == ["command", "version"] and set(shape) - {"command", "version"} in (
            {"result"},
            {"error"},
        )
        assert shape["version"] == llmconv.__version__ and shape["command"] == line.split()[0]
        return int(stop.value.code or 0), shape, err

    (tmp_path / "m.json").write_bytes((ROOT / "examples" / "simple-36k.json").read_bytes())
    llmconv.convert_file("m.json", "m.gguf")
    model = llmconv.open("m.gguf")
    model.metadata["general.name"] = "another"
    llmconv.save(model, "n.gguf")
    return run


@pytest.mark.parametrize("line", LINES)
def test_results_hold_what_the_page_says(run: Any, line: str) -> None:
    command = line.split()[0]
    _, shape, _ = run(line)
    found = shape["result"]
    for one in found if isinstance(found, list) else [found]:
        assert set(KEYS[command]) <= set(one), set(KEYS[command]) - set(one)
        assert not {"size", "bytes", "ppl"} & set(one)


def test_every_command_is_on_the_page() -> None:
    named = {n for n in cli.COMMANDS if n in KEYS or "-to-" in n}
    assert set(cli.COMMANDS) - named == {"warmup", "detokenize"}


@pytest.mark.parametrize(
    ("line", "code", "kind", "data"),
    [
        ("inspect none.gguf", 1, "BadFile", {}),
        ("json-to-gguf m.json m.gguf", 1, "OutputExists", {"file": "m.gguf"}),
        ("quantize m.gguf -t Q4_K_X", 2, "UnknownName", {"name": "Q4_K_X", "kind": "file type"}),
        ("inspect m.gguf --histogram token_embd.weigh", 1, "MissingTensor", {"tensor": "token_embd.weigh"}),
        ("quantize m.gguf", 2, "UsageError", {}),
    ],
)
def test_errors_have_their_class_and_data(run: Any, line: str, code: int, kind: str, data: dict[str, Any]) -> None:
    left, shape, err = run(line)
    error = shape["error"]
    assert left == code and error["class"] == kind and data.items() <= error.items()
    assert err == f"llmconv: {error['message']}\n"


def test_names_of_a_model_s_own_stay() -> None:
    value = {"size": 1, "metadata": {"size": 2}, "tensors": {"size": "hash"}, "rows": [{"ppl": 3}], "run": {"ppl_a": 4}}
    assert envelope.alike(value) == {
        "nbytes": 1, "metadata": {"size": 2}, "tensors": {"size": "hash"}, "rows": [{"perplexity": 3}],
        "run": {"perplexity_a": 4},
    }  # fmt: skip
