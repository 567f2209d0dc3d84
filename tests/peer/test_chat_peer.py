"""The published chat templates that llama.cpp keeps are rendered here as transformers renders them.

They are read from `models/templates` of the folder that LLMCONV_LLAMA_CPP names; none is copied here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from llmconv.convert import vocab
from llmconv.convert.vocab.model import Vocab
from llmconv.errors import LlmconvError

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.peer

FOLDER = Path(os.environ.get("LLMCONV_LLAMA_CPP", "")) / "models" / "templates"
NAMES = sorted(path.name for path in FOLDER.glob("*.jinja")) if "LLMCONV_LLAMA_CPP" in os.environ else []
OF_THE_DAY = ("strftime_now", "datetime")
"""What makes a template say another text a second later."""

USER, ANSWER = {"role": "user", "content": "Hi <there>"}, {"role": "assistant", "content": "Hello é"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather.",
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
        },
    }
]
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "a12345678", "type": "function", "function": {"name": "weather", "arguments": {"place": "x"}}}
    ],
}
RESULT = {"role": "tool", "name": "weather", "tool_call_id": "a12345678", "content": "21"}
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([USER], {"add_generation_prompt": True}),
    ([{"role": "system", "content": "Be kind."}, USER, ANSWER, USER], {"add_generation_prompt": True}),
    ([USER, CALL, RESULT], {"add_generation_prompt": True, "tools": TOOLS}),
    ([USER, ANSWER], {"add_generation_prompt": False, "enable_thinking": False}),
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    from tokenizers import Tokenizer, models

    words = {"<s>": 0, "</s>": 1, "a": 2}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.skipif(not NAMES, reason="LLMCONV_LLAMA_CPP does not name a folder with models/templates")
@pytest.mark.parametrize("name", NAMES)
def test_as_transformers_renders(theirs: Any, name: str) -> None:
    template, rendered = (FOLDER / name).read_text("utf-8"), 0
    if any(word in template for word in OF_THE_DAY):
        pytest.skip("it says what day it is")
    found = Vocab("words", ["<s>", "</s>", "a"], special={"bos": 0, "eos": 1}, chat_template=template)
    for messages, variables in CONVERSATIONS:
        try:
            wanted = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)
        except Exception:  # a template may refuse some conversations: so must it here
            with pytest.raises(LlmconvError):
                vocab.render_chat(found, messages, **variables)
            continue
        assert vocab.render_chat(found, messages, **variables) == wanted, (messages, variables)
        rendered += 1
    if not rendered:
        pytest.skip("it refuses all of these conversations, in transformers too")
