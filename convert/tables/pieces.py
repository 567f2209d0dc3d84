"""`Pieces`: what a family's table states of its block, for the runtime; a misspelt one is refused at import."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

__all__ = ["Pieces", "activation", "head_norm"]


class Pieces(TypedDict, total=False):
    """What a family's table states of its block; everything has a default, so a Llama states almost nothing."""

    positions: str  # "rope" (default), "learned", "sinusoidal", "alibi", "none"
    scan_norms_by_model: bool  # norms inside a scan have the model's epsilon, where the file says none (llama.cpp)
    positions_when: str  # a key that says whether there are positions (Granite's hybrids); without it there are
    rope: str  # what turns together: "halves" (default: numbers d/2 apart) or "pairs" (neighbours)
    indexer_rope: str  # the same of an indexer: "halves" (default) or "pairs"
    indexer_rope_at_end: bool  # a head's last numbers turn, not its first (HY V4)
    indexer_eps_by_model: bool  # its keys' norm has the model's epsilon, not 1e-6 (the same)
    rope_base: float  # where the file states none: 10000
    rope_stretched: bool  # the file's rope.scaling.alpha stretches the base (Hunyuan)
    rope_layers: str  # "all" (default), "windowed" (others have no positions), "windowed or dense", "windowed if any"
    no_rope_every: int  # every n-th layer has none
    yarn_truncate: bool  # whether YaRN's ramp ends at whole dimensions (default True)
    alibi_bias: float  # steepest slope's exponent (8), where the file states none
    alibi_at: int  # a model of this many layers has ALiBi instead of rope (Baichuan 13B)
    alibi_quirk: bool  # Falcon: the bias is rounded to bfloat16 and scaled along with the scores
    position_offset: int  # rows of the position table before position 0 (OPT: 2)
    causal: bool  # default True
    causal_without_window: bool  # layers without a window are causal, whatever the file says (llama.cpp's Gemma 4)
    norm: str  # "rms" or "layer"; default: by the key of its epsilon
    eps: float  # where the file states none
    latent_eps: float  # of the norms inside attention (of latents), where it is not the others' (Kimi Linear)
    behind_eps: float  # of the norms behind the sublayers, where it is not the others' (Muse Glimmer)
    output_norm: str  # the tensor of the norm before the head: "output_norm"
    mlp_norm: str  # the tensor of the norm before the MLP: "ffn_norm"
    weightless: tuple[str, ...]  # norms without weights, by the names that they would have; none where one has weights
    qk_norm_after_rope: bool
    delta_gate: str  # what opens the gate on a delta rule's results, where the file does not say: "silu" (default)
    gated_queries: bool  # attn_q gives each head's query and a gate of its result
    qk_layer_norm: float  # queries and keys have LayerNorms of this epsilon in a model of RMS norms (Chameleon)
    silent: tuple[int, int]  # tokens that are never said, from one number up to another
    clamp_normed: bool  # queries and keys are clamped behind their norms (OLMoE) instead of before
    single: bool  # a layer is one thing: a scan, attention, or a feed-forward (Nemotron-H)
    parallel: bool  # attention and MLP read the same residual; default: `use_parallel_residual`
    activation: str  # of the MLP: "silu" (default), "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai", ...
    activation_key: str  # the setting that names it: "hidden_act" (default); "": none does
    softmax_start: float  # what a softmax's denominator starts at: 0, and 1e-8 in simple-llm
    embed_scale: str | float  # "sqrt" multiplies embeddings by sqrt(dim)
    scales_kept: bool  # a residual scale is of what is added to, not of what is added (MiniMax-01)
    residual_after_norm: bool  # what norms give is what is added to, where the file does not say
    lightning: bool  # layers with attn_qkv have lightning attention
    residual_depth: float  # where the file states no residual scale, it is this by the root of the number of layers
    logit_base: int  # where the file states no logit scale, it is the model's width by this
    attention_scale: float  # what q·k is multiplied by, where the file does not say
    scale_power: float  # q·k is divided by this power of a head's size: 0.5 (default), 1 (Jais)
    skips_embedding: bool  # layer_output_scale is how much of the embedding each layer adds, not a factor of it all
    chunk: int  # layers with rotary positions see chunks of so many tokens, where the file does not say (Llama 4)
    length_one: bool  # they norm queries and keys, without weights
    growth_without_rope: int  # queries of layers without rotary positions grow every so many tokens, by 0.1
    weighed_before: bool  # what goes into an expert is weighed
    lends: bool  # the file may say that the last layers have keys and values of earlier ones
    lends_last_two: bool  # keys are those of the last layer that has some; with windows, of that before (llama.cpp)
    lends_from: int  # the first layer that borrows keys, where the file does not say (llama.cpp's Gemma 3n)
    cut_layers: int  # so many layers cut off all of the gate but 5 of 100, where the file does not say (the same)
    value_norm: bool  # values are normed, without weights; where they have no matrix they are the keys
    scale_by_model: int  # a model of this many layers scales q·k by dim / n_head instead of head_dim
    window: int  # how many tokens it has, where the file does not say (Gemma 2)
    window_pattern: int  # every n-th layer attends to everything, the others to a window; 0: all have the window
    window_first: bool  # of every n layers the first attends to everything, not the last
    window_both_sides: bool  # the file counts a window's tokens on both sides together
    window_rope_base: float  # rope base of layers with a window
    window_rope_scaled: bool  # whether rope scaling applies to them (default True)
    windows_magnified: bool  # what rotations are multiplied by is of layers with a window too (llama.cpp)
    full_turn_part: float  # the part of a head that turns in layers without a window
    side: str  # the tensors of the side of a model that is run begin so: "enc" of those that encode
    folded_halves: bool  # three-fold positions turn halves apart, where plain ones turn neighbours (GLM-4V)
    qkv_by_head: bool  # attn_qkv has each head's query, key and value together, unless the file says otherwise
    farthest: int  # a bias on the scores by distance, in buckets; distances from this on share one (T5: 128)
    normed_again: bool  # attn_norm_2 is of what came into the layer and what attn_output_norm gave (Jina)
    gate_behind: str  # a tensor that is there in layers whose ffn_up has the gate behind up, not before it (Jina)
    gated_activation: str  # of the MLP, where it has a gate (T5)
    norms_inside: bool  # attn_output_norm and layer_output_norm stand before the residual sums (Grok), not behind them
    may_swap: bool  # the file may say that norms are of what sublayers give (Chameleon)
    may_skip: bool  # layers without keys and values have one matrix instead of attention, or nothing (DeciLM)
    not_run: str  # why a family can't be run here
    beside: float  # layers with experts have a dense feed-forward too; their sum is multiplied by this
    dense_clamped: bool  # dense layers are clamped as shared experts are (GLM 5 Next)
    chained_experts: bool  # small experts read what the others gave, by another weight (llama.cpp's GroveMoE)
    router_first: bool  # the router reads what comes into a layer (SmallThinker)
    clamp_first: bool  # a clamped gate is clamped before its activation (Maple), not after it
    attention_gate: str  # what opens the gate on what attention gives: "sigmoid" (default), "softplus"
    router_capped: bool  # whether the router's logits are capped at the file's number
    attention_softcap: float  # what attention's scores are capped at, where the file does not say
    final_softcap: float  # what the logits are capped at, where the file does not say
    gating: str  # of experts: "softmax" (default), "sigmoid", "softmax_weight" (softmax over the chosen), "sparsemixer"
    shared_average: bool  # shared experts and chosen ones are averaged
    normalize_experts: bool  # whether chosen weights are made to sum to 1, where the file does not say
    logit_scale_divides: bool  # Granite divides the logits by its scale
    head_norm_vocab: int  # a model of that many tokens scales the rows of its head to length 1 (Baichuan 2)
    passes_float16: bool  # what it computes inside passes float16's 65504 (Gemma)
    yarn_log_unit: float  # what YaRN's multiplier of magnitude in a file is to be multiplied by (default 1)
    yarn_magnitudes_cancel: bool  # DeepSeek: YaRN's two factors of magnitude are equal
    magnitude_in_scores: bool  # llama.cpp's DeepSeek: what multiplies cos and sin multiplies the scores once more
    group_by: int  # how many of its experts say how good a group is; default: 2 with sigmoid scores, else 1
    conv1d: bool  # transformers keeps its linear layers [in][out] (GPT-2)
    no_end: bool  # the original program never chose a special token: texts don't end by themselves
    initial: str  # how fresh weights are drawn: "gpt2" (default) or "xavier"
    tokenizer: str  # the kind that a fresh vocabulary has, where not chosen by size: "word", "characters", "documents"


def head_norm(pieces: Pieces, vocab_size: Any, config: Mapping[str, Any]) -> bool:
    """Whether the rows of a model's head are scaled to length 1."""
    return "head_norm_vocab" in pieces and (pieces["head_norm_vocab"] == vocab_size or "z_loss_weight" in config)


_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python": "gelu",
    "swish": "silu",
    "swiglu": "silu",
    "linear": "identity",
}


def activation(name: Any) -> str:
    """The name here of an activation that transformers calls `name`; an unknown one keeps its own."""
    return _ACTIVATIONS.get(str(name), str(name))
