"""Chat templates as Go templates: what Ollama would show is what jinja shows."""

import pytest
from chat_templates import TEMPLATES
from go_templates import executed

pytest.importorskip("jinja2", reason="chat templates need it")

from llmconv.convert.vocab import from_words
from llmconv.convert.vocab.chat import render
from llmconv.convert.vocab.turns import go_template, turns_of
from llmconv.errors import UsageError

VOCAB = from_words(["<s>", "</s>", "a"])
VOCAB.special = {"bos": 0, "eos": 1}
TURNS = [("user", "Hi {{ there }}"), ("assistant", "Hello."), ("user", "b"), ("assistant", "c"), ("user", "d")]
# Those that are texts around each turn; the rest look at what is said.
PLAIN = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "a default": "{% if messages[0].role != 'system' %}<|s|>Be kind.<|e|>\n{% endif %}{% for m in messages %}"
    "<|{{ m.role[0] }}|>{{ m.content }}<|e|>\n{% endfor %}{% if add_generation_prompt %}<|a|>{% endif %}",
    "system and user in one": "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if loop.first and s is defined %}<<SYS>>\n{{ s }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]{% else %} "
    "{{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "always a system": "{{ bos_token }}<|h|>system<|/h|>\n\nToday.\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}<|eot|>{% for m in messages %}"
    "<|h|>{{ m.role }}<|/h|>\n\n{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}",
    "no system": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "{% for m in messages %}<turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}",
}


def conversations(with_system: bool):
    for n in (1, 3, 5):
        said = [{"role": role, "content": text} for role, text in TURNS[:n]]
        yield said
        if with_system:
            yield [{"role": "system", "content": "Be brief."}, *said]


def check(template: str, adds_bos: bool) -> None:
    turns = turns_of(VOCAB, template)
    assert turns is not None
    go = go_template(turns, adds_bos)
    for said in conversations("system" in turns.before):
        want = render(VOCAB, said, True, template)
        shown = said
        if turns.default and said[0]["role"] != "system":
            shown = [{"role": "system", "content": turns.default}, *said]  # as the Modelfile's SYSTEM does
        assert executed(go, shown) == (want.removeprefix("<s>") if adds_bos else want)


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_plain_turns(name, adds_bos):
    check(PLAIN[name], adds_bos)
    assert (turns_of(VOCAB, PLAIN[name]).default == "Be kind.") == (name == "a default")


def test_as_families_have_them():
    """Most of them; of those that do more nothing is taken."""
    found = [name for name, text in TEMPLATES.items() if turns_of(VOCAB, text) is not None]
    for name in found:
        check(TEMPLATES[name], True)
    assert len(found) >= 15, sorted(set(TEMPLATES) - set(found))


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}{{ m.content }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{{ messages[-1].content }}",
        "{{ raise_exception('no') }}",
        "{{ nothing.at.all }}",
    ],
)
def test_templates_that_do_more(template):
    assert turns_of(VOCAB, template) is None


def test_refusals_are_the_template_s():
    with pytest.raises(UsageError):
        render(VOCAB, [{"role": "system", "content": "x"}], True, PLAIN["no system"])
