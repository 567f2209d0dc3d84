"""Training from end to end, at small size: by the command, killed and resumed, exported, quantized, compared, loaded
elsewhere."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch", reason="training needs torch")

import llmconv
from llmconv.cli import cli
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.saving.log import read_log

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SMALL = ["--device", "cpu", "--no-tensorboard", "--no-plot", "--export", "", "--log-every", "1", "-q"]


def command(data: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "llmconv", "train", str(data), "-o", str(output), *options]


def losses(folder: Path) -> list[tuple[str, str]]:
    return [(row["step"], row["loss"]) for row in read_log(folder / "log.csv") if row["loss"]]


@pytest.fixture(scope="module")
def corpus(root: Path) -> Path:
    return root / "examples" / "corpus.txt"


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_losses(corpus: Path, tmp_path: Path) -> None:
    """kill -9 at random moments, twice in one run; what is left always resumes."""
    options = ["--preset", "simple-1m-causal", "--layers", "1", "--dim", "32", "--heads", "2", "--context", "16",
               "--steps", "60", "--batch-size", "8", "--save-every", "3", "--dropout", "0.1", *SMALL]  # fmt: skip
    subprocess.run(command(corpus, tmp_path / "whole", *options), check=True, env=ENVIRONMENT, timeout=300)
    cut, chance, killed = tmp_path / "cut", random.Random(7), 0
    for attempt in range(12):
        resume = ["--resume"] if list(cut.glob("checkpoints/step-*")) else []
        process = subprocess.Popen(command(corpus, cut, *options, *resume), env=ENVIRONMENT)
        if attempt < 2:
            before = len(losses(cut)) if resume else 0
            while process.poll() is None and len(losses(cut)) <= before + 3:  # it has begun to train
                time.sleep(0.02)
            time.sleep(chance.random() * 0.3)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
        if process.wait(timeout=300) == 0:
            break
    assert killed >= 1
    assert losses(cut) == losses(tmp_path / "whole")
    assert len(losses(cut)) == 60
    ends = [tmp_path / name / "checkpoints/step-00000060/model.gguf" for name in ("whole", "cut")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    assert not list(cut.glob("checkpoints/.llmconv-*"))


@pytest.mark.slow
def test_from_text_to_quantized_files_and_what_they_lost(corpus: Path, tmp_path: Path) -> None:
    """Character-level, nanoGPT's shape made small: it learns, becomes F16, Q8_0 and Q4_0, and each loses its due."""
    config = TrainConfig(
        data=str(corpus), output=str(tmp_path / "run"), preset="small-10m", tokenizer="char", layers=2, heads=4,
        dim=128, context=64, steps=120, batch_size=16, lr=3e-3, device="cpu", eval_every=30, export="gguf,safetensors",
        export_type="f16", tensorboard=True,
    )  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        trained = llmconv.train(config)
        curve = [float(row["val_loss"]) for row in read_log(tmp_path / "run/log.csv") if row["val_loss"]]
        assert len(curve) == 4
        assert max(curve[1:]) < curve[0]
        assert curve[-1] < 2.6  # the letters' frequencies alone give 2.8
        whole = tmp_path / "run/model.gguf"
        llmconv.quantize(whole, tmp_path / "{type}.gguf", ["Q8_0", "Q4_0"])
        lost = {
            name: llmconv.compare(whole, tmp_path / f"{name}.gguf", corpus, context=64, chunks=30, device="cpu")
            for name in ("Q8_0", "Q4_0")
        }
    finally:
        torch.set_num_threads(before)
    assert lost["Q8_0"].ppl_a == pytest.approx(np.exp(trained.val_loss), rel=0.35)
    assert 0 < 5 * lost["Q8_0"].mean_kld < lost["Q4_0"].mean_kld < 0.2
    assert lost["Q8_0"].ppl_ratio == pytest.approx(1, abs=0.01)
    assert lost["Q8_0"].top1_agreement > lost["Q4_0"].top1_agreement
    sizes = [path.stat().st_size for path in (whole, tmp_path / "Q8_0.gguf", tmp_path / "Q4_0.gguf")]
    assert sizes == sorted(sizes, reverse=True)
    assert llmconv.verify(whole, tmp_path / "run/model").same
    summary = (tmp_path / "run/summary.md").read_text()
    assert f"{trained.val_loss:.4f}" in summary


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["simple-1m-causal", "llama-15m"])
def test_transformers_loads_what_was_trained(preset: str, corpus: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="compares with transformers")
    config = TrainConfig(
        data=str(corpus), output=str(tmp_path), preset=preset, layers=2, dim=32, heads=2, context=32, steps=3,
        batch_size=4, vocab_size=300, tokenizer="bpe", device="cpu", export="gguf,safetensors", tensorboard=False,
        plot=False,
    )  # fmt: skip
    llmconv.train(config)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    ours = llmconv.load(tmp_path / "model.gguf", device="cpu", dtype="f32")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    text = corpus.read_text()[:120]
    ids = ours.tokenizer.encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    tokens = torch.tensor([ids[:32]])
    with torch.no_grad():
        gap = (theirs(tokens).logits - ours(tokens)).abs().max().item()
    assert gap < 1e-4


@pytest.mark.slow
def test_a_compiled_model_trains_to_the_same_losses(corpus: Path, tmp_path: Path) -> None:
    import shutil

    if not (shutil.which("g++") or shutil.which("clang++") or os.environ.get("CXX")):
        pytest.skip("torch.compile needs a C++ compiler on the CPU")
    options = ["--preset", "simple-1m-causal", "--layers", "1", "--dim", "32", "--heads", "2", "--context", "16",
               "--steps", "4", "--batch-size", "4", *SMALL]  # fmt: skip
    for name, extra in (("plain", []), ("compiled", ["--compile"])):
        subprocess.run(command(corpus, tmp_path / name, *options, *extra), check=True, env=ENVIRONMENT, timeout=280)
    plain, compiled = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_the_command_reads_settings_and_prints_its_plan(root: Path, tmp_path: Path) -> None:
    """TOML settings, a flag over them, the memory plan before the first step, the result in JSON."""
    pairs = root / "examples" / "pairs.json"
    (tmp_path / "run.toml").write_text(
        'preset = "simple-36k"\nsteps = 50\nbatch_size = 8\nexport = "json"\ntensorboard = false\nplot = false\n'
    )
    run = ["train", str(pairs), "-o", str(tmp_path / "out"), "--config", str(tmp_path / "run.toml"), "--steps", "3"]
    done = CliRunner().invoke(cli, [*run, "--device", "cpu"], catch_exceptions=False)
    assert done.exit_code == 0
    plan = done.stderr.splitlines()[0]
    for part in ("parameters on 1 x cpu", "weights", "gradients", "optimizer", "activations"):
        assert part in plan
    assert "3 steps" in done.stdout
    assert json.loads((tmp_path / "out/config.json").read_text())["batch_size"] == 8
    again = CliRunner().invoke(cli, [*run, "--device", "cpu", "--resume", "--json"], catch_exceptions=False)
    assert json.loads(again.stdout)["result"]["steps"] == 3


def test_a_tiny_model_takes_one_thread_and_gives_it_back(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        config = TrainConfig(
            data=str(root / "examples/pairs.json"), output=str(tmp_path), preset="simple-36k", steps=1, batch_size=2,
            export="", tensorboard=False, plot=False, device="cpu", eval_sequences=16,
        )  # fmt: skip
        llmconv.train(config, progress=lambda step: seen.append((step.what, torch.get_num_threads())))
        assert ("train", 1) in seen
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def structure(value: Any) -> Any:
    """Keys in their order, and shapes and types of the rest; the words of a vocabulary are its own."""
    if isinstance(value, dict):
        return [(key, structure(item)) for key, item in value.items() if key != "vocab"]
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return np.shape(value)
    if isinstance(value, list):
        return [structure(item) for item in value]
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.parametrize(
    ("preset", "version", "old"),
    [("simple-36k", "1.0", "default-400.v1.json"), ("simple-1m", "2.0", "multi-head-567.v2.json")],
)
def test_json_has_the_keys_and_shapes_of_the_old_program(
    preset: str, version: str, old: str, shared: Path, tmp_path: Path
) -> None:
    """Of the same sizes, and of as many words: a text made of their vocabulary's."""
    theirs = json.loads((shared / "simple-llm" / old).read_bytes())
    shape = theirs["config"]
    words = [*(word for word in shape["vocab"] if not word.startswith("[")), "one", "more", "than", "enough"]
    data = tmp_path / "words.json"
    data.write_text(json.dumps([{"input": word, "target": word} for word in words]))
    config = TrainConfig(
        data=str(data), output=str(tmp_path / "run"), preset=preset, steps=1, batch_size=2, export="json",
        vocab_size=shape["vocabSize"], dim=shape["embeddingDim"], layers=shape["numLayers"],
        heads=shape.get("numHeads", 0), ffn=len(theirs["weights"]["transformers"][0]["w2"]), device="cpu",
        tensorboard=False, plot=False, eval_sequences=16,
    )  # fmt: skip
    llmconv.train(config)
    ours = json.loads((tmp_path / "run/model.json").read_bytes())
    assert ours["version"] == version
    assert structure(ours) == structure(theirs)
    assert list(ours["config"]) == list(shape)
    assert len(ours["config"]["vocab"]) == len(shape["vocab"])


def test_tensorboard_events_can_be_read(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="events need tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pairs = root / "examples" / "pairs.json"
    config = TrainConfig(
        data=str(pairs), output=str(tmp_path), preset="simple-36k", steps=4, batch_size=4, log_every=1, export="",
        device="cpu", plot=False,
    )  # fmt: skip
    llmconv.train(config)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"loss", "lr", "val_loss"} <= set(events.Tags()["scalars"])
    logged = [float(loss) for _, loss in losses(tmp_path)]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(logged, rel=1e-6)
