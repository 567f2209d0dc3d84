"""Calibrated rounding: closer to the float model than an importance matrix, and the same every time."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runnable
from worded import WORDS, gguf_of

import llmconv
from llmconv.errors import BadFile, LlmconvError, OutputExists, UsageError
from llmconv.formats.gguf import gguf_file
from llmconv.formats.tensor import Tensor
from llmconv.quant.block import by_name

torch = pytest.importorskip("torch")

from llmconv.runtime.calibrate.gradients import drawn, gather
from llmconv.runtime.calibrate.inputs import Inputs, inputs_of
from llmconv.runtime.calibrate.layered import Between
from llmconv.runtime.calibrate.matrices import ToRound, round_tensors
from llmconv.runtime.calibrate.targets import Shift, target
from llmconv.runtime.calibrate.units import embedded, groups, units


@pytest.fixture(scope="module")
def model(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's model of 36 thousand parameters, trained on pairs."""
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    llmconv.convert_file(root / "examples" / "simple-36k.json", path)
    return path


@pytest.fixture(scope="module")
def pairs(root: Path) -> Path:
    return root / "examples" / "pairs.json"


@pytest.fixture(scope="module")
def known(model: Path, pairs: Path) -> llmconv.Calibration:
    return llmconv.calibrate(model, pairs, device="cpu")


def test_closer_than_an_importance_matrix(model: Path, pairs: Path, known: llmconv.Calibration, tmp_path: Path) -> None:
    llmconv.imatrix(model, pairs, tmp_path / "i.gguf", device="cpu")
    ways: dict[str, Any] = {
        "matrix": {"imatrix": tmp_path / "i.gguf"},
        "fast": {"calibration": llmconv.OnText(pairs, effort="fast", device="cpu")},
        "standard": {"calibration": known},
    }
    kld = {}
    for name, how in ways.items():
        made = llmconv.quantize(model, tmp_path / f"{name}.gguf", "Q4_0", pure=True, **how)
        kld[name] = llmconv.compare(model, tmp_path / f"{name}.gguf", pairs, device="cpu").mean_kld
        predicted = [(t.loss_before, t.loss_after) for t in made.output.tensors if t.loss_before is not None]
        assert all(after <= before for before, after in predicted) and bool(predicted) == (name != "matrix")
    assert kld["fast"] < 0.75 * kld["matrix"] and kld["standard"] < 0.55 * kld["matrix"], kld
    files = [llmconv.open(tmp_path / f"{name}.gguf") for name in ways]
    shapes = [[(t.name, t.shape, t.type.name) for t in f.tensors.values()] for f in files]
    assert shapes[0] == shapes[1] == shapes[2]
    total = sum(t.loss_after for t in made.output.tensors if t.loss_after is not None)
    assert 0.4 < total / kld["standard"] < 2.5  # nats, as predicted
    best = dataclasses.replace(known, effort="best")
    llmconv.quantize(model, tmp_path / "best.gguf", "Q4_0", pure=True, calibration=best)
    assert llmconv.compare(model, tmp_path / "best.gguf", pairs, device="cpu").mean_kld < 0.8 * kld["standard"]


def test_the_same_whatever_the_threads(model: Path, known: llmconv.Calibration, pairs: Path, tmp_path: Path) -> None:
    made = []
    for jobs in (1, 3):
        llmconv.quantize(model, tmp_path / f"{jobs}.gguf", "Q4_1", calibration=known, jobs=jobs)
        made.append((tmp_path / f"{jobs}.gguf").read_bytes())
    again = llmconv.calibrate(model, pairs, device="cpu")
    llmconv.quantize(model, tmp_path / "again.gguf", "Q4_1", calibration=again)
    assert made[0] == made[1] == (tmp_path / "again.gguf").read_bytes()


def test_kept_statistics_are_the_same(model: Path, known: llmconv.Calibration, tmp_path: Path) -> None:
    known.save(tmp_path / "m.calibration")
    kept = llmconv.Calibration.open(tmp_path / "m.calibration")
    for name, how in (("a", known), ("b", kept)):
        llmconv.quantize(model, tmp_path / name, ["Q4_0", "Q8_0"], calibration=how)
    for kind in ("Q4_0", "Q8_0"):
        a, b = (next((tmp_path / name).glob(f"*{kind}.gguf")).read_bytes() for name in "ab")
        assert a == b
    with pytest.raises(OutputExists):
        known.save(tmp_path / "m.calibration")
    with pytest.raises(BadFile, match="is no calibration; make one with llmconv calibrate"):
        llmconv.Calibration.open(model)


def test_what_does_harm_elsewhere_is_left_out(
    model: Path, pairs: Path, known: llmconv.Calibration, tmp_path: Path
) -> None:
    """Verified on its own pairs it stays; made of one pair and verified on the others, tensors become plain again."""
    every = json.loads(pairs.read_text())
    one, others = tmp_path / "one.json", tmp_path / "others.json"
    one.write_text(json.dumps(every[:1]))
    others.write_text(json.dumps(every[1:]))
    kld = {}
    ways = {"plain": None, "checked": llmconv.Verified(llmconv.OnText(one, device="cpu"), others)}
    for name, how in ways.items():
        done = llmconv.quantize(model, tmp_path / name, "Q4_0", pure=True, calibration=how)
        kld[name] = llmconv.compare(model, tmp_path / name, others, device="cpu").mean_kld
    (note, *_rest) = done.notes
    assert note.startswith("KL divergence on the text to verify by: ") and kld["checked"] <= kld["plain"] * 1.0001
    assert any("plainly" in said for said in done.notes[1:]) or "everything" in note
    ready = llmconv.quantize(model, tmp_path / "kept", "Q4_0", calibration=llmconv.Verified(known, pairs))
    said, *tensors = ready.notes
    assert "everything" not in said and "plainly 0." in said and not tensors
    shown = [float(word.rstrip(",;")) for word in said.split() if word[0].isdigit()]
    assert shown[0] == pytest.approx(llmconv.compare(model, tmp_path / "kept", pairs, device="cpu").mean_kld, rel=1e-3)


@pytest.mark.parametrize("clip", [4.0, 1.2])
def test_gradients_are_the_fisher_information(model: Path, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd written out: labels drawn with the same seed, one loss, gradients at one layer's results, of
    which those of few tokens count less, the sum of squares staying."""
    monkeypatch.setattr("llmconv.runtime.calibrate.inputs.CLIP", clip)
    loaded = llmconv.load(model, "cpu")
    batches = [torch.arange(24).view(3, 8) % loaded.decoder.vocab_size]
    meter = llmconv.progress.Meter(None, "x", 0)
    found = gather(loaded, batches, 5, meter)
    name, kept = "blk.1.ffn_down", []
    loaded.get_submodule(name).register_forward_hook(lambda m, i, o: kept.append(o) or o.retain_grad())
    for p in loaded.parameters():
        p.requires_grad_(True)
    logits = loaded(batches[0])
    chances = logits.detach().softmax(-1).flatten(0, 1)
    heights, sums = torch.rand(24, 1, generator=torch.Generator().manual_seed(5)), chances.cumsum(-1)
    labels = drawn(chances, heights)
    assert labels.tolist() == (sums < heights * sums[:, -1:]).sum(-1).tolist()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum").backward()
    g = kept[0].grad.flatten(0, 1)
    squares = g.square().mean(1)
    np.testing.assert_allclose(found.tokens[f"{name}.weight"], squares, rtol=1e-4, atol=1e-9)
    weight = (clip * squares.mean() / squares).clamp(max=1)
    assert bool(weight.min() < 1) == (clip < 4)
    rows = g.T @ (g * weight[:, None]) / (weight * squares).sum() * squares.mean()
    np.testing.assert_allclose(found.of_rows(f"{name}.weight")[0], rows, rtol=1e-3, atol=1e-7)
    assert all(p.requires_grad for p in loaded.parameters())


def between(model: Any, batches: Any) -> Between:
    found = Between(model, batches)
    found.begin(lambda tokens: embedded(model, tokens))
    return found


def test_inputs_are_a_plain_loops(model: Path) -> None:
    loaded = llmconv.load(model, "cpu")
    tokens = torch.arange(32).view(4, 8) % loaded.decoder.vocab_size
    weights = {"blk.0.attn_q.weight": torch.linspace(0.1, 2, 32)}
    unit = next(iter(units(loaded)))
    seen: list[Any] = []
    loaded.blk[0].attn_q.register_forward_pre_hook(lambda m, given: seen.append(given[0].flatten(0, 1)))
    with torch.inference_mode():
        states = between(loaded, tokens.split(2))
        (names,) = groups(unit)
        found = inputs_of(loaded, unit, names, weights, states)
    assert found.keys() == unit.modules.keys()
    assert found["blk.0.attn_k.weight"] is found["blk.0.attn_v.weight"]  # of one input
    x, w = torch.cat(seen).double(), weights["blk.0.attn_q.weight"]
    w = (w / w.mean()).clamp(max=4)
    w = w / w.mean()
    wanted = sum(float(w[i]) * torch.outer(x[i], x[i]) for i in range(32)) / 32
    np.testing.assert_allclose(found["blk.0.attn_q.weight"].h[0], wanted, rtol=1e-5, atol=1e-6)
    early = sum(float(w[i]) * torch.outer(x[i], x[i]) for i in range(16)) / 32
    np.testing.assert_allclose(found["blk.0.attn_q.weight"].half, early, rtol=1e-5, atol=1e-6)
    plain = sum(torch.outer(row, row) for row in x) / 32
    np.testing.assert_allclose(found["blk.0.attn_k.weight"].h[0], plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [128, 512])
def test_halves_of_a_text_try_each_other(tokens: int) -> None:
    """Of inputs whose covariance is known, so that other tokens of theirs need not be drawn."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((128, 128)))[0]
    covariance = (turn * np.geomspace(1, 1e-4, 128)) @ turn.T
    x = rng.standard_normal((tokens, 128)) @ np.linalg.cholesky(covariance).T
    w = rng.standard_normal((64, 128)).astype(np.float32)
    whole, half = (torch.from_numpy((part.T @ part / tokens).astype(np.float32)) for part in (x, x[: tokens // 2]))

    def costs(inputs: Inputs) -> float:
        (made,) = round_tensors([ToRound((1, 64, 128), lambda _, rows: w[rows], by_name("Q4_0"), inputs, None)])
        error = by_name("Q4_0").decode(made.blocks[:]) - w
        return float(np.vdot(error @ covariance, error))

    assert costs(Inputs([whole], [tokens], half)) < 0.8 * costs(Inputs([whole], [tokens]))


def test_every_expert_is_seen(tmp_path: Path) -> None:
    """Of all matrices of experts, not only of the first that a batch goes to, as many tokens as are sent there."""
    pytest.importorskip("transformers")
    loaded = llmconv.load(gguf_of("mixtral", tmp_path), "cpu")
    unit, tokens = next(iter(units(loaded))), torch.arange(64).view(4, 16)
    logits: list[Any] = []
    loaded.blk[0].ffn_gate_inp.register_forward_hook(lambda m, i, out: logits.append(out))
    with torch.inference_mode():
        found = inputs_of(loaded, unit, groups(unit)[0], {}, between(loaded, [tokens]))
    routed = torch.bincount(logits[0].topk(2).indices.flatten(), minlength=4)
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        assert found[f"blk.0.{name}.weight"].counts == routed.tolist() and (routed > 0).sum() > 1
        assert len(found[f"blk.0.{name}.weight"].h) == 4


@pytest.mark.parametrize(("kind", "group"), [("W4A16", 64), ("MLX", None), ("INT8", None)])
def test_folders_of_integers(kind: str, group: int | None, tmp_path: Path) -> None:
    """Nearer than plain rounding to the same numbers, in a folder that reads as what was made, number for number."""
    pytest.importorskip("transformers")
    path, text = gguf_of("llama", tmp_path), tmp_path / "text.txt"
    text.write_text(" ".join(np.random.default_rng(2).choice(WORDS, 1500)))
    kld = []
    for how in (None, llmconv.OnText(text, context=32, device="cpu")):
        made = llmconv.quantize(path, tmp_path / "folder", kind, calibration=how, group_size=group, force=True)
        kld.append(llmconv.compare(path, tmp_path / "folder", text, context=32, device="cpu").mean_kld)
    assert kld[1] < 0.7 * kld[0], kld
    assert f"{12 if group else 14} tensors calibrated: predicted loss " in made.notes[-1]
    assert kind == "INT8" or "every weight equal" in made.output.proof
    assert group is None or any(f"in groups of {group}" in note for note in made.notes)
    with pytest.raises(UsageError, match="FP8_DYNAMIC is rounded without a calibration"):
        llmconv.quantize(path, tmp_path / "folder", "FP8_DYNAMIC", calibration=how)


def test_a_target_is_what_the_float_layer_gives() -> None:
    """Nearer to it on other tokens where inputs are off in a way that a matrix can make good; as it is where not."""
    rng = np.random.default_rng(0)
    w, exact = rng.standard_normal((6, 16)).astype(np.float32), rng.standard_normal((600, 16)).astype(np.float32)
    bent = exact @ (np.eye(16) + 0.2 * rng.standard_normal((16, 16))).astype(np.float32)
    noisy = exact + 0.05 * np.resize(rng.standard_normal((300, 16)), (600, 16)).astype(np.float32) * [[1]] * exact[::-1]

    def found(given: Any) -> Any:
        shift = Shift(16)
        for part, held_out in ((slice(0, 200), False), (slice(200, 300), True)):
            shift.add(torch.from_numpy(exact[part]), torch.from_numpy(given[part].astype(np.float32)), None, held_out)
            shift.ran(range(1))
        shift.whole()
        return target(w, shift)

    def off(weights: Any, given: Any) -> float:
        return float(np.square(exact[300:] @ w.T - given[300:] @ weights.T).sum())

    assert off(found(bent), bent) < 0.05 * off(w, bent)
    assert off(found(noisy), noisy) < 1.02 * off(w, noisy)
    assert np.array_equal(found(exact), w)


def test_an_interrupted_run_goes_on(model: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between layers, and with its last record cut off: the same bytes, what is done neither looked at again nor
    rounded again; another text is refused."""
    how: dict[str, Any] = {"type": "Q4_0", "pure": True, "resumable": True}
    text = llmconv.OnText(pairs, device="cpu", chunks=40)
    llmconv.quantize(model, tmp_path / "whole", calibration=text, **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["whole"]

    def until(step: llmconv.Step) -> None:
        if step.item.startswith("blk.1.ffn_down"):
            raise KeyboardInterrupt

    def again(chunks: int = 40, **more: Any) -> list[str]:
        items: list[str] = []
        fresh = llmconv.OnText(pairs, device="cpu", chunks=chunks)
        more = {"progress": lambda step: items.append(step.item)} | more
        llmconv.quantize(model, tmp_path / "cut", calibration=fresh, **(how | more))
        return items

    with pytest.raises(KeyboardInterrupt):
        again(progress=until)
    kept = tmp_path / "cut.rounded.partial"
    kept.write_bytes(kept.read_bytes()[:-100])
    with pytest.raises(llmconv.LlmconvError, match="is of a run with another model, text, type or options"):
        again(chunks=30)
    monkeypatch.setattr("llmconv.runtime.calibrate.calibration.gather", None)
    items = again()
    assert "blk.0.ffn_down.weight, already done" in items and "blk.1.ffn_up.weight" in items
    assert (tmp_path / "cut").read_bytes() == (tmp_path / "whole").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut", "whole"]


def test_what_it_does_not_go_with(model: Path, known: llmconv.Calibration, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    llmconv.imatrix(model, pairs, tmp_path / "i.gguf", device="cpu")
    for how, said in (
        ({"imatrix": tmp_path / "i.gguf"}, "leave imatrix out"),
        ({"prune_layers": [0]}, "leave prune_layers out"),
        ({"provenance": True}, "provenance=True does not go with a calibration"),
    ):
        with pytest.raises(UsageError, match=said):
            llmconv.quantize(model, out, "Q4_0", calibration=known, **how)  # type: ignore[arg-type]
    opened = llmconv.open(model)
    name = "token_embd.weight"
    smaller = opened.but(tensors=opened.tensors | {name: Tensor.from_array(name, opened.tensors[name].numpy()[:-8])})
    smaller.metadata = {k: v for k, v in opened.metadata.items() if not k.startswith("tokenizer")}
    with pytest.raises((UsageError, BadFile)):
        llmconv.quantize(smaller, out, "Q4_0", calibration=known)
    with pytest.raises(UsageError, match="unknown effort 'most'"):
        llmconv.OnText(pairs, effort="most")
    with pytest.raises(BadFile, match="is a folder, expected a text file"):
        llmconv.quantize(model, out, "Q4_0", calibration=llmconv.OnText("", device="cpu"))
    out.write_text("there")
    with pytest.raises(OutputExists):
        llmconv.quantize(model, out, "Q4_0", calibration=known)
    assert [p.name for p in tmp_path.iterdir()] == ["i.gguf", "x.gguf"] or len(list(tmp_path.iterdir())) == 2


def test_a_mix_of_short_rows(model: Path, known: llmconv.Calibration, tmp_path: Path) -> None:
    """File types that have no blocks for such rows are no candidates."""
    for how in ({}, {"calibration": known}):
        made = llmconv.quantize(model, tmp_path / "q", target_size="60K", force=True, **how)  # type: ignore[arg-type]
        assert 0.9 * 60_000 < made.output.size <= 60_000


def test_the_command(model: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmconv.cli import main

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        said = capsys.readouterr()
        assert stop.value.code == 0, said.err
        return said.out

    kept, out = str(tmp_path / "c"), str(tmp_path / "q.gguf")
    assert "standard" in run("calibrate", str(model), str(pairs), "-o", kept, "--device", "cpu")
    assert "predicted loss of" in run("quantize", str(model), "-o", out, "-t", "Q4_0", "--calibration", kept)
    run("quantize", str(model), "-o", out, "-t", "Q4_0", "-f", "--calibrate", str(pairs), "--effort", "fast")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["mixtral", "qwen2-moe", "gpt2", "gemma2", "deepseek-v2", "gpt-oss", "falcon-7b", "command-r"]
)
def test_every_kind_of_model(name: str, tmp_path: Path) -> None:
    """Experts, shared ones, tied heads, fused and latent attention: no further from the float model, mostly nearer."""
    pytest.importorskip("transformers")
    path, text, test = gguf_of(name, tmp_path), tmp_path / "text.txt", tmp_path / "test.txt"
    rng = np.random.default_rng(2)
    text.write_text(" ".join(rng.choice(WORDS, 3000)))
    test.write_text(" ".join(rng.choice(WORDS, 1200)))
    llmconv.imatrix(path, text, tmp_path / "i.gguf", context=32, device="cpu")
    found = llmconv.OnText(text, context=32, device="cpu")
    kld = []
    for how in ({"imatrix": tmp_path / "i.gguf"}, {"calibration": found}):
        made = llmconv.quantize(path, tmp_path / "q.gguf", "Q4_0", pure=True, force=True, **how)  # type: ignore[arg-type]
        kld.append(llmconv.compare(path, tmp_path / "q.gguf", test, context=32, device="cpu").mean_kld)
    rounded = [t for t in made.output.tensors if t.loss_after is not None]
    assert len(rounded) > 4 and sum(t.loss_after or 0 for t in rounded) < sum(t.loss_before or 0 for t in rounded)
    assert kld[1] < 0.9 * kld[0], kld


@pytest.mark.slow
def test_a_llama_of_whole_superblocks(llama: Path, shared: Path, tmp_path: Path) -> None:
    """KL divergence on text that was not seen, as a share of what an importance matrix from the same text gives."""
    text, test = shared / "text" / "tinyshakespeare.txt", tmp_path / "test.txt"
    test.write_text(text.read_text()[-60_000:])
    most = {"Q4_K": 0.5, "Q3_K": 0.5, "Q2_K": 0.6, "Q4_0": 0.5}
    window: dict[str, Any] = {"context": 128, "device": "cpu"}
    llmconv.imatrix(llama, text, tmp_path / "i.gguf", chunks=64, **window)
    ways: dict[str, Any] = {
        "matrix": {"imatrix": tmp_path / "i.gguf"},
        "calibrated": {"calibration": llmconv.calibrate(llama, text, chunks=64, **window)},
    }
    files = [
        [made.paths[0] for made in llmconv.quantize(llama, tmp_path / name, list(most), pure=True, **how).outputs]
        for name, how in ways.items()
    ]
    for (kind, share), *pair in zip(most.items(), *files, strict=True):
        kld = [llmconv.compare(llama, path, test, chunks=30, **window).mean_kld for path in pair]
        assert kld[1] < share * kld[0], (kind, kld)


@pytest.fixture(scope="session")
def llama(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with rows of whole 256s, trained for half a minute."""
    folder = tmp_path_factory.mktemp("llama")
    settings = {"preset": "llama-15m", "dim": 256, "layers": 2, "heads": 4, "ffn": 512, "vocab_size": 512}
    how = {"steps": 80, "batch_size": 8, "context": 128, "tokenizer": "bpe", "device": "cpu", "tensorboard": False}
    config = llmconv.TrainConfig(
        data=str(shared / "text" / "tinyshakespeare.txt"), output=str(folder), plot=False, lr=2e-3, **settings, **how
    )
    return llmconv.train(config).exports[0]


def test_other_weights_of_the_same_shape_are_said(model: Path, known: llmconv.Calibration, tmp_path: Path) -> None:
    known.save(tmp_path / "kept")
    kept = llmconv.Calibration.open(tmp_path / "kept")

    def moved(part: float) -> Any:
        other = tmp_path / f"{part}.gguf"
        there = llmconv.open(model)
        embedding = there.tensors["token_embd.weight"].numpy()
        noise = np.random.default_rng(0).standard_normal(embedding.shape) * part * embedding.std()
        there.add(Tensor.from_array("token_embd.weight", (embedding + noise).astype(np.float32)))
        gguf_file.save(there, other)
        return llmconv.quantize(other, tmp_path / f"{part}.out", "Q4_0", pure=True, calibration=kept)

    assert not any("other weights" in note for note in moved(0.001).notes)
    assert any("made of other weights: embeddings differ by" in note for note in moved(0.5).notes)


def test_what_never_fires_is_rounded_plainly_and_said(tmp_path: Path) -> None:
    def nothing(x: Any) -> None:
        x[...] = 0

    silent = runnable.changed(runnable.checkpoint(layers=2), "blk.0.ffn_up.weight", nothing)
    model = runnable.write(silent, tmp_path / "m.gguf")
    (tmp_path / "text.txt").write_text(runnable.text(200))
    known = llmconv.calibrate(model, tmp_path / "text.txt", context=32, device="cpu")
    for folder in ("own", "plain"):
        (tmp_path / folder).mkdir()
    made = llmconv.quantize(model, tmp_path / "own", ["Q4_0", "Q8_0"], pure=True, calibration=known)
    said = [note for note in made.notes if "rounded plainly" in note]
    assert said == [
        "1 tensor is rounded plainly, for the calibration says nothing of what errors cost there: blk.0.ffn_down.weight"
    ]
    llmconv.quantize(model, tmp_path / "plain", ["Q4_0", "Q8_0"], pure=True)
    for kind in ("Q4_0", "Q8_0"):
        own, plain = (llmconv.open(tmp_path / folder / f"m-{kind}.gguf") for folder in ("own", "plain"))
        name = "blk.0.ffn_down.weight"
        assert np.array_equal(own.tensors[name].rows(), plain.tensors[name].rows())


def test_what_is_not_finite_or_of_another_model(tmp_path: Path) -> None:
    """Numbers that overflow into norms that make zeros of them, so that only gradients show it; other sizes inside."""
    model, out = runnable.write(runnable.checkpoint(layers=2), tmp_path / "m.gguf"), tmp_path / "q.gguf"
    (tmp_path / "text.txt").write_text(runnable.text(200))

    def overflow(x: Any) -> None:
        x *= 1e38

    over = runnable.changed(runnable.checkpoint(layers=2), "blk.1.ffn_down.weight", overflow)
    runnable.write(over, tmp_path / "over.gguf")
    how: dict[str, Any] = {"context": 32, "device": "cpu"}
    with pytest.raises(LlmconvError, match=r"gradients at the results of 'blk\.1\.ffn_down\.weight' are not"):
        llmconv.calibrate(tmp_path / "over.gguf", tmp_path / "text.txt", **how)
    known = llmconv.calibrate(model, tmp_path / "text.txt", **how)
    other = runnable.write(runnable.checkpoint(layers=2, ffn=96), tmp_path / "other.gguf")
    with pytest.raises(UsageError, match=r"has 96 rows in 'blk\.[01]\.ffn_\w+\.weight', the calibration's model 64"):
        llmconv.quantize(other, out, "Q4_0", calibration=known)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_tokens(tmp_path: Path) -> None:
    """What the kernel saw at most in a child, after four parts of a text and after sixteen: what is kept of a part may
    not keep what its backward pass gives free from being used again."""
    model = runnable.write(runnable.checkpoint(layers=16, dim=64, heads=4, ffn=512), tmp_path / "m.gguf")
    (tmp_path / "text.txt").write_text(runnable.text(16 * 256 + 50))
    program = (
        "import sys, re, llmconv\n"
        "from llmconv.runtime.calibrate import gradients\n"
        "gradients._MOST_BYTES = 1\n"  # a row at a time
        "most = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "peaks = []\n"
        "llmconv.calibrate(*sys.argv[1:], context=256, device='cpu', progress=lambda step: peaks.append(most()))\n"
        "print(*peaks)\n"
    )
    run = [sys.executable, "-c", program, str(model), str(tmp_path / "text.txt")]
    peaks = [int(n) for n in subprocess.run(run, capture_output=True, text=True, check=True).stdout.split()]
    assert len(peaks) >= 16
    assert peaks[-1] - peaks[-13] < 40_000, peaks  # kB
