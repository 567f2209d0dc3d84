"""The legacy models, against what the original program computed: through JSON, MessagePack, GGUF and safetensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmconv

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS = {"default-400": "default-400.v1.json", "multi-head-567": "multi-head-567.v2.json"}


@pytest.fixture(scope="module", params=["json", "msgpack", "gguf", "safetensors"])
def container(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def path_of(name: str, container: str, shared: Path, tmp_path: Path) -> Path:
    folder = shared / "simple-llm"
    if container == "json":
        return folder / MODELS[name]
    if container == "msgpack":
        return folder / f"{name}.v2.msgpack"
    target = tmp_path / f"{name}.{container}"
    llmconv.convert_file(folder / MODELS[name], target, outtype="f64")
    return target


@pytest.mark.parametrize("name", MODELS)
def test_everything_the_original_computed(name: str, container: str, shared: Path, tmp_path: Path) -> None:
    path = path_of(name, container, shared, tmp_path)
    reference = json.loads((shared / "simple-llm" / f"{name}.reference.json").read_text())
    for dtype, tolerance in (("f64", 1e-9), ("f32", 1e-4)):
        model = llmconv.load(path, "cpu", dtype)
        for case in reference["cases"]:
            assert model.tokenizer.encode(case["input"]) == case["tokens"]
            logits = model(torch.tensor([case["tokens"]]))[0]
            expected = torch.tensor(case["logits"], dtype=logits.dtype)
            torch.testing.assert_close(logits, expected, atol=tolerance, rtol=0)
        found = llmconv.perplexity(model, shared / "simple-llm" / "training-data.json")
        assert found.tokens == reference["positions"] and found.chunks == reference["pairs"]
        assert found.perplexity == pytest.approx(reference["pairPerplexity"], abs=tolerance)
        assert found.last_position_perplexity == pytest.approx(reference["lastPositionPerplexity"], abs=tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_text(name: str, shared: Path) -> None:
    model = llmconv.load(shared / "simple-llm" / MODELS[name], "cpu", "f64")
    for case in json.loads((shared / "simple-llm" / f"{name}.reference.json").read_text())["cases"]:
        found = llmconv.generate(model, case["input"], max_tokens=10, temperature=0)
        assert model.tokenizer.decode(case["tokens"] + found.tokens, special=True) == case["generated"]


def test_padding_changes_nothing(shared: Path) -> None:
    model = llmconv.load(shared / "simple-llm" / MODELS["default-400"], "cpu", "f64")
    long, short = torch.arange(3, 12)[None], torch.arange(20, 25)[None]
    both = torch.zeros(2, 9, dtype=torch.long)
    mask = torch.ones(2, 9, dtype=torch.bool)
    both[0], both[1, 4:], mask[1, :4] = long[0], short[0], False
    out = model(both, mask)
    torch.testing.assert_close(out[0], model(long)[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(out[1, 4:], model(short)[0], atol=1e-12, rtol=0)


def test_a_plain_text_is_refused(shared: Path) -> None:
    with pytest.raises(llmconv.UsageError, match=r"sees the words .* JSON list"):
        llmconv.perplexity(shared / "simple-llm" / MODELS["default-400"], shared / "simple-llm" / "sample.txt")
    model = llmconv.load(shared / "simple-llm" / MODELS["default-400"], "cpu")
    with pytest.raises(llmconv.UsageError, match="can't use a cache"):
        model.cache()


def test_uneven_pairs_are_named(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(
        '[{"input": "there was", "target": "was once"}, {"input": "a", "target": "b c"}]'
    )
    with pytest.raises(llmconv.BadFile, match="pair 1 has 1 tokens of input and 2 of target"):
        llmconv.perplexity(shared / "simple-llm" / MODELS["default-400"], tmp_path / "pairs.json")
