"""How big a model is and what it needs, from its shape alone: parameters by part, FLOPs, memory, KV cache, training.

Everything is arithmetic over a list of named shapes, which comes from a checkpoint's tensors or, for a config.json, a
preset or a shape given by hand, from the architecture's table.  Nothing is read or allocated.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmconv.convert import archs
from llmconv.convert.quantizing.plan import Recipe, make_plan
from llmconv.convert.reports.shape import Shape, shape_of
from llmconv.convert.reports.training_memory import TrainingMemory, training_memory
from llmconv.convert.tables import own_keys
from llmconv.convert.translate import translate
from llmconv.convert.writing.cast import Rounding, cast
from llmconv.errors import LlmconvError
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.tensor import Tensor
from llmconv.quant import by_name, plain, types
from llmconv.quant.block import BlockType
from llmconv.quant.filetypes import file_type
from llmconv.quant.mixes import FALLBACK
from llmconv.show import Shown

__all__ = ["PARTS", "Shape", "SizeReport", "TrainingMemory", "shape_of", "size_report", "training_memory"]

# Part -> the canonical tensor names that belong to it; the first match counts.
PARTS: dict[str, str] = {
    "embedding": r"(token_embd|position_embd|token_types|token_embd_norm)\.",
    "attention q/k/v": r"blk\.\d+\.(attn_(q|k|v|qkv)(_a|_b|_a_mqa)?|attn_kv_.*|attn_k_b|attn_v_b)\.",
    "attention output": r"blk\.\d+\.attn_(output|sinks)\.",
    "scan": r"blk\.\d+\.(ssm_(?!.*norm)|shortconv\.|attn_gate\.|time_mix_(?!ln)).*",
    "ffn": r"blk\.\d+\.(ffn_(?!norm|.*_norm)|channel_mix_|exp_probs_b).*",
    "norms": r".*norm.*",
    "head": r"output\.",
}
JSON_BYTES = 1_167_516 / 36_496
"""Bytes per number of legacy JSON, as measured on a model saved with an indent of 2 (20.7 without the indentation)."""
QUANTIZED = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M")
"""File types whose files a report foretells."""

_PARTS = {part: re.compile(pattern) for part, pattern in PARTS.items()}


def _elements(shapes: Iterable[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _bytes_at(shape: Shape, kind: type[BlockType]) -> int:
    """Bytes of all weights with matrices stored as `kind`; vectors stay F32, rows that are not whole blocks take the
    type that stands in for it when quantizing."""
    total = 0
    for dims in shape.tensors.values():
        row = dims[-1] if dims else 1
        own = _that_fits(kind, row) if len(dims) > 1 else plain.F32
        total += math.prod(dims[:-1]) * own.row_bytes(row)
    return total


def _that_fits(kind: type[BlockType], row: int) -> type[BlockType]:
    for name in (kind.name, FALLBACK.get(kind.name, kind.name)):
        if row % by_name(name).block_size == 0:
            return by_name(name)
    return plain.F16


def _int8_bytes(shape: Shape) -> int:
    """INT8 with one float32 scale per output row; vectors F32."""
    return sum(
        math.prod(dims) + 4 * math.prod(dims[:-1]) if len(dims) > 1 else 4 * math.prod(dims)
        for dims in shape.tensors.values()
    )


@dataclass(frozen=True)
class SizeReport(Shown):
    """What `llmconv size` says of one model; bytes and counts, all whole numbers.

    parameters: the total; a tied head counts once.  parts: by part, see `PARTS`; "other" for the rest, "tower" for what
        a multimodal folder has beside its text model, of which all other figures but `files` are.
    per_layer: parameters of the first block, by part and in total.
    flops_per_token: multiply-adds counted as two, forward, over the matrices only; with attention over `context`.
    active: parameters used for one token (less than the total with experts).
    weights: bytes of all weights by type name, every matrix in that type or what stands in for it.
    files: file sizes by format and type: JSON estimated, safetensors (model.safetensors of a folder) and GGUF exact.
    kv_per_token, kv_cache: bytes of the KV cache in F16, for a token and at `context`.
    states: bytes of what convolutions and scans keep of a text, however long, in F32.
    inference: bytes to run at each type with the cache at `context` and the states.
    """

    name: str
    arch: str
    parameters: int
    active: int
    parts: dict[str, int]
    per_layer: dict[str, int]
    tied: bool
    n_layer: int
    context: int
    flops_per_token: int
    weights: dict[str, int]
    files: dict[str, int]
    kv_per_token: int
    kv_cache: int
    states: int
    inference: dict[str, int]
    training: TrainingMemory

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the total of the training memory."""
        out = super().as_dict()
        out["training"]["total"] = self.training.total
        return out


def _part(name: str) -> str:
    return next((part for part, pattern in _PARTS.items() if pattern.match(name)), "other")


def _by_part(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    found = dict.fromkeys([*PARTS, "other"], 0)
    for name, dims in tensors.items():
        found[_part(name)] += math.prod(dims)
    if not found["other"]:
        del found["other"]
    return found


def _active(shape: Shape) -> int:
    """Parameters that one token meets: of the experts, only those it is sent to."""
    used, experts = shape.dim("n_expert_used"), shape.dim("n_expert")
    total = 0
    for name, dims in shape.tensors.items():
        n = math.prod(dims)
        total += n * used // experts if experts and re.search(r"_exps\.", name) else n
    return total


def _attending(shape: Shape) -> int:
    """How many layers keep keys and values: all, but those with a scan, a convolution or nothing instead."""
    if not _kept(shape):
        return shape.dim("n_layer")
    pattern = re.compile(r"blk\.\d+\.attn_(k|kv_a_mqa)\.weight")
    return sum(pattern.fullmatch(name) is not None for name in shape.tensors)


_STATE = re.compile(
    r"blk\.\d+\.(ssm_conv1d(?:_[qkv])?|shortconv\.conv|ssm_a|time_mix_output|channel_mix_key|attn_norm_2)"
    r"(?:\.weight)?$"
)


def _kept(shape: Shape) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors, of whatever layer, that say what convolutions and scans keep; their shapes."""
    found = ((_STATE.match(name), dims) for name, dims in shape.tensors.items())
    table = archs.by_gguf(shape.arch)
    lightning = table is not None and "lightning" in (table.decoder or {})
    return [(match[1], dims) for match, dims in found if match and (lightning or match[1] != "attn_norm_2")]


def _states(shape: Shape) -> int:
    """F32 bytes of the ends of convolutions' inputs and of scans' states, all layers."""
    numbers = 0
    for name, dims in _kept(shape):
        if name == "ssm_a":
            numbers += max(shape.dim("d_inner") * shape.dim("d_state"), math.prod(dims) * shape.dim("kda_dim") ** 2)
        elif name == "time_mix_output":  # RWKV's state, and the token before
            numbers += dims[-1] * shape.dim("n_wkv") + dims[0]
        elif name == "channel_mix_key":
            numbers += dims[-1]
        elif name == "attn_norm_2":  # lightning attention's
            numbers += dims[-1] * shape.dim("head_dim")
        else:
            numbers += math.prod(dims[:-1]) * (dims[-1] - 1)
    return 4 * numbers


def _kv_per_token(shape: Shape) -> int:
    """F16 bytes of keys and values per token, all layers; of the latent with MLA."""
    loops = shape.metadata.get(f"{shape.arch}.num_loops", 1)  # each going has keys and values of its own
    layers = _attending(shape) * (int(loops) if hasattr(loops, "__index__") else 1)
    if shape.dim("kv_lora"):
        return 2 * layers * (shape.dim("kv_lora") + shape.dim("n_rot"))
    return 2 * layers * shape.dim("n_head_kv") * (shape.dim("head_dim") + shape.dim("head_dim_v"))


def _as_checkpoint(shape: Shape, kind: type[BlockType] | None) -> Checkpoint:
    """The model as a checkpoint whose tensors have sizes but no data: what a writer needs to plan a file.

    kind: the type of its tensors; None: as they are stored.
    """
    keys = {key: value for key, value in shape.metadata.items() if not key.startswith(own_keys.EXACT)}  # bytes
    out = Checkpoint(metadata=keys, dialect="gguf", format=shape.source.format if shape.source else "")
    for name, dims in shape.tensors.items():
        out.add(Tensor.shadow(name, dims, kind or shape.stored[name]))
    return out


def _gguf_sizes(shape: Shape) -> dict[str, int]:
    """Exact sizes of GGUFs by type: cast as `convert --outtype` does, quantized as `quantize` plans it."""
    from llmconv.formats.gguf import gguf_file

    wide = _as_checkpoint(shape, plain.F32)
    floats = {kind: cast(wide, kind.lower(), Rounding(), to="gguf") for kind in ("F32", "F16")}
    found = {f"gguf {kind}": gguf_file.planned_size(made) for kind, made in floats.items()}
    source = floats["F16"]
    if shape.stored:
        source = _as_checkpoint(shape, None)
        for tensor in list(source.tensors.values()):
            if tensor.type is plain.F64 and source.format != "gguf":  # as quantizing reads it
                source.add(tensor.astype(plain.F32))
    for name in QUANTIZED:
        try:
            plan = make_plan(source, file_type(name), Path("model.gguf"), Recipe(allow_requantize=True))
        except LlmconvError:  # nothing stands in for that type in this model
            continue
        found[f"gguf {name}"] = plan.size
    if shape.stored and all(t.ggml_id is not None for t in shape.stored.values()):
        found["gguf as stored"] = gguf_file.planned_size(_as_checkpoint(shape, None))
    return found


def _as_safetensors(shape: Shape, kind: str) -> Checkpoint:
    """The same under Hugging Face's names, where its table has them, or its own."""
    made = shape.source or _as_checkpoint(shape, plain.F32)
    if made.dialect not in ("hf", "plain"):
        with contextlib.suppress(LlmconvError):
            made = translate(made, "hf")
    return cast(made, kind.lower(), Rounding(), to="hf")


def size_report(
    shape: Shape, *, context: int = 0, batch: int = 1, devices: int = 1, json_bytes_per_number: float = JSON_BYTES
) -> SizeReport:
    """All figures of one model.

    context: for the KV cache and attention's FLOPs (default: the model's own, at most 4096).
    batch, devices: for the training figures.
    json_bytes_per_number: for the estimate of a JSON file.
    """
    from llmconv.formats import safetensors_file
    from llmconv.formats.gguf import gguf_file

    parameters = _elements(shape.tensors.values())
    active = _active(shape)
    context = context or min(shape.dim("n_ctx") or 1024, 4096)
    blocks = {n: d for n, d in shape.tensors.items() if n.startswith("blk.0.")}
    per_layer = {part: n for part, n in _by_part(blocks).items() if n}
    per_layer["total"] = _elements(blocks.values())
    embedding = math.prod(shape.tensors.get("token_embd.weight", (0,)))
    looked_up = _by_part(shape.tensors)["embedding"]
    matmul = active - looked_up + (embedding if shape.tied else 0)
    attention = 2 * 2 * _attending(shape) * shape.dim("n_head") * shape.dim("head_dim") * context
    kinds = [t for t in types() if t.is_float and t.ggml_id is not None]
    bits = {t.name: 8 * t.row_bytes(t.block_size) / t.block_size for t in kinds} | {"INT8": 8.0}
    weights = {t.name: _bytes_at(shape, t) for t in kinds} | {"INT8": _int8_bytes(shape)}
    weights = dict(sorted(weights.items(), key=lambda item: -bits[item[0]]))
    kv, states = _kv_per_token(shape), _states(shape)
    files = {"json": round(json_bytes_per_number * parameters)}
    for kind in ("F32", "F16"):
        files[f"safetensors {kind}"] = safetensors_file.planned_size(_as_safetensors(shape, kind))
    files |= _gguf_sizes(shape)
    parts = _by_part(shape.tensors)
    if shape.tower is not None:
        parts["tower"] = shape.tower.n_elements
        for kind in ("F32", "F16"):
            made = cast(shape.tower, kind.lower(), Rounding(allow_overflow=True), to="gguf")
            files[f"mmproj {kind}"] = gguf_file.planned_size(made)
    main = ("F32", "F16", "INT8", "Q8_0", "Q6_K", "Q4_K", "Q4_0")
    return SizeReport(
        name=shape.name,
        arch=shape.arch,
        parameters=sum(parts.values()),
        active=active,
        parts=parts,
        per_layer=per_layer,
        tied=shape.tied,
        n_layer=shape.dim("n_layer"),
        context=context,
        flops_per_token=2 * matmul + attention,
        weights=weights,
        files=files,
        kv_per_token=kv,
        kv_cache=kv * context,
        states=states,
        inference={kind: weights[kind] + kv * context + states for kind in main if kind in weights},
        training=training_memory(shape, batch=batch, devices=devices, context=context),
    )
