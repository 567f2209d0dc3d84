"""Which row of the table of pre-tokenizers a tokenizer.json is.

It is recognised by its patterns, spelling aside (`(?i:'s|'t)` is `'[sS]|'[tT]`, Digits is `\\p{N}`, ...), and where the
`tokenizers` library is installed also by trying it on text that every row splits differently.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

import orjson

from llmconv.convert.vocab.pre import ANY, GPT2, PUNCT, TABLE, Pre, to_json
from llmconv.convert.vocab.read.steps import parts

__all__ = ["PROBE", "recognise", "split"]


def _canonical(pattern: str) -> str:
    """A pattern in one spelling, whatever spelling its author chose."""
    out = pattern.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
    out = re.sub(r"\\([$+<=>^~|`!\"#%&',/:;@_-])(?=[^\[\]]*\])", r"\1", out)  # needless escapes in a class
    out = out.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", ANY)
    out = out.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", ANY).replace("(?i)'s|'t|'re|'ve|'m|'ll|'d|", ANY + "|")
    out = re.sub(r"'\(\?i:\[sdmt\]\|ll\|ve\|re\)", lambda _: ANY, out)  # the same words
    out = re.sub(r"([+*?])\+", r"\1", out)  # possessive: nothing here would backtrack into it
    return out.replace("{1}", "").replace("[0-9][0-9][0-9]", "[0-9]{3}")


def _patterns(tokenizer: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The patterns of a tokenizer.json's pre-tokenizer, before and after it turns text to bytes.

    None when a step is none that a pattern can say.
    """
    before: list[str] = []
    after: list[str] = []
    out = before
    for step in parts(tokenizer.get("pre_tokenizer")):
        kind, behavior, pattern = step.get("type"), step.get("behavior"), step.get("pattern")
        if kind == "ByteLevel":
            if step.get("add_prefix_space"):
                return None
            if step.get("use_regex", True):
                out.append(GPT2)
            out = after
        elif kind == "Digits":
            out.append(r"\p{N}" if step.get("individual_digits") else r"\p{N}+")
        elif kind == "Punctuation" and behavior == "Contiguous":
            out.append(PUNCT)
        elif kind == "Split" and isinstance(pattern, dict) and isinstance(pattern.get("Regex"), str):
            whole = behavior == "Removed" and step.get("invert")  # keeps the matches only: these match everything
            if behavior != "Isolated" and not whole:
                return None
            out.append(pattern["Regex"])
        else:
            return None
    return tuple(map(_canonical, before)), tuple(map(_canonical, after))


def _patterns_of(row: Pre) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(map(_canonical, row.patterns)), tuple(map(_canonical, row.after))


def recognise(tokenizer: dict[str, Any]) -> Pre | None:
    """The row of the table that splits as this tokenizer.json does, None when there is none.

    Among rows with the same patterns, the one whose normalizer and treatment of merges agree too.
    """
    kinds = [s.get("type") for s in parts(tokenizer.get("pre_tokenizer"))]
    if "ByteLevel" not in kinds:
        return None  # text isn't turned to bytes: no GPT-2 alphabet
    wanted = _patterns(tokenizer)
    rows = [row for row in TABLE if _patterns_of(row) == wanted] or _by_trial(tokenizer)
    if not rows:
        return None
    model = tokenizer.get("model")
    ignores = isinstance(model, dict) and model.get("ignore_merges") is True
    nfc = any(s.get("type") == "NFC" for s in parts(tokenizer.get("normalizer")))
    return max(rows, key=lambda row: (row.ignore_merges == ignores, row.nfc == nfc))


# Text on which the rows differ: contractions in both cases, digit runs, scripts, marks, newlines, runs of spaces.
PROBE = (
    "Hello World, it's WE'LL'S y'all I'VE 've 'RE\n\n \r\n  1 12 123 1234 12345 1234567 3.14 x=10;y+=2 <a href='b'>"
    "$5^2~`| foo/bar//baz/\n/ HTTPServer camelCase ÄÖÜäöü İi ǅ naïve e\u0301te\u0301 नमस्ते दुनिया 안녕하세요 ㄱㄴ ㄅㄆ "
    "你好，世界。我在2024年 ひらがなカタカナ ไทย ภาษา ខ្មែរ မြန်မာ العربية، עברית ١٢٣٤ ½ ² 🚀🙂 ---- ==== ...... !!??\t\t"
    "if (a) {\n\t\treturn\t1;\n    }\n\n\n        deep    \n   \n x  y   z    w . , ! ? … ، । (s) [k] | a|b '' \"q\" "
    "``` #tag @me _u_ don\u2019t \xa0nb\x85 (\n\r+\n IMGIMGABZ <sentinel:7> 'twas don'tcha end   "
)


def _by_trial(tokenizer: dict[str, Any]) -> list[Pre]:
    """Rows that split the probe as this tokenizer does; none without the `tokenizers` library."""
    mine = split(orjson.dumps(tokenizer.get("pre_tokenizer")))
    return [row for row in TABLE if mine is not None and split(orjson.dumps(to_json(row))) == mine]


@lru_cache(256)
def split(pre_tokenizer: bytes) -> list[str] | None:
    """The probe split by a pre-tokenizer given as JSON; None when the library is missing or can't read it."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    shell = b'{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]},"pre_tokenizer":' + pre_tokenizer + b"}"
    try:
        return [text for text, _ in Tokenizer.from_str(shell.decode()).pre_tokenizer.pre_tokenize_str(PROBE)]
    except Exception:  # the library raises no narrower class for what it can't read
        return None
