"""Importance matrices that are made here: sums as plain loops give them, both forms, merging, going on, coverage."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worded import WORDS, gguf_of

import llmconv
from llmconv.convert.quantizing.importance import read_importance, read_sums
from llmconv.errors import BadFile, Cancelled, LlmconvError, OutputError, UsageError
from llmconv.quant.importance.sums import Sums

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tiny models by name: their GGUF, made once."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models")

    return lambda name: gguf_of(name, folder)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(rng.choice(WORDS, 400)))
    return path


def by_hooks(path: Path, text: Path, context: int) -> dict[str, tuple[Any, int]]:
    """Sums of squares and counts of every linear module's inputs, by torch's own hooks, chunk by chunk in float64."""
    model = llmconv.load(path, "cpu")
    ids = model.tokenizer.encode(text.read_text(), add_special=True)
    found: dict[str, tuple[Any, int]] = {}

    def hook(name: str) -> Any:
        def see(module: Any, given: tuple[Any, ...]) -> None:
            x = given[0].reshape(-1, given[0].shape[-1]).double()
            key = name if len(given) == 1 else f"{name}/{given[1]}"
            sums, count = found.get(key, (0, 0))
            found[key] = sums + sum(row * row for row in x), count + len(x)

        return see

    for name, module in model.named_modules():
        if name.startswith("blk.") and type(module).__name__ in ("Linear", "ExpertLinear"):
            module.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.inference_mode():
        for i in range(len(ids) // context):
            chunk = ids[i * context : (i + 1) * context]
            chunk[0] = model.tokenizer.bos
            model(torch.tensor([chunk]))
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe"])
def test_sums_are_a_plain_loops(models: Any, text: Path, tmp_path: Path, name: str) -> None:
    path = models(name)
    made = llmconv.imatrix(path, text, tmp_path / "i.gguf", context=16, device="cpu")
    assert made.chunks == 25 and made.context == 16 and made.tokens == 400
    wanted = by_hooks(path, text, 16)
    sums = read_sums(tmp_path / "i.gguf", 16)
    assert {key.partition("/")[0] for key in wanted} == set(sums.entries)
    for key, (values, count) in wanted.items():
        tensor, _, expert = key.partition("/")
        at = int(expert or 0)
        np.testing.assert_allclose(sums.entries[tensor].sums[at], values.numpy(), rtol=1e-5)
        assert sums.entries[tensor].counts[at] == count
    reader = gguf.GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == [str(text)]
    assert reader.fields["imatrix.chunk_count"].contents() == 25


def test_quantize_takes_what_was_made(models: Any, text: Path, tmp_path: Path) -> None:
    """The bytes are those that the encoder gives for mean squares that numpy takes of the same sums."""
    path = models("llama")
    llmconv.imatrix(path, text, tmp_path / "i.gguf", context=16, device="cpu")
    llmconv.imatrix(path, text, tmp_path / "i.dat", context=16, device="cpu")
    llmconv.quantize(path, tmp_path / "q.gguf", "Q4_0", imatrix=tmp_path / "i.gguf", pure=True)
    tensor, name = llmconv.open(path).tensors["blk.1.ffn_down.weight"], "blk.1.ffn_down.weight"
    entry = read_sums(tmp_path / "i.gguf", 16).entries[name]
    mean = entry.sums[0].astype(np.float32) / np.float32(entry.counts[0])
    made = llmconv.open(tmp_path / "q.gguf").tensors[name]
    assert np.array_equal(made.blocks(), made.type.encode(tensor.rows(), mean))
    both = [read_importance(tmp_path / f"i.{end}").entries for end in ("gguf", "dat")]
    assert both[0].keys() == both[1].keys()
    for key, values in both[0].items():
        np.testing.assert_allclose(both[1][key], values, rtol=1e-6)


def test_texts_and_files_add_up(models: Any, text: Path, tmp_path: Path) -> None:
    path, other = models("qwen3-moe"), tmp_path / "other.txt"
    other.write_text(" ".join(np.random.default_rng(9).choice(WORDS[:9], 200)))
    for name, texts in (("a", [text]), ("b", [other]), ("ab", [text, other])):
        llmconv.imatrix(path, texts, tmp_path / f"{name}.gguf", context=16, device="cpu")
    parts = [tmp_path / "a.gguf", tmp_path / "b.gguf"]
    merged = llmconv.imatrix(output=tmp_path / "merged.gguf", in_files=parts)
    assert merged.chunks == 25 + 12 and merged.datasets == [str(text), str(other)] and merged.tokens == 0
    one, two = (read_sums(tmp_path / f"{name}.gguf", 16) for name in ("ab", "merged"))
    for name, entry in one.entries.items():
        np.testing.assert_allclose(two.entries[name].sums, entry.sums, rtol=1e-6)
        assert np.array_equal(two.entries[name].counts, entry.counts)
    llmconv.imatrix(path, other, tmp_path / "on.gguf", context=16, device="cpu", in_files=parts[:1])
    assert read_sums(tmp_path / "on.gguf", 16).chunks == 37
    llmconv.imatrix(models("llama"), text, tmp_path / "llama.gguf", context=16, device="cpu")
    with pytest.raises(BadFile, match=r"llama\.gguf: .* it belongs to another model"):
        shrunk = read_sums(tmp_path / "llama.gguf", 16)
        sums = Sums()
        sums.merge(shrunk, "x")
        name, entry = next(iter(shrunk.entries.items()))
        sums.entries[name] = dataclasses.replace(entry, sums=entry.sums[:, :8])
        sums.merge(shrunk, "llama.gguf")


def test_an_interrupted_run_goes_on_to_the_same_bytes(models: Any, text: Path, tmp_path: Path) -> None:
    path, out = models("llama"), tmp_path / "i.gguf"
    long = tmp_path / "long.txt"
    long.write_text(" ".join(np.random.default_rng(1).choice(WORDS, 9000)))
    llmconv.imatrix(path, long, tmp_path / "whole.gguf", context=64, device="cpu")

    def stop(step: llmconv.Step) -> None:
        if step.done > 70:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        llmconv.imatrix(path, long, out, context=64, device="cpu", output_frequency=8, progress=stop)
    assert not out.exists() and (tmp_path / "i.gguf.partial").exists()
    with pytest.raises(OutputError, match="of a run with another model, text"):
        llmconv.imatrix(path, text, out, context=64, device="cpu", output_frequency=8)
    made = llmconv.imatrix(path, long, out, context=64, device="cpu", output_frequency=8)
    assert made.tokens < made.chunks * 64
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "i.gguf.partial").exists()


def test_a_folder_is_known_by_what_is_in_it(models: Any, text: Path, tmp_path: Path) -> None:
    """Not by its name: other weights under it are another model."""
    folder, out = tmp_path / "m", tmp_path / "i.gguf"
    llmconv.convert_file(models("llama"), folder, to="safetensors")
    how: dict[str, Any] = {"context": 16, "device": "cpu", "output_frequency": 1}

    def stop(step: llmconv.Step) -> None:
        if step.done:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        llmconv.imatrix(folder, text, out, progress=stop, **how)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(OutputError, match="of a run with another model, text"):
        llmconv.imatrix(folder, text, out, **how)


def test_coverage_names_experts(models: Any, tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text(" ".join(WORDS[:40]))
    made = llmconv.imatrix(models("qwen3-moe"), few, tmp_path / "i.gguf", context=16, device="cpu")
    assert any("experts saw fewer than 32 tokens" in note and "ffn_down_exps" in note for note in made.notes)


def test_statistics_are_numpys(models: Any, text: Path, tmp_path: Path) -> None:
    made = llmconv.imatrix(models("llama"), text, tmp_path / "i.gguf", context=16, device="cpu")
    again = llmconv.imatrix(in_files=[tmp_path / "i.gguf"])
    assert again.path is None and len(again.statistics) == len(made.statistics) == 14
    row = next(r for r in made.statistics if r.name == "blk.1.ffn_down.weight")
    sums = read_sums(tmp_path / "i.gguf", 16).entries
    means = sums[row.name].sums[0] / 400
    p = means / means.sum()
    assert row.total == pytest.approx(means.sum(), rel=1e-5) and row.deviation == pytest.approx(means.std(), rel=1e-4)
    assert row.entropy == pytest.approx(-(p * np.log2(p)).sum(), rel=1e-5)
    a, b = (sums[f"blk.{i}.ffn_down.weight"].sums[0] for i in range(2))
    assert row.similarity == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), rel=1e-5)


def test_the_head_when_asked_for(models: Any, text: Path, tmp_path: Path) -> None:
    for name, head in (("llama", "output.weight"), ("gpt2", "token_embd.weight")):
        made = llmconv.imatrix(models(name), text, context=16, chunks=2, device="cpu", process_output=True)
        assert {r.name for r in made.statistics if not r.name.startswith("blk.")} == {head}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": None, "text": "x.txt"}, "give both"),
        ({"model": None, "text": ()}, "nothing to make a matrix of"),
        ({"context": 512}, "fewer than one chunk of 512"),
        ({"output_frequency": 3}, "give one"),
        ({"output_format": "json", "output": "x"}, "give gguf or dat"),
    ],
)
def test_what_is_refused(models: Any, text: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        llmconv.imatrix(**({"model": models("llama"), "text": text, "device": "cpu"} | given))


def test_inputs_that_are_no_numbers(models: Any, text: Path) -> None:
    model = llmconv.load(models("llama"), "cpu")
    with torch.no_grad():
        model.blk[1].attn_norm.weight[3] = float("nan")
    with pytest.raises(LlmconvError, match=r"inputs of 'blk\.1\.attn_q\.weight' are not numbers"):
        llmconv.imatrix(model, text, context=16)


def test_the_command(models: Any, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmconv.cli import main

    line = ["imatrix", str(models("llama")), str(text), "-o", str(tmp_path / "i.gguf"), "-c", "16", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([*line, "--show-statistics"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "blk.1.ffn_down" in out and "14 tensors, 25 chunks of 16" in out
