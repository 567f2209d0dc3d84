"""The edges of training: vocabularies that change, models that see ahead, resuming, one run a folder, what a validation
is, numbers that are no longer finite."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch")

import llmconv
from llmconv import formats
from llmconv.cli import cli
from llmconv.convert import vocab as vocabulary
from llmconv.convert.vocab import from_words, to_gguf
from llmconv.errors import Cancelled
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.progress import Step
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.inputs import LOCK
from llmconv.runtime.training.loop import train
from llmconv.runtime.training.saving.log import read_log

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = [
    "the",
    "old",
    "man",
    "went",
    "to",
    "the",
    "sea",
    "and",
    "the",
    "young",
    "man",
    "went",
    "to",
    "the",
    "hill",
    "while",
    "she",
    "sat",
    "by",
    "a",
    "tree",
    "and",
    "sang",
]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(" ".join(WORDS) for _ in range(30)))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    items = [{"input": " ".join(WORDS[i : i + 4]), "target": " ".join(WORDS[i + 1 : i + 5])} for i in range(18)]
    for item in items[::4]:  # of different lengths
        item.update({key: " ".join(item[key].split()[:2]) for key in item})
    path.write_text(json.dumps(items))
    return path


def settings(data: Path, output: Path, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "data": str(data), "output": str(output), "preset": "simple-36k-causal", "steps": 8, "batch_size": 4,
        "context": 8, "vocab_size": 40, "dim": 16, "layers": 1, "tensorboard": False, "plot": False, "device": "cpu",
        "export": "", "log_every": 1,
    }  # fmt: skip
    if changes.get("from_checkpoint"):
        base |= {"preset": "", "vocab_size": 0, "dim": 0, "layers": 0}
    return TrainConfig(**{**base, **changes})


def course(folder: Path) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"] or row["val_loss"]) for row in read_log(folder / "log.csv")]


# Vocabularies


@pytest.fixture
def source(book: Path, tmp_path: Path) -> Path:
    """A causal model of the book's words."""
    return train(settings(book, tmp_path / "source", steps=2, export="gguf")).exports[0]


def words_file(path: Path, words: list[str]) -> Path:
    """A file with nothing but a vocabulary."""
    keys = {"general.architecture": "vocab"} | to_gguf(from_words(words))
    formats.by_name("gguf").save(formats.Checkpoint(metadata=keys), path)
    return path


def test_the_vocabulary_that_cut_the_data_is_exported(source: Path, book: Path, tmp_path: Path) -> None:
    """Larger, in another order: rows go with their tokens, new ones start at the mean; it is said, and it comes out."""
    old = formats.open(source)
    own = list(vocabulary.of(old).tokens)
    words = [*own[:3], *reversed(own[3:]), "zebra", "yacht"]
    other = words_file(tmp_path / "other.gguf", words)
    done = train(
        settings(
            book,
            tmp_path / "run",
            from_checkpoint=str(source),
            tokenizer=str(other),
            steps=1,
            lr=1e-30,
            weight_decay=0.0,
            export="gguf,safetensors",
        )
    )
    assert any(f"{len(own):,} of its {len(words):,} tokens keep" in note for note in done.notes)
    new = formats.open(done.exports[0])
    assert list(vocabulary.of(new).tokens) == words
    assert list(vocabulary.load(done.exports[1]).tokens) == words
    before, after = (c.tensors["token_embd.weight"].numpy() for c in (old, new))
    assert after.shape[0] == len(words)
    assert np.array_equal(after[3:-2], before[3:][::-1])
    assert np.allclose(after[-2:], before.mean(0), atol=1e-6)
    assert llmconv.perplexity(done.exports[0], book, context=8, device="cpu").perplexity > 1
    assert json.loads((done.exports[1] / "config.json").read_text())["vocab_size"] == len(words)


def test_a_smaller_vocabulary_and_a_kind_made_from_the_data(source: Path, book: Path, tmp_path: Path) -> None:
    few = words_file(tmp_path / "few.gguf", ["[PAD]", "[UNK]", "[EOS]", "the", "man", "sea"])
    for name, tokenizer in (("few", str(few)), ("made", "char")):
        done = train(
            settings(
                book, tmp_path / name, from_checkpoint=str(source), tokenizer=tokenizer, steps=1, export="gguf,json"
            )
        )
        made = formats.open(done.exports[0])
        tokens = list(vocabulary.of(made).tokens)
        assert made.tensors["token_embd.weight"].shape[0] == len(tokens)
        assert len(tokens) < 23
        assert list(vocabulary.of(formats.open(done.exports[1])).tokens)[: len(tokens)] == tokens


def test_a_source_without_a_vocabulary_takes_the_one_given(source: Path, book: Path, tmp_path: Path) -> None:
    bare = formats.open(source)
    words = list(vocabulary.of(bare).tokens)
    metadata = {k: v for k, v in bare.metadata.items() if not k.startswith(("tokenizer.", "llmconv."))}
    gguf_file.save(bare.but(metadata=metadata), tmp_path / "bare.gguf")
    config = settings(book, tmp_path / "none", from_checkpoint=str(tmp_path / "bare.gguf"), steps=1, export="gguf")
    with pytest.raises(llmconv.BadFile, match="has no tokenizer; name one with tokenizer"):
        train(config)
    given = dataclasses.replace(config, tokenizer=str(words_file(tmp_path / "v.gguf", words)))
    assert list(vocabulary.of(formats.open(train(given).exports[0])).tokens) == words


def test_ids_beyond_the_embedding_are_a_sentence(source: Path, book: Path, tmp_path: Path) -> None:
    short = formats.open(source)
    tensor = short.tensors["token_embd.weight"].numpy()
    short.add(Tensor.from_array("token_embd.weight", tensor[:5]))
    gguf_file.save(short, tmp_path / "short.gguf")
    with pytest.raises(llmconv.BadFile, match="the model's embedding has 5 rows"):
        train(settings(book, tmp_path / "run", from_checkpoint=str(tmp_path / "short.gguf")))


def test_a_json_document_is_made_anew_for_other_words(root: Path, pairs: Path, tmp_path: Path) -> None:
    source = root / "examples" / "simple-36k.json"
    config = settings(
        pairs, tmp_path / "run", from_checkpoint=str(source), context=0, tokenizer="word", steps=1, export="json,gguf"
    )
    done = train(config)
    document = json.loads(done.exports[0].read_text())
    words = document["config"]["vocab"]
    assert 10 < len(words[3:]) == len(set(words[3:]) & set(WORDS))
    assert document["config"]["vocabSize"] == len(words) == len(document["weights"]["embedding"])
    assert llmconv.verify(*done.exports).same


# Models that see ahead


def test_a_model_that_sees_ahead_takes_no_plain_text(book: Path, pairs: Path, tmp_path: Path) -> None:
    config = settings(book, tmp_path / "run", preset="simple-36k")
    with pytest.raises(llmconv.UsageError, match=r"sees the words it would be trained.*preset simple-36k-causal"):
        train(config)
    assert not (tmp_path / "run").exists()
    trained = train(settings(pairs, tmp_path / "pairs", preset="simple-36k", steps=2, export="gguf"))
    with pytest.raises(llmconv.UsageError, match="sees the words it would be trained"):
        train(settings(book, tmp_path / "again", from_checkpoint=str(trained.exports[0])))


@pytest.mark.slow
def test_presets_are_listed_with_what_they_take() -> None:
    run = CliRunner().invoke(cli, ["presets"])
    line = next(line for line in run.stdout.splitlines() if line.startswith("simple-36k "))
    assert "36,496" in line
    assert "both ways" in line
    found = json.loads(CliRunner().invoke(cli, ["presets", "--json"]).stdout)["result"]
    assert {row["name"]: row["parameters"] for row in found}["gpt2-small"] == 124_439_808


# Resuming


def test_more_steps_are_the_longer_run(book: Path, tmp_path: Path) -> None:
    """Where the schedule does not depend on their number, bit for bit; early stopping counts as it would have."""
    common: dict[str, Any] = {"schedule": "constant", "warmup": 2, "eval_every": 3, "save_every": 4, "dropout": 0.2}
    train(settings(book, tmp_path / "whole", **common, steps=10, patience=50))
    train(settings(book, tmp_path / "cut", **common, steps=5))
    done = train(settings(book, tmp_path / "cut", **common, steps=10, patience=50), resume=True)
    assert done.steps == 10
    extra = [row for row in course(tmp_path / "cut") if row not in course(tmp_path / "whole")]
    assert len(extra) == 1  # the validation at the end of the short run, which counts for nothing
    states = [
        json.loads((tmp_path / f"{r}/checkpoints/step-00000010/state.json").read_text()) for r in ("cut", "whole")
    ]
    assert states[0] == states[1]
    with pytest.raises(llmconv.UsageError, match="has done 10 steps, more than the 7"):
        train(settings(book, tmp_path / "cut", **common, steps=7), resume=True)


def test_a_run_that_stopped_early_stays_stopped(book: Path, tmp_path: Path) -> None:
    config = settings(
        book, tmp_path / "run", steps=40, eval_every=2, patience=2, lr=10.0, clip=0.0, schedule="constant"
    )
    first = train(config)
    again = train(config, resume=True)
    assert first.stopped_early
    assert again.stopped_early
    assert (again.steps, again.val_loss, again.loss) == (first.steps, first.val_loss, first.loss)
    further = train(dataclasses.replace(config, patience=0, steps=first.steps + 2), resume=True)
    assert further.steps == first.steps + 2


def test_what_is_read_is_known_by_its_content(book: Path, tmp_path: Path) -> None:
    config = settings(book, tmp_path / "run", steps=4, save_every=2)
    train(config)
    (tmp_path / "sub").mkdir()
    respelt = dataclasses.replace(config, data=str(tmp_path / "sub" / ".." / "book.txt"))
    assert train(respelt, resume=True).steps == 4
    moved = book.rename(tmp_path / "moved.txt")
    assert train(dataclasses.replace(config, data=str(moved)), resume=True).steps == 4
    times = os.stat(moved)
    moved.write_text(moved.read_text().replace("sang", "sank"))  # as long, and as old
    os.utime(moved, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(llmconv.UsageError, match="is not what this run was started with"):
        train(dataclasses.replace(config, data=str(moved)), resume=True)


def test_a_folder_takes_one_run_at_a_time(book: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="there are no locks to test on Windows")
    out = tmp_path / "run"
    code = "import fcntl,os,sys,time; f=os.open(sys.argv[1],os.O_RDWR|os.O_CREAT); fcntl.flock(f,fcntl.LOCK_EX); "
    code += "os.write(f,b'4711'); print(1,flush=True); time.sleep(60)"
    out.mkdir()
    with subprocess.Popen([sys.executable, "-c", code, str(out / LOCK)], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            with pytest.raises(llmconv.OutputError, match="another run is writing here \\(process 4711\\)"):
                train(settings(book, out))
        finally:
            other.kill()
    assert train(settings(book, out)).steps == 8  # the dead one's lock blocks nobody


def test_a_run_killed_before_its_first_checkpoint_begins_again(book: Path, tmp_path: Path) -> None:
    train(settings(book, tmp_path / "whole"))

    class Killed(Exception):
        pass

    def kill(step: Step) -> None:
        if step.what == "train" and step.done == 3:
            raise Killed

    config = settings(book, tmp_path / "cut", save_every=5)
    with pytest.raises(Killed):
        train(config, progress=kill)
    train(config, resume=True)
    assert course(tmp_path / "cut") == course(tmp_path / "whole")


@pytest.mark.parametrize("what", ["train", "validate"])
def test_cancelling_leaves_a_checkpoint(what: str, book: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"eval_every": 3, "save_every": 100, "dropout": 0.1}
    train(settings(book, tmp_path / "whole", **common))

    def cancel(step: Step) -> None:
        if step.what == what and (step.done == 4 or what == "validate"):
            raise Cancelled("enough")

    config = settings(book, tmp_path / "cut", **common)
    stopped = 4 if what == "train" else 3
    with pytest.raises(Cancelled, match=f"stopped after step {stopped} of 8, which is saved; go on with resume=True"):
        train(config, progress=cancel)
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == [f"step-{stopped:08d}"]
    train(config, resume=True)
    assert course(tmp_path / "cut") == course(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(number: int, book: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "llmconv", "train", str(book), "-o", str(out), "--preset", "simple-36k-causal"]
    command += [
        "--steps",
        "100000",
        "--context",
        "8",
        "--log-every",
        "1",
        "--export",
        "",
        "--no-tensorboard",
        "--no-plot",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and len(read_log(out / "log.csv")) < 5:
            time.sleep(0.02)
        process.send_signal(number)
        _, spoken = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "which is saved; go on with --resume" in spoken.splitlines()[-1]
    assert "Traceback" not in spoken
    assert len(list(out.glob("checkpoints/step-*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])  # of one process: test_training_e2e.py
def test_kill_minus_nine_at_random_moments(kind: str, root: Path, tmp_path: Path) -> None:
    """A few kills here; tests/support/killing.py takes any number."""
    script = root / "tests" / "support" / "killing.py"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, str(script), kind, "3", str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["kills"] >= 3


# Validation


@pytest.mark.parametrize("kind", ["pairs", "text"])
def test_a_validation_sees_the_same_whatever_the_batch(
    kind: str, book: Path, pairs: Path, tmp_path: Path, request: Any
) -> None:
    data, preset = (pairs, "simple-36k") if kind == "pairs" else (book, "simple-36k-causal")
    seen = []
    for i, (batch, parts) in enumerate([(4, 1), (6, 3), (1, 1), (32, 2)]):
        config = settings(
            data, tmp_path / f"{i}", preset=preset, batch_size=batch, accumulation=parts, steps=1, lr=1e-30,
            weight_decay=0.0, export="gguf",
        )  # fmt: skip
        done = train(config)
        seen.append(done.val_loss)
    assert seen == pytest.approx([seen[0]] * 4, rel=1e-6)
    if kind == "pairs":
        measured = llmconv.perplexity(done.exports[0], pairs, device="cpu")
        assert math.exp(seen[0]) == pytest.approx(measured.perplexity, rel=1e-6)


def test_the_printed_perplexity_is_the_legacy_programs(shared: Path, tmp_path: Path) -> None:
    """All 911 pairs by default: its own figure of its own model, which a step without a rate leaves alone."""
    folder = shared / "simple-llm"
    reference = json.loads((folder / "default-400.reference.json").read_text())["pairPerplexity"]
    seen: list[Step] = []
    config = TrainConfig(
        data=str(folder / "training-data.json"), output=str(tmp_path),
        from_checkpoint=str(folder / "default-400.v1.json"), steps=1, lr=1e-30, weight_decay=0.0, batch_size=16,
        accumulation=2, device="cpu", export="", tensorboard=False,
        plot=False,
    )  # fmt: skip
    found = train(config, progress=seen.append)
    assert found.val_perplexity == pytest.approx(reference, rel=1e-5)
    assert max(step.total for step in seen if step.what == "validate") == 911


# Numbers


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_a_loss_that_is_not_finite_ends_in_a_sentence(dtype: str, source: Path, book: Path, tmp_path: Path) -> None:
    config = settings(book, tmp_path / "a", lr=1e30, clip=0.0, warmup=0, schedule="constant", dtype=dtype, steps=60)
    cause = "float16 is likely too narrow" if dtype == "f16" else "the learning rate is likely too high"
    with pytest.raises(llmconv.LlmconvError, match=rf"at step \d+; {cause}|after step \d+; the model's output"):
        train(config)
    broken = formats.open(source)
    values = broken.tensors["token_embd.weight"].numpy().copy()
    values[:] = np.nan
    broken.add(Tensor.from_array("token_embd.weight", values))
    gguf_file.save(broken, tmp_path / "nan.gguf")
    with pytest.raises(
        llmconv.LlmconvError, match=r"loss is nan at step 1; the weights of .*nan\.gguf may be the cause"
    ):
        train(settings(book, tmp_path / "b", from_checkpoint=str(tmp_path / "nan.gguf")))


NUMBERS = [f.name for f in dataclasses.fields(TrainConfig) if get_type_hints(TrainConfig)[f.name] in (int, float)]


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_its_range(name: str) -> None:
    whole = get_type_hints(TrainConfig)[name] is int
    bad = [-2, 1 << 63] if whole else [math.nan, math.inf, -math.inf, -0.5]
    for value in bad:
        with pytest.raises(llmconv.UsageError, match=rf"^{name} is .*, expected ") as found:
            TrainConfig(data="-", output="-", preset="gpt2-small", **{name: value})
        assert len(str(found.value)) < 120
