"""Training at the smallest sizes: it learns, resumes bit for bit, shares work exactly, and refuses bad input."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch")

import llmconv
from llmconv.cli import cli
from llmconv.convert.vocab import from_words, tokenizer
from llmconv.formats.tensor import Tensor
from llmconv.progress import Step
from llmconv.runtime.load import build
from llmconv.runtime.reading import read_tensor
from llmconv.runtime.training import data as data_files, loop, parallel, plan as loop_plan
from llmconv.runtime.training.config import SECTIONS, TrainConfig, read_config
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.loop import train
from llmconv.runtime.training.optim import learning_rate, make_optimizer
from llmconv.runtime.training.saving.log import read_log
from llmconv.runtime.training.vocabulary import make_vocab

pytestmark = pytest.mark.usefixtures("one_thread")

SENTENCE = "the old man went to the sea and the young man went to the hill while she sat by a tree and sang"
WORDS = SENTENCE.split(" ")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Eighteen (input, target) pairs of four words, the target a word ahead."""
    path = tmp_path / "pairs.json"
    items = [
        {"input": " ".join(WORDS[i : i + 4]), "target": " ".join(WORDS[i + 1 : i + 5])} for i in range(len(WORDS) - 4)
    ]
    path.write_text(json.dumps(items))
    return path


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("\n".join(" ".join(WORDS) for _ in range(60)))
    return path


def settings(data: Path, output: Path, **changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "data": str(data), "output": str(output), "preset": "simple-36k", "steps": 12, "batch_size": 4, "lr": 1e-2,
        "vocab_size": 40, "dim": 16, "layers": 1, "tensorboard": False, "plot": False, "device": "cpu", "export": "",
    }  # fmt: skip
    return TrainConfig(**{**base, **changes})


def losses(folder: Path) -> list[str]:
    return [row["loss"] for row in read_log(folder / "log.csv") if row["loss"]]


def test_it_learns_and_exports_what_the_old_program_loads(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(settings(pairs, out, steps=150, batch_size=18, weight_decay=0.0, export="json,gguf,safetensors"))
    assert result.val_perplexity < 1.5 < 20
    document = json.loads((out / "model.json").read_text())
    assert document["version"] == "1.0"
    assert list(document["config"]) == ["vocabSize", "embeddingDim", "numLayers", "vocab"]
    layer = document["weights"]["transformers"][0]
    assert list(layer) == ["wq", "wk", "wv", "w1", "w2", "layerNorm1", "layerNorm2"]
    assert np.shape(document["weights"]["embedding"]) == (document["config"]["vocabSize"], 16)
    measured = llmconv.perplexity(out / "model.gguf", pairs, dtype="f64", device="cpu")
    assert measured.perplexity == pytest.approx(result.val_perplexity, rel=1e-3)
    assert llmconv.verify(out / "model.json", out / "model.gguf").same
    assert llmconv.verify(out / "model", out / "model.gguf").same


@pytest.mark.parametrize(("dropout", "dtype"), [(0.0, "f32"), (0.2, "f32"), (0.0, "f16")])
def test_resuming_continues_bit_for_bit(book: Path, tmp_path: Path, dropout: float, dtype: str) -> None:
    common = {
        "preset": "simple-1m-causal",
        "context": 8,
        "heads": 2,
        "log_every": 1,
        "save_every": 4,
        "dropout": dropout,
        "dtype": dtype,
    }
    whole = settings(book, tmp_path / "whole", **common)
    train(whole)
    cut = settings(book, tmp_path / "cut", **common)

    class Killed(Exception):
        pass

    def kill(step: Step) -> None:
        if step.what == "train" and step.done == 7:
            raise Killed

    with pytest.raises(Killed):
        train(cut, progress=kill)
    again = train(cut, resume=True)
    assert again.steps == 12
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    ours, theirs = (
        torch.load(tmp_path / run / "checkpoints/step-00000012/optimizer.pt", weights_only=True)
        for run in ("cut", "whole")
    )
    for key, state in ours["state"].items():
        assert torch.equal(state["exp_avg_sq"], theirs["state"][key]["exp_avg_sq"])
    ours, theirs = (
        torch.load(tmp_path / run / "checkpoints/step-00000012/random-0.pt", weights_only=True)
        for run in ("cut", "whole")
    )
    assert ours.get("scaler") == theirs.get("scaler")
    assert ("scaler" in ours) == (dtype == "f16")
    assert len(list((tmp_path / "cut/checkpoints").iterdir())) == 2


@pytest.mark.parametrize("file", ["model.gguf", "optimizer.pt"])
def test_a_disk_that_fills_up_costs_one_checkpoint(file: str, book: Path, tmp_path: Path) -> None:
    """Writes that really fail, by a limit on file sizes: a sentence, the earlier checkpoint, and the run goes on."""
    resource = pytest.importorskip("resource", reason="only Unix limits the size of files")
    common: dict[str, Any] = {
        "preset": "simple-1m-causal",
        "context": 8,
        "heads": 2,
        "log_every": 1,
        "save_every": 4,
    }
    train(settings(book, tmp_path / "whole", **common))
    size = (tmp_path / "whole/checkpoints/step-00000012" / file).stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: Step) -> None:
        if step.what == "train" and step.done == 7:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, before[1]))

    cut = settings(book, tmp_path / "cut", **common)
    try:
        with pytest.raises(llmconv.OutputError, match=r"step-00000008.*can't be written.*resume=True"):
            train(cut, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in (tmp_path / "cut/checkpoints").iterdir()] == ["step-00000004"]
    train(cut, resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_parts_of_a_batch_add_up(pairs: Path, tmp_path: Path) -> None:
    """Accumulating over parts, with padding of different lengths, is the same step."""
    items = json.loads(pairs.read_text())
    for item in items[::3]:
        item["input"], item["target"] = (" ".join(item[k].split()[:2]) for k in ("input", "target"))
    pairs.write_text(json.dumps(items))
    common = {"batch_size": 6, "log_every": 1, "steps": 4, "seed": 3}
    train(settings(pairs, tmp_path / "one", **common))
    train(settings(pairs, tmp_path / "three", accumulation=3, **common))
    one, three = (np.array(losses(tmp_path / run), float) for run in ("one", "three"))
    assert np.allclose(one, three, rtol=1e-5)


def test_checkpointed_activations_change_nothing(book: Path, tmp_path: Path) -> None:
    common = {"preset": "simple-1m-causal", "context": 8, "heads": 2, "log_every": 1, "steps": 3}
    train(settings(book, tmp_path / "a", **common))
    train(settings(book, tmp_path / "b", activation_checkpointing=True, **common))
    assert np.allclose(np.array(losses(tmp_path / "a"), float), np.array(losses(tmp_path / "b"), float), rtol=1e-6)


def test_fine_tuning_a_quantized_checkpoint(book: Path, tmp_path: Path) -> None:
    common = {"context": 8, "steps": 2, "export": "gguf"}
    first = train(
        settings(book, tmp_path / "a", preset="simple-1m-causal", dim=32, heads=2, export_type="Q8_0", **common)
    )
    shape = {"vocab_size": 0, "dim": 0, "layers": 0}
    start = {"preset": "", "from_checkpoint": str(first.exports[0])}
    second = train(settings(book, tmp_path / "b", **start, **shape, **common))
    assert second.parameters == first.parameters
    assert math.isfinite(second.val_loss)


def test_early_stopping(book: Path, tmp_path: Path) -> None:
    causal: dict[str, Any] = {"preset": "simple-36k-causal", "context": 8}
    config = settings(
        book, tmp_path / "a", steps=40, eval_every=2, patience=2, lr=1e-9, warmup=0, min_lr_ratio=1.0, **causal
    )
    result = train(config)
    assert result.steps <= 40
    stopped = train(
        settings(
            book, tmp_path / "b", **causal, steps=40, eval_every=2, patience=2, lr=10.0, clip=0.0, weight_decay=0.0
        )
    )
    assert stopped.stopped_early
    assert stopped.steps < 40


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_are_one(pairs: Path, tmp_path: Path, parallel: str) -> None:
    common = ["--preset", "simple-36k", "--vocab-size", "40", "--dim", "16", "--layers", "1", "--steps", "6",
              "--batch-size", "6", "--lr", "0.01", "--log-every", "1", "--save-every", "3", "--device", "cpu",
              "--no-tensorboard", "--no-plot", "--parallel", parallel, "-q"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d",
           "--rdzv-endpoint", "localhost:0", "-m", "llmconv", "train", str(pairs)]  # fmt: skip
    command = [*run, "-o", str(tmp_path / "two"), *common[:-1]]
    spoken = subprocess.run(command, check=True, env=environment, timeout=300, capture_output=True, text=True)
    assert spoken.stdout.count("6 steps, validation loss") == 1  # one process speaks for both
    assert spoken.stderr.count("memory per device") == 1
    alone = [sys.executable, "-m", "llmconv", "train", str(pairs), "-o", str(tmp_path / "one"), *common]
    subprocess.run(alone, check=True, env=environment, timeout=300)
    one, two = (np.array(losses(tmp_path / name), float) for name in ("one", "two"))
    assert len(one) == 6
    assert np.allclose(one, two, rtol=1e-4)
    verdict = llmconv.verify(tmp_path / "one/model.gguf", tmp_path / "two/model.gguf", tolerance=1e-3)
    assert verdict.same


@pytest.mark.parametrize("shape", [(7, 4), (7,), (5, 2, 4), (1, 3)])
@pytest.mark.parametrize("size", [2, 3, 8])
def test_a_process_reads_its_own_rows(shape: tuple[int, ...], size: int) -> None:
    whole = torch.arange(math.prod(shape), dtype=torch.float32).view(shape)
    tensor = Tensor.from_array("x", whole.numpy())
    step = -(-shape[0] // size)
    for rank, expected in enumerate(whole.chunk(size)):  # as FSDP2 cuts
        part = parallel._part(tensor, rank * step, tuple(expected.shape))
        assert torch.equal(read_tensor(part, expected.shape, torch.float32, torch.device("cpu")), expected)


def test_a_sharded_model_is_cut_before_it_has_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []

    def spy(start: Any, device: Any, dtype: Any) -> Any:
        devices.append(device.type)
        return build(start, device, dtype)

    monkeypatch.setattr(parallel, "build", spy)
    monkeypatch.setattr(parallel, "wrap", lambda model, team: model)
    config = TrainConfig(data="-", output="-", preset="llama-15m", dim=16, layers=1, heads=2, ffn=24)
    start = fresh_checkpoint(config, from_words(["[PAD]", "[UNK]", "[EOS]", "a"]))
    cut, _ = parallel.build_model(start, parallel.Team(0, 2, torch.device("cpu"), sharded=True), lambda model: None)
    whole, _ = parallel.build_model(start, parallel.Team(0, 2, torch.device("cpu")), lambda model: None)
    assert devices == ["meta", "cpu"]
    for name, value in whole.state_dict().items():
        assert torch.equal(cut.state_dict()[name], value), name


def test_schedules(tmp_path: Path) -> None:
    def course(**changes: Any) -> list[float]:
        config = settings(tmp_path, tmp_path, steps=100, lr=1.0, warmup=10, **changes)
        return [learning_rate(config, step) for step in range(101)]

    for schedule in ("cosine", "linear", "constant", "wsd"):
        rates = course(schedule=schedule)
        assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
        assert rates[100] == pytest.approx(1.0 if schedule == "constant" else 0.1)
        assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert course(schedule="wsd")[79] == 1.0
    assert course(schedule="cosine")[55] == pytest.approx(0.55)


def test_only_matrices_decay(pairs: Path, tmp_path: Path) -> None:
    config = settings(pairs, tmp_path)
    vocab = make_vocab("word", 40, data_files.texts(pairs))
    model = build(fresh_checkpoint(config, vocab), torch.device("cpu"), torch.float32)
    decayed, kept = make_optimizer(model, config).param_groups
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() == 1 for p in kept["params"])


def test_fresh_weights_are_the_same_however_they_are_read(pairs: Path, tmp_path: Path) -> None:
    vocab = make_vocab("word", 40, data_files.texts(pairs))
    checkpoint = fresh_checkpoint(settings(pairs, tmp_path, preset="gpt2-small", dim=32, heads=4), vocab)
    tensor = checkpoint.tensors["position_embd.weight"]
    whole = tensor.numpy()
    assert np.array_equal(whole[250:270], tensor.rows(250, 270))
    assert whole.std() == pytest.approx(0.02, rel=0.02)
    assert abs(checkpoint.tensors["blk.0.ffn_down.weight"].numpy().std() / (0.02 / math.sqrt(2)) - 1) < 0.1


@pytest.mark.parametrize("kind", ["word", "char", "bpe", "wordpiece"])
def test_vocabularies_read_their_own_text(kind: str, book: Path) -> None:
    vocab = make_vocab(kind, 300, data_files.texts(book))  # byte-level BPE has all 256 bytes
    text = " ".join(WORDS[:9])
    ids = tokenizer(vocab).encode(text)
    assert tokenizer(vocab).decode(ids).strip() == text
    assert len(vocab) <= 300


def test_tokenizing_reports_how_far_it_is(book: Path, tmp_path: Path) -> None:
    seen: list[Step] = []
    config = settings(book, tmp_path / "run", preset="simple-1m-causal", heads=2, context=8, steps=1)
    train(config, progress=seen.append)
    kinds = [step.what for step in seen]
    assert [kind for kind, _ in itertools.groupby(kinds)] == ["tokenize", "plan", "train", "validate"]
    tokenized = [step for step in seen if step.what == "tokenize"]
    assert tokenized[-1].done == tokenized[0].total == book.stat().st_size
    plan = seen[len(tokenized)].facts
    assert plan["planned memory"] == sum(plan[part] for part in loop_plan.PARTS)
    assert seen[-1].facts["val_perplexity"] > 1


def test_data_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("one two\nthree")
    (folder / "b.jsonl").write_text('{"text": "four"}\n\n"five"\n')
    found = ["".join(document) for document in data_files.documents(folder)]
    assert found == ["one two\nthree", "four", "five"]


HALF = [b'{"text": "w \\ud800"}', b'[{"input": "w \\ud800", "target": "w w"}]', b'"\\udc80"']
"""JSON of half a surrogate pair, which is no text."""


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("raw", [*HALF, b"\xff", b"[" * 9000, b"9" * 5000, b"NaN", b"{]", b"9e"])
def test_broken_data_are_a_sentence(raw: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(raw)
    with pytest.raises(llmconv.BadFile, match=r"data\.json") as caught:
        list(data_files.texts(path))
    assert len(str(caught.value)) < 300 + len(str(path))
    path.write_bytes(b'\xef\xbb\xbf[{"input": "a", "target": "b"}]' if kind == "json" else b'\xef\xbb\xbf"a"\n"b"')
    if kind == "json":
        assert data_files.read_pairs(path) == [("a", "b")]
    else:
        assert ["".join(document) for document in data_files.documents(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"preset": "simple-37k"}, "did you mean simple-36k"),
        ({"preset": ""}, "say what to train"),
        ({"steps": 0}, "at least 1"),
        ({"schedule": "zigzag"}, "expected cosine, linear"),
        ({"lr": "fast"}, "expected a number"),
        ({"export": "onnx"}, "unknown export 'onnx'"),
        ({"export": "json", "export_type": "Q4_0"}, "only GGUF holds Q4_0"),
        ({"heads": 3}, "no multiple of 3 heads"),
        ({"tokenizer": "morse"}, "neither one of"),
        ({"data": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"output": __file__}, "is a file, expected a folder"),
        ({"preset": "", "from_checkpoint": __file__}, "a checkpoint has its own vocab_size"),
        ({"clip": -1.0}, "clip is -1.0, expected 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected a finite number"),
        ({"preset": "", "from_checkpoint": "nowhere.gguf", "vocab_size": 0, "dim": 0, "layers": 0}, "no such file"),
    ],
)
def test_bad_settings(pairs: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(llmconv.LlmconvError, match=words):
        train(TrainConfig(**{**vars(settings(pairs, tmp_path / "run")), **changes}))
    if {"data", "preset", "from_checkpoint"} & set(changes):
        assert not (tmp_path / "run").exists()  # what was misspelt left no folder behind


def test_running_out_of_memory_is_a_sentence(book: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CUDA says it, and as the CPU does, which really is asked for a terabyte."""
    config = settings(book, tmp_path / "a", preset="simple-1m-causal", heads=2, context=8)

    def refuse(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has less.")

    monkeypatch.setattr(loop, "train_step", refuse)
    with pytest.raises(llmconv.UsageError, match=r"out of memory \(it was asked for 2\.00 GiB more\); give a smaller"):
        train(config)
    monkeypatch.setattr(loop, "train_step", lambda *arguments: torch.empty(1 << 50, dtype=torch.uint8))
    with pytest.raises(llmconv.UsageError, match=r"'cpu' is out of memory \(it was asked for 1125899906842624 bytes"):
        train(settings(book, tmp_path / "b", preset="simple-1m-causal", heads=2, context=8))


def test_learning_rates_fit_what_is_trained(pairs: Path) -> None:
    def rate(**changes: Any) -> float:
        return learning_rate(TrainConfig(**{"warmup": 0, "preset": "gpt2-small", **changes}), 0)

    assert rate() == pytest.approx(6e-4)  # Brown et al. 2020, table 2.1
    assert rate(preset="llama2-7b") == pytest.approx(3e-4)
    assert rate(preset="", from_checkpoint=str(pairs)) == pytest.approx(1e-4)
    assert rate(lr=1.0) == 1.0


def test_the_legacy_model_learns_with_settings_left_alone(shared: Path, tmp_path: Path) -> None:
    data = shared / "simple-llm" / "training-data.json"
    plain = TrainConfig(data=str(data), output=str(tmp_path), preset="simple-36k", steps=300,
                        eval_every=300, export="", tensorboard=False, plot=False, device="cpu")  # fmt: skip
    assert train(plain).val_perplexity < 5.52 / 2  # the original's, of 44 seconds


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "nothing to train on"), ("a b c", "expected more than a context"), ("\udcff", "no UTF-8 text")],
)
def test_bad_texts(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(llmconv.LlmconvError, match=words):
        train(settings(path, tmp_path / "run", preset="simple-1m-causal", heads=2, context=16))


def test_a_run_is_not_overwritten_and_resumes_only_as_itself(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(llmconv.BadFile, match="no checkpoint to resume"):
        train(settings(pairs, out), resume=True)
    train(settings(pairs, out, steps=2))
    with pytest.raises(llmconv.OutputError, match="holds a run already"):
        train(settings(pairs, out, steps=2))
    with pytest.raises(llmconv.UsageError, match=r"another configuration \(lr\)"):
        train(settings(pairs, out, steps=3, lr=1e-3), resume=True)


def test_any_checkpoint_of_a_run_is_a_model(pairs: Path, tmp_path: Path) -> None:
    train(settings(pairs, tmp_path / "run", steps=4, save_every=2, eval_every=2))
    half = tmp_path / "run/checkpoints/step-00000002/model.gguf"
    seen = {row["step"]: row["val_perplexity"] for row in read_log(tmp_path / "run/log.csv") if row["val_perplexity"]}
    found = llmconv.perplexity(half, pairs, device="cpu")
    assert found.perplexity == pytest.approx(float(seen["2"]), rel=1e-3)
    sizes = dict.fromkeys(("vocab_size", "dim", "layers"), 0)
    again = settings(pairs, tmp_path / "more", preset="", from_checkpoint=str(half), steps=1, **sizes)
    assert train(again).val_perplexity < found.perplexity


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("model.gguf", b"short", "model.gguf: "),
        ("optimizer.pt", b"", "EOFError"),
        ("optimizer.pt", b"hello\n", "optimizer.pt: can't be read"),
        ("state.json", b"{", "JSONDecodeError"),
        ("state.json", b'{"step": "2", "tokens": 1, "best": 1.0, "stale": 0}', "expected an object of step"),
        ("random-0.pt", b"", "random-0.pt: can't be read"),
        ("state.json", b"[1]", "expected an object of step"),
        (".metadata", b"", "step-00000004: can't be read"),
        ("../../config.json", b"{}", "not the record of a run's settings"),
    ],
)
def test_broken_checkpoints_are_sentences(pairs: Path, tmp_path: Path, file: str, content: bytes, words: str) -> None:
    config = settings(pairs, tmp_path / "run", steps=4, save_every=2)
    train(config)
    (tmp_path / "run/checkpoints/step-00000004" / file).write_bytes(content)
    with pytest.raises(llmconv.LlmconvError, match=words) as found:
        train(config, resume=True)
    assert "\n" not in str(found.value)
    if file in ("model.gguf", "optimizer.pt", "state.json"):  # and what it advises works
        shutil.rmtree(tmp_path / "run/checkpoints/step-00000004")
        assert train(config, resume=True).steps == 4


def test_the_help_has_every_setting_under_its_heading() -> None:
    out = CliRunner().invoke(cli, ["train", "--help"]).output
    for heading, first in SECTIONS.items():
        assert f"\n{heading}:\n" in out
        assert first in {f.name for f in dataclasses.fields(TrainConfig)}
    flags = {"from_checkpoint": "from"}
    for setting in dataclasses.fields(TrainConfig):
        name = flags.get(setting.name, setting.name.replace("_", "-"))
        assert setting.name == "data" or f"--{name}" in out, name
    assert out.rindex("--lr") > out.index("Optimisation:") > out.index("--val-fraction")


def test_configuration_files(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "gpt2-small"\nlr = 1e-4\n')
    assert read_config(path) == {"preset": "gpt2-small", "lr": 1e-4}
    path.write_text("learning_rate = 1\n")
    with pytest.raises(llmconv.BadFile, match="is no setting"):
        read_config(path)
    path.write_text("= 3")
    with pytest.raises(llmconv.BadFile, match="no TOML"):
        read_config(path)
