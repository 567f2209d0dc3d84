"""Tokenizer files inside a GGUF, so that coming back gives them byte for byte.

GGUF's arrays already hold the tokens, scores and merges, which is nearly all of a tokenizer.json, tokenizer.model,
vocab.json, merges.txt or vocab.txt.  So each of those is kept with these parts cut out (`llmconv.hf.cut.NAME`) if
filling them in again gives exactly the file; otherwise, and for the small side files, whole (`llmconv.hf.file.NAME`).
A whole tokenizer.json goes where the specification wants it: `tokenizer.huggingface.json`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from llmconv.convert.tables import own_keys
from llmconv.convert.vocab import proto, wordpiece
from llmconv.convert.vocab.model import HF_JSON, WORDPIECE, TokenType, Vocab
from llmconv.convert.vocab.read.folder import is_mine
from llmconv.errors import BadFile

__all__ = ["CUT", "WHOLE", "keep", "restore"]

WHOLE, CUT = own_keys.FILE, own_keys.CUT_FILE
"""Prefixes of the keys that keep a folder's tokenizer files: whole, or with what the arrays already say cut out."""

# How programs print JSON.
_STYLES: dict[str, Callable[[Any], bytes]] = {
    "indent": lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2),
    "compact": orjson.dumps,
    "python": lambda value: json.dumps(value, ensure_ascii=False).encode(),
    "python-ascii": lambda value: json.dumps(value).encode(),
    "python-indent": lambda value: json.dumps(value, indent=2, ensure_ascii=False).encode(),
}


def _texts(vocab: Vocab) -> list[str]:
    return wordpiece.plain(vocab) if vocab.model == WORDPIECE else list(vocab.tokens)


def _vocab_json_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    return {"n": len(orjson.loads(data))}


def _vocab_json_fill(vocab: Vocab, cut: Mapping[str, Any]) -> Any:
    return {token: id for id, token in enumerate(_texts(vocab)[: cut["n"]])}


def _tokenizer_json_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    document = orjson.loads(data)
    model = document["model"]
    pairs = bool(model.get("merges")) and isinstance(model["merges"][0], list)
    out: dict[str, Any] = {"n": len(model["vocab"]), "pairs": pairs}
    model["vocab"] = []
    if vocab.merges is not None:
        model["merges"] = []
    return {**out, "document": document}


def _tokenizer_json_fill(vocab: Vocab, cut: Mapping[str, Any]) -> Any:
    document = cut["document"]
    model = dict(document["model"])
    texts = _texts(vocab)[: cut["n"]]
    if model.get("type") == "Unigram" and vocab.scores is not None:
        model["vocab"] = [[t, s] for t, s in zip(texts, vocab.scores.tolist(), strict=False)]
    else:
        model["vocab"] = {token: id for id, token in enumerate(texts)}
    if vocab.merges is not None:
        model["merges"] = [m.split(" ") if cut["pairs"] else m for m in vocab.merges]
    return {**document, "model": model}


def _merges_txt_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    head = data[: data.find(b"\n") + 1] if data.startswith(b"#version") else b""
    return {"head": head.decode(), "end": "\n" if data.endswith(b"\n") else ""}


def _merges_txt_fill(vocab: Vocab, cut: Mapping[str, Any]) -> bytes:
    return "".join([cut["head"], "\n".join(vocab.merges or ()), cut["end"]]).encode()


def _vocab_txt_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    return {"n": data.count(b"\n") + (not data.endswith(b"\n")), "end": "\n" if data.endswith(b"\n") else ""}


def _vocab_txt_fill(vocab: Vocab, cut: Mapping[str, Any]) -> bytes:
    return "".join(["\n".join(_texts(vocab)[: cut["n"]]), cut["end"]]).encode()


def _model_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    model = proto.parse(data)
    return {"n": len(model.pieces), "rest": base64.b64encode(model.rest).decode()}


def _model_fill(vocab: Vocab, cut: Mapping[str, Any]) -> bytes:
    n = cut["n"]
    scores = [] if vocab.scores is None else vocab.scores[:n].tolist()
    types = [TokenType.NORMAL] * n if vocab.types is None else vocab.types[:n].tolist()
    return proto.serialise(zip(vocab.tokens[:n], scores, types, strict=True), base64.b64decode(cut["rest"]))


# File -> (what is left of it, the file again: bytes, or a value to be printed as JSON).
_FILES: dict[str, tuple[Callable[[Vocab, bytes], dict[str, Any]], Callable[[Vocab, Mapping[str, Any]], Any]]] = {
    "tokenizer.json": (_tokenizer_json_cut, _tokenizer_json_fill),
    "vocab.json": (_vocab_json_cut, _vocab_json_fill),
    "merges.txt": (_merges_txt_cut, _merges_txt_fill),
    "vocab.txt": (_vocab_txt_cut, _vocab_txt_fill),
    "tokenizer.model": (_model_cut, _model_fill),
    "spiece.model": (_model_cut, _model_fill),
    "sentencepiece.bpe.model": (_model_cut, _model_fill),
}


def _fill(name: str, vocab: Vocab, cut: Mapping[str, Any]) -> bytes:
    if cut.get("whole") and vocab.json is not None:
        return vocab.json.encode()
    made = _FILES[name][1](vocab, cut)
    return made if isinstance(made, bytes) else _STYLES[cut["style"]](made) + cut["end"].encode()


def _cut(name: str, vocab: Vocab, data: bytes) -> dict[str, Any] | None:
    """What is left of a file, None when filling it in again wouldn't give exactly the file."""
    end = "\n" if data.endswith(b"\n") else ""
    try:
        left = _FILES[name][0](vocab, data)
        made = _FILES[name][1](vocab, left)
        if isinstance(made, bytes):
            return left if made == data else None
        for style, dump in _STYLES.items():
            if dump(made) == (data.removesuffix(b"\n") if end else data):
                return {**left, "style": style, "end": end}
    except (BadFile, LookupError, TypeError, ValueError, AttributeError):
        pass  # not of the shape that can be cut
    return None


def keep(vocab: Vocab) -> dict[str, Any]:
    """GGUF keys that hold the folder's own tokenizer files."""
    out: dict[str, Any] = {}
    for name, data in vocab.files.items():
        whole = name == "tokenizer.json" and vocab.json is not None  # in the GGUF anyway
        left = _cut(name, vocab, data) if name in _FILES and not whole else None
        if left is not None:
            out[CUT + name] = orjson.dumps(left).decode()
            continue
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            out[WHOLE + name] = np.frombuffer(data, np.uint8)
        else:
            if name == "tokenizer.json":
                out |= {HF_JSON: text, CUT + name: '{"whole":true}'}
            else:
                out[WHOLE + name] = text
    return out


def restore(vocab: Vocab, metadata: Mapping[str, Any]) -> None:
    """Put the kept files back into `vocab.files`; a damaged one is refused."""
    for key, value in metadata.items():
        name = key.removeprefix(CUT).removeprefix(WHOLE)
        if not is_mine(name):
            continue  # another file of the folder, or a name that would lead out of it
        if key.startswith(WHOLE):
            vocab.files[name] = (
                value.encode() if isinstance(value, str) else np.asarray(value).astype(np.uint8).tobytes()
            )
        elif key.startswith(CUT) and name in _FILES:
            try:
                vocab.files[name] = _fill(name, vocab, orjson.loads(value))
            except (LookupError, TypeError, ValueError, AttributeError, MemoryError):
                raise BadFile(f"{key}: is damaged: the file that it stands for can't be rebuilt") from None
