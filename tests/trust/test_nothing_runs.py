"""Nothing in a model runs, and nothing goes to the network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import malformed
import pytest
from commands import command
from good_models import CONFIG, changed, write_hf
from simple_model import document

HAS_TORCH = importlib.util.find_spec("torch") is not None
GUARD = """
import sys
allowed = {allowed!r}
def guard(event, args):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto", "urllib.Request"):
        print("FORBIDDEN", event, args, file=sys.stderr, flush=True); import os; os._exit(99)
    if event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "os.spawn"):
        print("FORBIDDEN", event, args, file=sys.stderr, flush=True); import os; os._exit(99)
    if event == "pickle.find_class" and str(args[0]).split(".")[0] not in allowed:
        print("FORBIDDEN", event, args, file=sys.stderr, flush=True); import os; os._exit(99)
sys.addaudithook(guard)
from llmconv.cli import main
for line in open(sys.argv[1]):
    try:
        main(line.rstrip("\\n").split("\\t"))
    except SystemExit as stop:
        print("exit", stop.code, flush=True)
"""


def guarded(tmp_path: Path, lines: list[list[object]], allowed: set[str]) -> list[int]:
    """Exit codes of commands in a process that dies when one connects, starts a program, or unpickles a class.

    allowed: modules whose classes may be unpickled.
    """
    (tmp_path / "guard.py").write_text(GUARD.format(allowed=allowed))
    (tmp_path / "lines").write_text("".join("\t".join(map(str, args)) + "\n" for args in lines))
    done = subprocess.run(
        [sys.executable, tmp_path / "guard.py", tmp_path / "lines"], capture_output=True, text=True, cwd=tmp_path
    )
    assert "FORBIDDEN" not in done.stderr and done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("exit ")]


@pytest.mark.slow
def test_no_command_goes_to_the_network(tmp_path: Path, good: Path, text: Path) -> None:
    hf = write_hf(tmp_path / "hf")
    (tmp_path / "model.json").write_text(json.dumps(document(heads=2)))
    lines: list[list[object]] = [
        ["inspect", good],
        ["convert", hf, "a.gguf"],
        ["convert", "a.gguf", "folder"],
        ["json-to-gguf", "model.json"],
        ["quantize", "a.gguf", "-t", "Q8_0", "-o", "q.gguf", "-q"],
        ["verify", "a.gguf", good],
        ["diff", "a.gguf", "a.gguf"],
        ["size", "llama2-7b"],
        ["tokenize", hf, "the"],
        ["edit", "a.gguf", "--set", "x=u32:1"],
        ["split", "a.gguf", "s", "--max-size", "20K"],
    ]
    if HAS_TORCH:
        lines += [
            ["perplexity", good, text, "-c", "16", "--chunks", "1", "--device", "cpu", "-q"],
            ["generate", good, "-p", "the", "-n", "2", "--device", "cpu", "-q"],
        ]
    codes = guarded(tmp_path, lines, set())
    assert codes == [0] * len(lines)


def test_nothing_in_a_model_is_run(tmp_path: Path, good: Path) -> None:
    (tmp_path / "in").mkdir()
    lines: list[list[object]] = []
    for i, case in enumerate(c for c in malformed.cases() if c.kind == "torch" and (HAS_TORCH or "old" not in c.name)):
        path = case.make(tmp_path / "in")
        lines += [["convert", path.rename(path.with_name(f"{i}.pt")), "o.gguf"]]
    codes = guarded(tmp_path, lines, {"torch", "collections", "numpy", "_codecs"})
    assert codes == [1] * len(lines)
    assert not list(tmp_path.rglob("PWNED*"))


def test_code_in_a_folder_is_not_imported(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf", changed(CONFIG, auto_map={"AutoConfig": "evil.Config"}))
    (hf / "evil.py").write_text("open('PWNED', 'w')")
    (hf / "numpy.py").write_text("open('PWNED', 'w')")
    done = command("convert", ".", "../o.gguf", cwd=hf)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("PWNED"))
