"""Training throughput against transformers' GPT-2 in a plain torch loop: same shape, batch and optimizer.

    python tests/bench/bench_training.py [--preset gpt2-small] [--context 256] [--batch 2] [--rounds 5] [--device cpu]

Both sides take one optimizer step (forward, backward, clip, fused AdamW) in turn, so that they see the same machine.
On a GPU the model FLOPs utilisation is reported too: 6 x parameters + 12 x layers x width x context per token, over the
peak that a large bf16 matmul reaches there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import nn

from llmconv.convert.tables.presets import preset
from llmconv.convert.vocab import from_words
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.data import Batch
from llmconv.runtime.training.initial import fresh_checkpoint
from llmconv.runtime.training.learner import make_learner
from llmconv.runtime.training.optim import make_optimizer
from llmconv.runtime.training.parallel import Team
from llmconv.runtime.training.step import train_step


def peer(shape: Any, device: torch.device) -> Any:
    """transformers' GPT-2 of the same shape, or None when it is not installed."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    config = GPT2Config(
        vocab_size=shape["vocab_size"],
        n_positions=shape["context_length"],
        n_embd=shape["embedding_length"],
        n_layer=shape["block_count"],
        n_head=shape["attention.head_count"],
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).to(device).train()


def plain_step(model: Any, optimizer: Any, batch: Batch, device: torch.device, config: TrainConfig) -> None:
    """What a careful person writes around transformers."""
    with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bf16"):
        logits = model(batch.inputs.to(device)).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.targets.to(device).flatten())
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="gpt2-small")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    shape = dict(preset(arguments.preset).keys)
    vocab = from_words([f"w{i}" for i in range(shape["vocab_size"])], unk=None)
    config = TrainConfig(
        data="-",
        output="-",
        preset=arguments.preset,
        batch_size=arguments.batch,
        dtype=arguments.dtype,
        device=str(device),
        compile=arguments.compile,
    )
    start = fresh_checkpoint(config, vocab)
    learner = make_learner(start, config, Team(0, 1, device))
    tokens = torch.randint(0, shape["vocab_size"], (arguments.batch, arguments.context + 1))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], None)
    sides = {"llmconv": lambda: train_step(config, learner, batch, 0)}
    theirs = peer(shape, device)
    if theirs is None:
        print("transformers is not installed: measuring llmconv alone")
    else:
        other = make_optimizer(theirs, config)
        sides["transformers"] = lambda: plain_step(theirs, other, batch, device, config)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(arguments.rounds + 1):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round_number:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    count = arguments.batch * arguments.context
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = f"{arguments.preset}, batch {arguments.batch} x {arguments.context}, {arguments.dtype}"
    print(f"{what}, {where}, torch {torch.__version__}\n")
    print("| | tokens/s | ratio |\n|---|---:|---:|")
    rates = {name: count / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        pairs = zip(seconds.get("transformers", seconds[name]), seconds[name], strict=True)
        print(f"| {name} | {rate:,.0f} | {statistics.median(a / b for a, b in pairs):.2f}x |")
    if device.type == "cuda":
        layers, dim = shape["block_count"], shape["embedding_length"]
        flops = 6 * start.n_elements + 12 * layers * dim * arguments.context
        share = rates["llmconv"] * flops / matmul_peak(device)
        print(f"\nmodel FLOPs utilisation: {share:.1%} of the measured matmul peak")


if __name__ == "__main__":
    main()
