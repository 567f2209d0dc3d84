"""For `bench_calibrate.py`: a small mixture of experts, a hybrid, a Gemma and an untied Llama, each trained a little.

    python tests/bench/train_families.py FOLDER MODEL TEXT [--steps 120]

MODEL is a trained GGUF, as `llmconv train` leaves one: its tokenizer is everybody's, and the untied Llama is trained on
from it, with a head that begins as its embedding.  Needs transformers.  What is in FOLDER already is not made again:
the models are FOLDER/NAME/model.gguf.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import llmconv
from llmconv.convert.translate import translate
from llmconv.formats.checkpoint import Checkpoint

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
UNTIED = "untied"
FAMILIES: dict[str, dict[str, Any]] = {
    "moe": {"model_type": "mixtral", "intermediate_size": 256, "num_local_experts": 4, "num_experts_per_tok": 2},
    "hybrid": {
        "model_type": "qwen3_5_text",
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "gemma": {"model_type": "gemma3_text", "sliding_window": 128, "query_pre_attn_scalar": 64},
}


def untied(model: Checkpoint) -> Checkpoint:
    """A tied model with a head of its own, which is the embedding yet."""
    tensors = dict(model.tensors)
    if "output.weight" not in tensors:
        tensors["output.weight"] = dataclasses.replace(tensors["token_embd.weight"], name="output.weight")
    return model.but(tensors=tensors)


def untrained(name: str, model: Checkpoint, folder: Path, layers: int) -> Checkpoint:
    """A model of random weights with that tokenizer; the hybrid's last layer has full attention, the others none."""
    import torch
    import transformers

    words = {key: value for key, value in model.metadata.items() if key.startswith("tokenizer.")}
    torch.manual_seed(0)
    size = {"vocab_size": len(words["tokenizer.ggml.tokens"]), "pad_token_id": None, "num_hidden_layers": layers}
    size |= {"full_attention_interval": layers} if name == "hybrid" else {}
    config = transformers.AutoConfig.for_model(**(SHAPE | size | FAMILIES[name]))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "random")
    found = translate(llmconv.open(folder / "random"), "gguf")
    return found.but(metadata=dict(found.metadata) | words)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("model", type=Path)
    options.add_argument("text")
    options.add_argument("--steps", type=int, default=120)
    options.add_argument("--batch-size", type=int, default=4)
    options.add_argument("--context", type=int, default=256)
    options.add_argument("--layers", type=int, default=4)
    options.add_argument("--families", default=",".join([UNTIED, *FAMILIES]))
    given = options.parse_args()
    model = llmconv.open(given.model)
    for name in given.families.split(","):
        folder = given.folder / name
        if (folder / "model.gguf").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        start = untied(model) if name == UNTIED else untrained(name, model, folder, given.layers)
        llmconv.save(start, folder / "start.gguf", force=True)
        how: dict[str, Any] = {"steps": given.steps, "batch_size": given.batch_size, "context": given.context}
        how |= {"device": "cpu", "eval_every": given.steps, "eval_sequences": 16}
        how |= {"lr": 1e-3 if name == UNTIED else 2e-3, "plot": False, "tensorboard": False, "val_fraction": 0.02}
        began = time.process_time()
        done = llmconv.train(
            llmconv.TrainConfig(data=given.text, output=str(folder), from_checkpoint=str(folder / "start.gguf"), **how)
        )
        print(f"{name}: {done.exports[0]}, {time.process_time() - began:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
