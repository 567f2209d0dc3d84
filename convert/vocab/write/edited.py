"""Kept tokenizer files of a GGUF whose `tokenizer.*` keys were edited: they say what the keys say.

First the settings are changed where they stand, or taken out: roles of tokens, what is added around a text, chat
templates.  Where the files still say otherwise, those that hold the vocabulary are written anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from llmconv.convert.vocab.model import FLAGS, HF_JSON, NAMED, ROLES, TEMPLATE, TokenType, Vocab, same_value
from llmconv.convert.vocab.parsing import json_object
from llmconv.convert.vocab.read.folder import SENTENCEPIECE, is_mine, template_name
from llmconv.convert.vocab.read.special import processors
from llmconv.convert.vocab.read.templates import key_name
from llmconv.convert.vocab.write.files import to_files
from llmconv.convert.vocab.write.tokenizer_json import around
from llmconv.errors import LlmconvError, cut, listed

__all__ = ["agreeing", "removed"]

_CONFIG, _JINJA = "tokenizer_config.json", "chat_template.jinja"
_OF_THE_VOCABULARY = {"tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "added_tokens.json", *SENTENCEPIECE}
_PRE = "tokenizer.ggml.pre"  # a name of llama.cpp's for what the files spell out
_NOT_OF_FILES = (_PRE, HF_JSON, "tokenizer.ggml.token_type_count")
_SCORES = "tokenizer.ggml.scores"


def agreeing(
    vocab: Vocab,
    metadata: Mapping[str, Any],
    again: Mapping[str, Any],
    reread: Callable[[dict[str, bytes]], Mapping[str, Any]],
) -> tuple[dict[str, bytes], list[str]]:
    """The tokenizer files, as the keys have them, and notes.

    vocab: that of the keys, its kept files with it.   metadata: the GGUF's keys.
    again: those that the kept files give.   reread: files -> the keys that they would give.
    """
    files = dict(vocab.files)

    silent = dataclasses.replace(vocab, flags={})
    implied = {key: silent.flag(name) for name, key in FLAGS.items()}

    def left(said: Mapping[str, Any]) -> set[str]:
        mine = (key for key in metadata if key.startswith("tokenizer.") and key not in _NOT_OF_FILES)
        other = {key for key in mine if not _same(vocab, key, metadata[key], said.get(key, implied.get(key)))}
        return other | removed(metadata, said)

    edited = left(again)
    if not files or not again or not edited:
        return files, []
    try:
        best = _patched(vocab, files, edited)
        rest = left(reread(best))
        if rest and not rest <= _without_a_place(rest):
            other = {**{n: d for n, d in best.items() if n not in _OF_THE_VOCABULARY}, **_anew(vocab, best)}
            after = left(reread(other))
            if rest - after and after <= rest:
                best, rest = other, after
    except (LlmconvError, AttributeError, LookupError, TypeError, ValueError) as error:
        note = (
            f"the tokenizer files do not say what {listed(sorted(edited), 4)} of the GGUF says: {cut(str(error), 80)}"
        )
        return files, [note]
    if not edited - rest or rest - edited:
        return files, _unsaid(edited & metadata.keys())
    changed = [name for name in {**files, **best} if files.get(name) != best.get(name)]
    done = sorted(edited - rest)
    note = f"{listed(changed, 4)}: changed, as {listed(done, 4)} was edited in the GGUF"
    return best, [note, *_unsaid(rest & metadata.keys())]


def removed(metadata: Mapping[str, Any], again: Mapping[str, Any]) -> set[str]:
    """The keys that the files give and the GGUF has no more, of those that files have a place for to take them from."""
    known = {ROLES[role] for role in ("bos", "eos", "unk", "pad")}
    return {key for key in again if (key in known or key.startswith(TEMPLATE)) and key not in metadata}


def _same(vocab: Vocab, key: str, mine: Any, said: Any) -> bool:
    """Whether a key's value is what the files say; scores of other than normal tokens are nobody's."""
    if key == _SCORES and vocab.types is not None and np.shape(mine) == np.shape(said) == vocab.types.shape:
        normal = vocab.types == TokenType.NORMAL
        return np.array_equal(np.asarray(mine)[normal], np.asarray(said)[normal])
    return same_value(mine, said)


def _unsaid(keys: set[str]) -> list[str]:
    """A note about keys that the tokenizer's files do not say."""
    if not keys:
        return []
    some = listed(sorted(keys), 4)
    return [f"the tokenizer files do not say what {some} of the GGUF says: kept in the weights' metadata"]


def _without_a_place(keys: set[str]) -> set[str]:
    """Keys that no tokenizer file states, so that writing them anew would not help."""
    known = {*ROLES.values(), *FLAGS.values()}
    known |= {f"tokenizer.ggml.{name}" for name in ("model", "tokens", "scores", "token_type", "merges")}
    return {key for key in keys if key not in known}


def _patched(vocab: Vocab, files: Mapping[str, bytes], edited: set[str]) -> dict[str, bytes]:
    """The files with the settings changed where they stand."""
    out = dict(files)
    settings = json_object(_CONFIG, out[_CONFIG]) if _CONFIG in out else {}
    before = orjson.dumps(settings)
    for role in NAMED:
        if ROLES[role] in edited:
            id = vocab.special.get(role)
            _set_token(out, settings, f"{role}_token", None if id is None else vocab.tokens[id])
    flags = [name for name in ("bos", "eos") if FLAGS[name] in edited and name in vocab.flags]
    settings |= {f"add_{name}_token": vocab.flags[name] for name in flags}
    if flags and "tokenizer.json" in out:
        _set_around(out, vocab)
    templates = {"default": vocab.chat_template} if TEMPLATE in edited else {}
    templates |= {k.removeprefix(f"{TEMPLATE}."): vocab.extra.get(k) for k in edited if k.startswith(f"{TEMPLATE}.")}
    for name, text in templates.items():
        if isinstance(text, str):
            _set_template(out, settings, name, text)
        else:
            _drop_template(out, settings, name)
    if orjson.dumps(settings) != before:
        out[_CONFIG] = orjson.dumps(settings, option=orjson.OPT_INDENT_2) + b"\n"
    return out


def _set_token(files: dict[str, bytes], settings: dict[str, Any], name: str, text: str | None) -> None:
    """A role's token, in special_tokens_map.json too where it is stated there; None takes it out."""
    file = "special_tokens_map.json"
    document = json_object(file, files[file]) if file in files else {}
    if name in document:
        _put(document, name, text)
        files[file] = orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"
    _put(settings, name, text)


def _put(document: dict[str, Any], name: str, text: str | None) -> None:
    if text is None:
        document.pop(name, None)
    else:
        document[name] = text


def _set_around(files: dict[str, bytes], vocab: Vocab) -> None:
    """What is put around a text, in tokenizer.json's post-processor: the library looks for it nowhere else."""
    document = json_object("tokenizer.json", files["tokenizer.json"])
    kinds = {"ByteLevel", "TemplateProcessing"}
    old = [*processors(document.get("post_processor"))]
    if {processor.get("type") for processor in old} <= kinds:
        new = [processor for processor in old if processor["type"] == "ByteLevel"]
        if (made := around(vocab)) is not None:
            new.append(made)
        several = {"type": "Sequence", "processors": new}
        document["post_processor"] = several if len(new) > 1 else new[0] if new else None
        files["tokenizer.json"] = orjson.dumps(document)


def _drop_template(files: dict[str, bytes], settings: dict[str, Any], name: str) -> None:
    """Take a chat template out of all the places that a folder has for one."""
    for file in [file for file in files if (n := template_name(file)) and key_name(n) == name]:
        del files[file]
    if name == "default":
        files.pop(_JINJA, None)
    stated = settings.get("chat_template")
    if isinstance(stated, str) and name == "default":
        del settings["chat_template"]
    elif isinstance(stated, list):
        settings["chat_template"] = [
            entry for entry in stated if not isinstance(entry, dict) or key_name(str(entry.get("name"))) != name
        ]
    elif isinstance(stated, dict):
        settings["chat_template"] = {n: text for n, text in stated.items() if key_name(n) != name}


def _set_template(files: dict[str, bytes], settings: dict[str, Any], name: str, text: str) -> None:
    """A chat template, in the place that this folder has for it."""
    own = {key_name(n): file for file in files if (n := template_name(file))}
    stated = settings.get("chat_template")
    if _JINJA in files or own:
        file = _JINJA if name == "default" else own.get(name, f"additional_chat_templates/{name}.jinja")
        if is_mine(file):
            files[file] = text.encode()
    elif isinstance(stated, list):
        for entry in stated:
            if isinstance(entry, dict) and key_name(str(entry.get("name"))) == name:
                entry["template"] = text
                return
        stated.append({"name": name, "template": text})
    elif isinstance(stated, dict):
        stated[next((n for n in stated if key_name(n) == name), name)] = text
    elif name == "default":
        settings["chat_template"] = text
    else:
        default = [{"name": "default", "template": stated}] if isinstance(stated, str) else []
        settings["chat_template"] = [*default, {"name": name, "template": text}]


def _anew(vocab: Vocab, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that hold the vocabulary, of its keys alone; tokenizer_config.json keeps what else it says."""
    made = to_files(dataclasses.replace(vocab, files={}, json=None, notes=[]))
    settings = json_object(_CONFIG, files[_CONFIG]) if _CONFIG in files else {}
    settings.pop("added_tokens_decoder", None)
    new = json_object(_CONFIG, made[_CONFIG])
    new = {k: v for k, v in new.items() if k not in ("tokenizer_class", "chat_template") or not settings}
    out = {name: data for name, data in made.items() if name in _OF_THE_VOCABULARY}
    return {**out, _CONFIG: orjson.dumps({**settings, **new}, option=orjson.OPT_INDENT_2) + b"\n"}
