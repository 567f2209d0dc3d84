"""The command in bad surroundings: targets, permissions, odd files and names, streams, limits, a small disk."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import command, fault_of, run
from good_models import write_hf

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
