"""EAGLE-3: one layer that reads the words and what three layers of another model give (arXiv:2503.01840)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.archs.parts import COMMON, HEAD_DIM
from llmconv.convert.archs.rope import ROPE_FREQS
from llmconv.convert.tables.architecture import Architecture, HfName, keys, row
from llmconv.convert.tables.ops import Dims, Offsets, rope_halves
from llmconv.errors import BadFile

DRAFTS = "it drafts for another model, whose layers it reads"


def known_words(tensors: Mapping[str, Any], dims: Dims) -> dict[str, Any]:
    """How many words a draft knows, by the table of them."""
    table = tensors.get("d2t")
    return {} if table is None or len(table.shape) != 1 else {"draft_vocab_size": np.uint32(table.shape[0])}


def target_of(config: Mapping[str, Any], source: str = "config.json") -> Mapping[str, Any]:
    """What is known of the model that a draft is for; `BadFile` where nothing is."""
    found = config.get("target")
    if not isinstance(found, Mapping):
        raise BadFile(f"{source}: does not say which layers of which model it reads; give that model with --base MODEL")
    return found


def _finish(own: dict[str, Any], config: Mapping[str, Any], dims: Dims) -> None:
    if "target_layers" not in own:
        count = int(target_of(config)["num_hidden_layers"])
        own["target_layers"] = np.asarray([2, count // 2, count - 3], np.int32)
    if "target_hidden_size" not in own:
        own["target_hidden_size"] = np.uint32(target_of(config)["hidden_size"])


def _rebuild(config: dict[str, Any], own: Mapping[str, Any], dims: Dims) -> None:
    config["draft_vocab_size"] = dims["n_draft"]


def _of_layer(gguf: str, theirs: str, shape: str, *ops: Any) -> Any:
    return row(f"blk.0.{gguf}.weight", "{p}" + f"{theirs}.weight", shape, *ops)


EAGLE3 = Architecture(
    "eagle3",
    (
        HfName("LlamaForCausalLMEagle3", "llama"),
        HfName("Eagle3LlamaForCausalLM", "llama"),
        HfName("Eagle3Speculator", "eagle3"),
        HfName("Eagle3DraftModel", "eagle3"),
        HfName("LlamaForCausalLM", "llama"),
    ),
    fits=lambda config: "draft_vocab_size" in config and config.get("num_hidden_layers") == 1,
    keys=(
        *COMMON,
        *HEAD_DIM,
        *keys("""
            vocab_size               u32    vocab_size
            rope.dimension_count     u32    head_dim                          = n_embd // n_head
            target_layers            i32s   eagle_aux_hidden_state_layer_ids
            target_hidden_size       u32    target_hidden_size
            draft_vocab_size         u32    draft_vocab_size
            norm_before_residual     bool   norm_before_residual              false
            norm_before_fc           bool   norm_before_fc                    false
        """),
    ),
    rows=(
        row("token_embd.weight", "embed_tokens.weight", "n_vocab, n_embd", optional=True),
        row("output_norm.weight", "norm.weight", "n_embd"),
        row("output.weight", "lm_head.weight", "n_draft, n_embd", optional=True),
        row("fc.weight", "fc.weight", "n_embd, n_read * n_target"),
        row("enc.output_norm.weight", "input_norm.weight", "n_read * n_target", optional="norm_before_fc"),
        row("d2t", "d2t", "n_draft", Offsets(), optional=lambda config: "draft_vocab_size" in config),
        _of_layer("attn_norm", "input_layernorm", "n_embd"),
        _of_layer("attn_norm_2", "hidden_norm", "n_embd"),
        _of_layer("attn_q", "self_attn.q_proj", "n_head * head_dim, 2 * n_embd", rope_halves("n_head")),
        _of_layer("attn_k", "self_attn.k_proj", "n_head_kv * head_dim, 2 * n_embd", rope_halves("n_head_kv")),
        _of_layer("attn_v", "self_attn.v_proj", "n_head_kv * head_dim, 2 * n_embd"),
        _of_layer("attn_output", "self_attn.o_proj", "n_embd, n_head * head_dim"),
        _of_layer("ffn_norm", "post_attention_layernorm", "n_embd"),
        _of_layer("ffn_gate", "mlp.gate_proj", "n_ff, n_embd"),
        _of_layer("ffn_up", "mlp.up_proj", "n_ff, n_embd"),
        _of_layer("ffn_down", "mlp.down_proj", "n_embd, n_ff"),
    ),
    made=(ROPE_FREQS,),
    prefixes=("midlayer.", "layers.0.", "model.layers.0."),
    kept=("t2d",),
    told=known_words,
    finish=_finish,
    rebuild=_rebuild,
    decoder={"not_run": DRAFTS},
    reads="target eagle_config speculators_config transformer_layer_config",
    inert="speculators_model_type speculators_version has_no_defaults_at_init embed_requires_grad",
)

ARCHITECTURES = (EAGLE3,)
