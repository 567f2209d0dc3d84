"""The most memory that each command takes, against the size of what it is given.

    python tests/bench/bench_memory.py [--only convert,verify] [--largest 7] [--seconds 60]

Prints a row of a markdown table as soon as it is measured: the kernel's VmHWM of a process for each command and size,
in MB.  Models are sparse files, Llamas of zeros in bf16, so that 7B costs no disk where nothing is written; documents
repeat one megabyte of numbers.  Sizes above `--largest` (billions of weights, or gigabytes of a document; default 1.1)
are left out, and a command that runs for longer than `--seconds` is ended there: its figure has a star.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PROGRAM = """
import re, sys
from llmconv.cli import main
code = 0
try:
    main(sys.argv[1:])
except SystemExit as end:
    code = end.code
sys.stderr.write(re.search("VmHWM:.*", open("/proc/self/status").read())[0])
sys.exit(code)
"""
SHAPES = {0.1: (768, 12, 12, 2048), 1: (2048, 20, 16, 5632), 7: (4096, 32, 32, 11008), 70: (8192, 2, 64, 28672)}
"""Billions of weights, about: width, layers (of 70, the first two), heads, width of the MLP."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Case:
    """A row.   make: the command's arguments, for a folder of its own and a size.   sizes: of what `unit` says."""

    name: str
    unit: str
    sizes: Sequence[float]
    make: Callable[[Path, float], list[str]]
    why: str = "flat"


# ---- what is measured


def sparse(path: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, Any]) -> Path:
    """A GGUF of zeros, matrices in bf16, of which only the header lies on the disk."""
    from llmconv.formats.checkpoint import Checkpoint
    from llmconv.formats.gguf import gguf_file
    from llmconv.formats.tensor import Tensor
    from llmconv.quant.plain import BF16, F32

    made = Checkpoint(metadata=metadata, dialect="gguf")
    for name, shape in tensors.items():
        made.add(Tensor.shadow(name, shape, BF16 if len(shape) > 1 else F32))
    head, _, size = gguf_file.header(made)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


def llama(folder: Path, billions: float, name: str = "model.gguf") -> str:
    """A Llama of zeros with a vocabulary of 32,000 words."""
    from llmconv.convert.vocab import from_words
    from llmconv.runtime.training.config import TrainConfig
    from llmconv.runtime.training.initial import fresh_checkpoint

    dim, layers, heads, ffn = SHAPES[billions]
    words = from_words(["[PAD]", "[UNK]", "[EOS]", *(f"w{i}" for i in range(31997))])
    shape: dict[str, Any] = {"dim": dim, "layers": layers, "heads": heads, "ffn": ffn, "context": 512}
    made = fresh_checkpoint(TrainConfig(data="-", output="-", preset="llama2-7b", **shape), words)
    return str(sparse(folder / name, {n: t.shape for n, t in made.tensors.items()}, dict(made.metadata)))


def shards(folder: Path, billions: float) -> str:
    """The first of that Llama's parts."""
    import llmconv

    whole = Path(llama(folder, billions))
    first = llmconv.split(whole, folder / "part", max_size="100M")[0]
    whole.unlink()
    return str(first)


def text(folder: Path, tokens: int = 600) -> str:
    path = folder / "text.txt"
    path.write_text(" ".join(f"w{i}" for i in np.random.default_rng(1).integers(0, 31000, tokens)))
    return str(path)


def zeros_of(path: Path, shapes: dict[str, tuple[int, ...]]) -> str:
    """A safetensors file of F16 zeros."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + at)
    return str(path)


def hf(folder: Path, billions: float, vocabulary: int = 32000, shards: int = 1) -> str:
    """A Hugging Face folder: layers in so many shards, and a tokenizer of BPE."""
    dim, layers, heads, ffn = SHAPES[billions] if billions else (64, max(shards, 1), 2, 64)
    target = folder / "hf"
    target.mkdir()
    config = {
        **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim, "rms_norm_eps": 1e-5},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads},
        **{
            "intermediate_size": ffn,
            "vocab_size": vocabulary,
            "max_position_embeddings": 512,
            "torch_dtype": "float16",
        },
        **{
            "torch_dtype": "float16",
            "bos_token_id": 0,
            "eos_token_id": 0,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
    }
    (target / "config.json").write_text(json.dumps(config))
    tensors: dict[str, tuple[int, ...]] = {"model.norm.weight": (dim,)}
    tensors |= {"model.embed_tokens.weight": (vocabulary, dim), "lm_head.weight": (vocabulary, dim)}
    for i in range(layers):
        own = {f"self_attn.{c}_proj": (dim, dim) for c in "qkvo"}
        own |= {"mlp.gate_proj": (ffn, dim), "mlp.up_proj": (ffn, dim), "mlp.down_proj": (dim, ffn)}
        own |= {"input_layernorm": (dim,), "post_attention_layernorm": (dim,)}  # type: ignore[dict-item]
        tensors |= {f"model.layers.{i}.{n}.weight": s for n, s in own.items()}
    if shards == 1:
        zeros_of(target / "model.safetensors", tensors)
    else:
        places = {}
        for k in range(shards):
            mine = dict(list(tensors.items())[k::shards])
            file = f"model-{k + 1:05d}-of-{shards:05d}.safetensors"
            zeros_of(target / file, mine)
            places |= dict.fromkeys(mine, file)
        index = {"metadata": {"total_size": 0}, "weight_map": places}
        (target / "model.safetensors.index.json").write_text(json.dumps(index))
    tokens, merges = bpe(vocabulary)
    model = {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    added = {"id": 0, "content": tokens[0], "special": True}
    added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole = {"version": "1.0", "added_tokens": [added], "normalizer": None, "pre_tokenizer": level, "decoder": level}
    (target / "tokenizer.json").write_text(json.dumps({**whole, "post_processor": None, "model": model}))
    return str(target)


def bpe(size: int) -> tuple[list[str], list[str]]:
    """So many tokens, of up to four letters, and the merges that make them."""
    from llmconv.convert.vocab.alphabet import alphabet

    tokens, merges, longer = ["<s>", *alphabet()], list[str](), [*LETTERS]
    while len(tokens) < size:
        longer = [token + letter for token in longer for letter in LETTERS][: size - len(tokens)]
        tokens += longer
        merges += [f"{token[:-1]} {token[-1]}" for token in longer]
    return tokens, merges


def document(folder: Path, gigabytes: float) -> str:
    """A document with arrays of 60 MB each."""
    numbers = np.random.default_rng(2).standard_normal((64, 1000))
    row = ",".join("[" + ",".join(map(repr, values)) + "]" for values in numbers.tolist())
    count = max(1, int(gigabytes * 1e9 / (46 * len(row))))
    path = folder / "doc.json"
    with path.open("w") as file:
        file.write('{"weights":{')
        for i in range(count):
            file.write(("," if i else "") + f'"w{i}":[' + ",".join([row] * 46) + "]")
        file.write("}}")
    return str(path)


def giant(folder: Path, billions: float) -> str:
    """Kimi K2's shape, or so many of its layers, in bf16."""
    from llmconv.convert.reports.shape import shape_of

    config = json.loads((Path(__file__).parents[2] / "docs" / "shapes" / "kimi-k2.json").read_text())
    config["num_hidden_layers"] = round(billions / 1026 * config["num_hidden_layers"])
    shape = shape_of(config)
    return str(sparse(folder / "giant.gguf", dict(shape.tensors), dict(shape.metadata)))


def many(folder: Path, count: int) -> tuple[str, str]:
    """Files of so many small tensors: a GGUF and a safetensors file."""
    tensors = {f"blk.{i}.some.weight": (2, 32) for i in range(int(count))}
    made = sparse(folder / "many.gguf", dict(tensors), {"general.architecture": "unknown"})
    return str(made), zeros_of(folder / "many.safetensors", dict(tensors))


def hub(folder: Path) -> str:
    """A repository of a Hub that this process is, for as long as it runs."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from hub_taking import TakingHub

    server = TakingHub(folder)
    server.__enter__()
    os.environ |= {"HF_ENDPOINT": server.url, "HF_TOKEN": "t", "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    return "hf://me/toy"


def twice(make: Callable[[Path, float], str]) -> Callable[[Path, float], tuple[str, str]]:
    def both(folder: Path, size: float) -> tuple[str, str]:
        one = make(folder, size)
        shutil.copy(one, folder / "other.gguf") if Path(one).stat().st_size < 1e6 else None
        other = folder / "other.gguf"
        if not other.exists():
            with Path(one).open("rb") as file, other.open("wb") as copy:
                copy.write(file.read(32 << 20))
                copy.truncate(Path(one).stat().st_size)
        return one, str(other)

    return both


MODELS, WRITTEN, RUN = (0.1, 1, 7), (0.1, 1, 7), (0.1, 1, 7)
_LIMIT = ["--memory", "700M", "--device", "cpu"]
_SHORT = ["-c", "128", *_LIMIT]
_BOUND = "Python and torch (300 MB) and --memory 700M"
_WHOLE = "the weights: not streamed"
_HEADER = "names, shapes and offsets of all tensors"


def _cases() -> list[Case]:
    model, pair = llama, twice(llama)
    weights = "billions of weights"
    return [
        Case("convert, GGUF to a folder", weights, WRITTEN, lambda f, n: ["convert", model(f, n), str(f / "out")]),
        Case("convert, a folder to GGUF", weights, WRITTEN, lambda f, n: ["convert", hf(f, n), str(f / "o.gguf")]),
        Case("convert to F16", weights, WRITTEN,
             lambda f, n: ["convert", model(f, n), str(f / "o.gguf"), "--outtype", "f16"]),
        Case("quantize -t Q4_K_M", weights, WRITTEN,
             lambda f, n: ["quantize", model(f, n), "-t", "Q4_K_M", "-o", str(f / "q.gguf")]),
        Case("quantize --dry-run", weights, MODELS,
             lambda f, n: ["quantize", model(f, n), "-t", "Q4_K_M", "--dry-run"]),
        Case("verify", weights, MODELS, lambda f, n: ["verify", *pair(f, n)]),
        Case("diff", weights, MODELS, lambda f, n: ["diff", *pair(f, n)]),
        Case("inspect --stats", weights, MODELS, lambda f, n: ["inspect", model(f, n), "--stats"]),
        Case("inspect --hash", weights, MODELS, lambda f, n: ["inspect", model(f, n), "--hash"]),
        Case("view", weights, MODELS, lambda f, n: ["view", model(f, n), "-o", str(f / "page.html")]),
        Case("size", weights, MODELS, lambda f, n: ["size", model(f, n)]),
        Case("edit --set", weights, MODELS, lambda f, n: ["edit", model(f, n), "--set", "general.name=str:x"]),
        Case("split", weights, WRITTEN, lambda f, n: ["split", model(f, n), str(f / "s"), "--max-size", "100M"]),
        Case("merge", weights, WRITTEN, lambda f, n: ["merge", shards(f, n), str(f / "o.gguf")]),
        Case("upload", weights, WRITTEN, lambda f, n: ["upload", model(f, n), hub(f), "--yes", "--no-card"]),
        Case("ollama -t Q8_0", weights, WRITTEN, lambda f, n: ["ollama", model(f, n), str(f / "out"), "-t", "Q8_0"]),
        Case("tokenize", weights, MODELS, lambda f, n: ["tokenize", model(f, n), "w1 w2"]),
        Case("perplexity", weights, (0.1, 1, 7, 70),
             lambda f, n: ["perplexity", model(f, n), text(f), *_SHORT[:2], "--device", "cpu", "--memory",
                           {7: "2G", 70: "4G"}.get(n, "700M")],
             _BOUND + "; 7: 2G; 70, two layers of it: 4G"),
        Case("compare", weights, RUN, lambda f, n: ["compare", *pair(f, n), text(f), *_SHORT[:2], "--memory", "1400M",
                                                    *_LIMIT[2:]], _BOUND + ", twice"),
        Case("imatrix", weights, RUN,
             lambda f, n: ["imatrix", model(f, n), text(f), "-o", str(f / "i.gguf"), *_SHORT], _BOUND),
        Case("embed", weights, RUN, lambda f, n: ["embed", model(f, n), "w1 w2 w3", "-o", str(f / "v.npy"), *_LIMIT],
             _BOUND),
        Case("calibrate", weights, (0.1, 1),
             lambda f, n: ["calibrate", model(f, n), text(f), "-o", str(f / "c"), "-c", "128", "--memory",
                           "700M" if n < 1 else "3G", *_LIMIT[2:]], "Python and torch and --memory 700M, 3G"),
        Case("quantize --calibrate, fast", weights, (0.1, 1),
             lambda f, n: ["quantize", model(f, n), "-t", "Q4_0", "-o", str(f / "q.gguf"), "--calibrate", text(f),
                           "--effort", "fast", *("--memory", "900M" if n < 1 else "4G")],
             "Python and torch and --memory 900M, 4G"),
        Case("sweep", weights, (0.1, 1),
             lambda f, n: ["sweep", model(f, n), text(f, 200), "--types", "Q8_0", "-o", str(f / "s"), "-c", "128",
                           "--memory", "1400M", "--device", "cpu", "--no-plot"], _BOUND + ", twice"),
        Case("generate", weights, (0.1, 1),
             lambda f, n: ["generate", model(f, n), "-p", "w1", "-n", "2", "--device", "cpu"], _WHOLE),
        Case("train, 1 step", weights, (0.1,),
             lambda f, n: ["train", text(f, 3000), "-o", str(f / "run"), "--preset", "gpt2-small", "--steps", "1",
                           "--batch-size", "1", "--context", "64", "--device", "cpu", "--tokenizer", "char",
                           "--export", "gguf", "--no-plot"],
             "16 bytes a weight and activations: `size --train`"),
        Case("verify, Kimi K2's shape", weights, (100, 1026), lambda f, n: ["verify", *twice(giant)(f, n)]),
        Case("diff, Kimi K2's shape", weights, (100, 1026), lambda f, n: ["diff", *twice(giant)(f, n)]),
        Case("inspect, many tensors of a GGUF", "tensors", (1000, 10_000, 100_000),
             lambda f, n: ["inspect", many(f, int(n))[0]], _HEADER),
        Case("inspect, many tensors of safetensors", "tensors", (1000, 10_000, 100_000),
             lambda f, n: ["inspect", many(f, int(n))[1]], _HEADER),
        Case("verify, many tensors", "tensors", (1000, 10_000, 100_000), lambda f, n: ["verify", *many(f, int(n))],
             _HEADER + ", of two files"),
        Case("convert, an index of shards", "shards", (10, 100, 1000),
             lambda f, n: ["convert", hf(f, 0, shards=int(n)), str(f / "o.gguf")], _HEADER + ", nine a shard"),
        Case("convert, a vocabulary", "tokens", (32_000, 128_000, 262_144),
             lambda f, n: ["convert", hf(f, 0, vocabulary=int(n)), str(f / "o.gguf")], "its tokens and merges"),
        Case("inspect, JSON", "gigabytes", (0.3, 1, 3), lambda f, n: ["inspect", document(f, n)],
             "numbers of 256 MB in memory, the rest in a temporary file"),
        Case("convert, JSON to GGUF", "gigabytes", (0.3, 1, 3),
             lambda f, n: ["convert", document(f, n), str(f / "o.gguf"), "--layout", "plain"], "the same"),
        Case("convert, GGUF to JSON", "gigabytes", (0.3, 1),
             lambda f, n: ["convert", model(f, 0.1 if n < 1 else 1), str(f / "o.json")]),
    ]  # fmt: skip


# ---- measuring it


def peak(arguments: list[str], seconds: float) -> tuple[float, bool]:
    """MB at most, and whether the command ended by itself."""
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.DEVNULL, stderr=out)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            found = Path(f"/proc/{process.pid}/status").read_text()
            process.kill()
            process.wait()
        else:
            out.seek(0)
            found = out.read()
            if code and "verify" not in arguments[:1] and "diff" not in arguments[:1]:
                raise SystemExit(f"llmconv {' '.join(arguments)}: {found[-800:]}")
            return _megabytes(found), True
    return _megabytes(found), False


def _megabytes(status: str) -> float:
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[-1]) / 1000


def row(case: Case, largest: float, seconds: float) -> str:
    cells = []
    for size in case.sizes:
        label = f"{size:,}"
        if case.unit in ("billions of weights", "gigabytes") and size > largest and "Kimi" not in case.name:
            continue
        with tempfile.TemporaryDirectory() as name:
            arguments = case.make(Path(name), size)
            started = time.perf_counter()
            most, ended = peak(arguments, seconds)
        star = "" if ended else f"* ({time.perf_counter() - started:.0f} s)"
        cells.append(f"{label}: {most:,.0f} MB{star}")
    return f"| {case.name} | {case.unit} | {', '.join(cells)} | {case.why} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="parts of rows' names, with commas")
    parser.add_argument("--largest", type=float, default=1.1)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    wanted = [part for part in options.only.split(",") if part]
    print("| command | size in | peak memory | what it is |\n|---|---|---|---|", flush=True)
    for case in _cases():
        if not wanted or any(part in case.name for part in wanted):
            print(row(case, options.largest, options.seconds), flush=True)


if __name__ == "__main__":
    main()
