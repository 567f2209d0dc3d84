"""Every numeric option of every command, given any number: done, or refused in a sentence; never a bug."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import commands
import pytest
from commands import Run
from hypothesis import HealthCheck, given, settings, strategies as st

pytest.importorskip("torch", reason="half of the commands run a model")

import runnable

import llmconv
from llmconv.cli import COMMANDS
from llmconv.convert.translate import translate

# What a command is given besides the option, its output last: small inputs, little work.
ARGUMENTS = {
    "convert": "llama.gguf out.gguf",
    "json-to-gguf": "simple.json out.gguf",
    "json-to-safetensors": "simple.json out",
    "safetensors-to-gguf": "llama out.gguf",
    "safetensors-to-json": "simple out.json",
    "gguf-to-json": "simple.gguf out.json",
    "gguf-to-safetensors": "llama.gguf out",
    "quantize": "llama.gguf -o out.gguf -t Q8_0",
    "detokenize": "llama.gguf",
    "verify": "llama.gguf llama.gguf --run text.txt -c 16 --chunks 1",
    "size": "--vocab 100 --dim 64 --layers 2 --heads 4",
    "train": "text.txt -o out --preset llama-15m --tokenizer word --vocab-size 40 --dim 16 --layers 1 --heads 2"
    " --ffn 16 --context 8 --steps 2 --batch-size 2 --warmup 1 --eval-sequences 2 --device cpu --no-plot"
    " --no-tensorboard",
    "sweep": "llama.gguf text.txt --types Q8_0 -o out --no-plot -c 16 --chunks 1 --device cpu",
    "split": "llama.gguf out.gguf",
    "perplexity": "llama.gguf text.txt -c 16 --chunks 2 --device cpu",
    "compare": "llama.gguf llama.gguf text.txt -c 16 --chunks 1 --device cpu",
    "imatrix": "llama.gguf text.txt -o out.gguf -c 16 --chunks 1 --device cpu",
    "calibrate": "llama.gguf text.txt -o out -c 16 --chunks 1 --device cpu",
    "embed": "llama.gguf w1 --device cpu",
    "ollama": "llama.gguf out",
    "generate": "llama.gguf -p w1 -n 4 --stop w --device cpu",
}
# Options that say how much is done: large numbers are legal, and would be done.
WORK = {"--steps", "--vocab-size", "--dim", "--layers", "--heads", "--ffn", "--batch-size", "--accumulation", "--keep"}

SIZES = st.one_of(
    st.sampled_from(["0", "1", "100", "1e3", "-1", "nan", "1.5", "1.5K", "99999999999999G", "9" * 400, "1kiB", ""]),
    st.text("0123456789.KMGTiB -", max_size=8),
)
_EDGES = [0, 1, 2, 3, 255, 256, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]
WHOLE = st.sampled_from([*map(str, _EDGES), *(f"-{n}" for n in _EDGES), "7" * 5000])
FEW = st.sampled_from(["-1", "0", "1", "2", "3", "5", str(2**31), str(2**63), str(10**30), f"-{2**63}"])
_REALS = (
    "0 -0.0 1 -1 nan -nan inf -inf 1e-40 5e-324 1e-320 1e308 1.7976931348623157e308 1e400 1e39 0.5 1.0000000000000002"
)
REAL = st.one_of(st.sampled_from(_REALS.split(" ")), st.floats().map(repr))


def numeric() -> list[tuple[str, str, Any]]:
    """(command, option or "" for an argument, its numbers)."""
    found = []
    for name, (module, _) in COMMANDS.items():
        for parameter in getattr(importlib.import_module(f"llmconv.cli.{module}"), name.replace("-", "_")).params:
            option = max(parameter.opts, key=len) if isinstance(parameter, click.Option) else ""
            if isinstance(parameter.type, click.types.FloatParamType):
                found.append((name, option, REAL))
            elif isinstance(parameter.type, click.types.IntParamType):
                found.append((name, option, FEW if option in WORK else WHOLE))
            elif parameter.metavar == "SIZE":
                found.append((name, option, SIZES))
    return found


OPTIONS = numeric()


def test_every_command_with_numbers_is_here() -> None:
    assert {name for name, _, _ in OPTIONS} == set(ARGUMENTS)
    assert len(OPTIONS) > 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, str], Run]:
    """A command on small inputs with one option more, in an empty folder."""
    inputs = tmp_path_factory.mktemp("inputs")
    llama = runnable.write(runnable.checkpoint(), inputs / "llama.gguf")
    llmconv.save(translate(llmconv.open(llama), "hf"), inputs / "llama")
    simple = runnable.checkpoint("simple-36k")
    for name in ("simple.gguf", "simple.json", "simple"):
        llmconv.save(simple, inputs / name)
    (inputs / "text.txt").write_text(runnable.text())

    def call(command: str, option: str, value: str) -> Run:
        with tempfile.TemporaryDirectory() as folder:
            places = {p.name: p for p in inputs.iterdir()} | {
                n: Path(folder) / n for n in ("out", "out.gguf", "out.json")
            }
            given = [str(places.get(word, word)) for word in ARGUMENTS[command].split()]
            extra = [f"{option}={value}"] if option else ["--", value] if value else []
            return commands.run(command, *given, *extra)

    return call


SLOW = ("train", "sweep")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
        for name in ARGUMENTS
        if name not in ("detokenize", "split")
    ],
)
def test_the_commands_run(command: str, run: Any) -> None:
    """Without the option that the tests add, so that they test it."""
    result = run(command, "", "")
    assert result.code == 0, result.err


def check(case: tuple[str, str, str], run: Callable[[str, str, str], Run]) -> None:
    result = run(*case)
    assert result.code in (0, 1, 2), (case, result)
    assert "bug" not in result.err and "Traceback" not in result.err + result.out, (case, result.err)
    if result.code == 2:
        *done, sentence = result.err.splitlines()
        assert sentence.startswith("llmconv: "), (case, result.err)
        assert not done or case[0] == "sweep", (case, result.err)  # which says each step in a line


def cases(slow: bool) -> Any:
    """Training and sweeping take their time, so they are in the slow test only."""
    options = [option for option in OPTIONS if slow or option[0] not in SLOW]
    return st.sampled_from(options).flatmap(lambda o: st.tuples(st.just(o[0]), st.just(o[1]), o[2]))


QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}


@settings(max_examples=40, derandomize=True, **QUIET)
@given(case=cases(slow=False))
def test_any_number(case: tuple[str, str, str], run: Any) -> None:
    check(case, run)


@pytest.mark.slow
@settings(max_examples=400, **QUIET)
@given(case=cases(slow=True))
def test_any_number_at_length(case: tuple[str, str, str], run: Any) -> None:
    check(case, run)


@pytest.mark.parametrize(
    ("command", "option", "value"),
    [
        ("generate", "--temperature", "1e-40"),
        ("generate", "--temperature", "5e-324"),
        ("generate", "--temperature", "1e308"),
        ("generate", "--repetition-penalty", "5e-324"),
        ("generate", "--top-k", str(2**63)),
        ("generate", "--top-p", "-0.0"),
        ("generate", "--max-tokens", str(2**63)),
    ],
)
def test_extremes_are_done(command: str, option: str, value: str, run: Any) -> None:
    assert run(command, option, value).code == 0


@pytest.mark.parametrize(
    ("command", "option", "value", "said"),
    [
        ("generate", "--temperature", "nan", "nan is not a finite number"),
        ("generate", "--seed", str(2**64), "is not in the range"),
        ("compare", "--max-kld", "nan", "nan is not a finite number"),
        ("split", "--max-size", "9" * 400, "is no size between 1 byte and 2^63"),
        ("perplexity", "--context", "2", "a context of 2 is not possible"),
        ("train", "--val-fraction", "nan", "val_fraction is nan, expected a finite number"),
    ],
)
def test_what_is_no_number_is_refused(command: str, option: str, value: str, said: str, run: Any) -> None:
    result = run(command, option, value)
    assert result.code == 2 and said in result.err, result.err
