"""The whole command under bad inputs: one sentence, the right exit code, nothing left behind."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import shutil
import time
from pathlib import Path

import faulty_gguf
import malformed
import pytest
from commands import command, fault_of, run
from folders import snapshot
from malformed import Case

from llmconv.formats.gguf import gguf_file

CASES = malformed.cases()
HAS_TORCH = importlib.util.find_spec("torch") is not None


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


CONTRADICTING = [c for c in CASES if c.readable]


@pytest.mark.parametrize("case", CONTRADICTING, ids=lambda c: f"{c.kind}-{c.name}")
def test_a_model_that_contradicts_itself_is_refused(tmp_path: Path, good: Path, case: Case) -> None:
    """By commands that need what is wrong."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    bad = case.make(tmp_path / "in")
    every = readers(bad, good, tmp_path / "out")
    for args in (every[4], every[1]):
        check(args, names_of(bad), tmp_path / "out", may_pass=bool(case.says))


@pytest.mark.slow
@pytest.mark.parametrize("case", CONTRADICTING, ids=lambda c: f"{c.kind}-{c.name}")
def test_other_commands_may_do_their_work(tmp_path: Path, good: Path, case: Case) -> None:
    """And none may break."""
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    bad = case.make(tmp_path / "in")
    every = readers(bad, good, tmp_path / "out")
    for args in (every[0], every[5], every[7], every[11]):
        check(args, names_of(bad), tmp_path / "out", may_pass=True)


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
    (tmp_path / "m.gguf").write_bytes(faulty_gguf.GOOD["plain"])
    result = run("inspect", tmp_path / "m.gguf")
    assert result.code == 1 and result.err.count("\n") == 1 and "this is a bug in llmconv" in result.err


def test_a_sparse_file_costs_nothing_whatever_its_name(tmp_path: Path) -> None:
    for name in ("m.gguf", "m.safetensors", "m.json", "m.msgpack", "m.bin", "m.pt", "m"):
        with (tmp_path / name).open("wb") as file:
            os.truncate(file.fileno(), 1 << 40)
        start = time.process_time()
        assert fault_of(run("inspect", tmp_path / name), (name,)) == ""
        assert time.process_time() - start < 2
