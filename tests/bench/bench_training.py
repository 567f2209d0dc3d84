"""Training throughput against transformers' models in a plain torch loop: same shape, batch and optimizer.

    python tests/bench/bench_training.py [--preset gpt2-small] [--context 256] [--batch 2] [--rounds 5] [--device cpu]
    python tests/bench/bench_training.py --preset llama-15m --dim 384 --layers 10   # 30M
    python tests/bench/bench_training.py --texts FILE   # its paragraphs are the documents

Both sides take one optimizer step (forward, backward, clip, fused AdamW) in turn, so that they see the same machine; on
a CPU the processors' seconds count.  Without texts both learn from the same full windows.  With them llmconv learns
from windows of the texts one after another, as it does; the other loop, as is usual, from whole texts, filled up to
the longest of a step and cut at the context: as many in a step as have the same number of tokens in the mean.  Only
tokens of texts are counted.  On a GPU the model FLOPs utilisation is reported too: 6 x parameters + 12 x layers x width
x context per token, over the peak that a large bf16 matmul reaches there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from llmconv.convert.tables.presets import preset
from llmconv.convert.vocab import from_words
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.data import Batch, Pairs
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.learner import make_learner
from llmconv.runtime.training.optim import make_optimizer
from llmconv.runtime.training.parallel import Team
from llmconv.runtime.training.step import train_step

TOKENS_A_WORD = 1.3
"""What GPT-2's tokenizer makes of an English word, about."""


def peer(shape: Any, device: torch.device) -> Any:
    """transformers' model of the same shape, or None when it is not installed."""
    try:
        import transformers
    except ImportError:
        return None
    width = {"vocab_size": shape["vocab_size"]}
    if "rope.freq_base" in shape:
        config = transformers.LlamaConfig(
            **width,
            max_position_embeddings=shape["context_length"],
            hidden_size=shape["embedding_length"],
            intermediate_size=shape["feed_forward_length"],
            num_hidden_layers=shape["block_count"],
            num_attention_heads=shape["attention.head_count"],
            num_key_value_heads=shape["attention.head_count_kv"],
            tie_word_embeddings=True,
            use_cache=False,
        )
        return transformers.LlamaForCausalLM(config).to(device).train()
    config = transformers.GPT2Config(
        **width,
        n_positions=shape["context_length"],
        n_embd=shape["embedding_length"],
        n_layer=shape["block_count"],
        n_head=shape["attention.head_count"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config).to(device).train()


def plain_step(model: Any, optimizer: Any, batch: Batch, device: torch.device, config: TrainConfig) -> None:
    """What a careful person writes around transformers."""
    mask = None if batch.mask is None else batch.mask.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
        logits = model(batch.inputs.to(device), attention_mask=mask).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.to(device).flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def windows(vocab: int, batch: int, context: int) -> Callable[[int], Batch]:
    """Full windows, the same ones in each step."""
    tokens = torch.randint(0, vocab, (batch, context + 1))
    return lambda step: Batch(tokens[:, :-1], tokens[:, 1:], None)


def padded(file: Path, vocab: int, batch: int, context: int) -> tuple[Callable[[int], Batch], str]:
    """Texts as long as a file's paragraphs, a step's filled up to its longest; and what they are."""
    paragraphs = [line for line in file.read_text("utf-8").splitlines() if line.strip()]
    lengths = [min(context, max(2, round(TOKENS_A_WORD * len(line.split())))) for line in paragraphs]
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, vocab, length + 1).tolist() for length in lengths]
    pairs = Pairs([one[:-1] for one in ids], [one[1:] for one in ids], 0)
    together = max(1, round(batch * context / statistics.mean(lengths)))
    said = f"paragraphs of {file.name}: {statistics.mean(lengths):.0f} tokens in the mean, {together} in a step"
    return lambda step: pairs.batch(step, together), said


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of a large bf16 matmul."""
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - began)


def measured(sides: dict[str, Callable[[int], int]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Tokens a second of each side, round by round: of the processors, or of a GPU's clock."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(rounds + 1):
        for name, step in sides.items():
            began = clock()
            count = step(round_number)
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first warms up
                rates[name].append(count / (clock() - began))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="gpt2-small")
    parser.add_argument("--dim", type=int, default=0)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    device = torch.device(asked.device)
    shape = dict(preset(asked.preset).keys)
    shape |= {
        "embedding_length": asked.dim or shape["embedding_length"],
        "block_count": asked.layers or shape["block_count"],
    }
    vocab = from_words([f"w{i}" for i in range(shape["vocab_size"])], unk=None)
    config = TrainConfig(
        data="-",
        output="-",
        preset=asked.preset,
        dim=asked.dim,
        layers=asked.layers,
        batch_size=asked.batch,
        dtype=asked.dtype,
        device=str(device),
        compile=asked.compile,
    )
    start = fresh_checkpoint(config, vocab)
    learner = make_learner(start, config, Team(0, 1, device))
    ours = theirs = windows(shape["vocab_size"], asked.batch, asked.context)
    what = f"{asked.preset}, {start.n_elements / 1e6:.0f}M, batch {asked.batch} x {asked.context}, {asked.dtype}"
    if asked.texts:
        theirs, said = padded(asked.texts, shape["vocab_size"], asked.batch, asked.context)
        what += f", {said}"

    sides = {"llmconv": lambda step: train_step(config, learner, ours(step), 0).tokens}
    model = peer(shape, device)
    if model is None:
        print("transformers is not installed: measuring llmconv alone")
    else:
        other = make_optimizer(model, config)

        def plain(step: int) -> int:
            batch = theirs(step)
            plain_step(model, other, batch, device, config)
            return int((batch.targets != -100).sum())

        sides["transformers"] = plain
    rates = measured(sides, asked.rounds, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{what}, {where}, torch {torch.__version__}\n")
    print("| | tokens/s | ratio |\n|---|---:|---:|")
    for name, found in rates.items():
        pairs = zip(found, rates.get("transformers", found), strict=True)
        print(f"| {name} | {statistics.median(found):,.0f} | {statistics.median(a / b for a, b in pairs):.2f}x |")
    if device.type == "cuda":
        flops = 6 * start.n_elements + 12 * shape["block_count"] * shape["embedding_length"] * asked.context
        share = statistics.median(rates["llmconv"]) * flops / matmul_peak(device)
        print(f"\nmodel FLOPs utilisation: {share:.1%} of the measured matmul peak")


if __name__ == "__main__":
    main()
