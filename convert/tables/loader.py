"""`Loader`: where llama.cpp's loader computes less than a GGUF of a family says, as its sources have it.

A file may say things for which llama.cpp has no code: its loader leaves a key unread, fixes a value, refuses a
tensor that it has no place for, or a file without one that it needs.  What is listed here becomes a note when such a
model is converted (`convert.dialects.beyond`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from llmconv.convert.tables.ops import evaluate
from llmconv.convert.tables.pieces import Pieces
from llmconv.convert.tables.rows import at_layer

__all__ = ["Loader", "unread_of"]

_READERS = """
    attention.clamp_kqv: dbrx mpt olmo
    attention.max_alibi_bias: jais mpt
    attention.output_scale: grok
    attention.scale: dflash granite granitemoe granite_swa graniteswitch granitehybrid
    attention.shared_kv_layers: gemma4 gemma4-assistant
    attention.sliding_window: afmoe cohere2 cohere2moe deepseek4 dflash dots3note exaone-moe exaone4 gemma-embedding
        gemma2 gemma3 gemma3n gemma4 gemma4-assistant gpt-oss granite_swa laguna lfm2 llama4 maple mellum mimo2
        modern-bert muse-glimmer olmo2 phi3 plamo3 smallthinker spark2_5 step35
    attention.temperature_length: deepseek2 grok mistral4
    attention.temperature_scale: deepseek2 mistral3 mistral4
    attention.value_scale: dflash mimo2
    attn_logit_softcapping: gemma2 grok
    embedding_scale: dflash granite granitemoe granite_swa graniteswitch granitehybrid grok hrm_text minicpm
    expert_gating_func: afmoe bailingmoe2 bailingmoe3 cohere2moe deepseek2 deepseek2-ocr deepseek32 deepseek4
        dflash dots1 dots3note exaone-moe glm-dsa glm4moe glm5-next hy_v3 hy_v4 kimi-k3 kimi-linear laguna
        lfm2moe minimax-m2 minimax-m3 mistral4 smallthinker step35
    expert_weights_norm: afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek2 deepseek2-ocr deepseek32
        deepseek4 dflash dots1 dots3note exaone-moe glm-dsa glm4moe glm5-next hy_v3 hy_v4 kimi-k3 laguna
        minimax-m3 mistral4 nemotron_h nemotron_h_moe step35
    expert_weights_scale: afmoe bailingmoe bailingmoe2 bailingmoe3 cohere2moe deepseek deepseek2 deepseek2-ocr
        deepseek32 deepseek4 dflash dots1 dots3note exaone-moe glm-dsa glm4moe glm5-next hy_v3 hy_v4 kimi-k3
        kimi-linear laguna minimax-m3 mistral4 nemotron_h nemotron_h_moe step35
    final_logit_softcapping: dflash gemma2 gemma3 gemma4 grok muse-glimmer
    hidden_activation: dflash modern-bert
    logit_scale: cohere2 cohere2moe command-r dflash granite granitemoe granite_swa graniteswitch granitehybrid
        grok minicpm muse-glimmer talkie
    moe_layers:
    num_loops: nanbeige
    position_embedding:
    residual_after_norm:
    residual_scale: granite granitemoe granite_swa graniteswitch granitehybrid minicpm minimax-01
    rope.dimension_count_swa: gemma4 gemma4-assistant laguna maple spark2_5 step35
    rope.freq_base_swa: afmoe dots3note gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant gpt-oss laguna
        llama4 maple mimo2 modern-bert muse-glimmer plamo3 smallthinker spark2_5 step35
    rope.interleaved:
    rope.layers:
    rope.scaling.yarn_beta_fast: grok mistral3
    rope.scaling.yarn_beta_slow: grok mistral3
    rope.scaling.yarn_log_multiplier: deepseek2 deepseek32 mistral3 mistral4
    rope.scaling.yarn_truncate:
    swiglu_clamp_exp: bailingmoe3 deepseek4 dflash glm5-next hy_v4 maple step35
    swiglu_clamp_shexp: bailingmoe3 deepseek4 dflash glm5-next step35
    swin_norm: chameleon
    use_parallel_residual: gptneox
"""
"""Keys that llama.cpp reads of some families only, and of which; the peer tests compare them with its sources.  (The
two of windows' rotations it reads of others too, in vain.)"""


@dataclass(frozen=True)
class Loader:
    """What llama.cpp does with a family's GGUF.

    exists: False: it has no such architecture at all.
    unread: keys, without the architecture's name, that it does not look at.
    windows_at: the only number of layers at which it has windows; 0: any.
    untold: keys that say what it sees in the tensors.
    refused: tensors that it has no place for; a file with one is not loaded.  A tensor stands for itself, with `{i}`
        for its layer, or as "tensor if expression over the dimensions".
    ignored: tensors that it loads and does not compute with, in the same way.
    needed: tensors that it does not load a file without, in the same way; the expression is asked of each layer.
    always_windows: it stops where no layer has a window.
    somewhere: tensors of which some layer must have one, and what they are; it stops where none has.
    wants: expressions over the dimensions that hold of every file that it loads, and what they mean.
    undone: keys -> what it leaves out of a file with them.
    without: entries of the parent's lists, or expressions it wants, that do not hold of a variant.
    pieces: what it computes where that is not what the table's `decoder` says.
    """

    exists: bool = True
    unread: tuple[str, ...] = ()
    untold: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    windows_at: int | None = None
    always_windows: bool = False
    needed: tuple[str, ...] = ()
    somewhere: Mapping[str, str] = field(default_factory=dict)
    wants: Mapping[str, str] = field(default_factory=dict)
    undone: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    pieces: Pieces = field(default_factory=Pieces)

    def more(self, other: Loader) -> Loader:
        """Both together, `other` a variant's."""

        def kept(entries: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(entry for entry in entries if entry not in other.without)

        return dataclasses.replace(
            self,
            exists=self.exists and other.exists,
            unread=(*kept(self.unread), *other.unread),
            refused=(*kept(self.refused), *other.refused),
            ignored=(*kept(self.ignored), *other.ignored),
            needed=(*kept(self.needed), *other.needed),
            somewhere={**self.somewhere, **other.somewhere},
            wants={**{k: v for k, v in self.wants.items() if k not in other.without}, **other.wants},
            undone={**self.undone, **other.undone},
            always_windows=self.always_windows or other.always_windows,
            windows_at=self.windows_at if other.windows_at is None else other.windows_at,
            pieces={**self.pieces, **other.pieces},
        )

    def left_undone(self, keys: Collection[str]) -> list[str]:
        """What it does not compute of a file with these keys, without the architecture's name."""
        return [what for key, what in self.undone.items() if key in keys]

    def strange(self, names: Iterable[str], dims: Mapping[str, Any]) -> list[str]:
        """Those of the tensors that it has no place for."""
        refused = set(_at(self.refused, dims))
        return sorted(name for name in names if _pattern(name) in refused)

    def unused(self, names: Iterable[str], dims: Mapping[str, Any]) -> list[str]:
        """Those of the tensors that it loads in vain."""
        ignored = set(_at(self.ignored, dims))
        return sorted(name for name in names if _pattern(name) in ignored)

    def missing(self, names: Collection[str], dims: Mapping[str, Any]) -> list[str]:
        """Tensors that it needs and a file of these dimensions (of all layers) with these tensors does not have."""
        layers = range(min(int(dims["n_layer"]) - int(dims["n_nextn"]), _LAYERS))
        wanted = [name for name in _at(self.needed, at_layer(dims, 0)) if "{i}" not in name]
        for i in layers if len(wanted) < len(self.needed) else ():
            wanted += [n.replace("{i}", str(i)) for n in _at(self.needed, at_layer(dims, i)) if "{i}" in n]
        return [name for name in wanted if name not in names]

    def nowhere(self, names: Iterable[str]) -> list[str]:
        """What some layer must have and none does."""
        patterns = {_pattern(name) for name in names}
        return [text for pattern, text in self.somewhere.items() if pattern not in patterns]

    def unfit(self, dims: Mapping[str, Any]) -> list[str]:
        """What it wants of a file and this one does not have."""
        return [text for expression, text in self.wants.items() if not evaluate(expression, dims)]


_LAYERS = 1 << 10  # as many as are looked at one by one


def _at(entries: Iterable[str], dims: Mapping[str, Any]) -> Iterator[str]:
    """The tensors of a list that are meant in a model of these dimensions."""
    for entry in entries:
        name, _, condition = entry.partition(" if ")
        if not condition or evaluate(condition, dims):
            yield name


def _pattern(name: str) -> str:
    """A tensor's name with `{i}` for its layer."""
    parts = name.split(".")
    return ".".join(["blk", "{i}", *parts[2:]]) if parts[0] == "blk" and len(parts) > 2 else name


MLP_BIASES = ("blk.{i}.ffn_gate.bias", "blk.{i}.ffn_up.bias", "blk.{i}.ffn_down.bias")
QKV_BIASES = ("blk.{i}.attn_q.bias", "blk.{i}.attn_k.bias", "blk.{i}.attn_v.bias")
OUT_BIAS = ("blk.{i}.attn_output.bias",)
HEAD = ("output.weight",)
DIVISORS = ("rope_freqs.weight",)
MLP_BIASES_UNGATED = MLP_BIASES[1:]
CHOICE = ("blk.{i}.exp_probs_b.bias if n_expert and i >= n_dense",)
AS_WIDE = {"n_head * head_dim == n_embd": "as many numbers in all heads as in a token's vector"}


def _readers() -> dict[str, set[str]]:
    out: dict[str, set[str]] = {}
    for word in _READERS.split():
        if word.endswith(":"):
            names = out[word[:-1]] = set()
        else:
            names.add(word)
    return out


_READ_BY = _readers()


def unread_of(arch: str) -> set[str]:
    """The keys that llama.cpp reads of other families, or of none, and not of this one."""
    return {key for key, names in _READ_BY.items() if arch not in names}
