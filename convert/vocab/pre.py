"""Pre-tokenizers of byte-level BPE: the names that llama.cpp knows, and what each does.

A pre-tokenizer is a sequence of patterns; each splits every piece so far into its matches and what is between them.
`TABLE` is the one place to add one.  The patterns are written as the models' own tokenizer.json files have them (for
the `tokenizers` library); llama.cpp's llama-vocab.cpp lists the names.  Names that split alike share a row, the
commonest first: which of them is written makes no difference to the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["LINES", "OVER_TEXT", "TABLE", "Pre", "by_name", "to_json"]


@dataclass(frozen=True)
class Pre:
    """A pre-tokenizer: its names, its patterns in order, and what goes with it in the models that use it."""

    names: tuple[str, ...]
    patterns: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Patterns that split what is in the byte alphabet already: bytes that look like digits there ("½") are digits."""
    nfc: bool = False
    """Text is brought into Unicode's normal form C first."""
    ignore_merges: bool = False
    """A word that is a token is that token, whatever the merges say."""
    add_bos: bool = False
    """llama.cpp adds BOS unless the file says otherwise."""


# 's, 't, ... in any case, and in lower case.
ANY = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
CL100K = rf"{ANY}|{_WORD}|\p{{N}}{{1,3}}|{_TAIL}"
QWEN2 = rf"{ANY}|{_WORD}|\p{{N}}|{_TAIL}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = rf"{_LEAD}{_UPPER}*{_LOWER}+{ANY}?|{_LEAD}{_UPPER}+{_LOWER}*{ANY}?|\p{{N}}{{1,3}}|{_SLASH_TAIL}"
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH_TAIL}"
_PUNCT_WORD = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"""
)
_CJK, _KANA = "[一-龥ࠀ-一가-퟿]+", "[一-龥぀-ゟ゠-ヿ]+"
BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"
# Written as escapes, because editors that normalise Unicode would merge some of these characters.
_DEEPSEEK_LETTERS = (
    r"\s?"
    "[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-"
    "\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-"
    "\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-"
    "\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943]+"
)
_AFMOE_SCRIPTS = "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+"
_SPACES = "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}"
_NOT_HAN = r"(?!\p{Han})"
_KIMI_WORD = rf"{_LEAD}(?:{_NOT_HAN}{_UPPER})*(?:{_NOT_HAN}{_LOWER})+{ANY}?"
_KIMI_NAME = rf"{_LEAD}(?:{_NOT_HAN}{_UPPER})+(?:{_NOT_HAN}{_LOWER})*{ANY}?"
PUNCT = r"[\p{P}$+<=>^~|`]+"

_MARKS = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PHRASES = r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+"

TABLE: tuple[Pre, ...] = (
    Pre(
        (
            "gpt-2",
            "phi-2",
            "jais",
            "trillion",
            "granite-docling",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
        ),
        (GPT2,),
    ),
    Pre(("olmo", "mpt"), (GPT2,), nfc=True),
    Pre(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"),
        (CL100K,),
        ignore_merges=True,
        add_bos=True,
    ),
    Pre(("dbrx", "smaug-bpe", "chatglm-bpe"), (CL100K,)),
    Pre(("glm4", "glm5"), (CL100K,), ignore_merges=True),
    Pre(("qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"), (QWEN2,), nfc=True),
    Pre(("stablelm2", "hunyuan", "solar-open", "grok-2"), (QWEN2,)),
    Pre(
        ("qwen35",),
        (rf"{ANY}|{_MARKS}",),  # llama.cpp's vectors leave combining marks decomposed; its folders say what they do
    ),
    Pre(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), (O200K,)),
    Pre(("granite-embed-multi-97m",), (O200K,), ignore_merges=True),
    Pre(("kimi-k2",), (rf"\p{{Han}}+|{_KIMI_WORD}|{_KIMI_NAME}|\p{{N}}{{1,3}}|{_TAIL}",)),
    Pre(("tekken",), (TEKKEN,), ignore_merges=True, add_bos=True),
    Pre(("starcoder", "refact", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"), (r"\p{N}", GPT2)),
    Pre(("command-r",), (r"\p{N}", GPT2), nfc=True),
    Pre(("falcon",), (PUNCT, GPT2), after=(r"\p{N}+", "[0-9][0-9][0-9]")),
    Pre(
        ("deepseek-llm",),
        (r"[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK, r"\p{N}+"),
    ),
    Pre(("deepseek-coder",), (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    Pre(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"),
        (r"\p{N}{1,3}", _KANA, rf"{_PUNCT_WORD}[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
    ),
    Pre(("bloom", "poro-chat", "gpt3-finnish"), (BLOOM,)),
    Pre(("viking",), (BLOOM, r"\p{N}")),
    Pre(("superbpe",), (r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    Pre(
        ("jais-2",),
        (rf"{ANY}|{_WORD}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",),
    ),
    Pre(
        ("bailingmoe", "bailingmoe2", "llada-moe"),
        (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",),
    ),
    Pre(
        ("seed-coder",),
        (rf"{ANY}|{_WORD}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",),
    ),
    Pre(
        ("exaone-moe",),
        (rf"{ANY}|{_LEAD}{_PHRASES}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",),
    ),
    Pre(("ufakzeka",), (rf"{_WORD}|\p{{N}}|{_TAIL}",)),
    Pre(("minicpm5",), (r"\p{N}{1,3}", rf"{ANY}|{_WORD}|\p{{N}}+|{_TAIL}"), ignore_merges=True),
    Pre(("tiny_aya", "cohere2moe"), (r"\d{1,3}(?=(?:\d{3})*\b)", O200K)),
    Pre(("spark2_5",), (r"\p{N}{1,3}", _KANA, rf"{_PUNCT_WORD}|[\r\n]|\s+(?!\S)|\s+", r"\p{N}")),
    Pre(("laguna",), (r"[^\n]+|[\n]+", QWEN2)),
    Pre(
        ("youtu",),
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
            rf"{_LEAD}{_UPPER}*{_LOWER}+{ANY}?|{_LEAD}{_UPPER}+{_LOWER}*{ANY}?|\p{{N}}|{_SLASH_TAIL}",
        ),
        ignore_merges=True,
    ),
    Pre(
        ("afmoe",),
        (
            r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))",
            _AFMOE_SCRIPTS,
            rf"{_PUNCT_WORD}[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
    ),
    Pre(
        ("chameleon",),
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ),
        add_bos=True,
    ),
    # llama.cpp's fallback, for files that name none.
    Pre(("default",), (r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
)

OVER_TEXT = ("gemma4", "sarvam-moe", "granite-embed-multi-311m")
"""Names of a BPE over text with "▁" for spaces, not over bytes; only runs of newlines are split off."""

LINES = {"Regex": r"\n+"}
"""The pattern of those runs in a tokenizer.json."""

_BY_NAME = {name: row for row in TABLE for name in row.names}


def by_name(name: str | None) -> Pre | None:
    """The pre-tokenizer of that name, None when it isn't in the table."""
    return _BY_NAME.get(name or "")


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def to_json(row: Pre, leading_space: bool = False) -> dict[str, Any]:
    """The pre-tokenizer as tokenizer.json writes it.   leading_space: a space is put before the text."""
    own = row.patterns[-1] == GPT2
    level = {"type": "ByteLevel", "add_prefix_space": leading_space, "trim_offsets": True, "use_regex": own}
    before = row.patterns[:-1] if own else row.patterns
    steps = [*map(_split, before), level, *map(_split, row.after)]
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
