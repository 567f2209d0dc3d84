"""Mixes for a size: never over it and close under it, as good as any file type of that size, and a recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import synthetic
from click.testing import CliRunner

import llmconv
from llmconv.cli import cli
from llmconv.errors import UsageError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mix") / "m.gguf"
    synthetic.write(path, n_layer=3)
    return path


def relative(model: Path, made: Path) -> float:
    """The sum of what the mix is chosen by: each tensor's error as a share of its squares."""
    ours, theirs = (llmconv.open(p).tensors for p in (model, made))
    total = 0.0
    for name, tensor in ours.items():
        if len(tensor.shape) > 1:
            x, y = (t[name].numpy().astype(np.float64) for t in (ours, theirs))
            total += float(((x - y) ** 2).sum() / (x**2).sum())
    return total


@pytest.mark.parametrize("share", [0.2, 0.3, 0.45])
def test_never_over_and_close_under(model: Path, tmp_path: Path, share: float) -> None:
    size = int(model.stat().st_size * share)
    made = llmconv.quantize(model, tmp_path / "q.gguf", target_size=size)
    written = (tmp_path / "q.gguf").stat().st_size
    assert written == made.output.size and 0.995 * size <= written <= size
    assert "by the weights alone" in made.notes[-1]
    assert float(made.notes[-1].split("lose ")[1].split()[0]) == pytest.approx(
        relative(model, made.output.paths[0]), rel=0.01
    )


def test_as_good_as_any_file_type_of_its_size(model: Path, tmp_path: Path) -> None:
    for name in ("Q3_K_M", "Q4_K_M", "Q5_K_S"):
        llmconv.quantize(model, tmp_path / "fixed.gguf", name, force=True)
        size = (tmp_path / "fixed.gguf").stat().st_size
        llmconv.quantize(model, tmp_path / "mix.gguf", target_size=size, force=True)
        assert (tmp_path / "mix.gguf").stat().st_size <= size
        assert relative(model, tmp_path / "mix.gguf") <= relative(model, tmp_path / "fixed.gguf") * 1.001


def test_the_recipe_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    made = llmconv.quantize(
        model, tmp_path / "a.gguf", bpw=4.1, save_recipe=tmp_path / "mix.txt", types=["Q3_K", "Q4_K", "Q6_K"]
    )
    assert made.output.bits_per_weight <= 4.1
    assert {t.type for t in made.output.tensors if len(t.shape) > 1} <= {"Q3_K", "Q4_K", "Q6_K"}
    base = max(("Q3_K", "Q4_K", "Q6_K"), key=[t.type for t in made.output.tensors].count)
    llmconv.quantize(model, tmp_path / "b.gguf", base, tensor_type_file=tmp_path / "mix.txt")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_wishes_are_kept(model: Path, tmp_path: Path) -> None:
    made = llmconv.quantize(
        model, tmp_path / "q.gguf", bpw=4.5, min_types=["attn_v=Q6_K"], tensor_types=["ffn_down=Q4_0"], dry_run=True
    )
    types = {t.name: t.type for t in made.output.tensors}
    assert not (tmp_path / "q.gguf").exists()
    assert {t for n, t in types.items() if "ffn_down" in n} == {"Q4_0"}
    assert {t for n, t in types.items() if "attn_v" in n} <= {"Q6_K", "Q8_0", "F16"}


def test_what_can_not_be(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    with pytest.raises(UsageError, match=r"the smallest file of these types has [\d,]+ bytes"):
        llmconv.quantize(model, out, target_size=200_000)
    with pytest.raises(UsageError, match="give one of them"):
        llmconv.quantize(model, out, target_size=1_000_000, bpw=4)
    with pytest.raises(UsageError, match="target_kld needs to know what errors cost"):
        llmconv.quantize(model, out, target_kld=0.01)
    with pytest.raises(UsageError, match="matches no tensor"):
        llmconv.quantize(model, out, bpw=4, min_types=["nosuch=Q8_0"])
    with pytest.raises(UsageError, match="no type that a mix may use has as many bits for 'blk"):
        llmconv.quantize(model, out, bpw=4, min_types=["attn_v=F32"])
    with pytest.raises(UsageError, match="are of a mix"):
        llmconv.quantize(model, out, "Q4_0", types=["Q4_K"])
    with pytest.raises(UsageError, match="only a mix has a recipe"):
        llmconv.quantize(model, out, "Q4_0", save_recipe=tmp_path / "r")
    said = CliRunner().invoke(cli, ["quantize", str(model), "-t", "Q4_0", "--bpw", "4"])
    assert "a mix has its own types" in said.output
    assert list(tmp_path.iterdir()) == []


def test_a_divergence_needs_gradients(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    fast = llmconv.OnText(tmp_path / "text.txt", effort="fast")
    with pytest.raises(UsageError, match="fast does not find; use standard"):
        llmconv.quantize(model, tmp_path / "q.gguf", target_kld=0.01, calibration=fast)


def test_an_impossible_size_is_refused_before_anything_is_calibrated(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    missing = llmconv.OnText(tmp_path / "nobody-has-read-it.txt")
    for wish in ({"target_size": 200_000}, {"bpw": 1.0}):
        with pytest.raises(UsageError, match="the smallest file of these types"):
            llmconv.quantize(model, tmp_path / "q.gguf", calibration=missing, **wish)


def test_the_command(model: Path, tmp_path: Path) -> None:
    recipe = str(tmp_path / "r.txt")
    done = CliRunner().invoke(cli, ["quantize", str(model), "--bpw", "4", "--dry-run", "--save-recipe", recipe])
    assert done.exit_code == 0 and "MIX" in done.output and "^blk" in Path(recipe).read_text(), done.output
