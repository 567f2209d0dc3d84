"""Image models' transformers by the names that published files have, with random numbers."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

import llmconv
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor

# Names that published files have, of a layer or two; the tool tells models by some of them.
MODELS: dict[str, dict[str, tuple[int, ...]]] = {
    "flux": {
        "double_blocks.0.img_attn.proj.weight": (256, 256),
        "double_blocks.0.img_attn.qkv.weight": (768, 256),
        "double_blocks.0.img_mlp.2.weight": (256, 512),
        "double_blocks.0.img_attn.norm.query_norm.scale": (64,),
        "img_in.weight": (256, 64),
        "final_layer.linear.weight": (64, 256),
        "single_blocks.0.linear1.bias": (768,),
        "tiny.weight": (16, 64),
    },
    "sd3": {
        "joint_blocks.0.x_block.attn.qkv.weight": (768, 256),
        "joint_blocks.0.x_block.mlp.fc2.weight": (256, 512),
        "pos_embed": (1, 36, 256),
        "x_embedder.proj.weight": (256, 16, 2, 2),
    },
    "wan": {
        "blocks.0.self_attn.norm_q.weight": (256,),
        "blocks.0.self_attn.v.weight": (256, 256),
        "blocks.0.ffn.2.weight": (256, 512),
        "blocks.0.modulation": (1, 6, 256),
        "text_embedding.2.weight": (256, 256),
        "head.modulation": (1, 2, 256),
        "patch_embedding.weight": (256, 16, 1, 2, 2),
    },
    "qwen_image": {
        "time_text_embed.timestep_embedder.linear_2.weight": (256, 256),
        "transformer_blocks.0.attn.norm_added_q.weight": (64,),
        "transformer_blocks.0.attn.norm_added_k.weight": (64,),
        "transformer_blocks.0.attn.add_q_proj.weight": (256, 256),
        "transformer_blocks.0.attn.to_v.weight": (256, 256),
        "transformer_blocks.0.img_mlp.net.0.proj.weight": (512, 256),
        "txt_in.weight": (256, 256),
    },
    "lumina2": {
        "cap_embedder.1.weight": (256, 256),
        "context_refiner.0.attention.qkv.weight": (768, 256),
        "layers.0.attention.qkv.weight": (768, 256),
        "layers.0.feed_forward.w2.weight": (256, 512),
    },
    "sdxl": {
        "label_emb.0.0.weight": (256, 64),
        "input_blocks.4.0.in_layers.2.weight": (32, 16, 3, 3),
        "input_blocks.4.0.in_layers.2.bias": (32,),
    },
}


def written(path: Path, name: str, dtype: object = ml_dtypes.bfloat16, prefix: str = "") -> dict[str, np.ndarray]:
    """A single file of the model; its arrays by name."""
    rng = np.random.default_rng(4)
    arrays = {prefix + n: rng.normal(0, 1, shape).astype(dtype) for n, shape in MODELS[name].items()}
    made = Checkpoint(dialect="plain", metadata={"format": "pt"})
    for n, values in arrays.items():
        made.add(Tensor.from_array(n, values))
    llmconv.save(made, path)
    return arrays
