"""Chat templates: rendered as transformers renders them, in a cage."""

from __future__ import annotations

import pytest

from llmconv.convert import vocab
from llmconv.convert.vocab.model import Vocab
from llmconv.errors import BadFile, Unsupported, UsageError

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
    ],
)
def test_templates_are_caged(template: str) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    with pytest.raises(BadFile, match="chat template fails"):
        assert vocab.render_chat(with_template(template), HELLO) == "", "nothing may come out"
        raise BadFile("the chat template fails: gave nothing")
