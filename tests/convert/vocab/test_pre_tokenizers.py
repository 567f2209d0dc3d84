"""Pre-tokenizers are recognised by what they do, and named as llama.cpp names them."""

from __future__ import annotations

import json
import random
import unicodedata

import pytest
from tokenizers_trained import PROBE, ours, trained

from llmconv.convert import vocab
from llmconv.convert.vocab import pre
from llmconv.convert.vocab.alphabet import alphabet
from llmconv.convert.vocab.model import HF_JSON, Vocab
from llmconv.convert.vocab.read import recognise
from llmconv.errors import Unsupported

pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


@pytest.mark.parametrize("row", pre.TABLE, ids=lambda row: row.names[0])
def test_each_pre_tokenizer_is_recognised(row: pre.Pre) -> None:
    document = {
        "normalizer": {"type": "NFC"} if row.nfc else None,
        "pre_tokenizer": pre.to_json(row),
        "model": {"type": "BPE", "ignore_merges": row.ignore_merges},
    }
    found = recognise.recognise(document)
    assert found is not None and found.patterns == row.patterns
    assert all(pre.by_name(name) is row for name in row.names)
    if row.names[0] not in ("glm4",):  # llama-bpe's twin
        assert found is row


def test_pre_tokenizers_differ_on_the_probe() -> None:
    """Recognising by trial tells every two apart (names that split alike share a row)."""
    seen: dict[tuple[str, ...], list[str]] = {}
    for row in pre.TABLE:
        split = recognise.split(json.dumps(pre.to_json(row)).encode())
        assert split is not None, row.names
        seen.setdefault(tuple(split), []).append(row.names[0])
    same = {tuple(sorted(names)) for names in seen.values() if len(names) > 1}
    assert same == {
        ("gpt-2", "olmo"),
        ("dbrx", "glm4", "llama-bpe"),
        ("bailingmoe", "qwen2", "stablelm2"),
        ("command-r", "starcoder"),
        ("gpt-4o", "granite-embed-multi-97m"),
    }


SPELLINGS = {
    "digits": ("starcoder", [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}]),
    "falcon": (
        "falcon",
        [
            {"type": "Punctuation", "behavior": "Contiguous"},
            {"type": "ByteLevel", "use_regex": True},
            {"type": "Digits", "individual_digits": False},
            {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
        ],
    ),
    "letters in both cases": (
        "dbrx",
        [
            {
                "type": "Split",
                "pattern": {
                    "Regex": pre.CL100K.replace(pre.ANY, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
                },
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "use_regex": False},
        ],
    ),
    "real newlines": (
        "dbrx",
        [
            {
                "type": "Split",
                "pattern": {"Regex": pre.CL100K.replace(r"\r\n", "\r\n")},
                "behavior": "Removed",
                "invert": True,
            },
            {"type": "ByteLevel", "use_regex": False},
        ],
    ),
    "another pattern that does the same": (
        "qwen2",
        [
            {
                "type": "Split",
                "pattern": {
                    "Regex": pre.QWEN2.replace(r"\p{L}+", r"\p{L}{1,}").replace(r"|\s+(?!\S)|\s+", r"|\s+(?!\S)|\s")
                },
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "use_regex": False},
        ],
    ),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_spelling_does_not_matter(case: str) -> None:
    name, steps = SPELLINGS[case]
    steps = [{"add_prefix_space": False, "trim_offsets": True, **s} if s["type"] == "ByteLevel" else s for s in steps]
    nfc = {"type": "NFC"} if name == "qwen2" else None
    document = {"normalizer": nfc, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "model": {}}
    found = recognise.recognise(document)
    assert found is not None and found.names[0] == name


def test_an_unknown_pre_tokenizer_is_kept_whole_and_said() -> None:
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex("[aeiou]+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    original = trained("bpe", pre_tokenizers.Sequence(steps))
    files = {"tokenizer.json": original.to_str(pretty=True).encode()}
    found = vocab.from_files(files, {})
    assert found is not None and found.pre == "" and "--pre NAME" in found.notes[0]
    keys = vocab.to_gguf(found)
    assert "tokenizer.ggml.pre" not in keys
    again = vocab.from_gguf(keys)
    assert again is not None and vocab.to_files(again) == files
    published = vocab.to_gguf(found, files=False)
    assert published[HF_JSON] == files["tokenizer.json"].decode()
    original.encode_special_tokens = True
    for one in (keys, published):
        read = vocab.from_gguf(one)
        assert read is not None
        assert vocab.tokenizer(read).encode(PROBE) == original.encode(PROBE, add_special_tokens=False).ids
    named = vocab.from_files(files, {}, pre="gpt-2")
    assert (
        named is not None
        and vocab.to_gguf(named)["tokenizer.ggml.pre"] == "gpt-2"
        and HF_JSON not in vocab.to_gguf(named)
    )


def test_a_name_that_nobody_knows_is_one_sentence() -> None:
    found = vocab.from_files({"tokenizer.json": trained("bpe").to_str().encode()}, {}, pre="nobodys")
    assert found is not None
    foreign = vocab.from_gguf(ours(vocab.to_gguf(found)))
    assert foreign is not None
    with pytest.raises(Unsupported, match="nobodys"):
        vocab.tokenizer(foreign)


def by_pre(name: str) -> Vocab:
    """A GGUF of somebody else's with that pre-tokenizer: the bytes, and "ĠÂ" as Falcon has it."""
    tokens = [*alphabet(), "ĠÂ", "Â½", "ĠÂ½"]
    return Vocab("gpt2", tokens, merges=["Ġ Â", "Â ½", "ĠÂ ½"], pre=name)


def test_bytes_that_look_like_digits_are_digits_to_falcon() -> None:
    """One of llama.cpp's vectors for Falcon: " ½" is "ĠÂ" and "½", because Digits comes after the byte alphabet."""
    tokenizer = vocab.tokenizer(by_pre("falcon"))
    pieces = [tokenizer._tokens[id] for id in tokenizer.encode("ied 4 ½ months")]
    assert pieces == [*"ied", "Ġ", "4", "ĠÂ", "½", "Ġ", *"months"]
    other = vocab.tokenizer(by_pre("gpt-2"))
    assert "ĠÂ½" in [other._tokens[id] for id in other.encode("4 ½")]


@pytest.mark.parametrize("text", ["e\u0301", "re\u0301sume\u0301", "a\u0300" * 40], ids=["one", "two", "forty"])
def test_combining_marks_stay_as_they_are_in_qwen35(text: str) -> None:
    """Three of llama.cpp's vectors; Qwen 2 composes them."""
    kept, composed = vocab.tokenizer(by_pre("qwen35")), vocab.tokenizer(by_pre("qwen2"))
    assert kept.decode(kept.encode(text)) == text
    assert composed.decode(composed.encode(text)) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("nfc", [True, False])
@pytest.mark.parametrize("name", ["qwen35", "qwen2", "gpt-2", "llama-bpe"])
def test_a_folder_says_itself_whether_text_is_composed(name: str, nfc: bool) -> None:
    row = pre.by_name(name)
    assert row is not None
    document = {
        "version": "1.0",
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": pre.to_json(row),
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(alphabet())}, "merges": []},
    }
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None
    keys = {k: v for k, v in vocab.to_gguf(found).items() if not k.startswith("llmconv.hf")}
    again = vocab.from_gguf(keys)
    assert again is not None and again.flag("nfc") == nfc
    assert len(vocab.tokenizer(again).encode("e\u0301")) == (2 if nfc else 3)


@pytest.mark.parametrize(("kind", "steps"), [("bpe", ["Lowercase"]), ("bpe", ["NFC", "NFKC"]), ("spm", ["NFKC"])])
def test_steps_that_change_texts_are_kept_and_said(kind: str, steps: list[str]) -> None:
    document = json.loads(trained(kind).to_str())
    own = [document["normalizer"]] if document["normalizer"] else []
    document["normalizer"] = {"type": "Sequence", "normalizers": [*own, *({"type": step} for step in steps)]}
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None and found.json is not None
    assert any(f"is normalised by '{steps[-1]}'" in note for note in found.notes)
    back = vocab.from_gguf(vocab.to_gguf(found))
    assert back is not None and json.loads(vocab.to_files(back)["tokenizer.json"]) == document


def test_an_added_token_with_another_s_id_is_said() -> None:
    document = json.loads(trained("bpe").to_str())
    document["added_tokens"].append({"id": 5, "content": "<mine>", "special": True})
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None and len([n for n in found.notes if "'<mine>' has id 5, which model.vocab gives" in n]) == 1


@pytest.mark.parametrize(
    ("word", "side", "said"), [("<mine>", "rstrip", 1), ("<mine>", "lstrip", 1), ("<mask>", "lstrip", 0)]
)
def test_a_token_that_takes_the_space_beside_it_is_named(word: str, side: str, said: int) -> None:
    document = json.loads(trained("bpe").to_str())
    document["added_tokens"].append(
        {"id": len(document["model"]["vocab"]), "content": word, "special": True, side: True}
    )
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None
    assert len([n for n in found.notes if f"the token '{word}' takes the white space beside it" in n]) == said


def test_a_token_that_is_a_word_of_its_own_is_named() -> None:
    document = json.loads(trained("bpe").to_str())
    document["added_tokens"].append({"id": len(document["model"]["vocab"]), "content": "two", "single_word": True})
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None
    assert [n for n in found.notes if "the token 'two' is found as a word of its own alone" in n]


def test_marked_ends_of_words_are_kept_and_said() -> None:
    document = json.loads(trained("bpe").to_str())
    document["model"]["end_of_word_suffix"] = "</w>"
    found = vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {})
    assert found is not None and [n for n in found.notes if "the ends of words are marked by '</w>'" in n]
    back = vocab.from_gguf(vocab.to_gguf(found))
    assert back is not None
    library = pytest.importorskip("tokenizers").Tokenizer.from_str(json.dumps(document))
    for text in ("the two", "a"):
        assert vocab.tokenizer(back).encode(text) == library.encode(text, add_special_tokens=False).ids


WORDS = ("the", "  two", "it's", "\u4e2d\u6587\u5b57", "12345678901", "e\u0301\u0301", "!!!???", "\t", "\u00bd", "a_b")
WORDS += ("\U0001f600\u200d", "\n", "\r\n\n")


@pytest.mark.parametrize("row", pre.TABLE, ids=lambda row: row.names[0])
def test_a_beginning_has_the_ids_of_the_whole(row: pre.Pre) -> None:
    """Whatever the pre-tokenizer looks at behind a word, and wherever the text happens to be cut."""
    letters = sorted(alphabet())
    merges = ["1 2", "12 3", "123 4", "t h", "th e", "Ġ t", "Ċ Ċ", "! !", "!! !"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": row.names[0],
        "tokenizer.ggml.tokens": [*letters, *(m.replace(" ", "") for m in merges)],
        "tokenizer.ggml.merges": merges,
    }
    found = vocab.from_gguf(metadata)
    assert found is not None
    tokenizer, chance = vocab.tokenizer(found), random.Random(row.names[0])
    text = "".join(chance.choice(WORDS) + chance.choice(("", " ", " ", "\n")) for _ in range(2000))
    whole = tokenizer.encode(text)
    for count in (1, 60):
        beginning = tokenizer.beginning(text, count)
        assert text.startswith(beginning) and len(beginning) < len(text)
        assert tokenizer.encode(beginning)[:count] == whole[:count]
    assert tokenizer.beginning(text, len(whole)) == text
