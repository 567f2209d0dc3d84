"""The whole command under bad inputs and bad surroundings: one sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import malformed
import numpy as np
import pytest
from malformed import Case, fault_of, run, snapshot, write_gguf, write_hf
from simple_model import document

import llmconv
from llmconv.formats import gguf_file
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

CASES = malformed.cases()
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Flushing to the disk is tested elsewhere; the command's handlers of signals go with each test."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("good") / "good.gguf")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the theory of this and that " * 40)
    return path


# Bad inputs.


def readers(bad: Path, good: Path, out: Path) -> list[list[object]]:
    """Every command that reads a model, with `bad` in each place where one goes."""
    return [
        ["inspect", bad],
        ["convert", bad, out / "o.gguf"],
        ["convert", bad, out / "folder"],
        ["convert", bad, out / "o.json"],
        ["quantize", bad, "-t", "Q8_0", "-o", out / "q.gguf"],
        ["tokenize", bad, "the"],
        ["detokenize", bad, "1"],
        ["verify", bad, good],
        ["verify", good, bad],
        ["diff", good, bad],
        ["edit", bad, "--set", "a=str:b", "-o", out / "e.gguf"],
        ["size", bad],
        ["split", bad, out / "s", "--max-size", "5K"],
        ["merge", bad, out / f"m{bad.suffix or '.safetensors'}"],
    ]


def check(args: list[object], names: tuple[str, ...], out: Path, may_pass: bool = False) -> None:
    result = run(*args)
    if result.code == 0 and may_pass:
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return
    if args[0] in ("verify", "diff") and may_pass and result.code == 1 and not result.err:
        return  # the answer: they differ
    assert fault_of(result, names) == "", args
    assert result.out == "" and list(out.iterdir()) == [], args


def names_of(bad: Path) -> tuple[str, ...]:
    return (bad.name, "config.json", "tokenizer.json")


CONTAINERS = [c for c in CASES if not c.readable]
ONE_OF_EACH = {c.kind: c for c in reversed(CONTAINERS)}


@pytest.mark.parametrize("case", CONTAINERS, ids=lambda c: f"{c.kind}-{c.name}")
def test_a_bad_container_is_refused(tmp_path: Path, good: Path, case: Case) -> None:
    if case.name.startswith("old format") and not HAS_TORCH:
        pytest.skip("PyTorch's old format is read through torch")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    bad = case.make(tmp_path / "in")
    before = snapshot(tmp_path / "in")
    every = readers(bad, good, tmp_path / "out")
    for args in every if case is ONE_OF_EACH[case.kind] else [every[1], every[4]]:
        check(args, names_of(bad), tmp_path / "out")
    assert snapshot(tmp_path / "in") == before
    assert not list(tmp_path.rglob("PWNED*"))


@pytest.mark.parametrize("case", [c for c in CASES if c.readable], ids=lambda c: f"{c.kind}-{c.name}")
def test_a_model_that_contradicts_itself_is_refused(tmp_path: Path, good: Path, case: Case) -> None:
    """By commands that need what is wrong; the others may do their work, and none may break."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    bad = case.make(tmp_path / "in")
    every = readers(bad, good, tmp_path / "out")
    check(every[4], names_of(bad), tmp_path / "out", may_pass=bool(case.says))
    for args in (every[1], every[0], every[5], every[7], every[11]):
        check(args, names_of(bad), tmp_path / "out", may_pass=args is not every[1] or bool(case.says))


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize("case", ["gguf", "safetensors", "json", "msgpack", "llama2c", "torch", "meaning", "config"])
def test_models_that_would_be_run(tmp_path: Path, good: Path, text: Path, case: str) -> None:
    (tmp_path / "out").mkdir()
    picked = {"meaning": "heads 0", "config": "layers -1"}.get(case)
    found = next(c for c in CASES if c.kind == case and picked in (None, c.name))
    bad = found.make(tmp_path)
    cpu = ["--device", "cpu"]
    for args in (
        ["perplexity", bad, text, *cpu],
        ["compare", bad, good, text, *cpu],
        ["compare", good, bad, text, *cpu],
        ["generate", bad, "-p", "the", *cpu],
        ["train", text, "-o", tmp_path / "out" / "run", "--from", bad, "--steps", "1", "-q", *cpu],
        ["sweep", bad, text, "-o", tmp_path / "out" / "sweep", "--types", "Q8_0", "-q", *cpu],
    ):
        result = run(*args)
        assert fault_of(result, names_of(bad)) == "", args
        assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix in (".gguf", ".tmp")], args


@pytest.mark.skipif(not HAS_TORCH, reason="needs torch")
@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("data.json", b"{"), ("data.json", b"[]"), ("data.json", b'[{"input":1}]'), ("data.json", b"[" * 100_000),
        ("data.jsonl", b'{"text":1}\n'), ("data.txt", b"\xff\xfe\x00"), ("data.txt", b""), ("gone.txt", None),
    ],
)  # fmt: skip
def test_bad_training_data(tmp_path: Path, name: str, raw: bytes | None) -> None:
    data = tmp_path / name
    if raw is not None:
        data.write_bytes(raw)
    args = ["train", data, "-o", tmp_path / "run", "--preset", "simple-36k", "--steps", "1", "--device", "cpu"]
    assert fault_of(run(*args), (name,)) == ""


@pytest.mark.parametrize("name", malformed.IMATRICES)
def test_bad_importance_matrices(tmp_path: Path, good: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "bad.imatrix").write_bytes(malformed.IMATRICES[name])
    args: list[object] = ["quantize", good, "-t", "Q4_K_M", "--pure", "-o", tmp_path / "out" / "q.gguf"]
    check([*args[:2], "-t", "Q8_0", "--imatrix", tmp_path / "bad.imatrix", *args[5:]], ("bad.imatrix", "good.gguf"),
          tmp_path / "out", may_pass=name in ("other size",))  # fmt: skip


@pytest.mark.parametrize(
    "raw", [b"", b"\x00", b"\x0a\xff\xff\xff\xff\x0f", b"hello", bytes(5000), b"\x0a\x05\x0a\x01a\x15"]
)
def test_bad_sentencepiece_models(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(raw)
    assert fault_of(run("tokenize", tmp_path / "tokenizer.model", "x"), ("tokenizer.model",)) == ""


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    name = "evil\x1b[31m\r\nllmconv: all is well"
    (tmp_path / name).write_bytes(b"GGUF")
    result = run("inspect", tmp_path / name)
    assert fault_of(result, ("evil\\x1b[31m\\r\\nllmconv",)) == ""


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    done = command("--debug", "inspect", "bad.gguf", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert command("inspect", "bad.gguf", cwd=tmp_path).stderr.count("\n") == 1


def test_a_bug_is_a_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError("x\ny")

    monkeypatch.setattr(gguf_file, "FORMAT", dataclasses.replace(gguf_file.FORMAT, open=broken))
    (tmp_path / "m.gguf").write_bytes(malformed.test_malformed_gguf.GOOD["plain"])
    result = run("inspect", tmp_path / "m.gguf")
    assert result.code == 1 and result.err.count("\n") == 1 and "this is a bug in llmconv" in result.err


def test_a_sparse_file_costs_nothing_whatever_its_name(tmp_path: Path) -> None:
    for name in ("m.gguf", "m.safetensors", "m.json", "m.msgpack", "m.bin", "m.pt", "m"):
        with (tmp_path / name).open("wb") as file:
            os.truncate(file.fileno(), 1 << 40)
        start = time.process_time()
        assert fault_of(run("inspect", tmp_path / name), (name,)) == ""
        assert time.process_time() - start < 2


# Nothing in a model runs, and nothing goes to the network.

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
    for i, case in enumerate(c for c in CASES if c.kind == "torch" and (HAS_TORCH or "old" not in c.name)):
        path = case.make(tmp_path / "in")
        lines += [["convert", path.rename(path.with_name(f"{i}.pt")), "o.gguf"]]
    codes = guarded(tmp_path, lines, {"torch", "collections", "numpy", "_codecs"})
    assert codes == [1] * len(lines)
    assert not list(tmp_path.rglob("PWNED*"))


def test_code_in_a_folder_is_not_imported(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf", malformed.changed(malformed.CONFIG, auto_map={"AutoConfig": "evil.Config"}))
    (hf / "evil.py").write_text("open('PWNED', 'w')")
    (hf / "numpy.py").write_text("open('PWNED', 'w')")
    done = command("convert", ".", "../o.gguf", cwd=hf)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("PWNED"))


# Surroundings.


def command(*args: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "llmconv", *map(str, args)],
        **{"capture_output": True, "text": True, "timeout": 120, **options},
    )


@pytest.mark.parametrize("how", ["itself", "link", "hard link", "other spelling"])
@pytest.mark.parametrize("kind", ["convert", "quantize", "edit", "merge"])
def test_an_output_that_is_the_input_is_never_destroyed(tmp_path: Path, good: Path, how: str, kind: str) -> None:
    path, target = tmp_path / "m.gguf", tmp_path / "other.gguf"
    shutil.copy(good, path)
    match how:
        case "itself":
            target = path
        case "link":
            target.symlink_to(path)
        case "hard link":
            os.link(path, target)
        case _:
            target = tmp_path / ".." / tmp_path.name / "m.gguf"
    before = path.read_bytes()
    args: dict[str, list[object]] = {
        "convert": ["convert", path, target, "--force"],
        "quantize": ["quantize", path, "-t", "Q8_0", "-o", target, "--force"],
        "edit": ["edit", path, "--set", "a=str:b", "-o", target, "--force"],
        "merge": ["merge", path, target, "--force"],
    }
    result = run(*args[kind])
    assert result.code == 1 and "is the input itself" in result.err, result
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1 + (how in ("link", "hard link"))


@pytest.mark.parametrize("ending", [".gguf", ".json", ".safetensors", ".msgpack"])
def test_bad_targets(tmp_path: Path, good: Path, ending: str) -> None:
    (tmp_path / f"folder{ending}").mkdir()
    (tmp_path / f"link{ending}").symlink_to("elsewhere")
    os.mkfifo(tmp_path / f"pipe{ending}")
    for target in (f"folder{ending}", f"link{ending}", f"pipe{ending}", f"none/m{ending}", "x" * 300 + ending):
        result = run("convert", good, tmp_path / target)
        assert fault_of(result, (target, "xxx…xxx")) == "" and result.code == 1, result
    assert not (tmp_path / "elsewhere").exists() and len(list(tmp_path.iterdir())) == 3


def as_anybody() -> None:
    """In a child that runs as root: without the right to pass over permissions (CAP_DAC_OVERRIDE and READ_SEARCH)."""
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in (1, 2) if os.geteuid() == 0 else ():
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP, which counts from the next exec on
            raise OSError(ctypes.get_errno(), "prctl")


@pytest.mark.skipif(sys.platform != "linux", reason="drops root's rights as Linux does")
@pytest.mark.parametrize("kind", ["convert", "folder", "quantize", "edit", "in place", "json", "split"])
def test_a_folder_that_may_not_be_written(tmp_path: Path, good: Path, kind: str) -> None:
    closed = tmp_path / "ro"
    closed.mkdir()
    shutil.copy(good, closed / "m.gguf")
    (closed / "m.gguf").chmod(0o444)
    closed.chmod(0o555)
    args: dict[str, list[object]] = {
        "convert": ["convert", "m.gguf", "o.gguf"],
        "folder": ["convert", "m.gguf", "folder"],
        "quantize": ["quantize", "m.gguf", "-t", "Q8_0", "-q", "-o", "o.gguf"],
        "edit": ["edit", "m.gguf", "--set", "a=str:b", "-o", "o.gguf"],
        "in place": ["edit", "m.gguf", "--set", "general.name=str:b"],
        "json": ["convert", "m.gguf", "o.json"],
        "split": ["split", "m.gguf", "s", "--max-size", "20K"],
    }
    before = (closed / "m.gguf").read_bytes()
    try:
        done = command(*args[kind], cwd=closed, preexec_fn=as_anybody)
    except subprocess.SubprocessError:
        pytest.skip("needs the right to give up rights")
    finally:
        closed.chmod(0o755)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1, done
    assert "ermission" in done.stderr or "writ" in done.stderr, done.stderr
    assert [p.name for p in closed.iterdir()] == ["m.gguf"] and (closed / "m.gguf").read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="drops root's rights as Linux does")
@pytest.mark.parametrize("what", ["file", "folder", "side file"])
def test_an_input_that_may_not_be_read(tmp_path: Path, good: Path, what: str) -> None:
    hf = write_hf(tmp_path / "hf")
    shutil.copy(good, tmp_path / "m.gguf")
    closed = {"file": tmp_path / "m.gguf", "folder": hf, "side file": hf / "config.json"}[what]
    closed.chmod(0)
    try:
        for args in (["inspect"], ["convert"], ["size"], ["tokenize"]):
            rest = {"convert": ["o.gguf"], "tokenize": ["the"]}.get(args[0], [])
            source = "m.gguf" if what == "file" else "hf"
            done = command(*args, source, *rest, cwd=tmp_path, preexec_fn=as_anybody)
            if what == "side file" and args[0] == "tokenize" and done.returncode == 0:
                continue
            assert done.returncode == 1 and done.stderr.count("\n") == 1, (args, done)
            assert done.stderr.startswith("llmconv: ") and "bug" not in done.stderr, done.stderr
    except subprocess.SubprocessError:
        pytest.skip("needs the right to give up rights")
    finally:
        closed.chmod(0o755)
    assert not (tmp_path / "o.gguf").exists()


def test_places_where_nothing_can_be_written(tmp_path: Path, good: Path) -> None:
    for target in ("/proc/m.gguf", "/sys/m.gguf", "/dev/null", "/dev/full"):
        result = run("convert", good, target, "--force") if "m.gguf" in target else run("convert", good, target)
        assert result.code in (1, 2) and result.err.count("\n") == 1, result
    assert os.path.exists("/dev/null") and not os.path.isfile("/dev/null")


@pytest.mark.parametrize("args", [["inspect"], ["convert"], ["tokenize"], ["size"], ["quantize", "-t", "Q8_0"]])
def test_inputs_that_are_no_files(tmp_path: Path, args: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    server = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(tmp_path)
        server.bind("socket.gguf")
    finally:
        server.close()
    (tmp_path / "loop.gguf").symlink_to("loop.gguf")
    (tmp_path / "empty").mkdir()
    start = time.monotonic()
    for name in (
        "pipe.gguf",
        "socket.gguf",
        "loop.gguf",
        "empty",
        "/dev/zero",
        "/dev/tty",
        "none.gguf",
        "/proc/self/mem",
    ):
        result = run(*args, name)
        assert fault_of(result, (name,)) == "", (name, result)
    assert time.monotonic() - start < 5


def test_a_pipe_in_the_place_of_a_side_file(tmp_path: Path) -> None:
    hf = write_hf(tmp_path / "hf")
    for name in ("config.json", "tokenizer.json"):
        (hf / name).rename(tmp_path / "kept")
        os.mkfifo(hf / name)
        done = command("convert", hf, tmp_path / "o.gguf", timeout=30)
        assert done.returncode in (0, 1) and done.stderr.count("\n") <= 1, done.stderr
        (hf / name).unlink()
        (tmp_path / "kept").rename(hf / name)
        (tmp_path / "o.gguf").unlink(missing_ok=True)


def test_names_that_are_not_utf_8(tmp_path: Path, good: Path) -> None:
    name = os.fsdecode(b"\xff\xfe m.gguf")
    shutil.copy(good, tmp_path / name)
    for args in (
        ["inspect", name],
        ["convert", name, os.fsdecode(b"\xfd.safetensors")],
        ["edit", name, "--set", "a=u8:1"],
    ):
        done = command(*args, cwd=tmp_path, env={**os.environ, "LC_ALL": "C"})
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (tmp_path / name).write_bytes(b"GGUF")
    done = command("inspect", name, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1


def test_closed_and_full_streams(tmp_path: Path, good: Path) -> None:
    base = f"{sys.executable} -m llmconv"
    for line, codes in (
        (f"{base} inspect {good} | true", (0,)),
        (f"{base} inspect {good} >&-", (0,)),
        (f"{base} convert {good} {tmp_path}/a.gguf >&- 2>&- <&-", (0,)),
        (f"{base} inspect {good} > /dev/full", (1,)),
        (f"{base} inspect {tmp_path}/none 2>&-", (1,)),
    ):
        done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True)
        assert done.returncode in codes and "Traceback" not in done.stderr and "ignored" not in done.stderr, (
            line,
            done,
        )
    assert llmconv.verify(tmp_path / "a.gguf", good).same


def test_no_home(tmp_path: Path, good: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "LLMCONV_CACHE", "USER")}
    for home in (None, "/nonexistent"):
        out = tmp_path / f"q{home is None}.gguf"
        done = command("quantize", good, "-t", "Q8_0", "-q", "-o", out, env=env | ({"HOME": home} if home else {}))
        assert done.returncode == 0 and out.exists() and done.stderr == "", done.stderr


LIMITS: dict[str, tuple[int, int]] = {
    "open files": (resource.RLIMIT_NOFILE, 16),
    "file size": (resource.RLIMIT_FSIZE, 10_000),
    "memory": (resource.RLIMIT_AS, 1 << 30),
}


@pytest.mark.parametrize("name", LIMITS)
def test_low_limits(tmp_path: Path, good: Path, name: str) -> None:
    which, value = LIMITS[name]
    shutil.copy(good, tmp_path / "m.gguf")

    def limit() -> None:
        resource.setrlimit(which, (value, value))

    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    for args in (["inspect", "m.gguf"], ["convert", "m.gguf", "a.gguf"], ["convert", "m.gguf", "folder"]):
        done = command(*args, cwd=tmp_path, preexec_fn=limit, env=env)
        failed = name == "file size" and args[0] == "convert"
        assert done.returncode == (1 if failed else 0), (args, done.stderr)
        assert done.stderr.count("\n") == failed, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == (
        ["m.gguf"] if name == "file size" else ["a.gguf", "folder", "m.gguf"]
    )


def test_many_shards_under_few_descriptors(tmp_path: Path) -> None:
    made = Checkpoint(metadata={"general.architecture": "x"})
    for i in range(40):
        made.add(Tensor.from_array(f"t{i}", np.full(8, i, np.float32)))
    first = gguf_file.save(made, tmp_path / "m.gguf", split_max_tensors=1)[0]
    for args in (["merge", first, "one.gguf"], ["convert", first, "again.gguf", "--split-max-tensors", "1"]):
        done = command(*args, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24)))
        assert done.returncode == 0, (args, done.stderr)


# Interrupts and full disks.

SLOW = """
import os, sys, time
from llmconv.formats import target
write = target.write_at
def slow(*args):
    write(*args); print("ready", flush=True); time.sleep(20)
target.write_at = slow
pwrite = os.pwrite
def slow_pwrite(*args):
    n = pwrite(*args); print("ready", flush=True); time.sleep(20); return n
os.pwrite = slow_pwrite
fsync = os.fsync
def slow_fsync(*args):
    fsync(*args); print("ready", flush=True); time.sleep(20)
os.fsync = slow_fsync
from llmconv.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
@pytest.mark.parametrize(
    "args",
    [
        ["convert", "m.gguf", "o.gguf"],
        ["convert", "m.gguf", "o.json"],
        ["quantize", "m.gguf", "-t", "Q8_0", "-q", "-o", "o.gguf"],
    ],
    ids=lambda a: a[0] + a[-1],
)
def test_a_signal_leaves_the_old_file(tmp_path: Path, good: Path, args: list[str], number: signal.Signals) -> None:
    shutil.copy(good, tmp_path / "m.gguf")
    target = tmp_path / args[-1]
    target.write_bytes(b"old")
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *args, "--force"], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "llmconv: interrupted\n", err
    assert target.read_bytes() == b"old" and sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", target.name]


EARLY = """
import builtins, sys, time
plain = builtins.__import__
def slow(name, *args):
    if name == "click":
        print("ready", flush=True); time.sleep(20)
    return plain(name, *args)
builtins.__import__ = slow
sys.argv = ["llmconv", "--help"]
from llmconv.__main__ import main
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_a_signal_while_the_command_is_being_imported(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", EARLY], text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "llmconv: interrupted\n", err


def _save_json(source: Path, folder: Path) -> None:
    llmconv.convert_file(source, folder / "o.json")


def _save_msgpack(source: Path, folder: Path) -> None:
    llmconv.convert_file(source, folder / "o.msgpack")


def _quantize(source: Path, folder: Path) -> None:
    llmconv.quantize(source, folder / "q.gguf", ["Q8_0"])


def _resumable(source: Path, folder: Path) -> None:
    llmconv.quantize(source, folder / "q.gguf", ["Q8_0"], resumable=True)


def _edited(source: Path, folder: Path) -> None:
    llmconv.edit(source, set={"a": "b" * 100_000}, output=folder / "e.gguf")


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "json": _save_json, "msgpack": _save_msgpack, "quantize": _quantize, "resumable": _resumable, "edit": _edited,
}  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_at_each_call(tmp_path: Path, good: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each system call that writes fails once, in turn: a sentence, and nothing under the final name."""
    from test_files import failing_at

    failed = 0
    for call in ("open", "pwrite", "posix_fallocate", "truncate", "fsync", "link"):
        for nth in range(12):
            out = tmp_path / f"{call}{nth}"
            out.mkdir()
            with monkeypatch.context() as patch:
                patch.setattr(os, call, failing_at(getattr(os, call), nth))
                try:
                    WRITERS[name](good, out)
                except llmconv.LlmconvError as error:
                    failed += 1
                    assert "\n" not in str(error)
                    left = {p.name for p in out.iterdir()}
                    # A resumable run keeps what it has, under its own names; a second run then finishes it.
                    assert left <= ({"q.gguf.partial", "q.gguf.partial.journal"} if name == "resumable" else set())
                    if name == "resumable":
                        patch.undo()
                        WRITERS[name](good, out)
                        assert {p.name for p in out.iterdir()} == {"q.gguf"}
                    continue
            break
    assert failed > 1


@pytest.mark.parametrize("call", ["pwrite", "fsync", "open"])
def test_an_edit_that_is_cut_off_is_undone(
    tmp_path: Path, good: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Editing in place: whatever fails, the next edit finds the old or the new header whole."""
    from test_files import failing_at

    for nth in range(8):
        path = tmp_path / f"{nth}.gguf"
        shutil.copy(good, path)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing_at(getattr(os, call), nth))
            try:
                llmconv.edit(path, set={"a": "b"})
            except llmconv.LlmconvError as error:
                assert "\n" not in str(error)
        llmconv.edit(path, set={"c": "d"})
        found = llmconv.open(path)
        assert found.metadata["c"] == "d" and found.metadata.get("a", "b") == "b"
        assert all(t.status == "identical" for t in llmconv.verify(path, good).tensors)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_small_disk(tmp_path: Path, good: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        for args in (
            ["convert", good, disk / "o.gguf"], ["convert", good, disk / "o.json"],
            ["convert", good, disk / "o.msgpack"],
            ["convert", good, disk / "folder"], ["quantize", good, "-t", "F32", "-q", "-o", disk / "q.gguf"],
        ):  # fmt: skip
            result = run(*args)
            assert result.code == 1 and result.err.count("\n") == 1 and ("space" in result.err or "free" in result.err)
            assert list(disk.iterdir()) == [], args
    finally:
        subprocess.run(["umount", disk], check=True)


# What the documentation says.


def test_every_limit_is_documented(root: Path) -> None:
    from llmconv.formats import limits

    words = (root / "docs" / "reliability.md").read_text()
    for name in (n for n in vars(limits) if n.isupper()):
        value = getattr(limits, name)
        assert f"`{name}`" in words and f"{value:,}" in words, name
