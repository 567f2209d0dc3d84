"""What a chat template writes around the texts of a conversation, and the same as a Go template, as Ollama's are.

A template is a program, but most write fixed texts before and after each turn.  Which ones, its own output shows: it
renders conversations of marked texts, and what stands between the marks is taken; then other conversations are
rendered and must come out the same.  A template that does more (one that looks at the messages) has no turns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmconv.convert.vocab.chat import render
from llmconv.convert.vocab.model import Vocab
from llmconv.errors import BadFile, UsageError

__all__ = ["Turns", "go_template", "turns_of"]

_Message = Mapping[str, str]
_S, _U, _A, _V = ("Xsystem0X", "Xuser0X", "Xassistant0X", "Xuser1X")
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Turns:
    """start: what stands before the first turn.   bos: the token's text, where conversations begin with it, or "".
    before, after: role -> what stands around its text; without "system" where none is taken.
    answer: what asks for an answer.   first: what stands before the user's text behind a system text.
    default: the system text where none is given; None: then nothing of one is written.
    """

    start: str
    bos: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    answer: str
    first: str
    default: str | None = None

    def spelled(self, messages: Sequence[_Message]) -> str:
        """A conversation, up to the answer."""
        if self.default is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default}, *messages]
        out = self.start
        for i, message in enumerate(messages):
            role = message["role"]
            is_first = role == "user" and i == 1 and messages[0]["role"] == "system"
            out += (self.first if is_first else self.before[role]) + message["content"] + self.after[role]
        return out + self.answer


def _said(*texts: str) -> list[_Message]:
    return [{"role": next(role for role in _ROLES if role in text), "content": text} for text in texts]


def turns_of(vocab: Vocab, template: str | None = None) -> Turns | None:
    """The turns of a model's chat template; None where it is more than that."""
    bos = vocab.tokens[vocab.special["bos"]] if "bos" in vocab.special else ""

    def shown(messages: Sequence[_Message], ask: bool) -> str:
        return render(vocab, messages, ask, template)

    try:
        return _turns(shown, bos)
    except (BadFile, UsageError, ValueError):
        return None


def _turns(shown: Callable[[Sequence[_Message], bool], str], bos: str) -> Turns | None:
    head, asked = _cut(shown(_said(_U), True), _U)
    _, between, again, _ = _cut(shown(_said(_U, _A, _V), True), _U, _A, _V)
    bos = bos if head.startswith(bos) else ""
    last = _cut(shown(_said(_U, _A), False), _U, _A)[2]  # an answer may end otherwise where it is the last
    ends = [_rest(again, last)] if again.startswith(last) else []
    for before_user in [*ends, head.removeprefix(bos)]:
        if not again.endswith(before_user):
            continue
        after_assistant = again.removesuffix(before_user)
        texts = (_cut(shown(_said(_U), False), _U)[1], after_assistant, "")
        after_user = next(text for text in texts if asked.startswith(text) and between.startswith(text))
        before = {"user": before_user, "assistant": between.removeprefix(after_user)}
        after = {"user": after_user, "assistant": after_assistant}
        made = Turns("", bos, before, after, asked.removeprefix(after_user), before_user)
        if (found := _with_system(made, head, shown)) is not None:
            return found
    return None


def _with_system(turns: Turns, head: str, shown: Callable[[Sequence[_Message], bool], str]) -> Turns | None:
    """The turns with what stands around a system text, and at the start; None where other texts come out of them."""
    before_user = turns.before["user"]
    start = head.removesuffix(before_user)
    try:
        text = shown(_said(_S, _U), True)
    except UsageError:  # it says that it takes none
        text = ""
    if _S in text:
        system, middle, _ = _cut(text, _S, _U)
        is_whole = middle.endswith(before_user)
        after, first = (middle.removesuffix(before_user), before_user) if is_whole else (middle, "")
        default = None
        if not (head.endswith(before_user) and system.startswith(start)):  # something stands for a system text
            if not (head.startswith(system) and head.endswith(middle)):
                return None
            start, default = turns.bos, head.removeprefix(system).removesuffix(middle)
        around = system.removeprefix(start), after
        before, behind = {**turns.before, "system": around[0]}, {**turns.after, "system": around[1]}
        turns = replace(turns, before=before, after=behind, first=first, default=default)
    turns = replace(turns, start=start)
    checks = [_said(_U), _said(_U, _A, _V), _said(_U, _A, _V, "assistant b", "user c")]
    if "system" in turns.before:
        checks += [_said(_S, _U), _said(_S, _U, _A, _V)]
    return turns if all(turns.spelled(c) == shown(c, True) for c in checks) else None


def _cut(text: str, *marks: str) -> list[str]:
    """What stands before, between and behind marks; `ValueError` where one is not there once."""
    out = []
    for mark in marks:
        piece, text = text.split(mark)
        out.append(piece)
    return [*out, text]


def _rest(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError(text)
    return text.removeprefix(start)


def go_template(turns: Turns, adds_bos: bool) -> str:
    """The template as Ollama reads it.   adds_bos: whether the tokenizer begins every text with the BOS token."""
    bos = turns.bos if adds_bos else ""
    blocks = [f'{{{{ if eq .Role "{role}" }}}}{_block(turns, role, bos)}' for role in _ROLES if role in turns.before]
    loop = "{{ else }}".join(blocks) + "{{ end }}" * len(blocks)
    start = _text(turns.start.removeprefix(bos))
    if turns.default is not None and not turns.default:  # what is written of a system text that is not given
        empty = _text(turns.before["system"] + turns.after["system"])
        start += f'{{{{ if ne (index .Messages 0).Role "system" }}}}{empty}{{{{ end }}}}'
    return f"{start}{{{{ range $i, $_ := .Messages }}}}{loop}{{{{ end }}}}{_text(turns.answer)}"


def _block(turns: Turns, role: str, bos: str) -> str:
    """A turn.   bos: what the first one must not begin with, since the tokenizer writes it."""
    before = turns.before[role]
    again = f"{{{{ if $i }}}}{_text(bos)}{{{{ end }}}}" if bos and before.startswith(bos) else ""
    text = again + _text(before.removeprefix(bos))
    if role == "user" and turns.first != before:
        text = f'{{{{ if and (eq $i 1) (eq (index $.Messages 0).Role "system") }}}}{{{{ else }}}}{text}{{{{ end }}}}'
    return f"{text}{{{{ .Content }}}}{_text(turns.after[role])}"


def _text(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
