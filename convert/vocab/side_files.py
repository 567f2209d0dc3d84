"""Tokenizer files inside a GGUF, so that coming back gives them byte for byte.

GGUF's arrays already hold the tokens, scores and merges, which is nearly all of a tokenizer.json, tokenizer.model,
vocab.json, merges.txt, vocab.txt or tekken.json.  So of each of those only what differs from a guess is kept
(`llmconv.hf.cut.NAME`, see `differences`), with the file's hash, if putting the guess right gives exactly the file;
otherwise, and of the other files, all of it, packed where it is long.  A tokenizer.json that the vocabulary needs is
kept so too, and `own_keys.WHOLE_JSON` says that it is needed; where nothing can be cut out, or no keys of ours are
wanted, it goes where the specification has it: `tokenizer.huggingface.json`.  What was kept is put together when asked
for.
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import orjson

from llmconv.convert.tables import own_keys
from llmconv.convert.vocab import proto, wordpiece
from llmconv.convert.vocab.alphabet import to_bytes
from llmconv.convert.vocab.differences import (
    SMALL,
    again,
    away,
    column,
    column_again,
    merges_by_score,
    packed,
    unpacked,
)
from llmconv.convert.vocab.model import HF_JSON, SPACE, WORDPIECE, TokenType, Vocab
from llmconv.convert.vocab.read.folder import is_mine
from llmconv.convert.vocab.read.ranks import is_tiktoken
from llmconv.convert.vocab.read.steps import parts
from llmconv.convert.vocab.write.tokenizer_json import charsmap
from llmconv.errors import BadFile

__all__ = ["CUT", "WHOLE", "keep", "restore"]

WHOLE, CUT = own_keys.FILE, own_keys.CUT_FILE
"""Prefixes of the keys that keep a folder's tokenizer files: whole, or with what the arrays already say cut out."""


def _indented(value: Any, ascii: bool, indent: int) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=ascii).encode()


# How programs print JSON.
_STYLES: dict[str, Callable[[Any], bytes]] = {
    "indent": lambda value: orjson.dumps(value, option=orjson.OPT_INDENT_2),
    "compact": orjson.dumps,
    "python": lambda value: json.dumps(value, ensure_ascii=False).encode(),
    "python-ascii": lambda value: json.dumps(value).encode(),
    **{
        f"python-indent{n or ''}{'-ascii' * ascii}": partial(_indented, ascii=ascii, indent=n or 2)
        for n in (0, 4, 1)
        for ascii in (False, True)
    },
}


def _texts(vocab: Vocab) -> list[str]:
    return wordpiece.plain(vocab) if vocab.model == WORDPIECE else list(vocab.tokens)


def _ids_cut(vocab: Vocab, found: Mapping[str, int]) -> dict[str, Any]:
    """A map of tokens to ids: the tokens in the file's order, and ids that are not those of the GGUF."""
    left, places = away(list(found), _texts(vocab))
    return left | {"ids": column(list(found.values()), _as_placed(places))}


def _ids_fill(vocab: Vocab, left: Mapping[str, Any]) -> dict[str, int]:
    tokens, places = again(left, _texts(vocab))
    return dict(zip(tokens, column_again(left["ids"], _as_placed(places)), strict=True))


def _as_placed(places: list[int]) -> list[int]:
    return [i if place == -1 else place for i, place in enumerate(places)]


def _vocab_json_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    return _ids_cut(vocab, orjson.loads(data))


def _merges_cut(vocab: Vocab, ids: Mapping[str, int], merges: list[Any]) -> dict[str, Any]:
    """Merges, as pairs or texts, against the GGUF's, or against those that its scores make."""
    pairs = bool(merges) and isinstance(merges[0], list)
    if vocab.merges is not None:
        made = [" ".join(m) for m in merges] if pairs else merges
        return {"pairs": pairs, **away(made, vocab.merges)[0]}
    cuts = [m if pairs else m.split(" ") for m in merges]
    codes = [_code(ids.get(a, -1), ids.get(b, -1)) for a, b in cuts]
    if len(set(ids.values())) < len(ids):
        raise ValueError("two tokens of one id")
    parts, orders = merges_by_score(ids, vocab.scores)
    tries = {name: away(codes, _codes(parts[order]))[0] for name, order in orders.items()}
    name, left = min(tries.items(), key=lambda item: len(item[1]["runs"]))
    own = iter(cuts[i] for i in _own(left["runs"]))
    return {"pairs": pairs, "order": name, **left, **({"own": list(own)} if "own" in left else {})}


def _own(runs: list[list[int]]) -> Iterator[int]:
    """Indices of the items that no guess has."""
    at = 0
    for start, count in runs:
        if start == -1:
            yield from range(at, at + count)
        at += count


def _code(left: int, right: int) -> int:
    return left << 32 | right if left >= 0 and right >= 0 else -1


def _codes(parts: Any) -> list[int]:
    codes: list[int] = (parts[:, 0] << 32 | parts[:, 1]).tolist()
    return codes


def _merges_fill(vocab: Vocab, ids: Mapping[str, int], left: Mapping[str, Any]) -> list[Any]:
    if "order" not in left:
        made, _ = again(left, vocab.merges or ())
        return [m.split(" ") for m in made] if left["pairs"] else made
    texts = {id: token for token, id in ids.items()}
    parts, orders = merges_by_score(ids, vocab.scores)
    guess = [[texts[a], texts[b]] for a, b in parts[orders[left["order"]]].tolist()]
    made, _ = again(left, guess)
    return made if left["pairs"] else [" ".join(m) for m in made]


def _tokenizer_json_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    document = orjson.loads(data)
    model, out = document["model"], {"document": document}
    if isinstance(model["vocab"], list):  # Unigram's
        texts, scores = [t for t, _ in model["vocab"]], [s for _, s in model["vocab"]]
        left, places = away(texts, vocab.tokens)
        out["vocab"] = left | {"scores": column(scores, _guess(vocab.scores, places, 0.0))}
    else:
        out["vocab"] = _ids_cut(vocab, model["vocab"])
    if "merges" in model:
        out["merges"] = _merges_cut(vocab, model["vocab"], model["merges"])
        model["merges"] = []
    model["vocab"] = []
    for step in _maps_of_characters(document):
        if step["precompiled_charsmap"] == _charsmap_text(vocab):
            step["precompiled_charsmap"] = None
    return out


def _maps_of_characters(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The steps of a tokenizer.json that hold sentencepiece's map of characters, some 300 kB."""
    return [step for step in parts(document.get("normalizer")) if "precompiled_charsmap" in step]


def _charsmap_text(vocab: Vocab) -> str:
    return base64.b64encode(charsmap(vocab)).decode()


def _guess(values: Any, places: list[int], default: Any) -> list[Any]:
    """What the GGUF has at each place."""
    known = [] if values is None else values.tolist()
    return [known[place] if 0 <= place < len(known) else default for place in places]


def _tokenizer_json_fill(vocab: Vocab, left: Mapping[str, Any]) -> Any:
    model = dict(left["document"]["model"])
    if "scores" in left["vocab"]:
        texts, places = again(left["vocab"], vocab.tokens)
        scores = column_again(left["vocab"]["scores"], _guess(vocab.scores, places, 0.0))
        model["vocab"] = [[t, s] for t, s in zip(texts, scores, strict=True)]
    else:
        model["vocab"] = _ids_fill(vocab, left["vocab"])
    if "merges" in left:
        model["merges"] = _merges_fill(vocab, model["vocab"], left["merges"])
    document = {**left["document"], "model": model}
    if _maps_of_characters(document):
        document["normalizer"] = copy.deepcopy(document["normalizer"])  # what is left stays as it is
    for step in _maps_of_characters(document):
        if step["precompiled_charsmap"] is None:
            step["precompiled_charsmap"] = _charsmap_text(vocab)
    return document


def _lines_cut(guess: Sequence[str], data: bytes, head: bytes = b"") -> dict[str, Any]:
    end = b"\n" if data.endswith(b"\n") else b""
    lines = data[len(head) : len(data) - len(end)].decode().split("\n")
    return {"head": head.decode(), "end": end.decode(), **away(lines, guess)[0]}


def _lines_fill(guess: Sequence[str], left: Mapping[str, Any]) -> bytes:
    return "".join([left["head"], "\n".join(again(left, guess)[0]), left["end"]]).encode()


def _merges_txt_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    head = data[: data.find(b"\n") + 1] if data.startswith(b"#version") else b""
    return _lines_cut(vocab.merges or (), data, head)


def _merges_txt_fill(vocab: Vocab, left: Mapping[str, Any]) -> bytes:
    return _lines_fill(vocab.merges or (), left)


def _vocab_txt_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    return _lines_cut(_texts(vocab), data)


def _vocab_txt_fill(vocab: Vocab, left: Mapping[str, Any]) -> bytes:
    return _lines_fill(_texts(vocab), left)


def _pieces(vocab: Vocab) -> list[str]:
    """Texts as sentencepiece has them: GGUF writes user-defined tokens with plain spaces."""
    if vocab.types is None:
        return list(vocab.tokens)
    types = vocab.types.tolist()
    return [
        t.replace(" ", SPACE) if y == TokenType.USER_DEFINED else t for t, y in zip(vocab.tokens, types, strict=True)
    ]


def _ranks(vocab: Vocab) -> list[str]:
    """Lines of tiktoken's file, one for each token that is bytes; the special tokens behind them are in none."""
    ids = range(len(vocab)) if vocab.types is None else np.flatnonzero(vocab.types == TokenType.NORMAL).tolist()
    return [f"{base64.b64encode(to_bytes(vocab.tokens[id])).decode()} {id}" for id in ids]


def _model_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    if is_tiktoken(data):
        return {"ranks": _lines_cut(_ranks(vocab), data)}
    model = proto.parse(data)
    texts, scores, types = ([piece[i] for piece in model.pieces] for i in range(3))
    left, places = away(texts, _pieces(vocab))
    left["scores"] = column(scores, _guess(vocab.scores, places, 0.0))
    left["types"] = column(types, _guess(vocab.types, places, int(TokenType.NORMAL)))
    known, rest = charsmap(vocab), model.rest
    if known and (at := rest.find(known)) >= 0:
        left["charsmap"], rest = at, rest[:at] + rest[at + len(known) :]
    return {**left, "rest": base64.b64encode(rest).decode()}


def _model_fill(vocab: Vocab, left: Mapping[str, Any]) -> bytes:
    if "ranks" in left:
        return _lines_fill(_ranks(vocab), left["ranks"])
    texts, places = again(left, _pieces(vocab))
    scores = column_again(left["scores"], _guess(vocab.scores, places, 0.0))
    types = column_again(left["types"], _guess(vocab.types, places, int(TokenType.NORMAL)))
    rest = base64.b64decode(left["rest"])
    if "charsmap" in left:
        rest = rest[: left["charsmap"]] + charsmap(vocab) + rest[left["charsmap"] :]
    return proto.serialise(zip(texts, scores, types, strict=True), rest)


_ENTRY = ["rank", "token_bytes", "token_str"]


def _tekken_guess(vocab: Vocab, special: int) -> list[str]:
    """The tokens behind the special ones, in base64."""
    return [base64.b64encode(to_bytes(token)).decode() for token in vocab.tokens[special:]]


def _tekken_text(data: str) -> str | None:
    """What the file says beside a token's bytes: their text, where they are any."""
    try:
        return base64.b64decode(data).decode()
    except UnicodeDecodeError:
        return None


def _tekken_cut(vocab: Vocab, data: bytes) -> dict[str, Any]:
    document = orjson.loads(data)
    entries, special = document["vocab"], document["config"]["default_num_special_tokens"]
    if any(list(entry) != _ENTRY or entry["rank"] != i for i, entry in enumerate(entries)):
        raise ValueError("entries of another kind")
    tokens = [entry["token_bytes"] for entry in entries]
    texts = column([entry["token_str"] for entry in entries], [_tekken_text(token) for token in tokens])
    left, _ = away(tokens, _tekken_guess(vocab, special))
    return {"document": {**document, "vocab": []}, "tokens": left, "texts": texts, "special": special}


def _tekken_fill(vocab: Vocab, left: Mapping[str, Any]) -> Any:
    tokens, _ = again(left["tokens"], _tekken_guess(vocab, left["special"]))
    texts = column_again(left["texts"], [_tekken_text(token) for token in tokens])
    entries = [dict(zip(_ENTRY, row, strict=True)) for row in zip(range(len(tokens)), tokens, texts, strict=True)]
    return {**left["document"], "vocab": entries}


# File -> (what is left of it, the file again: bytes, or a value to be printed as JSON).
_FILES: dict[str, tuple[Callable[[Vocab, bytes], dict[str, Any]], Callable[[Vocab, Mapping[str, Any]], Any]]] = {
    "tokenizer.json": (_tokenizer_json_cut, _tokenizer_json_fill),
    "vocab.json": (_vocab_json_cut, _ids_fill),
    "merges.txt": (_merges_txt_cut, _merges_txt_fill),
    "vocab.txt": (_vocab_txt_cut, _vocab_txt_fill),
    "tokenizer.model": (_model_cut, _model_fill),
    "tekken.json": (_tekken_cut, _tekken_fill),
    "spiece.model": (_model_cut, _model_fill),
    "sentencepiece.bpe.model": (_model_cut, _model_fill),
}


def _fill(name: str, vocab: Vocab, left: Mapping[str, Any]) -> bytes:
    if left.get("whole") and vocab.json is not None:
        return vocab.json.encode()
    made = _FILES[name][1](vocab, left)
    return made if isinstance(made, bytes) else _STYLES[left["style"]](made) + left["end"].encode()


_FAULTS = (
    BadFile, LookupError, TypeError, ValueError, AttributeError, MemoryError, StopIteration, OverflowError,
    RecursionError,
)  # fmt: skip


def _cut(name: str, vocab: Vocab, data: bytes) -> dict[str, Any] | None:
    """What is left of a file, None when filling it in again wouldn't give exactly the file."""
    end = "\n" if data.endswith(b"\n") else ""
    try:
        left = _FILES[name][0](vocab, data)
        made = _FILES[name][1](vocab, left)
        if isinstance(made, bytes):
            return left if made == data else None
        lined = data[:2] == b"{\n"
        for style, dump in _STYLES.items():
            if ("indent" in style) == lined and dump(made) == (data.removesuffix(b"\n") if end else data):
                return {**left, "style": style, "end": end}
    except _FAULTS:
        pass  # not of the shape that can be cut
    return None


def _sha256(data: bytes) -> str:
    import hashlib  # loads OpenSSL, which few files need

    return hashlib.sha256(data).hexdigest()


def keep(vocab: Vocab) -> dict[str, Any]:
    """GGUF keys that hold the folder's own tokenizer files."""
    out: dict[str, Any] = {}
    for name, data in vocab.files.items():
        left = _cut(name, vocab, data) if name in _FILES else None
        if name == "tokenizer.json" and vocab.json is not None:
            out |= {HF_JSON: vocab.json} if left is None else {own_keys.WHOLE_JSON: True}
            left = left or {"whole": True}
        if left is not None:
            left["sha256"] = _sha256(data)
            out[CUT + name] = packed(orjson.dumps(left))
        elif len(data) <= SMALL:
            value = packed(data)
            out[WHOLE + name] = value if isinstance(value, str) else np.frombuffer(data, np.uint8)
        else:
            out[CUT + name] = packed(b"=" + data)
    return out


class _Kept(Mapping[str, bytes]):
    """Files by name; those that were cut are put together when somebody asks for them."""

    def __init__(self, vocab: Vocab, metadata: Mapping[str, Any], names: Mapping[str, str]):
        self.vocab, self.metadata, self.names = vocab, metadata, names
        self.made: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        key = self.names[name]
        if name not in self.made:
            self.made[name] = self._restored(name, key, self.metadata[key])
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def _restored(self, name: str, key: str, value: Any) -> bytes:
        if key.startswith(WHOLE):
            return value.encode() if isinstance(value, str) else np.asarray(value).astype(np.uint8).tobytes()
        text = unpacked(value, key)
        if text[:1] == b"=":
            return text[1:]
        try:
            left = orjson.loads(text)
            data = _fill(name, self.vocab, left)
        except _FAULTS:
            raise BadFile(f"{key}: is damaged: the file that it stands for can't be rebuilt") from None
        if left.get("sha256") not in (None, _sha256(data)):
            self.vocab.notes.append(f"{name}: is not the one that was converted, the GGUF's keys were changed since")
        return data


def restore(vocab: Vocab, metadata: Mapping[str, Any]) -> None:
    """Put the kept files back into `vocab.files`; a damaged one is refused when it is asked for."""
    names: dict[str, str] = {}
    for key in metadata:
        name = key.removeprefix(CUT).removeprefix(WHOLE)
        if name != key and is_mine(name) and (key.startswith(WHOLE) or name in _FILES or _is_packed(metadata[key])):
            names[name] = key  # else another file of the folder, or a name that would lead out of it
    if names:
        vocab.files = _Kept(vocab, metadata, names)
    if vocab.json is None and metadata.get(own_keys.WHOLE_JSON) is True and "tokenizer.json" in names:
        vocab.json = vocab.files["tokenizer.json"].decode("utf-8", "replace")


def _is_packed(value: Any) -> bool:
    return not isinstance(value, str)
