"""Every decoder family: a tiny random model of transformers, loaded here, gives the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import by_hand
import pytest
import tiny_models
from kin import KIN

import llmconv
from llmconv.convert import archs
from llmconv.convert.tables.pieces import Pieces

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llmconv.runtime.stepping.stepper import stepper

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # transformers' own deprecations
]

LENGTH = 48  # beyond the tiny models' windows and original contexts
BEFORE = 28  # tokens at once, so that those one by one go over the edges of windows, chunks and runs
BY_HAND = {table.gguf for config in by_hand.CONFIGS.values() if (table := archs.by_hf(config)) is not None}
"""Families that transformers lacks, or has only inside of others: compared with llama.cpp (tests/peer)."""
DECODERS = [
    name
    for name, tiny in tiny_models.MODELS.items()
    if tiny.task in ("CausalLM", "ImageTextToText") and tiny.runs and not tiny.rounded
]


_LONG = ("deepseek-v4", "glm-5-next", "hy-v4-transformers", "dots3-transformers", "qwen4-exp")
"""Models whose layers have many parts, so that each takes seconds."""


def _variants_later(names: list[str]) -> list[Any]:
    marked = tiny_models.variants_later(names)
    return [pytest.param(name, marks=pytest.mark.slow) if name in _LONG else name for name in marked]


@pytest.mark.parametrize("name", _variants_later(DECODERS))
def test_logits_and_cache(name: str, tmp_path: Path) -> None:
    theirs = type(tiny_models.build(name, tmp_path)).from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = llmconv.load(tmp_path, "cpu", "f32")
    tokens = torch.randint(3, 96, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, logits = theirs(tokens).logits, ours(tokens)
        assert expected.std() > 0.01  # a model that says something
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)

        cache = ours.cache(2, LENGTH)
        steps = [ours(tokens[:, :BEFORE], cache=cache)]
        steps += [ours(tokens[:, i : i + 1], cache=cache) for i in range(BEFORE, LENGTH - 6)]
        steps.append(ours(tokens[:, LENGTH - 6 :], cache=cache))  # several at once, after others
        torch.testing.assert_close(torch.cat(steps, 1), logits, atol=1e-4, rtol=0)

        cache = ours.cache(1, LENGTH)
        ours(tokens[:1, :BEFORE], cache=cache)
        if (step := stepper(ours, cache)) is not None:
            steps = [step(int(token)).clone() for token in tokens[0, BEFORE:]]
            torch.testing.assert_close(torch.cat(steps), logits[0, BEFORE:], atol=1e-4, rtol=0)

        mask = torch.ones(2, LENGTH, dtype=torch.bool)
        mask[1, :9] = False
        padded = ours(tokens.where(mask, 0), mask)
        torch.testing.assert_close(padded[0], logits[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(padded[1, 9:], ours(tokens[1:, 9:])[0], atol=1e-4, rtol=0)


def test_dynamic_scaling_beyond_the_context(tmp_path: Path) -> None:
    """GGUF has no word for it; what config.json said of it is kept, and used once a text is longer than the context."""
    folder, config = tmp_path / "hf", tiny_models.MODELS["llama-dynamic"].config | {"max_position_embeddings": 32}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    model.save_pretrained(folder)
    llmconv.convert_file(folder, tmp_path / "m.gguf")
    ours = llmconv.load(tmp_path / "m.gguf", "cpu", "f32")
    for length in (20, LENGTH):
        tokens = torch.randint(3, 96, (1, length), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(ours(tokens), model(tokens).logits, atol=1e-4, rtol=0)


ENCODERS = [name for name, tiny in tiny_models.MODELS.items() if tiny.task == "Model"]


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_hidden_states(name: str, tmp_path: Path) -> None:
    theirs = type(tiny_models.build(name, tmp_path)).from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(tokens).last_hidden_state
        found = llmconv.load(tmp_path, "cpu", "f32").hidden(tokens)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_every_family_is_tried() -> None:
    tried = {tiny_models.MODELS[name].gguf for name in (*DECODERS, *ENCODERS)} | {"simple-llm"}
    tried |= {"small-gpt", "microgpt", "keras-gpt", "blocks", "forge", "transformer-desde-cero"}  # test_small_models.py
    missing = {table.gguf for table in archs.all()} - tried
    # Not in transformers: test_references.py, test_kin.py, or tables alone.
    assert missing <= {"t5", "t5encoder", "internlm2", "baichuan", "pockettts", *KIN.values(), *BY_HAND}


@pytest.mark.parametrize("table", archs.all(), ids=lambda table: table.gguf)
def test_pieces_are_known(table: Any) -> None:
    assert set(table.decoder) <= set(Pieces.__annotations__)
