"""What mlx-lm changes of a model besides quantizing it, turned back into transformers' way.

Its convolutions have their channels last, (channels, width, 1) for (channels, 1, width); with them it adds 1 to the
norms of Qwen's hybrids, whose weights transformers adds it to while the model runs.  Source: `sanitize` of its models.
"""

from __future__ import annotations

import re

import numpy as np

from llmconv.convert.tables.config import read_config, text_config
from llmconv.errors import Unsupported, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import plain

__all__ = ["as_transformers"]

_CONVOLUTION = re.compile(r".*\blayers\.\d+\..*\b(conv1d|conv_1d|conv)\.weight")
_WIDEST = 16  # of a convolution over tokens
_TURNED = {
    *("falcon_mamba", "granitemoehybrid", "jamba", "lfm2", "lfm2_moe", "mamba", "mamba2", "nemotron_h", "plamo2"),
    "recurrent_gemma",
}
"""Families of whose weights nothing else changes, by model_type."""
_SHIFTED = {"qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"}
"""Those of whose norms it adds 1 to these."""
_NORMS = (
    *(".input_layernorm.weight", ".post_attention_layernorm.weight", "model.norm.weight"),
    *(".q_norm.weight", ".k_norm.weight"),
)
_FOLDED = {"falcon_h1"}
"""Those of whose weights it multiplies config.json's factors into these."""


def as_transformers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as transformers has it, lazily; `Unsupported` for a family that is changed in other ways."""
    turned = [t for t in checkpoint.tensors.values() if len(t.shape) == 3 and 1 < t.shape[1] <= _WIDEST]
    turned = [t for t in turned if t.shape[2] == 1 and _CONVOLUTION.fullmatch(t.name)]
    if not turned or "config.json" not in checkpoint.files:
        return checkpoint
    kind = text_config(read_config(checkpoint)).get("model_type")
    if kind in _FOLDED:
        raise Unsupported(
            f"{checkpoint.where}: tensor {cut(turned[0].name)} has its channels last, as MLX writes it, which "
            f"multiplies config.json's factors into the weights of {kind}; give the original model"
        )
    if kind not in _TURNED | _SHIFTED:
        return checkpoint
    tensors = dict(checkpoint.tensors)
    for tensor in turned:
        tensors[tensor.name] = tensor.reshaped((tensor.shape[0], 1, tensor.shape[1]))
    less = "turned"
    if kind in _SHIFTED:
        norms = [t for t in tensors.values() if len(t.shape) == 1 and t.name.endswith(_NORMS)]
        tensors |= {t.name: _less_one(t) for t in norms}
        less = f"turned, and 1 taken from {len(norms)} norms"
    return checkpoint.but(f"{len(turned)} convolutions are as MLX stores them: {less}", tensors=tensors)


def _less_one(tensor: Tensor) -> Tensor:
    values = tensor.astype(plain.F32)
    return values.map(lambda rows: rows - np.float32(1), plain.F32)
