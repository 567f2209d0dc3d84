"""`Vocab` -> the tokenizer files of a Hugging Face folder."""

from __future__ import annotations

from typing import Any

import orjson

from llmconv.convert.vocab import proto
from llmconv.convert.vocab.model import BPE, SPACE, SPM, WORDPIECE, TokenType, Vocab
from llmconv.convert.vocab.write.tokenizer_json import charsmap, known, to_json, types_of

__all__ = ["to_files"]


def to_files(vocab: Vocab) -> dict[str, bytes]:
    """The folder's own files, byte for byte, where they are known.

    Else rebuilt: tokenizer.json, tokenizer_config.json, and tokenizer.model for sentencepiece's kind.
    """
    return vocab.files or _rebuilt(vocab)


def _rebuilt(vocab: Vocab) -> dict[str, bytes]:
    out: dict[str, bytes] = {}
    if known(vocab):
        out["tokenizer.json"] = (
            vocab.json.encode() if vocab.json is not None else orjson.dumps(to_json(vocab), option=orjson.OPT_INDENT_2)
        )
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        if role in vocab.special:
            settings[f"{role}_token"] = vocab.tokens[vocab.special[role]]
    for name in ("bos", "eos"):
        if vocab.model in (SPM, BPE) and name in vocab.special:
            settings[f"add_{name}_token"] = vocab.flag(name)
    if vocab.model == WORDPIECE:
        settings["do_lower_case"] = vocab.flag("lowercase")
    settings["clean_up_tokenization_spaces"] = False
    if vocab.chat_template is not None:
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
