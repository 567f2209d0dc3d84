"""A gate never passes on garbage: NaN and infinities on either side, in any row, end every measure with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import llmconv
from llmconv.cli import cli

torch = pytest.importorskip("torch")

import runnable

from llmconv.formats.tensor import Tensor as Stored
from llmconv.quant.block import by_name
from llmconv.runtime.checks import bad_tensor, not_finite
from llmconv.runtime.load import _in_float16, build, runs_finite


@pytest.fixture
def good() -> Any:
    return llmconv.load(runnable.checkpoint(), "cpu")


@pytest.fixture
def text() -> llmconv.Text:
    return llmconv.Text(runnable.text())


def spoiled(position: int, value: float, token: int | None = None) -> Any:
    """A model whose logits are `value` at one position of every chunk, of one token or of all."""
    model = llmconv.load(runnable.checkpoint(), "cpu")
    hidden, head = model.hidden, model.head
    marked: list[Any] = []

    def states(*args: Any, **options: Any) -> Any:
        out = hidden(*args, **options)
        marked[:] = [out[:, position : position + 1].clone()]
        return out

    def logits(states: Any) -> Any:
        out = head(states)
        rows = (states[:, None] == marked[0].flatten(0, 1)[None]).all(-1).any(-1)
        out[rows] = torch.where(torch.arange(out.shape[1]) == token, value, out[rows]) if token is not None else value
        return out

    model.hidden, model.head = states, logits
    return model


@pytest.mark.parametrize("token", [None, 5])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["A", "B"])
def test_compare_names_side_and_position(side: str, value: float, token: int | None, good: Any, text: Any) -> None:
    sides = (spoiled(12, value, token), good) if side == "A" else (good, spoiled(12, value, token))
    kind = "NaN" if value != value else "infinite"
    with pytest.raises(llmconv.LlmconvError, match=rf"model {side} .*logits at chunk 0, position 12 are .*{kind}.*; "):
        llmconv.compare(*sides, text, context=16)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_perplexity_names_the_position(value: float, text: Any) -> None:
    for options, place in (({}, "chunk 0, position 12"), ({"stride": 4}, "chunk 0, position 12")):
        with pytest.raises(llmconv.LlmconvError, match=f"logits at {place} are"):
            llmconv.perplexity(spoiled(12, value, 5), text, context=16, **options)


def test_positions_that_are_not_scored_are_not_looked_at(good: Any, text: Any) -> None:
    model = spoiled(3, float("nan"))
    expected = llmconv.perplexity(good, text, context=16).perplexity
    assert llmconv.perplexity(model, text, context=16).perplexity == expected
    assert llmconv.compare(good, model, text, context=16).mean_kld == 0


def test_a_broken_weight_is_named(tmp_path: Path) -> None:
    def nan(values: Any) -> None:
        values[2, 3] = np.nan

    good = runnable.write(runnable.checkpoint(), tmp_path / "good.gguf")
    bad = runnable.write(runnable.changed(runnable.checkpoint(), "blk.0.ffn_down.weight", nan), tmp_path / "bad.gguf")
    (tmp_path / "t.txt").write_text(runnable.text())
    common = ["-c", "16", "--device", "cpu"]
    run = CliRunner()
    for args in (
        ["compare", bad, good, tmp_path / "t.txt", "--max-kld", "0.1", *common],
        ["compare", good, bad, tmp_path / "t.txt", "--max-kld", "0.1", *common],
        ["perplexity", bad, tmp_path / "t.txt", *common],
        ["verify", bad, bad, "--run", tmp_path / "t.txt", "-c", "16"],
        ["generate", bad, "-p", "w1 w2", "--device", "cpu"],
    ):
        result = run.invoke(cli, [str(a) for a in args])
        assert isinstance(result.exception, llmconv.LlmconvError), result.output
        said = str(result.exception)
        assert "bad.gguf: the logits at " in said and "'blk.0.ffn_down.weight' holds numbers that" in said
        assert result.exception.exit_code == 1 and "KLD" not in result.output


def test_a_sweep_of_a_broken_original_ends(tmp_path: Path) -> None:
    def huge(values: Any) -> None:
        values[:] = 3e38

    path = runnable.write(runnable.changed(runnable.checkpoint(), "output_norm.weight", huge), tmp_path / "broken.gguf")
    (tmp_path / "t.txt").write_text(runnable.text())
    with pytest.raises(llmconv.LlmconvError, match=r"model A .*broken\.gguf: the logits at .*it overflows inside"):
        llmconv.sweep(path, tmp_path / "t.txt", ["Q8_0"], tmp_path / "out", context=16, device="cpu", plots=False)


def test_the_first_bad_tensor_is_found_in_blocks_too() -> None:
    source = runnable.checkpoint()
    kind = by_name("Q8_0")
    blocks = kind.encode(np.ones((64, 32), np.float32))
    blocks.reshape(-1).view(kind.layout)["d"][9] = np.inf
    name = "blk.0.ffn_up.weight"
    tensor = Stored(name, (64, 32), kind, lambda start, stop: blocks[start:stop])
    model = llmconv.load(source.but(tensors={**source.tensors, name: tensor}), "cpu")
    assert bad_tensor(model) == name
    assert bad_tensor(llmconv.load(source, "cpu")) is None


def test_float16_is_the_cause_where_it_is(text: Any) -> None:
    def large(values: Any) -> None:
        values *= 60000 / np.abs(values).max()

    source = runnable.checkpoint()
    for name in ("blk.0.ffn_up.weight", "blk.0.ffn_gate.weight"):
        source = runnable.changed(source, name, large)
    with pytest.raises(llmconv.LlmconvError, match=r"float16 ends at 65504.*use dtype=.bf16. or f32"):
        llmconv.perplexity(source, text, context=16, device="cpu", dtype="f16")
    assert np.isfinite(llmconv.perplexity(source, text, context=16, device="cpu", dtype="bf16").perplexity)
    # "auto", where it would be float16
    model = _in_float16(source, torch.device("cpu"))
    assert model.dtype == torch.bfloat16
    assert "computed in bfloat16, because it passes float16's 65504 inside" in model.notes[0]
    assert llmconv.perplexity(model, text, context=16).notes == model.notes
    assert not runs_finite(build(source, torch.device("cpu"), torch.float16))
    fine = _in_float16(runnable.checkpoint(), torch.device("cpu"))
    assert fine.dtype == torch.float16 and not fine.notes


def test_weights_that_float16_can_not_hold(tmp_path: Path) -> None:
    def one(values: Any) -> None:
        values[1, 2] = -70000

    path = runnable.write(runnable.changed(runnable.checkpoint(), "blk.0.attn_q.weight", one), tmp_path / "m.gguf")
    with pytest.raises(llmconv.Unsupported, match=r"m\.gguf: tensor 'blk\.0\.attn_q\.weight' holds -70000, which") as e:
        llmconv.load(path, "cpu", "f16")
    assert (e.value.tensor, e.value.index, e.value.value) == ("blk.0.attn_q.weight", [1, 2], -70000.0)
    model = _in_float16(llmconv.open(path), torch.device("cpu"))
    assert model.dtype == torch.bfloat16 and "'blk.0.attn_q.weight' passes float16's 65504" in model.notes[0]
    assert np.isfinite(llmconv.load(path, "cpu")(torch.tensor([[4, 5]])).detach().numpy()).all()


def test_families_that_pass_float16_say_so() -> None:
    from llmconv.convert import archs

    run = {table.gguf: table.decoder for table in archs.all() if table.decoder and "not_run" not in table.decoder}
    passing = {name for name, pieces in run.items() if pieces.get("passes_float16")}
    assert passing == {"gemma", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma-embedding"}


def test_float16_weights_take_inputs_beyond_their_range() -> None:
    """A token whose numbers float16 can't hold is multiplied as it is, whoever stands beside it."""
    from llmconv.runtime import products

    weight = torch.randn(8, 16).half()
    x = torch.randn(3, 16)
    x[1, 4] = 1e6
    found = products.matmul(x, weight)
    torch.testing.assert_close(found[1], x[1] @ weight.float().t())
    torch.testing.assert_close(found[[0, 2]], x[[0, 2]].half().float() @ weight.float().t())
    torch.testing.assert_close(products.matmul(x[:1], weight), found[:1])


def test_a_checker_for_losses() -> None:
    model = llmconv.load(runnable.checkpoint(), "cpu")
    assert "this model" not in str(not_finite(model, "the loss of step 7"))
    assert "the loss of step 7 are not numbers (NaN); it overflows" in str(not_finite(model, "the loss of step 7"))


@pytest.mark.parametrize("name", ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"])
def test_nan_in_any_weight_comes_out_whatever_the_length(name: str) -> None:
    """A CPU's attention loses scores that are all NaN where there are few of them."""

    def spoil(values: Any) -> None:
        values[3, 3] = np.nan

    model = llmconv.load(runnable.changed(runnable.checkpoint(), f"blk.0.{name}.weight", spoil), "cpu", "f32")
    for length in (1, 2, 5, 9, 17, 33):
        assert not model(torch.arange(3, 3 + length)[None] % 32).isfinite().any(-1)[0, -1], length
    cache = model.cache(1, 40)
    with torch.no_grad():
        for i in range(1, 24):
            assert not model(torch.tensor([[i]]), cache=cache).isfinite().all(), i
    with pytest.raises(
        llmconv.LlmconvError, match=f"its tensor 'blk.0.{name}.weight' holds numbers that are not finite"
    ):
        llmconv.generate(model, "w1", max_tokens=3)
