"""Vocabularies: every source into GGUF's keys and back, nothing lost, the same ids everywhere."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmconv.convert import vocab
from llmconv.convert.vocab import pre, proto
from llmconv.convert.vocab.base import CUT, HF_JSON, TokenType, Vocab
from llmconv.errors import BadFile, LlmconvError, Unsupported, UsageError

CORPUS = [
    "It is a truth universally acknowledged, that a single man in possession of 1234 pounds must be in want of a wife.",
    "However little known the feelings or views of such a man may be, he's WE'LL known on 12.5.1813!",
    "def main(args):\n\treturn [x ** 2 for x in range(1000) if x % 3 == 0]\n\n\n    # done",
    "Größe, naïve café — 你好，世界。 Привет мир! こんにちは 안녕하세요 🚀🙂",
] * 8
PROBE = "\n".join(CORPUS[:4]) + pre._PROBE + " <s> [SEP] <|im_start|>user <extra_0>  unseen: ☃ ß \x01 "

tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")


def trained(kind: str, pre_tokenizer: Any = None, special: tuple[str, ...] = ("<s>", "<|im_start|>")) -> Any:
    """A small tokenizer of the library, trained on the corpus."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    unk = "[UNK]" if kind in ("wordpiece", "wordlevel") else "<unk>"
    common = {"vocab_size": 600, "show_progress": False}
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps: tuple[Any, ...]
    match kind:
        case "bpe":
            trainer = trainers.BpeTrainer(initial_alphabet=level.alphabet(), special_tokens=list(special), **common)
            steps = (models.BPE(), trainer, None, pre_tokenizer or level, decoders.ByteLevel())
        case "wordpiece":
            names = ["[PAD]", unk, "[CLS]", "[SEP]", "[MASK]"]
            trainer = trainers.WordPieceTrainer(special_tokens=names, **common)
            normalizer = normalizers.BertNormalizer(lowercase=True)
            steps = (models.WordPiece(unk_token=unk), trainer, normalizer, pre_tokenizers.BertPreTokenizer(), None)
        case "unigram":
            trainer = trainers.UnigramTrainer(
                special_tokens=[unk, "<s>", "</s>"], unk_token=unk, vocab_size=200, show_progress=False
            )
            steps = (models.Unigram(), trainer, None, pre_tokenizers.Metaspace(), decoders.Metaspace())
        case "wordlevel":
            trainer = trainers.WordLevelTrainer(special_tokens=[unk], **common)
            steps = (models.WordLevel(unk_token=unk), trainer, None, pre_tokenizers.Whitespace(), None)
        case _:
            trainer = trainers.BpeTrainer(
                special_tokens=[unk, "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))], **common
            )
            trainer.vocab_size = 900
            normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            model = models.BPE(unk_token=unk, byte_fallback=True, fuse_unk=True)
            steps = (model, trainer, normalizer, None, decoders.Replace("▁", " "))
    made = Tokenizer(steps[0])
    for name, value in zip(("normalizer", "pre_tokenizer", "decoder"), steps[2:], strict=True):
        if value is not None:
            setattr(made, name, value)
    made.train_from_iterator(CORPUS, steps[1])
    made.add_tokens([AddedToken("<extra_0>", normalized=False)])
    document = json.loads(made.to_str())
    document["added_tokens"] = [a for a in document["added_tokens"] if not a["content"].startswith("<0x")]
    made = Tokenizer.from_str(json.dumps(document))
    if kind == "wordpiece":
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    elif kind not in ("wordlevel",):
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    return made


def ours(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys without those that only llmconv writes: what another converter's file would have."""
    return {k: v for k, v in keys.items() if not k.startswith("llmconv")}


KINDS = {"bpe": "gpt2", "wordpiece": "bert", "unigram": "t5", "wordlevel": "words", "spm": "llama"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pretty", [True, False])
def test_tokenizer_json_there_and_back(kind: str, pretty: bool) -> None:
    original = trained(kind)
    files = {"tokenizer.json": original.to_str(pretty=pretty).encode(), "tokenizer_config.json": b'{"x": 1}\n'}
    found = vocab.from_files(files, {})
    assert found is not None and found.model == KINDS[kind]
    keys = found.to_gguf()
    again = vocab.from_gguf(keys)
    assert again is not None and again.to_files() == files
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None
    for parse_special in (False, True):
        original.encode_special_tokens = not parse_special
        wanted = original.encode(PROBE, add_special_tokens=False).ids
        if kind == "unigram" and not parse_special:
            # The library's own lets a text spell <s> into a control token; ours never does.
            assert found.special.get("bos", 1) in wanted
            assert 1 not in found.tokenizer().encode(PROBE)
            continue
        for one in (found, again, foreign):
            assert one.tokenizer().encode(PROBE, parse_special=parse_special) == wanted
        library = foreign.to_tokenizers()
        library.encode_special_tokens = not parse_special
        assert library.encode(PROBE, add_special_tokens=False).ids == wanted
    original.encode_special_tokens = False
    assert foreign.tokenizer().encode("a man", add_special=True) == original.encode("a man").ids


@pytest.mark.parametrize("kind", ["bpe", "spm"])
def test_decoding_gives_the_text_back(kind: str) -> None:
    found = vocab.from_files({"tokenizer.json": trained(kind).to_str().encode()}, {})
    assert found is not None
    tokenizer = found.tokenizer()
    # After a matched token sentencepiece's kind puts a space, as before the text; it can't be told from a real one.
    text = PROBE.replace("<extra_0>", "") if kind == "spm" else PROBE
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    seen = [stream.push(id) for id in ids] + [stream.flush()]
    assert "".join(seen) == text and "\ufffd" not in "".join(seen)
    assert len(tokenizer.pieces(ids)) == len(ids)
    assert tokenizer.decode([found.special["bos"]]) == "" and tokenizer.decode([found.special["bos"]], True) == "<s>"
    with pytest.raises(UsageError, match="not in the vocabulary"):
        tokenizer.decode([len(found)])


def test_a_cut_character_is_shown_when_the_text_ends() -> None:
    tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Vocab("llama", tokens, np.full(256, TokenType.BYTE, np.int32)).tokenizer()
    stream = tokenizer.stream()
    pushed = [stream.push(b) for b in "é🙂".encode()[:-1]]
    assert pushed == ["", "é", "", "", ""] and stream.flush() == "\ufffd"


# Pre-tokenizers


@pytest.mark.parametrize("row", pre.TABLE, ids=lambda row: row.names[0])
def test_each_pre_tokenizer_is_recognised(row: pre.Pre) -> None:
    document = {
        "normalizer": {"type": "NFC"} if row.nfc else None,
        "pre_tokenizer": pre.to_json(row),
        "model": {"type": "BPE", "ignore_merges": row.ignore_merges},
    }
    found = pre.recognise(document)
    assert found is not None and found.patterns == row.patterns
    assert all(pre.by_name(name) is row for name in row.names)
    if row.names[0] not in ("glm4",):  # llama-bpe's twin
        assert found is row


def test_pre_tokenizers_differ_on_the_probe() -> None:
    """Recognising by trial tells every two apart (names that split alike share a row)."""
    seen: dict[tuple[str, ...], list[str]] = {}
    for row in pre.TABLE:
        split = pre._split(json.dumps(pre.to_json(row)).encode())
        assert split is not None, row.names
        seen.setdefault(tuple(split), []).append(row.names[0])
    same = {tuple(sorted(names)) for names in seen.values() if len(names) > 1}
    assert same == {
        ("gpt-2", "olmo"),
        ("dbrx", "glm4", "llama-bpe"),
        ("bailingmoe", "qwen2", "stablelm2"),
        ("command-r", "starcoder"),
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
                    "Regex": pre.CL100K.replace(pre._ANY, "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])")
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
    found = pre.recognise(document)
    assert found is not None and found.names[0] == name


def test_an_unknown_pre_tokenizer_is_kept_whole_and_said() -> None:
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex("[aeiou]+"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    original = trained("bpe", pre_tokenizers.Sequence(steps))
    files = {"tokenizer.json": original.to_str(pretty=True).encode()}
    found = vocab.from_files(files, {})
    assert found is not None and found.pre == "" and "--pre NAME" in found.notes[0]
    keys = found.to_gguf()
    assert "tokenizer.ggml.pre" not in keys and keys[HF_JSON] == files["tokenizer.json"].decode()
    again = vocab.from_gguf(keys)
    assert again is not None and again.to_files() == files
    original.encode_special_tokens = True
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None
    assert foreign.tokenizer().encode(PROBE) == original.encode(PROBE, add_special_tokens=False).ids
    named = vocab.from_files(files, {}, pre="gpt-2")
    assert named is not None and named.to_gguf()["tokenizer.ggml.pre"] == "gpt-2" and HF_JSON not in named.to_gguf()


def test_a_name_that_nobody_knows_is_one_sentence() -> None:
    found = vocab.from_files({"tokenizer.json": trained("bpe").to_str().encode()}, {}, pre="nobodys")
    assert found is not None
    foreign = vocab.from_gguf(ours(found.to_gguf()))
    assert foreign is not None
    with pytest.raises(Unsupported, match="nobodys"):
        foreign.tokenizer()


# The real ones


def gpt2(shared: Path) -> dict[str, Path | bytes]:
    return {name: shared / "tokenizers" / "gpt2" / name for name in ("vocab.json", "merges.txt")}


def llama2(shared: Path) -> dict[str, Path | bytes]:
    return {"tokenizer.model": shared / "tokenizers" / "llama2-tokenizer.model"}


def bert(shared: Path) -> dict[str, Path | bytes]:
    from llmconv.convert.vocab.wordpiece import plain

    tokens = plain(vocab.load(shared / "vocabs" / "ggml-vocab-bert-bge.gguf"))
    return {"vocab.txt": ("\n".join(tokens) + "\n").encode()}


@pytest.mark.parametrize("source", [gpt2, llama2, bert])
def test_files_come_back_byte_for_byte(shared: Path, source: Callable[[Path], dict[str, Path | bytes]]) -> None:
    files = source(shared)
    found = vocab.from_files(files, {})
    assert found is not None
    keys = found.to_gguf()
    kept = {k: v for k, v in keys.items() if k.startswith("llmconv")}
    assert set(kept) == {CUT + name for name in files} and sum(map(len, kept.values())) < 1000
    again = vocab.from_gguf(keys)
    assert again is not None
    for name, data in files.items():
        assert again.to_files()[name] == (data.read_bytes() if isinstance(data, Path) else data), name
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None and foreign.tokenizer().encode(PROBE) == found.tokenizer().encode(PROBE)


def texts(shared: Path) -> list[str]:
    return [path.read_text("utf-8") for path in sorted((shared / "text").glob("*.txt"))]


@pytest.mark.slow
def test_gpt2_ids_over_megabytes(shared: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    files = gpt2(shared)
    wanted = Tokenizer(models.BPE.from_file(*(str(files[n]) for n in ("vocab.json", "merges.txt"))))
    wanted.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found = vocab.from_files(files, {})
    assert found is not None
    foreign = vocab.from_gguf(ours(found.to_gguf()))
    assert foreign is not None
    tokenizer = foreign.tokenizer()
    for text in texts(shared):
        ids = tokenizer.encode(text)
        assert ids == wanted.encode(text).ids and tokenizer.decode(ids) == text


@pytest.mark.slow
def test_llama2_ids_over_megabytes(shared: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece library is not installed")
    wanted = sentencepiece.SentencePieceProcessor(str(llama2(shared)["tokenizer.model"]))
    found = vocab.from_files(llama2(shared), {})
    assert found is not None
    foreign = vocab.from_gguf(ours(found.to_gguf()))
    assert foreign is not None
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=foreign.to_files()["tokenizer.model"])
    tokenizer, library = foreign.tokenizer(), foreign.to_tokenizers()
    library.encode_special_tokens = True
    for text in texts(shared):
        ids = wanted.encode(text)
        assert tokenizer.encode(text) == ids and tokenizer.decode(ids) == text
        assert rebuilt.encode(text) == ids
        assert library.encode(text, add_special_tokens=False).ids == ids


SENTENCEPIECE = {
    "unigram": {"model_type": "unigram"},
    "unigram with bytes": {"model_type": "unigram", "byte_fallback": True},
    "bpe": {"model_type": "bpe"},
    "bpe as gemma's": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<start>", "▁▁"],
    },
    "bpe as llama's": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["▁▁"],
    },
}


@pytest.mark.parametrize("case", SENTENCEPIECE)
def test_sentencepiece_models(case: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="the sentencepiece library is not installed")
    import io

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(" ".join(CORPUS[:4]).split("\n") * 4),
        model_writer=out,
        vocab_size=256 * ("byte_fallback" in SENTENCEPIECE[case]) + 150,
        hard_vocab_limit=False,
        minloglevel=2,
        **SENTENCEPIECE[case],
    )
    wanted = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    found = vocab.from_files({"tokenizer.model": out.getvalue()}, {})
    assert found is not None
    keys = found.to_gguf()
    again = vocab.from_gguf(keys)
    assert again is not None and again.to_files() == {"tokenizer.model": out.getvalue()}
    foreign = vocab.from_gguf(ours(keys))
    assert foreign is not None
    for text in ("", " two  spaces   and\nmore ", "<s> </s> ☃☃", *CORPUS[:4]):
        assert foreign.tokenizer().encode(text) == wanted.encode(text), text
    if found.model == "llama":
        rebuilt = sentencepiece.SentencePieceProcessor(model_proto=foreign.to_files()["tokenizer.model"])
        assert [rebuilt.encode(t) for t in CORPUS[:4]] == [wanted.encode(t) for t in CORPUS[:4]]


# Sizes, words, special tokens


def test_padding_to_the_embedding() -> None:
    data = trained("bpe").to_str().encode()
    exact = vocab.from_files({"tokenizer.json": data}, {})
    assert exact is not None
    n = len(exact)
    found = vocab.from_files({"tokenizer.json": data}, {"vocab_size": n + 3})
    assert found is not None and len(found) == n + 3
    assert list(found.tokens[n:]) == [f"[PAD{i}]" for i in range(n, n + 3)]
    assert found.types is not None and set(found.types[n:].tolist()) == {TokenType.UNUSED}
    again = vocab.from_gguf(found.to_gguf())
    assert again is not None and again.to_files()["tokenizer.json"] == data
    foreign = vocab.from_gguf(ours(found.to_gguf()))
    assert foreign is not None and foreign.tokenizer().encode(PROBE) == exact.tokenizer().encode(PROBE)
    with pytest.raises(BadFile, match=f"has {n} tokens, expected at most {n - 1}"):
        vocab.from_files({"tokenizer.json": data}, {"text_config": {"vocab_size": n - 1}})


def test_word_lists() -> None:
    found = vocab.from_words(["[PAD]", "[UNK]", "the", "cat", "naïve"])
    tokenizer = found.tokenizer()
    assert tokenizer.encode("The  CAT\n \tthe\ufeff Naïve [UNK] dog") == [2, 3, 2, 4, 1, 1]
    assert tokenizer.decode([2, 3]) == "the cat"
    foreign = vocab.from_gguf(found.to_gguf())
    assert foreign is not None
    assert foreign.to_tokenizers().encode("The  CAT\n \tthe Naïve dog").ids == [2, 3, 2, 4, 1]
    assert foreign.tokenizer().encode("the cat\nthe") == [2, 1]  # one word with a newline in it, as the original has it
    with pytest.raises(BadFile, match="each word once"):
        vocab.from_words(["a", "b", "a"])


def test_characters() -> None:
    found = vocab.from_words(["a", "b", " "], unk=None, lowercase=False, characters=True)
    foreign = vocab.from_gguf(found.to_gguf())
    assert foreign is not None and foreign.tokenizer().encode("ab cA") == [0, 1, 2, 0][:3]
    assert foreign.tokenizer().decode([1, 2, 0]) == "b a"
    assert foreign.to_tokenizers().encode("ab a").ids == [0, 1, 2, 0]


def test_special_tokens_come_from_the_side_files() -> None:
    original = trained("bpe", special=("<s>", "<|im_end|>", "<pad>"))
    config = {
        "bos_token": {"content": "<s>"},
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "add_eos_token": True,
        "chat_template": [{"name": "default", "template": "D"}, {"name": "tools", "template": "T"}],
    }
    files = {"tokenizer.json": original.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    keys = vocab.from_files(files, {"eos_token_id": 0}).to_gguf()  # type: ignore[union-attr]
    assert keys["tokenizer.ggml.bos_token_id"] == 0 and keys["tokenizer.ggml.eos_token_id"] == 1
    assert keys["tokenizer.ggml.padding_token_id"] == 2
    assert keys["tokenizer.ggml.add_bos_token"] is True and keys["tokenizer.ggml.add_eos_token"] is True
    assert keys["tokenizer.chat_template"] == "D" and keys["tokenizer.chat_template.tools"] == "T"
    types = keys["tokenizer.ggml.token_type"]
    assert types[:3].tolist() == [TokenType.CONTROL] * 3 and types[-1] == TokenType.USER_DEFINED


# Chat templates

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELLO = [{"role": "user", "content": "Hi <there>"}]


def with_template(template: str | None) -> Vocab:
    return Vocab("words", ["<s>", "a"], special={"bos": 0}, chat_template=template)


def test_chat() -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    wanted = "<|im_start|>user\nHi <there><|im_end|>\n"
    assert with_template(CHATML).chat(HELLO) == wanted + "<|im_start|>assistant\n"
    assert with_template(CHATML).chat(HELLO, add_generation_prompt=False) == wanted
    assert with_template("{{ bos_token }}{{ tools | tojson }}").chat(HELLO, tools=[{"é": 1}]) == '<s>[{"é": 1}]'
    with pytest.raises(Unsupported, match="no chat template"):
        with_template(None).chat(HELLO)
    with pytest.raises(UsageError, match="only users"):
        with_template("{{ raise_exception('only users') }}").chat(HELLO)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception.__globals__ }}",
        "{% for x in range(10 ** 9) %}{% endfor %}",
        "{{ undefined_thing.x }}",
        "{% if %}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_are_caged(template: str) -> None:
    pytest.importorskip("jinja2", reason="jinja2 is not installed")
    with pytest.raises(BadFile, match="chat template fails"):
        assert with_template(template).chat(HELLO) == "", "nothing may come out"
        raise BadFile("the chat template fails: gave nothing")


# Hostile input

EMPTY_BPE = b'{"model":{"type":"BPE","vocab":{},"merges":[]}'
GOOD = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>"],
    "tokenizer.ggml.token_type": np.array([1, 1, 1, 3], np.int32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": np.uint32(3),
}


def test_the_control_is_good() -> None:
    found = vocab.from_gguf(GOOD)
    assert found is not None and found.tokenizer().encode("ab") == [2]
    assert vocab.from_gguf({"general.architecture": "llama"}) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", 3, "name of a tokenizer"),
        ("tokenizer.ggml.tokens", "abc", "array of strings"),
        ("tokenizer.ggml.tokens", [1, 2], "expected strings"),
        ("tokenizer.ggml.token_type", np.array([1], np.int32), "has 1 entries, expected 4"),
        ("tokenizer.ggml.scores", np.zeros((2, 2), np.float32), "array of numbers"),
        ("tokenizer.ggml.scores", ["a"] * 4, "array of numbers"),
        ("tokenizer.ggml.merges", {"a": 1}, "array of strings"),
        (CUT + "tokenizer.json", "{", "damaged"),
        (CUT + "merges.txt", '{"head":3,"end":""}', "damaged"),
        (CUT + "vocab.json", '{"n":2,"style":"no","end":""}', "damaged"),
    ],
)
def test_contradicting_metadata_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(BadFile, match=message):
        vocab.from_gguf({**GOOD, key: value})


def test_ids_outside_are_no_ids_and_foreign_names_no_files() -> None:
    found = vocab.from_gguf({**GOOD, "tokenizer.ggml.eos_token_id": np.uint32(99), "llmconv.hf.file.../x": "boo"})
    assert found is not None and found.eos is None and found.files == {}
    assert found.to_gguf()["tokenizer.ggml.eos_token_id"] == 99  # kept all the same


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": b"{"}, "not valid JSON"),
        ({"tokenizer.json": b"[]"}, "expected a JSON object"),
        ({"tokenizer.json": b"{}"}, "model: expected an object"),
        ({"tokenizer.json": b'{"model":{"type":"Magic","vocab":{}}}'}, "'Magic', expected one of"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":0,"b":0},"merges":[]}}'}, "same id 0"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":-1},"merges":[]}}'}, "id -1"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":16000000},"merges":[]}}'}, "ids go up to"),
        ({"tokenizer.json": b'{"model":{"type":"BPE","vocab":{"a":0},"merges":[3]}}'}, r"merges\[0\]"),
        ({"tokenizer.json": b'{"model":{"type":"Unigram","vocab":[["a"]]}}'}, r"vocab\[0\]"),
        (
            {"tokenizer.json": EMPTY_BPE + b',"added_tokens":[{"id":9999999,"content":"x"}]}'},
            "expected one near",
        ),
        (
            {"tokenizer.json": EMPTY_BPE + b',"added_tokens":[{"id":"x"}]}'},
            "added token",
        ),
        ({"vocab.json": b'{"a":0}', "merges.txt": b"a b c\n"}, "line 1"),
        ({"vocab.json": b'{"a":0}', "merges.txt": b"\xff\n"}, "UTF-8"),
        ({"vocab.txt": b""}, "is empty"),
        ({"vocab.txt": b"\xff"}, "UTF-8"),
        ({"tokenizer.model": b""}, "no pieces"),
        ({"tokenizer.model": b"\x0a\xff\xff\xff\xff\x7f"}, "wants"),
        ({"tokenizer.model": b"\x0a" + b"\xff" * 20}, "cut off or too long"),
    ],
)
def test_broken_files_are_one_sentence(files: dict[str, Path | bytes], message: str) -> None:
    with pytest.raises(BadFile, match=message):
        vocab.from_files(files, {})


def small_model() -> bytes:
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("▁a", -1.0, 1), ("b", -2.5, 1), ("<0x0A>", 0.0, 6)]
    rest = proto.spec(
        (0, 1, -1, -1), byte_fallback=True, add_dummy_prefix=True, remove_extra_whitespaces=False, charsmap=b""
    )
    return proto.serialise(pieces, rest)


def everything(found: Vocab | None) -> None:
    """All that can be asked of a vocabulary."""
    if found is None:
        return
    vocab.from_gguf(found.to_gguf())
    found.to_files()
    tokenizer = found.tokenizer()
    ids = tokenizer.encode("a b <s> \n é", add_special=True, parse_special=True)
    tokenizer.decode(ids)


@pytest.mark.parametrize("depth", [50, 400, 490, 600])
def test_deep_nesting_is_no_crash(depth: int) -> None:
    steps = b'{"pretokenizers":[' * depth + b"]}" * depth
    with pytest.raises(LlmconvError):
        everything(vocab.from_files({"tokenizer.json": EMPTY_BPE + b',"pre_tokenizer":' + steps + b"}"}, {}))
    with pytest.raises(LlmconvError):
        steps = b'{"processors":[' * depth + b"]}" * depth
        everything(vocab.from_files({"tokenizer.json": EMPTY_BPE + b',"post_processor":' + steps + b"}"}, {}))


def test_every_byte_of_a_model_flipped() -> None:
    data = small_model()
    everything(vocab.from_files({"tokenizer.model": data}, {}))
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            broken = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
            with contextlib.suppress(LlmconvError):
                everything(vocab.from_files({"tokenizer.model": broken}, {}))


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_of_a_tokenizer_json_replaced(kind: str) -> None:
    random_number = random.Random(kind)
    document = json.loads(trained(kind).to_str())
    model = document["model"]
    if isinstance(model["vocab"], dict):  # small, so that many can be tried
        model["vocab"] = {t: i for t, i in model["vocab"].items() if i < 40}
    else:
        model["vocab"] = model["vocab"][:40]
    model["merges"] = model.get("merges", [])[:5]
    values = [None, True, -1, 0, 10**9, 0.5, "", "x", [], {}, [[]], ["x"], {"type": "x"}, {"id": 3}]

    def places(value: Any) -> list[tuple[Any, Any]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [p for key, v in inner for p in [(value, key), *places(v)]]

    found = places(document)
    for container, key in random_number.sample(found, 60):
        old = container[key]
        container[key] = random_number.choice(values)
        with contextlib.suppress(LlmconvError):
            everything(vocab.from_files({"tokenizer.json": json.dumps(document).encode()}, {}))
        container[key] = old


def test_converting_needs_no_library() -> None:
    """Files into GGUF keys and back, and sentencepiece's kind and words even run, without tokenizers or jinja2."""
    code = f"""
import sys
sys.modules["tokenizers"] = sys.modules["jinja2"] = sys.modules["sentencepiece"] = None
from llmconv.convert import vocab
found = vocab.from_files({{"tokenizer.model": {small_model()!r}}}, {{}})
assert found.tokenizer().encode(" ab") and vocab.from_gguf(found.to_gguf()).to_files()
assert vocab.from_words(["a", "[UNK]"]).tokenizer().encode("a b") == [0, 1]
bpe = vocab.from_files({{"tokenizer.json": {trained("bpe").to_str().encode()!r}}}, {{}})
assert bpe.pre == "gpt-2" and bpe.to_gguf()
for need in (bpe.tokenizer, lambda: vocab.Vocab("words", ["a"], chat_template="x").chat([])):
    try:
        need()
    except vocab.base.Unsupported as error:
        assert "pip install" in str(error)
    else:
        raise SystemExit("nothing said")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# The commands


def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
    code = "import sys; from llmconv.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, input=stdin)
    return done.returncode, done.stdout, done.stderr


def test_commands(tmp_path: Path) -> None:
    original = trained("bpe")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(original.to_str())
    texts = ["", "a man", " in  possession\n", "é🙂 <s>"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    code, out, err = run("tokenize", str(folder), "--json-texts", str(tmp_path / "texts.json"))
    original.encode_special_tokens = True
    wanted = [original.encode(text, add_special_tokens=False).ids for text in texts]
    assert (code, err) == (0, "") and json.loads(out) == wanted
    code, out, err = run("tokenize", str(folder / "tokenizer.json"), "a man", "--ids", "--add-special")
    assert (code, err) == (0, "") and out.split() == ["0", *map(str, wanted[1])]
    assert run("tokenize", str(folder), stdin="a man")[1].split() == run("tokenize", str(folder), "a man")[1].split()
    assert run("detokenize", str(folder), *map(str, wanted[3]))[1] == "é🙂 <s>\n"
    (tmp_path / "bad.json").write_text('["a", 3]')
    code, out, err = run("tokenize", str(folder), "--json-texts", str(tmp_path / "bad.json"))
    assert (code, out) == (1, "") and err.count("\n") == 1 and "bad.json" in err
    code, out, err = run("detokenize", str(folder), "999999")
    assert (code, out) == (2, "") and err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    code, out, err = run("tokenize", str(tmp_path / "empty"), "x")
    assert code != 0 and out == "" and err.count("\n") == 1


@pytest.mark.parametrize("prefix", ["##", "\u2581\u2581\u2581", "a" * 5000])
def test_what_the_library_would_not_survive(prefix: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It cuts that prefix off every merge unseen: past the end, a panic; within a character, an abort."""
    from malformed import _words

    words = _words(continuing_subword_prefix=prefix)
    found = vocab.from_files({"tokenizer.json": json.dumps(words).encode()})
    assert found is not None
    with pytest.raises(BadFile, match=r"merges\[0\]: its second part does not begin with"):
        found.tokenizer().encode("the")
    assert capfd.readouterr().err == ""
