"""What a run says of its edges: contexts, unknown characters, ends, padding, text from memory, cancelling."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runnable
from click.testing import CliRunner

import llmconv
from llmconv.cli import cli
from llmconv.convert.vocab import TokenType, from_words, tokenizer
from llmconv.errors import Cancelled
from llmconv.formats.tensor import Tensor
from llmconv.progress import Step

torch = pytest.importorskip("torch")


def load(preset: str = "llama-15m", vocab: Any = None, **changes: Any) -> Any:
    source = runnable.checkpoint(preset, vocab)
    arch = source.metadata["general.architecture"]
    source.metadata.update({f"{arch}.{k}": v for k, v in changes.items()})
    return llmconv.load(source, "cpu")


def learned(positions: int) -> Any:
    """A GPT-2 with so many positions."""
    source = runnable.checkpoint("gpt2-small")
    name = "position_embd.weight"
    rows = np.array(source.tensors[name].rows(0, positions), np.float32)
    source = source.but(tensors={**source.tensors, name: Tensor.from_array(name, rows)})
    source.metadata["gpt2.context_length"] = positions
    return llmconv.load(source, "cpu")


# ---- contexts


def test_a_prompt_of_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = runnable.write(runnable.checkpoint(), tmp_path / "m.gguf")
    for prompt in ("w1 \udcff", "w1 \ud800"):  # as Python holds such an argument
        result = CliRunner().invoke(cli, ["generate", str(path), "-p", prompt, "-n", "1", "--device", "cpu"])
        assert result.exit_code == 0 and result.output.startswith("w1 \ufffd")


def test_a_prompt_longer_than_what_was_learned_is_refused() -> None:
    model = learned(8)
    with pytest.raises(llmconv.UsageError, match=r"the prompt has 9 tokens, but .* has learned 8 positions"):
        llmconv.generate(model, runnable.text(9))
    found = llmconv.generate(model, runnable.text(8), seed=1)
    assert found.finish == "context" and len(found.tokens) == 1
    assert found.notes == ["the text ends where the 8 positions that model has learned end"]
    with pytest.raises(llmconv.UsageError, match="a context of 9 is not possible; this model takes 3 to 8"):
        llmconv.perplexity(model, llmconv.Text(runnable.text()), context=9)


def test_beyond_the_trained_context_there_is_a_note() -> None:
    model = load(context_length=8)
    assert not llmconv.generate(model, runnable.text(4), max_tokens=4, seed=1).notes
    found = llmconv.generate(model, runnable.text(4), max_tokens=6, seed=1)
    assert found.notes == ["model was made for 8 tokens and this text has 10; what lies beyond is a guess"]
    text = llmconv.Text(runnable.text())
    assert not llmconv.perplexity(model, text, context=8).notes
    assert "chunks of 16 tokens are longer than the 8" in llmconv.perplexity(model, text, context=16).notes[0]
    assert "chunks of 16 tokens are longer than the 8" in llmconv.compare(model, model, text, context=16).notes[0]


def test_a_context_that_scores_nothing_is_refused() -> None:
    text = llmconv.Text(runnable.text())
    with pytest.raises(llmconv.UsageError, match="a context of 2 is not possible; this model takes 3 to many"):
        llmconv.perplexity(load(), text, context=2)
    assert llmconv.perplexity(load(), text, context=3).tokens == 66
    assert llmconv.perplexity(load(), text, context=2, stride=1).tokens == 199
    for bad in ({"context": 0}, {"chunks": 0}, {"stride": 0}, {"chunks": -1}, {"context": 2.5}):
        with pytest.raises(llmconv.UsageError, match="expected a whole number of at least"):
            llmconv.perplexity(load(), text, **bad)


# ---- what a vocabulary does not know


def characters(unknown: bool = False) -> Any:
    words = [*(["[UNK]"] if unknown else []), *"abcdefghijklmnopqrstuvwxyz ."]
    return load(vocab=from_words(words, lowercase=False, characters=True))


def test_characters_that_are_dropped_are_counted() -> None:
    found = llmconv.generate(characters(), "a ß bb ßß Q", max_tokens=2, seed=1)
    assert found.prompt_tokens == 7
    assert found.notes == ["the prompt: 4 characters that the vocabulary lacks were left out (such as 'ß', 'Q')"]
    text = llmconv.Text("abc ÄÖ defg " * 20)
    measured = llmconv.perplexity(characters(), text, context=16)
    assert measured.notes == ["the text: 40 characters that the vocabulary lacks were left out (such as 'Ä', 'Ö')"]
    known = llmconv.perplexity(characters(), llmconv.Text("abc  defg " * 20), context=16)
    assert known.perplexity == measured.perplexity and not known.notes
    with pytest.raises(llmconv.UsageError, match="the prompt holds nothing that the vocabulary knows"):
        llmconv.generate(characters(), "ßßß")


def test_unknown_tokens_are_counted() -> None:
    measured = llmconv.perplexity(characters(unknown=True), llmconv.Text("abc ÄÖ defg " * 20), context=16)
    assert measured.notes == ["the text: 40 of 240 tokens stand for what the vocabulary lacks ('[UNK]')"]
    assert llmconv.generate(load(), "w1 nonesuch", max_tokens=1, seed=1).notes == [
        "the prompt: 1 of 2 tokens stand for what the vocabulary lacks ('[UNK]')"
    ]


def test_bytes_that_a_vocabulary_lacks_are_counted() -> None:
    pytest.importorskip("tokenizers")
    from llmconv.runtime.training.vocabulary import make_vocab

    of_bytes = tokenizer(make_vocab("bpe", 300, ["only plain letters"]))
    assert of_bytes.dropped("any ß 漢字") == {}  # all bytes are there
    vocab = make_vocab("char", 300, ["only plain letters"])
    lost = tokenizer(vocab).dropped("a plain ß of 漢 ßs")
    assert lost == {"ß": 2, "漢": 1, "f": 1}
    text = "a plain ß of 漢 ßs"
    assert tokenizer(vocab).decode(tokenizer(vocab).encode(text)) == "".join(c for c in text if c not in lost)


# ---- ends


def test_an_end_at_once_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load()
    head, eos = model.head, model.tokenizer.eos

    def ends(hidden: Any) -> Any:
        out = head(hidden)
        out[..., eos] = 1e4
        return out

    model.head = ends
    found = llmconv.generate(model, "w1 w2", temperature=0)
    assert (found.finish, found.tokens, found.text) == ("eos", [], "")
    assert found.notes == ["model ended at once: the first token that it chose was one that ends a text"]


def test_the_command_prints_notes(tmp_path: Path) -> None:
    path = runnable.write(runnable.checkpoint(), tmp_path / "m.gguf")
    for command, text in ((["generate", path, "-p", "nonesuch", "-n", 1], ""), (["perplexity", path], "nonesuch ")):
        if text:
            (tmp_path / "t.txt").write_text(text * 64)
            command = [*command, tmp_path / "t.txt", "-c", 16]
        arguments = [str(a) for a in (*command, "--device", "cpu")]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0 and "stand for what the vocabulary lacks" in result.stderr, result.output
        assert not CliRunner().invoke(cli, [*arguments, "-q"]).stderr


# ---- vocabularies that differ by padding


def padded(rows: int, kind: TokenType = TokenType.UNUSED, listed: bool = True, scale: float = 0.0) -> Any:
    """The model with rows behind its vocabulary: `scale` times those at its beginning."""
    source = runnable.checkpoint()
    tensors = dict(source.tensors)
    for name in ("token_embd.weight", "output.weight"):
        if name in tensors:
            values = np.array(tensors[name].rows(), np.float32)
            tensors[name] = Tensor.from_array(name, np.concatenate((values, np.float32(scale) * values[:rows])))
    metadata = dict(source.metadata)
    if listed:
        metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], *(f"[PAD{i}]" for i in range(rows))]
        types = np.asarray(metadata["tokenizer.ggml.token_type"])
        metadata["tokenizer.ggml.token_type"] = np.concatenate((types, np.full(rows, kind, types.dtype)))
    metadata["llama.vocab_size"] = 32 + rows
    return llmconv.load(source.but(tensors=tensors, metadata=metadata), "cpu")


def test_padding_is_left_out_of_a_comparison() -> None:
    text, plain, wide = llmconv.Text(runnable.text()), load(), padded(8)
    with torch.inference_mode():
        tokens = torch.tensor(plain.tokenizer.encode(runnable.text()))[None, :16]
        ours, theirs = (m(tokens)[0, 8:15].double().log_softmax(-1) for m in (plain, wide))
    for a, b, first, second in (
        (plain, wide, ours, theirs[:, :32]),  # what B gives to padding is lost
        (wide, plain, theirs[:, :32].log_softmax(-1), ours + theirs[:, :32].exp().sum(-1, keepdim=True).log()),
        (plain, padded(8, listed=False), ours, theirs[:, :32]),
    ):
        found = llmconv.compare(a, b, text, context=16, chunks=1)
        assert found.mean_kld == pytest.approx(float((first.exp() * (first - second)).sum(-1).mean()), abs=1e-7)
        assert found.ppl_b == pytest.approx(llmconv.perplexity(b, text, context=16, chunks=1).perplexity, rel=1e-6)
    with pytest.raises(
        llmconv.UsageError, match="the models have 32 and 40 tokens, so their predictions can't be compared"
    ):
        llmconv.compare(plain, padded(8, TokenType.NORMAL), text, context=16)


def test_what_goes_to_padding_is_lost_on_either_side() -> None:
    text, plain = llmconv.Text(runnable.text()), load()
    lost = []
    for scale in (1, 200):  # 200: at some positions nearly all, at others nearly nothing
        wide = padded(8, scale=scale)
        with torch.inference_mode():
            tokens = torch.tensor(plain.tokenizer.encode(runnable.text()))[None, :16]
            kept = wide(tokens)[0, 8:15].double().softmax(-1)[:, :32].sum(-1)
        for a, b, side in ((wide, plain, "A"), (plain, wide, "B")):
            found = llmconv.compare(a, b, text, context=16, chunks=1)
            assert found.mean_kld == pytest.approx(float(-kept.log().mean()), rel=1e-5, abs=1e-7)
            assert found.mean_kld >= abs(np.log(found.ppl_ratio)) * 0.999  # no gate that sees nothing
            mean, most = float(1 - kept.mean()), float(1 - kept.min())
            said = f"{side}: its 8 rows of padding took {mean:.2g} of the probability on average, at most {most:.2g}"
            assert said in found.notes
        lost.append(found.mean_kld)
    assert lost[0] > 0.1 and found.top1_agreement < 1


# ---- text from memory


def test_a_text_or_the_path_of_one(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(runnable.text())
    model = load()
    given = [tmp_path / "t.txt", str(tmp_path / "t.txt"), llmconv.Text(runnable.text())]
    found = {llmconv.perplexity(model, text=text, context=16).perplexity for text in given}
    assert len(found) == 1
    with pytest.raises(llmconv.BadFile, match=r"is no path of a file; a text itself is given as llmconv\.Text"):
        llmconv.perplexity(model, "w1 w2\nw3", context=16)
    with pytest.raises(llmconv.UsageError, match="the text: has 2 tokens, fewer than one chunk"):
        llmconv.perplexity(model, llmconv.Text("w1 w2"), context=16)


def test_a_text_too_short_to_quantize_by(tmp_path: Path) -> None:
    """`quantize` has no -c: the command that has one is named."""
    path = runnable.write(runnable.checkpoint(), tmp_path / "m.gguf")
    short = llmconv.OnText(llmconv.Text("w1 w2"), effort="fast", device="cpu")
    enough = llmconv.OnText(llmconv.Text(runnable.text()), effort="fast", context=16, device="cpu")
    for how in (short, llmconv.Verified(enough, llmconv.Text("w1 w2"))):
        with pytest.raises(llmconv.UsageError, match=r"a smaller context \(llmconv calibrate -c, then calibration"):
            llmconv.quantize(path, tmp_path / "q.gguf", "Q8_0", calibration=how)


def test_verify_cuts_its_text_as_told(tmp_path: Path) -> None:
    path = runnable.write(runnable.checkpoint(), tmp_path / "m.gguf")
    (tmp_path / "t.txt").write_text(runnable.text())
    run = llmconv.verify(path, path, run=tmp_path / "t.txt", context=16, chunks=3).run
    assert run is not None and (run.context, run.chunks) == (16, 3)
    result = CliRunner().invoke(cli, ["verify", str(path), str(path), "--run", str(tmp_path / "t.txt"), "-c", "16"])
    assert result.exit_code == 0 and "mean KL divergence 0.000000" in result.output
    result = CliRunner().invoke(cli, ["verify", str(path), str(path), "-c", "16"])
    assert result.exit_code == 2 and "give --run TEXT too" in result.output


# ---- cancelling


def test_every_run_can_be_cancelled(tmp_path: Path) -> None:
    path = runnable.write(runnable.checkpoint(), tmp_path / "m.gguf")
    (tmp_path / "t.txt").write_text(runnable.text(3000))
    text, seen = tmp_path / "t.txt", list[Step]()

    def stop(step: Step) -> None:
        seen.append(step)
        raise Cancelled("enough")

    def later(step: Step) -> None:
        if step.what == "compare":
            stop(step)

    common: dict[str, Any] = {"context": 16, "device": "cpu"}
    for call in (
        lambda: llmconv.perplexity(path, text, progress=stop, **common),
        lambda: llmconv.compare(path, path, text, progress=stop, **common),
        lambda: llmconv.generate(path, "w1", device="cpu", progress=stop),
        lambda: llmconv.sweep(path, text, ["Q8_0"], tmp_path / "out", plots=False, progress=stop, **common),
    ):
        before = len(seen)
        with pytest.raises(Cancelled):
            call()
        assert len(seen) == before + 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "t.txt"]
    with pytest.raises(Cancelled):
        llmconv.sweep(path, text, ["Q8_0"], tmp_path / "out", plots=False, progress=later, **common)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["m-Q8_0.gguf", "sweep.json"]  # it can go on
    assert llmconv.sweep(path, text, ["Q8_0"], tmp_path / "out", plots=False, **common).rows


def test_one_rule_for_models_that_see_ahead() -> None:
    from llmconv.runtime.checks import check_looks_back

    decoder = load().decoder
    check_looks_back(decoder, "")
    layers = tuple(
        dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, causal=False))
        for layer in decoder.layers
    )
    with pytest.raises(llmconv.UsageError, match="a llama model sees the words it would be scored on; do this"):
        check_looks_back(dataclasses.replace(decoder, layers=layers), "do this")
