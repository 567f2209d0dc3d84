"""perplexity, compare, generate as commands; sampling; and what is said of bad input."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import llmconv
from llmconv import formats
from llmconv.cli import cli
from llmconv.formats.gguf import gguf_file

torch = pytest.importorskip("torch")

from llmconv.runtime.generate import Sampling, _Stops
from llmconv.runtime.sampling import choose


@pytest.fixture
def model(shared: Path) -> Path:
    return shared / "stories260K" / "stories260K-f32.gguf"


@pytest.fixture
def text(shared: Path) -> Path:
    return shared / "text" / "tinystories-sample.txt"


def run(*args: object) -> tuple[int, str]:
    """Exit code and output of the command; errors as it would print them."""
    result = CliRunner().invoke(cli, [str(a) for a in args], standalone_mode=True)
    if isinstance(result.exception, llmconv.LlmconvError):
        return result.exception.exit_code, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_perplexity_json(model: Path, text: Path) -> None:
    code, out = run("perplexity", model, text, "-c", 128, "--chunks", 2, "--json", "--device", "cpu")
    found = json.loads(out)["result"]
    assert code == 0 and found["tokens"] == 126 and found["stderr"] > 0
    assert found["perplexity"] == pytest.approx(
        llmconv.perplexity(model, text, context=128, chunks=2, device="cpu").perplexity
    )


def test_pairs_json(shared: Path) -> None:
    folder = shared / "simple-llm"
    code, out = run(
        "perplexity", folder / "default-400.v1.json", folder / "training-data.json", "--dtype", "f64", "--json",
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    found = json.loads(out)["result"]
    assert found["perplexity"] == pytest.approx(5.519523409785105, abs=1e-9)
    assert found["last_position_perplexity"] == pytest.approx(6.882110221948889, abs=1e-9)


def test_compare_gates(model: Path, text: Path) -> None:
    common = ("compare", model, model, text, "-c", 64, "--chunks", 2, "--device", "cpu")
    code, out = run(*common, "--max-kld", 0.1, "--max-ppl-ratio", 1.01, "--json")
    assert code == 0
    for name in (
        "perplexity_a",
        "perplexity_b",
        "perplexity_ratio",
        "mean_kld",
        "median_kld",
        "max_kld",
        "top1_agreement",
    ):
        assert math.isfinite(json.loads(out)["result"][name])
    code, out = run(*common, "--max-ppl-ratio", 0.5)
    assert code == 1 and "PPL ratio 1 exceeds 0.5" in out


def test_generate_command(model: Path) -> None:
    arguments = ("generate", model, "-p", "Once upon a time", "-n", 12, "--device", "cpu")
    code, out = run(*arguments, "--temperature", 0)
    assert code == 0 and out.startswith("Once upon a time, there was a little girl")
    first, second = (run(*arguments, "--seed", 7, "--json")[1] for _ in range(2))
    assert json.loads(first)["result"]["tokens"] == json.loads(second)["result"]["tokens"]
    code, out = run(*arguments, "--temperature", 0, "--stop", "girl", "--json")
    assert (
        json.loads(out)["result"]["text"] == ", there was a little " and json.loads(out)["result"]["finish"] == "stop"
    )
    code, out = run(*arguments, "--chat")
    assert code != 0 and "chat template" in out


def test_a_conversation(model: Path, tmp_path: Path) -> None:
    """Each answer is what the API gives for all that was said before; /reset begins anew."""
    template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    chatty = tmp_path / "chatty.gguf"
    llmconv.edit(model, set={"tokenizer.chat_template": template}, output=chatty)
    options = {"max_tokens": 8, "temperature": 0, "device": "cpu"}
    said = [{"role": "user", "content": "Once upon a time"}]
    one = llmconv.generate(chatty, said, chat=True, **options).text
    more = [*said, {"role": "assistant", "content": one}, {"role": "user", "content": "Then"}]
    two = llmconv.generate(chatty, more, chat=True, **options).text
    arguments = ["generate", str(chatty), "-i", "-n", "8", "--temperature", "0", "--device", "cpu"]
    given = "Once upon a time\nThen\n\n/what\n/reset\nOnce upon a time\n"
    result = CliRunner().invoke(cli, arguments, input=given)
    assert result.exit_code == 0 and result.stdout.splitlines() == [
        *one.splitlines(),
        *two.splitlines(),
        *one.splitlines(),
    ]
    assert "there is no /what, only /reset" in result.stderr
    code, out = run("generate", model, "-i", "-p", "x")
    assert code == 2 and "leave -p and --json out" in out


def test_a_continuation_keeps_the_space_between(model: Path, root: Path) -> None:
    """Both kinds of vocabulary that mark words by a space before them; at a text's beginning it is dropped."""
    code, out = run("generate", model, "-p", "Once upon a time,", "-n", 4, "--temperature", 0, "--device", "cpu")
    assert code == 0 and out.startswith("Once upon a time, there was")
    sample = root / "examples" / "simple-36k.json"
    code, out = run("generate", sample, "-p", "the", "-n", 2, "--temperature", 0, "--device", "cpu")
    assert code == 0 and len(out.split()) == 3
    assert not llmconv.generate(model, "", max_tokens=3, seed=1, device="cpu").text.startswith(" ")


def test_pairs_are_called_pairs(root: Path) -> None:
    sample, pairs = root / "examples" / "simple-36k.json", root / "examples" / "pairs.json"
    code, out = run("compare", sample, sample, pairs, "--chunks", 20, "--device", "cpu")
    assert code == 0 and "tokens scored in 20 pairs" in out


def test_stops_hold_back_only_what_may_be_a_stop() -> None:
    watch = _Stops(["END", "\n\n"])
    assert watch.push("ab\n") == ("ab", False)
    assert watch.push("cE") == ("\nc", False)
    assert watch.push("N") == ("", False)
    assert watch.push("DX") == ("", True)
    assert _Stops(["END"]).push("xEN", last=True) == ("xEN", False)


def test_sampling_narrows() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    generator = torch.Generator().manual_seed(0)

    def drawn(banned: list[int] | None = None, **options: float) -> set[int]:
        plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | options
        how = Sampling(**plain)  # type: ignore[arg-type]
        not_these = None if banned is None else torch.tensor(banned)
        return {choose(logits.clone(), [0], how, not_these, generator) for _ in range(200)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0, 1}
    assert drawn(min_p=0.25) == {0, 1, 2}
    assert drawn(temperature=0.0) == {0}
    assert drawn(temperature=0.0, repetition_penalty=2.0) == {1}
    assert drawn(banned=[0, 1]) == {2, 3}
    with pytest.raises(llmconv.UsageError, match=r"top_p is 1\.5"):
        Sampling(top_p=1.5)


def test_sentences(model: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Once upon a time")
    code, said = run("perplexity", model, tmp_path / "short.txt", "-c", 128)
    assert code == 2 and "has 5 tokens, fewer than one chunk of 128" in said
    code, said = run("perplexity", model, tmp_path / "none.txt")
    assert code == 1 and "no such file" in said
    code, said = run("perplexity", model, text, "--device", "cuda:99")
    assert code == 2 and "there is no device 'cuda:99'" in said
    code, said = run("perplexity", model, text, "--device", "gpu")
    assert code == 2 and "unknown device 'gpu'" in said
    checkpoint = formats.open(model)
    for key in [k for k in checkpoint.metadata if k.startswith("tokenizer.")]:
        del checkpoint.metadata[key]
    gguf_file.save(checkpoint, tmp_path / "bare.gguf")
    code, said = run("generate", tmp_path / "bare.gguf", "-p", "x", "--device", "cpu")
    assert code == 1 and "bare.gguf: holds no tokenizer" in said


def test_no_room_for_a_run_is_a_sentence(model: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a CPU says it, really asked for a petabyte; CUDA has an error of its own for it."""
    loaded = llmconv.load(model, "cpu")
    monkeypatch.setattr(loaded, "hidden", lambda *arguments, **options: torch.empty(1 << 50, dtype=torch.uint8))
    for measure in (
        lambda: llmconv.perplexity(loaded, text, context=64),
        lambda: llmconv.compare(loaded, loaded, text, context=64),
        lambda: llmconv.generate(loaded, "Once"),
    ):
        with pytest.raises(
            llmconv.UsageError, match=r"'cpu' is out of memory \(it was asked for 1125899906842624 bytes"
        ):
            measure()


def test_contradictions_are_named(model: Path, tmp_path: Path) -> None:
    def broken(**changes: object) -> str:
        checkpoint = formats.open(model)
        checkpoint.metadata.update({k.replace("__", "."): v for k, v in changes.items()})
        with pytest.raises(llmconv.LlmconvError) as caught:
            llmconv.load(checkpoint, "cpu")
        return str(caught.value)

    assert "'blk.0.attn_q.weight' has shape [64, 64]" in broken(
        llama__attention__head_count=4, llama__attention__key_length=8
    )
    assert "7 heads in 64 dimensions" in broken(llama__attention__head_count=7, llama__attention__head_count_kv=7)
    assert "'blk.5.attn_q.weight' is missing" in broken(llama__block_count=6)
    assert "architecture 'nonesuch' has no decoder here" in broken(general__architecture="nonesuch")
    checkpoint = formats.open(model)
    checkpoint.tensors["blk.0.surprise.weight"] = checkpoint.tensors["blk.0.attn_q.weight"].renamed(
        "blk.0.surprise.weight"
    )
    with pytest.raises(llmconv.Unsupported, match=r"'blk\.0\.surprise' .* has no place"):
        llmconv.load(checkpoint, "cpu")


def test_without_torch_there_is_a_sentence(model: Path) -> None:
    start = "import sys; sys.modules['torch'] = None\nfrom llmconv.cli import main\n"
    path = str(model)
    for args in (
        ["perplexity", path, path],
        ["compare", path, path, path],
        ["generate", path, "-p", "x"],
        ["verify", path, path, "--run", path],
    ):
        done = subprocess.run([sys.executable, "-c", f"{start}main({args!r})"], capture_output=True, text=True)
        assert done.returncode == 2 and "pip install torch" in done.stderr, args
        assert done.stderr.count("\n") == 1, args


def test_help_needs_no_torch() -> None:
    from llmconv.cli import COMMANDS

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from llmconv.cli import cli\n"
        f"for name in {list(COMMANDS)!r}: cli.main([name, '--help'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--preset" in done.stdout, done.stderr
