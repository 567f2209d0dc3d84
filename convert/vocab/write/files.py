"""`Vocab` -> the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

from typing import Any

import orjson

from llmconv.convert.vocab import proto
from llmconv.convert.vocab.model import BPE, GEMMA4, NAMED, SPACE, SPM, TEMPLATE, WORDPIECE, TokenType, Vocab
from llmconv.convert.vocab.read.folder import is_mine
from llmconv.convert.vocab.uncollected import uncollected
from llmconv.convert.vocab.write.check import check
from llmconv.convert.vocab.write.tokenizer_json import charsmap, known, to_json, types_of
from llmconv.errors import Unsupported

__all__ = ["to_files"]


@uncollected()
def to_files(vocab: Vocab) -> dict[str, bytes]:
    """The folder's own files, byte for byte, where they are known.

    Else rebuilt: tokenizer.json, tokenizer_config.json, tokenizer.model for sentencepiece's kind, and chat templates
    with a name.  Where the `tokenizers` library is installed, it has read the tokenizer.json back; what it does
    otherwise is said in `vocab.notes`.  `Unsupported` when it takes no tokenizer.json, and no other file says the same.
    """
    if vocab.files:
        return dict(vocab.files)
    files = _rebuilt(vocab)
    try:
        vocab.notes += check(vocab, files)
    except Unsupported as error:
        if "tokenizer.model" not in files:
            raise
        del files["tokenizer.json"]
        vocab.notes.append(f"no tokenizer.json is written, tokenizer.model says it all: {error}")
    return files


def _rebuilt(vocab: Vocab) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    if known(vocab):
        out["tokenizer.json"] = vocab.json.encode() if vocab.json is not None else orjson.dumps(to_json(vocab))
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role in NAMED:
        if role in vocab.special:
            settings[f"{role}_token"] = vocab.tokens[vocab.special[role]]
    for name in ("bos", "eos"):
        if vocab.model in (SPM, BPE, GEMMA4) and name in vocab.special:
            settings[f"add_{name}_token"] = vocab.flag(name)
    if vocab.model == WORDPIECE:
        settings["do_lower_case"] = vocab.flag("lowercase")
    settings["clean_up_tokenization_spaces"] = False
    out |= _templates(vocab)
    if vocab.chat_template is not None and "chat_template.jinja" not in out:
        settings["chat_template"] = vocab.chat_template
    out["tokenizer_config.json"] = orjson.dumps(settings, option=orjson.OPT_INDENT_2)
    if vocab.model == SPM:
        scores = [0.0] * len(vocab) if vocab.scores is None else vocab.scores.tolist()
        ids = [vocab.special.get(role, -1) for role in ("unk", "bos", "eos", "pad")]
        rest = proto.spec(
            ids,
            byte_fallback=TokenType.BYTE in types_of(vocab),
            add_dummy_prefix=vocab.flag("space_prefix"),
            remove_extra_whitespaces=vocab.flag("remove_extra_whitespaces"),
            charsmap=charsmap(vocab),
        )
        types = types_of(vocab)
        pieces = [  # user-defined tokens are written with plain spaces in GGUF
            t.replace(" ", SPACE) if type == TokenType.USER_DEFINED else t
            for t, type in zip(vocab.tokens, types, strict=True)
        ]
        out["tokenizer.model"] = proto.serialise(zip(pieces, scores, types, strict=True), rest)
    return out


def _templates(vocab: Vocab) -> dict[str, bytes]:
    """Chat templates in files of their own, where there are some with a name."""
    start = f"{TEMPLATE}."
    named = {key.removeprefix(start): text for key, text in vocab.extra.items() if key.startswith(start)}
    files = {f"additional_chat_templates/{name}.jinja": text for name, text in named.items() if isinstance(text, str)}
    files = {name: text for name, text in files.items() if is_mine(name)}
    if files and vocab.chat_template is not None:
        files["chat_template.jinja"] = vocab.chat_template
    return {name: text.encode() for name, text in files.items()}
