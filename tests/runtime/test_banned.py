"""What a generation_config.json forbids is not said: transformers' greedy texts, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from worded import with_words

import llmconv
from llmconv.convert.translate import translate
from llmconv.errors import UsageError

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

PROMPT = "four words of nobody"
IDS = [1, 0, 0, 0, 0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder and its model."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, tiny_models.build("llama", folder, seed=11).float()


def said(folder: Path, asked: dict[str, Any], count: int = 12) -> llmconv.Generation:
    (folder / "generation_config.json").write_text(json.dumps(asked))
    found = translate(llmconv.open(folder), "gguf")
    return llmconv.generate(
        found.but(metadata=with_words(dict(found.metadata))), PROMPT, temperature=0, max_tokens=count, device="cpu"
    )


def theirs(model: Any, asked: dict[str, Any], count: int = 12) -> list[int]:
    with torch.no_grad():
        ids = torch.tensor([IDS])
        wish = {"attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": count, "pad_token_id": 0}
        made = model.generate(ids, **wish, **asked)
    said = [int(i) for i in made[0, len(IDS) :]]
    return said[:-1] if said[-1] == 2 else said  # without what ends a text


def test_as_transformers_chooses(made: tuple[Path, Any]) -> None:
    folder, model = made
    free = said(folder, {}).tokens
    assert free == theirs(model, {}) and len(set(free)) > 3
    first, then = free[0], free[1]
    wishes: list[dict[str, Any]] = [
        {"suppress_tokens": [first, free[4]]},
        {"begin_suppress_tokens": [first]},
        {"bad_words_ids": [[first]]},
        {"bad_words_ids": [[first, then], [free[2], free[3]]]},
        {"bad_words_ids": [[IDS[-1], first]]},  # it begins in the prompt
        {"suppress_tokens": [first], "begin_suppress_tokens": [then], "bad_words_ids": [[free[2]], [free[3], free[4]]]},
    ]
    for asked in wishes:
        found = said(folder, asked)
        assert found.tokens == theirs(model, asked) != free, asked
        assert len(found.notes) == 1  # of the words
    ended = said(folder, {"forced_eos_token_id": 2}, 5)
    assert ended.tokens == theirs(model, {"forced_eos_token_id": 2}, 5) and ended.finish == "eos"


def test_what_is_not_done_is_said(made: tuple[Path, Any]) -> None:
    folder, _model = made
    found = said(folder, {"no_repeat_ngram_size": 2, "num_beams": 4, "min_new_tokens": 0, "guidance_scale": 1.0})
    assert found.notes[1:] == [
        f"{folder}: its generation_config.json asks for no_repeat_ngram_size, num_beams, which is not done here"
    ]


@pytest.mark.parametrize(
    "asked",
    [
        {"suppress_tokens": None, "begin_suppress_tokens": "3", "bad_words_ids": {"a": 1}},
        {"suppress_tokens": [-1, 1 << 40, 1.5, True, None, "x"], "bad_words_ids": [[], 3, [200, 3], [2]]},
        {"bad_words_ids": [[2]]},  # what ends a text is never a bad word
        {"forced_eos_token_id": 500},
        [],
    ],
)
def test_what_makes_no_sense_forbids_nothing(asked: Any, made: tuple[Path, Any]) -> None:
    assert said(made[0], asked, 4).tokens == said(made[0], {}, 4).tokens


def test_the_keys_own_list_wins(made: tuple[Path, Any]) -> None:
    """tokenizer.ggml.suppress_tokens, as somebody may have edited it; one that forbids all is refused."""
    folder, model = made
    (folder / "generation_config.json").write_text(json.dumps({"suppress_tokens": [5]}))
    found = translate(llmconv.open(folder), "gguf")
    free = theirs(model, {})
    for ids, expected in (([free[0]], theirs(model, {"suppress_tokens": [free[0]]})), ([], free)):
        keys = with_words(dict(found.metadata)) | {"tokenizer.ggml.suppress_tokens": np.asarray(ids, np.int32)}
        source = found.but(metadata=keys)
        assert llmconv.generate(source, PROMPT, temperature=0, max_tokens=12, device="cpu").tokens == expected
    keys["tokenizer.ggml.suppress_tokens"] = np.arange(96, dtype=np.int32)
    with pytest.raises(UsageError, match="there is none to choose"):
        llmconv.generate(found.but(metadata=keys), PROMPT, device="cpu")
