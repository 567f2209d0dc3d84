"""Errors: short whatever a file's names are, with data, in the terms of whoever reads them; and without torch."""

from __future__ import annotations

import inspect
import logging
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmconv
from llmconv import errors
from llmconv.wording import as_keywords, shortened

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, llmconv.LlmconvError)]


def test_every_class_is_public_and_on_its_page() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    assert set(rows) == {c.__name__ for c in CLASSES}
    for c in CLASSES:
        assert getattr(llmconv, c.__name__) is c
        assert set(re.findall(r"\w+", rows[c.__name__])) == {base.__name__ for base in c.__bases__}


LONG = "w" * 100_000
RAISED = [
    errors.MissingTensor("m.gguf", LONG, "the model needs it; " + LONG),
    errors.UnknownTensor("m.gguf", [LONG, LONG], "is no tensor of it"),
    errors.WrongShape("m.gguf", LONG, [1] * 1000, [2], "by its settings"),
    errors.BadKey("m.gguf", LONG, {"a": LONG}, "a number", "correct it"),
    errors.UnknownName("type", LONG, [LONG, "b"]),
    errors.UsageError("two words " * 10_000 + "; write fewer"),
    errors.BadFile(f"{LONG}: {LONG}"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda e: type(e).__name__)
def test_a_message_is_short_whatever_is_in_it(error: llmconv.LlmconvError) -> None:
    assert 20 < len(str(error)) < 480
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_short_message_stays_as_it_is() -> None:
    sentence = f"{'folder/' * 18}model.gguf: tensor 'a' is missing; fetch it again"
    assert shortened(sentence) == sentence
    cut = shortened(f"m.gguf: tensor {LONG!r} is missing; fetch the file again")
    assert cut.startswith("m.gguf: tensor 'www") and cut.endswith("is missing; fetch the file again") and "…" in cut


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("exists already; use --force to replace it", "exists already; use force=True to replace it"),
        ("use --outtype f64, or --allow-overflow to let it", 'use outtype="f64", or allow_overflow=True to let it'),
        ("--layout plain converts any tensors", 'layout="plain" converts any tensors'),
        ("--no-strict leaves them out", "strict=False leaves them out"),
        ("change --dim or --heads", "change dim or heads"),
        ("llmconv inspect --tensors lists them", "llmconv inspect --tensors lists them"),
        ("a--force.gguf: is empty", "a--force.gguf: is empty"),
    ],
)
def test_programs_read_of_keywords_and_people_of_options(said: str, read: str) -> None:
    assert as_keywords(said) == read
    error = llmconv.UsageError(said)
    assert str(error) == read
    with errors.in_command():
        assert str(error) == said


def test_near_names_are_suggested() -> None:
    error = errors.UnknownName("type", "q4_k_n", ["Q4_K_M", "Q8_0"])
    assert error.nearest == "Q4_K_M" and "did you mean Q4_K_M" in str(error) and error.known == ["Q4_K_M", "Q8_0"]
    for name, meant in (("int4", "Q4_K_M"), ("4bit", "Q4_K_M"), ("q4", "Q4_K_M"), ("fp16", "F16"), ("8-bit", "Q8_0")):
        with pytest.raises(llmconv.UnknownName) as caught:
            llmconv.quantize("none.gguf", type=name)
        assert caught.value.nearest == meant
    assert "known: a0, a1" in str(errors.UnknownName("x", "zzz", [f"a{i}" for i in range(99)]))


@pytest.mark.parametrize("value", ["model.gguf", {"a": 1}, None, np.ones(3)])
def test_a_wrong_kind_of_object_is_a_sentence(value: Any, tmp_path: Path) -> None:
    with pytest.raises(llmconv.UsageError, match=r"save takes a Checkpoint, not "):
        llmconv.save(value, tmp_path / "x.gguf")
    if not isinstance(value, str):
        for name, call in (("quantize", llmconv.quantize), ("open", llmconv.open), ("tokenizer", llmconv.tokenizer)):
            with pytest.raises(llmconv.UsageError, match=f"{name} takes "):
                call(value)


def test_no_threads_are_refused_alike(tmp_path: Path) -> None:
    model = llmconv.Checkpoint(metadata={"general.architecture": "x"})
    model.add(llmconv.Tensor.from_array("a.weight", np.ones((2, 32), np.float32)))
    for call in (
        lambda: llmconv.save(model, tmp_path / "a.gguf", jobs=0),
        lambda: llmconv.save(model, tmp_path / "a.safetensors", jobs=0),
        lambda: llmconv.quantize(model, tmp_path / "b.gguf", "Q8_0", jobs=0),
    ):
        with pytest.raises(llmconv.UsageError, match="jobs is 0, expected 1 or more"):
            call()
    assert not list(tmp_path.iterdir())


def test_what_verbose_says_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "llmconv"):
        llmconv.convert_file(ROOT / "examples" / "simple-36k.json", tmp_path / "m.gguf")
        llmconv.quantize(tmp_path / "m.gguf", tmp_path / "q.gguf", "Q8_0")
    said = "\n".join(caplog.messages)
    assert f"wrote {tmp_path / 'm.gguf'}" in said and f"wrote {tmp_path / 'q.gguf'}" in said and "21 F32" in said


def test_without_torch_the_names_can_be_looked_at() -> None:
    code = """if True:
        import sys
        sys.modules["torch"] = None
        import inspect, pydoc
        import llmconv
        from llmconv import *
        assert hasattr(llmconv, "load") and callable(llmconv.generate)
        assert dict(inspect.getmembers(llmconv))["train"].__name__ == "train"
        assert "perplexity" in pydoc.render_doc(llmconv)
        for kind in (ImportError, llmconv.UsageError, llmconv.MissingExtra):
            for call in (llmconv.perplexity, llmconv.Calibration.open):
                try:
                    call("model.gguf", "text.txt")
                except kind as error:
                    assert "pip install torch" in str(error) and error.module == "torch", error
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_notes_speak_as_errors_do() -> None:
    said = "it has no vocabulary: a file with one (--vocab) lets it read and write text"
    sizes: dict[str, Any] = {"paths": [], "format": "gguf", "size": 0, "n_tensors": 0, "n_elements": 0, "types": {}}
    made = llmconv.Result(target=Path("m.gguf"), seconds=0.0, notes=[said, "use --force"], **sizes)
    assert made.notes == [said.replace("--vocab", "vocab"), "use force=True"]
    with errors.in_command():
        assert llmconv.Result(target=Path("m.gguf"), seconds=0.0, notes=[said], **sizes).notes == [said]


@pytest.mark.parametrize(
    "value, text", [(np.uint32(7), "7"), (np.bool_(True), "True"), (np.array([1, 2]), "array([1, 2])"), ("a", "'a'")]
)
def test_numbers_of_numpy_are_shown_as_numbers(value: object, text: str) -> None:
    assert errors.cut(value) == text
