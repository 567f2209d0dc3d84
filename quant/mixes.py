"""The mixes as data: what a tensor is for, what is never quantized, and who gets another type than the default.

The choices are those of llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp), as tables:

`_ROLES`, `role_of`    what a tensor is for, by its name;
`KEPT`, …              tensors that are never quantized;
`RULES`                (role, file types, block type, condition): the first row that fits decides, else the default;
`FALLBACK`             the type to take where a row is not whole blocks of the chosen one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.errors import Unsupported

__all__ = [
    *("ATTN_V", "EMBEDDING", "FALLBACK", "FFN", "KEPT", "KEPT_NAMES", "KEPT_OF_ARCH", "NEEDS_IMPORTANCE", "OUTPUT"),
    *("RULES", "TINY", "At", "Model", "role_of"),
]


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules look at of a model."""

    arch: str
    n_layer: int
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0
    plain: bool = False
    """Of no architecture known here: tensors bear names of their own, which need not end in "weight"."""

    @property
    def n_gqa(self) -> int:
        """Query heads that share a key/value head; 0 for a model without attention in its first layer."""
        return self.n_head // self.n_head_kv if self.n_head_kv else 0

    @property
    def is_70b(self) -> bool:
        """Whether the reference takes it for a 70B model, whose small attn_v matrices get more bits."""
        if self.arch in ("llama", "llama-embed"):
            return self.n_layer == 80 and self.n_head != self.n_head_kv
        return self.n_layer == {"qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}.get(self.arch, -1)

    @staticmethod
    def of(metadata: Mapping[str, Any], plain: bool = False) -> Model:
        """From GGUF metadata; of values by layer the first counts."""
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str):
            raise Unsupported("key 'general.architecture' is missing; the mixes depend on it")

        def number(key: str, default: int) -> int:
            value = metadata.get(f"{arch}.{key}", default)
            if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
                value = value[0] if len(value) else default
            try:
                return int(value)
            except (TypeError, ValueError):
                raise Unsupported(f"key '{arch}.{key}' is {value!r}, expected a whole number") from None

        n_head = number("attention.head_count", 0)
        return Model(
            arch,
            number("block_count", 0),
            n_head,
            number("attention.head_count_kv", n_head),
            number("expert_count", 0),
            plain,
        )


# What a tensor is for.

OUTPUT, EMBEDDING = "output", "token_embd"
ATTN_V, ATTN_K, ATTN_Q, ATTN_OUT = "attn_v", "attn_k", "attn_q", "attn_output"
FFN_UP, FFN_GATE, FFN_DOWN, OTHER = "ffn_up", "ffn_gate", "ffn_down", "other"

FFN = (FFN_UP, FFN_GATE, FFN_DOWN)

_EXACT = {"output.weight": OUTPUT, "token_embd.weight": EMBEDDING, "per_layer_token_embd.weight": EMBEDDING}
_ROLES = (  # part of a name -> role, the first wins; a fused or low-rank matrix that holds values counts as attn_v
    ("attn_qkv.weight", ATTN_V),
    ("attn_kv_b.weight", ATTN_V),
    ("attn_v.weight", ATTN_V),
    ("attn_k.weight", ATTN_K),
    ("attn_q.weight", ATTN_Q),
    ("attn_output.weight", ATTN_OUT),
    ("ffn_up", FFN_UP),
    ("ffn_gate", FFN_GATE),
    ("ffn_down", FFN_DOWN),
)


def role_of(name: str) -> str:
    return _EXACT.get(name) or next((role for part, role in _ROLES if part in name), OTHER)


# What is never quantized, besides vectors and names that don't end in "weight".

KEPT_NAMES = {"position_embd.weight", "token_types.weight"}
KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",  # the experts' router
    "ffn_gate_tid2eid.weight",  # its table of token numbers
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(
        f"time_mix_{part}.weight"
        for part in ("first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2")
    ),
    "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight",
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
KEPT_OF_ARCH = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"),
        *("indexer_compressor_gate", "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight"),
        *("ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight"),
        *("attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}


# The rules.


@dataclass(frozen=True, slots=True)
class At:
    """Where a rule is asked: the model, the tensor, and how far its role has been counted."""

    model: Model
    name: str
    n_matrices: int
    """Matrices in the tensor: the experts of a stacked one."""
    block_fits: bool
    """Whether the row is whole blocks of the default type."""
    i: int
    n: int
    importance: bool

    @property
    def falcon(self) -> bool:
        return self.model.arch == "falcon"

    @property
    def eight(self) -> bool:
        """Mixtral's number of experts, for which its small shared tensors are cheap to keep well."""
        return self.model.n_expert == 8

    @property
    def gqa4(self) -> bool:
        return self.model.n_gqa >= 4

    def first(self, fraction: int) -> bool:
        return self.i < self.n // fraction

    @property
    def more_bits(self) -> bool:
        """The first and the last eighth, and every third between."""
        eighth = self.n // 8
        return self.i < eighth or self.i >= 7 * self.n // 8 or (self.i - eighth) % 3 == 2

    @property
    def middle(self) -> bool:
        return self.n // 8 <= self.i < 7 * self.n // 8


_Condition = Callable[[At], bool]


def _always(at: At) -> bool:
    return True


def _gqa4(at: At) -> bool:
    return at.gqa4


def _eight(at: At) -> bool:
    return at.eight


def _more_bits(at: At) -> bool:
    return at.more_bits


_ANY = ""
_TINY = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
_IQ2 = "IQ2_S IQ2_M"
_ATTN_OUT_EIGHT = "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS"

TINY = frozenset(_TINY.split())
"""The file types under 3 bits, for which most of the other rules don't hold."""

# Role, file types ("" for all), block type ("" for the default), condition.
_ROWS: tuple[tuple[str, str, str, _Condition], ...] = (
    (OUTPUT, "MXFP4_MOE", "Q8_0", _always),
    (OUTPUT, _ANY, "Q8_0", lambda at: at.falcon or not at.block_fits),
    (OUTPUT, f"{_TINY} IQ3_XXS", "Q5_K", _always),
    (OUTPUT, "Q8_0", "", _always),
    (OUTPUT, _ANY, "Q6_K", _always),
    # Experts of a mixture; the reference makes one exception for stacked matrices that are none.
    (_ANY, "MXFP4_MOE", "Q8_0", lambda at: at.n_matrices == 1),
    (_ANY, "MXFP4_MOE", "Q8_0", lambda at: at.model.arch == "bailingmoe3" and not role_of(at.name).startswith("ffn")),
    (_ANY, "MXFP4_MOE", "MXFP4", _always),
    (EMBEDDING, "IQ1_S IQ1_M IQ2_XXS IQ2_XS", "Q2_K", _always),
    (EMBEDDING, f"{_IQ2} IQ3_XXS", "IQ3_S", _always),
    (EMBEDDING, "TQ1_0 TQ2_0 Q2_0", "Q4_K", _always),
    (ATTN_V, _TINY, "Q4_K", lambda at: at.gqa4 or at.model.n_expert >= 4),
    (ATTN_V, _IQ2, "IQ3_S", _always),
    (ATTN_V, _TINY, "Q2_K", _always),
    (ATTN_V, _ANY, "Q8_0", _eight),
    (ATTN_V, "Q2_K Q2_K_S IQ3_XXS IQ3_XS IQ3_S", "Q4_K", _gqa4),
    (ATTN_V, "Q2_K", "Q3_K", _always),
    (ATTN_V, "IQ3_XXS", "IQ3_S", lambda at: not at.importance),
    (ATTN_V, "IQ3_M", "Q4_K", _always),
    (ATTN_V, "Q3_K_M", "Q5_K", lambda at: at.i < 2),
    (ATTN_V, "Q3_K_M", "Q4_K", _always),
    (ATTN_V, "Q3_K_L", "Q5_K", _always),
    (ATTN_V, "IQ4_NL IQ4_XS", "Q5_K", _gqa4),
    (ATTN_V, "Q4_K_M Q5_K_M", "Q6_K", _more_bits),
    (ATTN_V, "Q4_K_S", "Q5_K", lambda at: at.i < 4),
    (ATTN_K, _TINY, "Q4_K", _eight),
    (ATTN_K, _ANY, "Q8_0", _eight),
    (ATTN_K, "IQ3_XS", "IQ3_XXS", _always),
    (ATTN_K, "IQ3_XXS", "IQ2_S", _always),
    (ATTN_Q, "IQ3_XS", "IQ3_XXS", _always),
    (ATTN_Q, "IQ3_XXS", "IQ2_S", _always),
    (FFN_DOWN, _IQ2, "IQ3_S", lambda at: at.first(8)),
    (FFN_DOWN, _TINY, "Q2_K", lambda at: at.first(8)),
    (FFN_DOWN, "Q2_K", "Q3_K", _always),
    (FFN_DOWN, "Q2_K_S", "Q4_K", lambda at: at.first(8)),
    (FFN_DOWN, "IQ3_XXS", "Q4_K", lambda at: not at.importance and at.first(8)),
    (FFN_DOWN, "IQ3_XXS", "Q3_K", lambda at: not at.importance),
    (FFN_DOWN, "Q3_K_M", "Q5_K", lambda at: at.first(16)),
    (FFN_DOWN, "Q3_K_M", "Q4_K", lambda at: not at.falcon or at.more_bits),
    (FFN_DOWN, "IQ3_M", "Q4_K", lambda at: at.first(8) or (at.eight and at.more_bits)),
    (FFN_DOWN, "Q3_K_L", "Q4_K", lambda at: at.falcon),
    (FFN_DOWN, "Q3_K_L", "Q5_K", _always),
    (FFN_DOWN, "Q4_K_M", "Q6_K", lambda at: at.first(16) if at.falcon else at.more_bits),
    (FFN_DOWN, "Q4_K_M", "Q5_K", lambda at: at.falcon and at.more_bits),
    (FFN_DOWN, "IQ4_NL IQ4_XS", "Q5_K", lambda at: at.first(8) and not at.importance),
    (FFN_DOWN, "Q5_K_M", "Q6_K", _more_bits),
    (FFN_DOWN, "Q4_K_S", "Q5_K", lambda at: not at.falcon and at.first(8)),
    (FFN_DOWN, "Q4_0", "Q4_1", lambda at: at.importance and at.first(8)),
    (FFN_DOWN, "Q5_0", "Q5_1", lambda at: at.importance and at.first(8)),
    (ATTN_OUT, _TINY, "Q5_K", _eight),
    (ATTN_OUT, "IQ1_S IQ1_M", "IQ2_XXS", _always),
    (ATTN_OUT, _IQ2, "IQ3_S", _always),
    (ATTN_OUT, "Q3_K_L", "Q4_K", lambda at: at.falcon),
    (ATTN_OUT, _ATTN_OUT_EIGHT, "Q5_K", lambda at: at.eight and not at.falcon),
    (ATTN_OUT, _ANY, "", lambda at: at.eight or at.falcon),
    (ATTN_OUT, "Q2_K", "Q3_K", _always),
    (ATTN_OUT, "IQ3_XXS", "IQ3_S", _always),
    (ATTN_OUT, "Q3_K_M IQ3_M", "Q4_K", _always),
    (ATTN_OUT, "Q3_K_L", "Q5_K", _always),
    (FFN_GATE, "IQ3_XS", "IQ3_XXS", lambda at: at.middle),
    (FFN_UP, "IQ3_XS", "IQ3_XXS", lambda at: at.middle),
)
RULES = [(role, frozenset(files.split()), name, condition) for role, files, name, condition in _ROWS]

# A row that is not whole blocks: what is taken instead, before F16.
FALLBACK = (
    dict.fromkeys(["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"], "IQ4_NL")
    | dict.fromkeys(["Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"], "Q4_0")
    | {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
)

NEEDS_IMPORTANCE = {"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"}
