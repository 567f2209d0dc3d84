"""The command from start to finish, of this checkout beside another, in CPU seconds.

    python tests/bench/bench_startup.py [--base CHECKOUT] [--rounds 9] [--columns 1024] [--only WORD]

Makes a Llama in F16 with that many columns (1024: 306 MB), a small one (12 MB) and two simple-llms in JSON in a
temporary folder, converts and quantizes each in turn by either checkout, each time in a process of its own, and prints
the least of all rounds: what other programs take of the machine comes on top.  Outputs of both must be the same bytes.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).resolve().parents[2]
RUNS = {
    "`python -c pass`": ("-c", "pass"),
    "`import numpy`": ("-c", "import numpy"),
    "`import llmconv`": ("-c", "import llmconv"),
    "`llmconv --help`": ("-m", "llmconv", "--help"),
    "small, inspect": ("-m", "llmconv", "inspect", "small.gguf"),
    "small JSON to GGUF": ("-m", "llmconv", "json-to-gguf", "tiny.json", "{out}.gguf"),
    "small, quantize to Q8_0": ("-m", "llmconv", "quantize", "small.gguf", "-o", "{out}.gguf", "-t", "Q8_0"),
    "small, quantize to Q4_K_M": ("-m", "llmconv", "quantize", "small.gguf", "-o", "{out}.gguf", "-t", "Q4_K_M"),
    "quantize to Q4_K_M": ("-m", "llmconv", "quantize", "large.gguf", "-o", "{out}.gguf", "-t", "Q4_K_M"),
    "quantize to Q8_0": ("-m", "llmconv", "quantize", "large.gguf", "-o", "{out}.gguf", "-t", "Q8_0"),
    "quantize to Q4_0": ("-m", "llmconv", "quantize", "large.gguf", "-o", "{out}.gguf", "-t", "Q4_0"),
    "GGUF to a folder": ("-m", "llmconv", "gguf-to-safetensors", "large.gguf", "{out}"),
    "folder to GGUF": ("-m", "llmconv", "safetensors-to-gguf", "folder", "{out}.gguf"),
    "safetensors to GGUF": ("-m", "llmconv", "safetensors-to-gguf", "folder/model.safetensors", "{out}.gguf"),
    "JSON to GGUF": ("-m", "llmconv", "json-to-gguf", "small.json", "{out}.gguf"),
}


def make_llama(path: Path, columns: int, layers: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    wide = columns * 11 // 4 // 32 * 32
    file = gguf.GGUFWriter(path, "llama")
    for put, value in {
        file.add_block_count: layers,
        file.add_context_length: 512,
        file.add_embedding_length: columns,
        file.add_feed_forward_length: wide,
        file.add_head_count: columns // 64,
        file.add_head_count_kv: columns // 64,
        file.add_layer_norm_rms_eps: 1e-5,
        file.add_vocab_size: tokens,
        file.add_tokenizer_model: "llama",
        file.add_token_list: [f"t{i}" for i in range(tokens)],
        file.add_token_scores: [0.0] * tokens,
        file.add_token_types: [1] * tokens,
    }.items():
        put(value)
    shapes = {"token_embd": (tokens, columns), "output": (tokens, columns), "output_norm": (columns,)}
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}_norm": (columns,) for name in ("attn", "ffn")}
        shapes |= {f"blk.{i}.attn_{name}": (columns, columns) for name in ("q", "k", "v", "output")}
        shapes |= {f"blk.{i}.ffn_{name}": (wide, columns) for name in ("gate", "up")}
        shapes[f"blk.{i}.ffn_down"] = columns, wide
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, np.float32) * 0.05
        file.add_tensor(f"{name}.weight", values.astype(np.float16) if len(shape) > 1 else values)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def make_json(path: Path, tokens: int, columns: int) -> None:
    sys.path.append(str(HERE / "tests" / "support"))
    from simple_model import document

    path.write_text(json.dumps(document(vocab=tokens, dim=columns)))


def spent(root: Path, folder: Path, arguments: tuple[str, ...], out: str) -> float:
    """CPU seconds of a run; what an earlier one wrote is gone before."""
    for old in folder.glob(f"{out}*"):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": ""}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, *(a.format(out=out) for a in arguments)]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def same(folder: Path) -> bool:
    """Whether all that the last two runs wrote is equal."""
    for ours in folder.glob("ours*"):
        theirs = ours.with_name(ours.name.replace("ours", "base"))
        pairs = [(ours, theirs)] if ours.is_file() else [(f, theirs / f.name) for f in ours.iterdir()]
        if not all(filecmp.cmp(*pair, shallow=False) for pair in pairs):
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--columns", type=int, default=1024)
    parser.add_argument("--only", default="", metavar="WORD", help="rows with that word")
    options = parser.parse_args()
    roots = {"base": options.base, "ours": HERE} if options.base else {"ours": HERE}
    folder = Path(tempfile.mkdtemp())
    print(
        f"| CPU seconds, least of {options.rounds} | {' | '.join(roots)} |  | bytes |\n|---|{'---|' * (len(roots) + 2)}"
    )
    try:
        make_llama(folder / "large.gguf", options.columns, 10, 12000)
        make_llama(folder / "small.gguf", 256, 2, 8000)
        make_json(folder / "small.json", 20000, 128)
        make_json(folder / "tiny.json", 400, 32)
        spent(HERE, folder, ("-m", "llmconv", "gguf-to-safetensors", "large.gguf", "folder"), "folder")
        for name, arguments in ((name, run) for name, run in RUNS.items() if options.only in name):
            times: dict[str, list[float]] = {side: [] for side in roots}
            for round_ in range(options.rounds + 1):  # the first one compiles
                for side, root in roots.items():
                    took = spent(root, folder, arguments, side)
                    times[side] += [took] if round_ else []
            least = [min(column) for column in times.values()]
            equal = "" if len(roots) < 2 or "{out}" not in "".join(arguments) else "equal" if same(folder) else "differ"
            print(
                f"| {name} | {' | '.join(f'{s:.3f}' for s in least)} | {least[-1] / least[0]:.2f}x | {equal} |",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
