"""Which models a table of instructions can step through: what it does not know must not be there."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from llmconv.convert.decoders.facts import Attention, Decoder, Layer, Mlp
from llmconv.quant.kernels.terms.steps import ACTIVATIONS
from llmconv.runtime.cache import Cache
from llmconv.runtime.layers.norms import Norm
from llmconv.runtime.linear import Embedding, Linear
from llmconv.runtime.model import Block, Model
from llmconv.runtime.stepping.inputs import kind_of

__all__ = ["fits"]

_PIECES = {
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_q_norm", "attn_k_norm", "attn_output"),
    *("post_attention_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down", "post_ffw_norm"),
}
_ENDS = {"token_embd", "position_embd", "token_embd_norm", "output_norm", "output", "blk"}
_SCALINGS = ("none", "linear", "yarn")
"""Those whose tables don't depend on how long the text is."""
_DECODER = (
    *("arch", "dim", "vocab_size", "context_length", "norm", "layers", "shapes", "positions", "position_offset"),
    *("behind_eps", "qk_norm", "output_norm", "weightless", "embed_scale", "residual_scale", "logit_scale"),
    *("final_softcap", "head_norm", "silent", "ends", "passes_float16", "layer_words"),
)
_ATTENTION = ("n_head", "n_head_kv", "head_dim", "value_dim", "scale", "window", "rope")
_GATES = ("none", "apart", "fused")
_LAYER, _MLP = ("attention", "mlp", "mlp_norm", "parallel"), ("activation", "gate")
"""The facts that are taken care of, here or by the parts of `Model` that a step calls; the others must be as always."""


def fits(model: Model, cache: Cache) -> bool:
    """Whether the model's next tokens, one by one, can be made by a table of instructions over this cache."""
    decoder = model.decoder
    return (
        type(model) is Model
        and model.wants is None
        and model.device.type == "cpu"
        and model.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and decoder.causal
        and decoder.layers_alone
        and _only(decoder, _DECODER)
        and _present(model) <= _ENDS
        and all(isinstance(block, Block) and _fits_block(block) for block in model.blk)
        and all(_plain(module) for module in model.modules())
        and _untouched(cache, len(model.blk))
    )


def _only(facts: Decoder | Layer | Attention | Mlp, known: tuple[str, ...]) -> bool:
    """Whether all facts but the known ones, and those that are none of the model's, are as where nothing is said."""
    told = [f for f in dataclasses.fields(facts) if f.compare]
    return all(f.name in known or getattr(facts, f.name) == f.default for f in told)


def _present(module: nn.Module) -> set[str]:
    found = {name for name, part in module._modules.items() if part is not None}
    return found | {name for name, part in module._parameters.items() if part is not None}


def _fits_block(block: Block) -> bool:
    return _fits_layer(block.spec) and _present(block) <= _PIECES and _complete(block)


def _fits_layer(layer: Layer) -> bool:
    spec, mlp = layer.attention, layer.mlp
    return (
        _only(layer, _LAYER)
        and not layer.parallel
        and _only(spec, _ATTENTION)
        and (spec.rope is None or spec.rope.scaling in _SCALINGS)
        and (mlp is None or (_only(mlp, _MLP) and mlp.activation in ACTIVATIONS and mlp.gate in _GATES))
    )


def _complete(block: Block) -> bool:
    """Whether it has the matrices that are gone through."""
    names = ["attn_output", *(["attn_qkv"] if block.attn_qkv is not None else ["attn_q", "attn_k", "attn_v"])]
    if block.spec.mlp is not None:
        names += ["ffn_up", "ffn_down"]
    return all(getattr(block, name) is not None for name in names)


def _plain(module: nn.Module) -> bool:
    """Whether it computes nothing but what its class says, over weights that are at hand."""
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, Norm):
        return (module.weight is None or _float32(module.weight)) and (module.bias is None or _float32(module.bias))
    if isinstance(module, Embedding | Linear):
        return (
            type(module) in (Embedding, Linear)
            and module.watch is None
            and module.rounds is None
            and not getattr(module, "scaled", False)
            and getattr(module, "watch_rows", None) is None
            and (module.bias is None or _float32(module.bias))
            and (module.laid is not None or _at_hand(module.weight))
            and kind_of(module) is not None
        )
    return isinstance(module, Model | Block | nn.ModuleList)


def _float32(vector: Tensor) -> bool:
    return _at_hand(vector) and vector.dtype == torch.float32 and vector.dim() == 1


def _at_hand(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu" and weight.is_contiguous()


def _untouched(cache: Cache, layers: int) -> bool:
    """Whether the cache holds one text without padding, and keys and values of every layer."""
    return (
        cache.batch == 1
        and cache.valid is None
        and all(state is None for state in cache.states)
        and all(layer is not None and layer[0].dtype == torch.float32 for layer in cache.layers[:layers])
        and all(layer is None for layer in cache.layers[layers:])
    )
