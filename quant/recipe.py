"""Recipes: which block type each tensor of a model gets under a file type.

`assign` is a pure function of names, shapes and a few hyper-parameters, so that a mix can be printed before anything
is written.  It makes the same choices as llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp), as data:

`_ROLES`     what a tensor is for, by its name;
`_KEPT`      tensors that are never quantized;
`_RULES`     (role, file types, block type, condition): the first row that fits decides, none means the default;
`_FALLBACK`  the type to take where a row is not whole blocks of the chosen one.

The order of the tensors matters, as it does there: rules for "the first eighth of the layers" count the tensors met so
far, not the number in their names, unless the model has experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from llmconv.errors import Unsupported, UsageError
from llmconv.quant import block
from llmconv.quant.block import BlockType
from llmconv.quant.filetypes import COPY, FileType

__all__ = ["Choice", "Model", "Options", "Weight", "assign", "order", "tensor_type_rules"]


class Weight(Protocol):
    """What a rule looks at of a tensor (`formats.Tensor` has it)."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def type(self) -> type[BlockType]: ...


@dataclass(frozen=True, slots=True)
class Model:
    """What the rules look at of a model."""

    arch: str
    n_layer: int
    n_head: int = 0
    n_head_kv: int = 0
    n_expert: int = 0

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
    def of(metadata: Mapping[str, Any]) -> Model:
        """From GGUF metadata; of values by layer the first counts."""
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str):
            raise Unsupported("key 'general.architecture' is missing; the mixes depend on it")

        def number(key: str, default: int) -> int:
            value = metadata.get(f"{arch}.{key}", default)
            if isinstance(value, Sequence) or getattr(value, "ndim", 0):
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
        )


@dataclass(frozen=True, slots=True)
class Options:
    """The user's wishes, with the reference's meaning.

    pure: every tensor that may be quantized gets the default type (or a fallback), no rules.
    tensor_types: (compiled pattern, block type), searched in a name in this order; the first that matches wins.
    output_type, embedding_type: for `output.weight`, for `token_embd.weight`.
    leave_output: `output.weight` stays as it is.
    importance: there is an importance matrix (a few rules ask).
    """

    pure: bool = False
    tensor_types: Sequence[tuple[re.Pattern[str], type[BlockType]]] = ()
    output_type: type[BlockType] | None = None
    embedding_type: type[BlockType] | None = None
    leave_output: bool = False
    importance: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The block type chosen for a tensor.

    wanted: the type before a fallback, the same as `type` where there was none.
    quantizable: False for tensors that are left alone (norms, biases, ...).
    needs_importance: the reference refuses this choice without importance weights.
    """

    name: str
    type: type[BlockType]
    wanted: type[BlockType]
    quantizable: bool
    needs_importance: bool


# What a tensor is for.

OUTPUT, EMBEDDING = "output", "token_embd"
ATTN_V, ATTN_K, ATTN_Q, ATTN_OUT = "attn_v", "attn_k", "attn_q", "attn_output"
FFN_UP, FFN_GATE, FFN_DOWN, OTHER = "ffn_up", "ffn_gate", "ffn_down", "other"

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

_KEPT_NAMES = {"position_embd.weight", "token_types.weight"}
_KEPT = (
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
    *(f"time_mix_{part}.weight" for part in "first w0 w1 w2 v0 v1 v2 a0 a1 a2 g1 g2".split()),
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
_KEPT_OF_ARCH = {
    "glm5-next": (
        *("hc_", "indexer.attn_q_b", "indexer.attn_k", "indexer.proj"),
        *("indexer_compressor_gate", "indexer_compressor_ape", "ssm_f_a.weight", "ssm_f_b.weight"),
        *("ssm_g_a.weight", "ssm_g_b.weight", "ssm_beta.weight"),
        *("attn_kv_a_mqa.weight", "attn_k_b.weight", "attn_v_b.weight"),
    )
}


def _may_quantize(weight: Weight, arch: str, options: Options) -> bool:
    name = weight.name
    return (
        weight.type.is_float
        and any(n > 1 for n in weight.shape[:-1])  # at least a matrix; leading ones don't count
        and name.endswith("weight")
        and name not in _KEPT_NAMES
        and not (options.leave_output and name == "output.weight")
        and not any(part in name for part in _KEPT)
        and not any(part in name for part in _KEPT_OF_ARCH.get(arch, ()))
    )


# The rules.


@dataclass(frozen=True, slots=True)
class _At:
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


_Condition = Callable[[_At], bool]


def _always(at: _At) -> bool:
    return True


def _gqa4(at: _At) -> bool:
    return at.gqa4


def _eight(at: _At) -> bool:
    return at.eight


def _more_bits(at: _At) -> bool:
    return at.more_bits


def _no_falcon(at: _At) -> bool:
    return not at.falcon


_ANY = ""
_TINY = "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M"
_IQ2 = "IQ2_S IQ2_M"
_ATTN_OUT_EIGHT = "Q2_K IQ3_XS IQ3_XXS Q3_K_S Q3_K_M IQ4_NL Q4_K_S Q4_K_M IQ3_S IQ3_M IQ4_XS"

# Role, file types ("" for all), block type ("" for the default), condition.
_RULES: tuple[tuple[str, str, str, _Condition], ...] = (
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
_COMPILED = [(role, frozenset(types.split()), name, condition) for role, types, name, condition in _RULES]

# A row that is not whole blocks: what is taken instead, before F16.
_FALLBACK = (
    dict.fromkeys("IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_XS".split(), "IQ4_NL")
    | dict.fromkeys("Q2_0 Q2_K Q3_K TQ1_0 TQ2_0".split(), "Q4_0")
    | {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
)

_NEEDS_IMPORTANCE = set("IQ3_XXS IQ2_XXS IQ2_XS IQ2_S IQ1_M IQ1_S".split())


def order(names: Iterable[str]) -> list[str]:
    """Tensor names as the reference writes them: by layer number, the tensors of no layer first, then by name's bytes."""

    def key(name: str) -> tuple[int, bytes]:
        layer = _layer(name)
        return -1 if layer is None else layer, name.encode("utf-8", "surrogateescape")

    return sorted(names, key=key)


def _layer(name: str) -> int | None:
    found = re.match(r"blk\.\s*([+-]?\d{1,9})", name, re.ASCII)
    return int(found[1]) if found else None


def tensor_type_rules(texts: Iterable[str]) -> tuple[tuple[re.Pattern[str], type[BlockType]], ...]:
    """`REGEX=TYPE` texts as patterns and types; the pattern is lower-cased, as the reference does."""
    rules = []
    for text in texts:
        pattern, found, name = text.partition("=")
        if not found or not pattern or not name:
            raise UsageError(f"tensor type {text!r} is not REGEX=TYPE; write for example attn_v=Q8_0")
        try:
            compiled = re.compile(pattern.lower())
        except (re.error, RecursionError, OverflowError) as error:
            raise UsageError(f"tensor type {text!r}: the pattern is no regular expression ({error})") from None
        rules.append((compiled, block.by_name(name)))
    return tuple(rules)


@dataclass
class _Counts:
    """Tensors met so far by role, and how many there are."""

    met: dict[str, int] = field(default_factory=dict)
    attn_v: int = 0

    def next(self, role: str) -> int:
        i = self.met.get(role, 0)
        self.met[role] = i + 1
        return i


def assign(weights: Sequence[Weight], model: Model, file: FileType, options: Options | None = None) -> list[Choice]:
    """The block type of each tensor, in the order given (`order` gives the reference's).

    Raises `Unsupported` when no type fits a tensor's row length, or a layer number is outside the model.
    """
    options = options or Options()
    counts = _Counts(attn_v=sum(role_of(w.name) == ATTN_V for w in weights))
    tied = all(role_of(w.name) != OUTPUT for w in weights)
    return [_choose(weight, model, file, options, counts, tied) for weight in weights]


def _choose(weight: Weight, model: Model, file: FileType, options: Options, counts: _Counts, tied: bool) -> Choice:
    name, role = weight.name, role_of(weight.name)
    if file is COPY or not _may_quantize(weight, model.arch, options):
        return Choice(name, weight.type, weight.type, False, False)
    default = block.by_name(file.default)
    manual = next((kind for pattern, kind in options.tensor_types if pattern.search(name)), None)
    forced = options.output_type if role == OUTPUT else None
    if role == EMBEDDING and not (name.startswith("per_layer") and manual is not None):
        forced = options.embedding_type
    wanted = forced or default
    if forced is None and not default.is_plain():
        if manual is not None:
            wanted = manual
        elif not options.pure:
            wanted = _by_rule(weight, role, model, file, default, options, counts, tied)
    row = weight.shape[-1]
    kind = wanted if row % wanted.block_size == 0 else _fallback(name, row, wanted)
    needs = role not in (OUTPUT, EMBEDDING) and (
        kind.name in _NEEDS_IMPORTANCE or (kind.name == "Q2_K" and file.name == "Q2_K_S")
    )
    return Choice(name, kind, wanted, True, needs)


def _fallback(name: str, row: int, wanted: type[BlockType]) -> type[BlockType]:
    if wanted.block_size > 32 and wanted.name not in _FALLBACK:
        raise Unsupported(
            f"tensor {name!r} has rows of {row}, not a multiple of {wanted.name}'s block of {wanted.block_size}, and "
            "no smaller type stands in for it; choose another type for it (--tensor-type)"
        )
    instead = block.by_name(_FALLBACK.get(wanted.name, wanted.name))
    return instead if row % instead.block_size == 0 else block.by_name("F16")


def _by_rule(
    weight: Weight,
    role: str,
    model: Model,
    file: FileType,
    default: type[BlockType],
    options: Options,
    counts: _Counts,
    tied: bool,
) -> type[BlockType]:
    name, shape = weight.name, weight.shape
    if model.arch == "glm5-next" and any(part in name for part in ("attn_q_a", "attn_q_b", "nextn.eh_proj")):
        return block.by_name("Q8_0")
    if tied and role == EMBEDDING:
        role = OUTPUT
    if role == OUTPUT and options.output_type is not None:
        return options.output_type
    i = n = 0
    if role == ATTN_V:
        i, n = counts.next(role), counts.attn_v
    elif role in (FFN_DOWN, FFN_GATE, FFN_UP):
        i, n = counts.next(role), model.n_layer
        if model.n_expert > 1 and file.name not in _TINY.split() and file.name != "MXFP4_MOE":
            i = _layer_of(name, n)  # several matrices a layer, in no certain order: counting says nothing
    at = _At(
        model,
        name,
        shape[-3] if len(shape) > 2 else 1,
        shape[-1] % default.block_size == 0,
        i,
        n,
        options.importance,
    )
    chosen = default
    for rule_role, types, type_name, condition in _COMPILED:
        if rule_role in (role, _ANY) and (not types or file.name in types) and condition(at):
            chosen = block.by_name(type_name) if type_name else default
            break
    if role == ATTN_V and model.is_70b and file.name not in _TINY.split() and chosen.name in ("Q3_K", "Q4_K"):
        chosen = block.by_name("Q5_K")  # an eighth of attn_q's size: better bits cost little
    return chosen


def _layer_of(name: str, n_layer: int) -> int:
    layer = _layer(name)
    if layer is None or not 0 <= layer < n_layer:
        raise Unsupported(f"tensor {name!r}: its layer is not one of the model's {n_layer}; rename it")
    return layer
