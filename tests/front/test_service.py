"""What docs/service.md promises to whoever calls us from a long-running program."""

from __future__ import annotations

import locale
import os
import pickle
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import synthetic

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

TYPES = ("Q8_0", "Q4_0", "Q4_K", "F16", "Q6_K", "Q8_0", "Q4_0", "BF16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("service") / "m.gguf"
    rng = np.random.default_rng(0)
    made = Checkpoint(metadata={"general.architecture": "some"})
    for i in range(6):
        made.add(Tensor.from_array(f"t{i}.weight", rng.standard_normal((128, 512)).astype(np.float32)))
    llmconv.save(made, path)
    return path


def test_several_threads_at_once_make_the_bytes_that_one_makes(model: Path, tmp_path: Path) -> None:
    """Each with an output of its own, all from one opened model; and nothing of the process is changed by it."""
    alone = {name: tmp_path / f"alone-{name}.gguf" for name in set(TYPES)}
    for name, path in alone.items():
        llmconv.quantize(model, path, name, jobs=1)
    source = llmconv.open(model)
    start = threading.Barrier(len(TYPES))

    def work(number: int) -> Path:
        start.wait()
        output = tmp_path / f"{number}.gguf"
        llmconv.quantize(source, output, TYPES[number], jobs=1 + number % 2)
        return output

    before = os.getcwd(), signal.getsignal(signal.SIGINT), locale.setlocale(locale.LC_ALL), np.geterr()
    with ThreadPoolExecutor(len(TYPES)) as pool:
        made = list(pool.map(work, range(len(TYPES))))
    assert before == (os.getcwd(), signal.getsignal(signal.SIGINT), locale.setlocale(locale.LC_ALL), np.geterr())
    for name, path in zip(TYPES, made, strict=True):
        assert path.read_bytes() == alone[name].read_bytes()


def test_a_checkpoint_is_read_by_several_threads(model: Path) -> None:
    source = llmconv.open(model)
    expected = {name: tensor.numpy() for name, tensor in llmconv.open(model).tensors.items()}

    def read(number: int) -> bool:
        name = f"t{number % 6}.weight"
        start = number % 100
        rows = source.tensors[name].rows(start, start + 20)
        return np.array_equal(rows, expected[name][start : start + 20])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(200)))


def test_cancelling_one_thread_leaves_the_others(model: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.gguf"
    llmconv.quantize(model, alone, "Q4_0", jobs=1)
    start, gone = threading.Barrier(4), threading.Event()

    def work(number: int) -> str:
        def progress(step: llmconv.Step) -> None:
            if number == 0:
                gone.set()
                raise llmconv.Cancelled("the client has gone")
            assert gone.wait(60)  # so that the others are at work when it happens

        start.wait()
        try:
            llmconv.quantize(model, tmp_path / f"{number}.gguf", "Q4_0", jobs=2, progress=progress)
        except llmconv.Cancelled as error:
            return str(error)
        return "done"

    threads = threading.active_count()
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(work, range(4)))
    assert said == ["the client has gone", "done", "done", "done"] and threading.active_count() == threads
    assert {p.name for p in tmp_path.iterdir()} == {"alone.gguf", "1.gguf", "2.gguf", "3.gguf"}
    assert all((tmp_path / f"{n}.gguf").read_bytes() == alone.read_bytes() for n in (1, 2, 3))


def test_a_model_in_a_file_pickles_as_its_place(model: Path) -> None:
    data = pickle.dumps(llmconv.open(model))
    assert len(data) < 5_000 < model.stat().st_size / 100
    assert np.array_equal(pickle.loads(data).tensors["t3.weight"], llmconv.open(model).tensors["t3.weight"].numpy())


POOL = """
import multiprocessing, pathlib, sys
from concurrent.futures import ProcessPoolExecutor
import llmconv

def work(source, output):
    try:
        llmconv.quantize(source, output, "Q4_K", jobs=1)
    except llmconv.OutputExists as error:
        return error
    return pathlib.Path(output).read_bytes()

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    first = llmconv.quantize(model, f"{folder}/first.gguf", "Q4_K")  # kernels and threads have been used before a fork
    expected = pathlib.Path(f"{folder}/first.gguf").read_bytes()
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
            made = [pool.submit(work, llmconv.open(model), f"{folder}/{method}{i}.gguf") for i in range(3)]
            assert all(one.result(120) == expected for one in made), method
            error = pool.submit(work, model, f"{folder}/first.gguf").result(120)
            assert isinstance(error, llmconv.OutputExists) and error.file.endswith("first.gguf"), error
    print("same")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no fork")
def test_processes_that_are_forked_or_spawned(model: Path, tmp_path: Path) -> None:
    """Models and errors go to them and back."""
    (tmp_path / "pool.py").write_text(POOL)
    words = [sys.executable, str(tmp_path / "pool.py"), str(model), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=200)
    assert done.stdout == "same\n", done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its own memory as Linux tells it")
def test_memory_is_some_slabs_a_thread(tmp_path: Path) -> None:
    """A file of 400 MB is converted in little more than a small one."""
    script = (
        "import sys, llmconv; llmconv.convert_file(sys.argv[1], sys.argv[2], outtype='f32', jobs=2);"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])"
    )

    def peak(gigabytes: float) -> float:
        source = synthetic.sparse(tmp_path / f"{gigabytes}.gguf", gigabytes)
        words = [sys.executable, "-c", script, str(source), str(tmp_path / "made.gguf")]
        found = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout) / 1000
        (tmp_path / "made.gguf").unlink()
        return found

    assert peak(0.4) - peak(0.01) < 2 * 60
