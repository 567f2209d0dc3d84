"""A small mixture of experts, a hybrid and a Gemma, each trained a little, for `bench_calibrate.py`.

    python tests/bench/train_families.py FOLDER VOCABULARY TEXT [--steps 200]

VOCABULARY is a GGUF with a tokenizer, such as the `vocab.gguf` that `llmconv train` leaves.  Needs transformers.  What
is in FOLDER already is not made again: the models are FOLDER/NAME/model.gguf.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import llmconv
from llmconv.convert.translate import translate

SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 512,
}
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


def untrained(name: str, vocabulary: Path, folder: Path) -> Path:
    """The model with random weights, as a GGUF with that vocabulary."""
    import torch
    import transformers

    words = llmconv.open(vocabulary).metadata
    words = {key: value for key, value in words.items() if key.startswith("tokenizer.")}
    torch.manual_seed(0)
    size = {"vocab_size": len(words["tokenizer.ggml.tokens"]), "pad_token_id": None}
    config = transformers.AutoConfig.for_model(**(SHAPE | size | FAMILIES[name]))
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "random")
    found = translate(llmconv.open(folder / "random"), "gguf")
    found.metadata = dict(found.metadata) | words
    llmconv.save(found, folder / "random.gguf", force=True)
    return folder / "random.gguf"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("vocabulary", type=Path)
    options.add_argument("text")
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--families", default=",".join(FAMILIES))
    given = options.parse_args()
    for name in given.families.split(","):
        folder = given.folder / name
        if (folder / "model.gguf").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        start = untrained(name, given.vocabulary, folder)
        how: dict[str, Any] = {"steps": given.steps, "batch_size": 8, "context": 256, "lr": 2e-3, "device": "cpu"}
        how |= {"plot": False, "tensorboard": False, "val_fraction": 0.02}
        done = llmconv.train(
            llmconv.TrainConfig(data=given.text, output=str(folder), from_checkpoint=str(start), **how)
        )
        print(f"{name}: {done.exports[0]}", flush=True)


if __name__ == "__main__":
    main()
