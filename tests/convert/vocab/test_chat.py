"""Chat templates: rendered as transformers renders them, in a cage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES

from llmconv.convert import vocab
from llmconv.convert.vocab.model import Vocab
from llmconv.errors import BadFile, LlmconvError, Unsupported, UsageError

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "Hi <there>"}]


def with_template(template: str | None) -> Vocab:
    return Vocab("words", ["<s>", "a"], special={"bos": 0}, chat_template=template)


def test_chat() -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    wanted = "<|im_start|>user\nHi <there><|im_end|>\n"
    assert vocab.render_chat(with_template(CHATML), HELLO) == wanted + "<|im_start|>assistant\n"
    assert vocab.render_chat(with_template(CHATML), HELLO, add_generation_prompt=False) == wanted
    assert (
        vocab.render_chat(with_template("{{ bos_token }}{{ tools | tojson }}"), HELLO, tools=[{"é": 1}])
        == '<s>[{"é": 1}]'
    )
    with pytest.raises(Unsupported, match="no chat template"):
        vocab.render_chat(with_template(None), HELLO)
    with pytest.raises(UsageError, match="only users"):
        vocab.render_chat(with_template("{{ raise_exception('only users') }}"), HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception.__globals__ }}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
        "{{ undefined_thing.x }}",
        "{% if %}",
        "{{ 1 / 0 }}",
        "{{ 'a' * 10 ** 15 }}",
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
    ],
)
def test_templates_are_caged(template: str) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    with pytest.raises(BadFile, match="chat template fails"):
        assert vocab.render_chat(with_template(template), HELLO) == "", "nothing may come out"
        raise BadFile("the chat template fails: gave nothing")


# As transformers renders them

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Wetter für „heute“ <b>",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Ort"},
                    "days": {"type": "integer", "enum": [1, 2]},
                    "tags": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "x", "parameters": {"properties": {}}}},
]
SYSTEM: dict[str, Any] = {"role": "system", "content": " You are kind. \n"}
USER: dict[str, Any] = {"role": "user", "content": "Hi <there>, 'you' & \"me\"!\n\n"}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "  <think>well</think>\n\nHello é 你好 "}
CALL: dict[str, Any] = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "a1", "type": "function", "function": {"name": "weather", "arguments": {"place": "Köln"}}}],
}
RESULT: dict[str, Any] = {"role": "tool", "name": "weather", "tool_call_id": "a1", "content": '{"°": 21}'}
PARTS: dict[str, Any] = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]}
REASONED: dict[str, Any] = {"role": "assistant", "content": "Yes", "reasoning": "because"}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, USER],
    "system and turns": [SYSTEM, USER, ANSWER, USER, ANSWER],
    "two users": [USER, USER],
    "a tool": [SYSTEM, USER, CALL, RESULT, ANSWER],
    "two results": [USER, CALL, RESULT, RESULT],
    "parts": [PARTS],
    "reasoning": [USER, REASONED, USER, REASONED],
    "an empty answer": [USER, {"role": "assistant", "content": ""}],
}
VARIABLES: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False, "tools": TOOLS},
    {"add_generation_prompt": True, "documents": [{"title": "T", "text": "some"}], "enable_thinking": False},
    {"continue_final_message": True},
]


@pytest.fixture(scope="module")
def theirs() -> Any:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from tokenizers import Tokenizer, models

    words = {"<s>": 0, "</s>": 1, "a": 2}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="a")), bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_as_transformers_renders(theirs: Any, name: str) -> None:
    template, rendered = TEMPLATES[name], 0
    found = Vocab("words", ["<s>", "</s>", "a"], special={"bos": 0, "eos": 1}, chat_template=template)
    for title, messages in CONVERSATIONS.items():
        for variables in VARIABLES:
            try:
                wanted = theirs.apply_chat_template(messages, chat_template=template, tokenize=False, **variables)
            except Exception as error:  # a template may refuse some conversations: so must it here
                with pytest.raises(LlmconvError):
                    options = {"add_generation_prompt": False, **variables}
                    said = vocab.render_chat(found, messages, **options)
                    pytest.fail(f"{title} {list(variables)}: {error!r}, but here {said!r}")
                continue
            options = {"add_generation_prompt": False, **variables}
            assert vocab.render_chat(found, messages, **options) == wanted, (title, variables)
            rendered += 1
    assert rendered >= 8


def test_the_template_for_tools(theirs: Any) -> None:
    named = {"default": "D{{ tools is none }}", "tool_use": "T{{ tools | length }}", "rag": "R"}
    extra = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
    found = Vocab("words", ["a"], chat_template=named["default"], extra=extra)
    assert vocab.render_chat(found, [USER]) == "DTrue"
    assert vocab.render_chat(found, [USER], tools=TOOLS) == "T2"
    assert vocab.render_chat(found, [USER], template="rag", tools=TOOLS) == "R"
    theirs.chat_template = named
    try:
        for tools in (None, TOOLS):
            wanted = theirs.apply_chat_template([USER], tools=tools, tokenize=False)
            assert vocab.render_chat(found, [USER], tools=tools) == wanted
    finally:
        theirs.chat_template = None


@pytest.mark.parametrize(
    ("messages", "options", "message"),
    [
        ([], {}, "conversation is empty"),
        (["x"], {}, "expected an object"),
        ([{"role": "user"}], {"continue_final_message": True}, "no text to go on with"),
        ([USER], {"continue_final_message": True, "template": "none of it"}, "leaves some"),
        ([USER], {"tools": [json.loads('{"a":' * 900 + "1" + "}" * 900)]}, "nested more than 200 deep; "),
    ],
)
def test_what_can_not_be_rendered_is_one_sentence(messages: Any, options: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        vocab.render_chat(with_template(CHATML), messages, **options)


def test_tools_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from llmconv.cli import main

    good, bad = tmp_path / "tools.json", tmp_path / "bad.json"
    good.write_text(json.dumps(TOOLS))
    bad.write_text(json.dumps(["weather"]))
    assert vocab.read_tools(good) == TOOLS
    with pytest.raises(BadFile, match="expected a JSON list of objects"):
        vocab.read_tools(bad)
    pytest.importorskip("torch", reason="generating needs torch")
    with pytest.raises(SystemExit) as ended:
        main(["generate", "model.gguf", "--tools", str(good), "-p", "x"])
    assert ended.value.code == 2 and "--chat" in capsys.readouterr().err
