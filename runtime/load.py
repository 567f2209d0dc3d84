"""From a file to a model on a device: `load(path)`.

A tensor goes from the file to where it will live in slabs, with no second copy in host memory: straight into its
storage on the CPU, through one pinned slab to a GPU.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from llmconv import formats as _formats
from llmconv.convert import archs
from llmconv.convert.decoders.describe import describe
from llmconv.convert.decoders.facts import Decoder
from llmconv.convert.decoders.side import alone
from llmconv.convert.decoders.unread import unread
from llmconv.convert.dialects.carried import with_kept
from llmconv.convert.dialects.hugging_face.beyond import of_others, otherwise_in_llama_cpp
from llmconv.convert.dialects.ones import with_ones
from llmconv.convert.dialects.scales import folded, scales_of
from llmconv.convert.reports.streaming import Sizes, plan_streaming
from llmconv.convert.translate import translate
from llmconv.convert.writing.adapters import check_model
from llmconv.errors import BadFile, BadWeight, LlmconvError, UsageError, about, cut
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.sharing.team import current
from llmconv.formats.tensor import Tensor
from llmconv.quant import gpu, integer_products, warm
from llmconv.quant.block import BlockType
from llmconv.runtime.layers.recurrent import RecurrentModel
from llmconv.runtime.linear import Stored
from llmconv.runtime.model import Model
from llmconv.runtime.pieces import TABLES
from llmconv.runtime.products import ACTIVATIONS
from llmconv.runtime.reading import PLAIN, put, read_tensor, slots_of, tensor_of
from llmconv.runtime.streamed.memory import Memory, limit
from llmconv.runtime.streamed.weights import Weights

__all__ = ["DTYPES", "build", "load", "pick_device", "pick_dtype", "runs_finite"]

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
}


def pick_device(device: str | torch.device = "auto") -> torch.device:
    """The device to run on; "auto": CUDA, of several processes each another one, else MPS, else the CPU.

    `UsageError` when it is not there.
    """
    if str(device) == "auto":
        if torch.cuda.is_available():
            own = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
            return torch.device("cuda") if current() is None else torch.device("cuda", own)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UsageError(f"unknown device {device!r}; give auto, cpu, cuda, cuda:N or mps") from None
    counts = {
        "cpu": 1,
        "meta": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }
    if (found.index or 0) >= counts.get(found.type, 0):
        here = ", ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in counts.items() if n and kind != "meta")
        raise UsageError(f"there is no device {str(found)!r} on this machine; here: {here}")
    return found


def pick_dtype(dtype: str | torch.dtype, device: torch.device, checkpoint: Checkpoint) -> torch.dtype | None:
    """What to compute in; None stands for "auto" on the CPU: float32 over weights that stay as they are stored."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}; give auto, {', '.join(DTYPES)}")
        if dtype == "f64" and device.type == "mps":
            raise UsageError("MPS devices have no float64; use --device cpu")
        return DTYPES[dtype]
    if device.type in ("cpu", "meta"):
        return None
    wide = {t.type.name for t in checkpoint.tensors.values() if len(t.shape) > 1}
    if wide <= {"F32", "F64"}:
        return torch.float32
    if "F16" in wide and "BF16" not in wide:
        return torch.float16
    return torch.bfloat16 if _has_bfloat16(device) else torch.float16


def _has_bfloat16(device: torch.device) -> bool:
    return device.type != "cuda" or torch.cuda.is_bf16_supported()


def load(
    path: str | os.PathLike[str] | Checkpoint,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: str = "float",
    memory: Memory = None,
) -> Model:
    """A model from any file or folder that llmconv opens, ready to run; in `eval()` mode.

    path: legacy JSON, MessagePack, safetensors (file or folder), GGUF, or an opened `Checkpoint`.
    device: "auto", "cpu", "cuda", "cuda:1", "mps".
    dtype: what it computes in: "f64", "f32", "bf16", "f16"; float weights are converted to it.  "auto": float32 on the
        CPU over weights as stored, their own kind on a GPU; not float16 where it can't hold the model's weights or
        what a few tokens give inside (a note then says what it is).  Quantized weights stay quantized whatever it is.
    activations: what quantized weights are multiplied with.  "float": the numbers themselves.  "int8": rounded to bytes
        as llama.cpp does on a CPU, which is faster and brings figures closer to its own; on the CPU only, for the types
        in `llmconv.quant.integer_products.TYPES` (others, and float weights, are multiplied with floats).
    memory: bytes that the weights may take, as a number or like "2G".  Of a model that needs more, the layers are read
        from the file as they are used, each time: what runs many tokens at once, as `perplexity` does, then reads the
        file once.  None: all weights are in memory.

    The model's `notes` say what was decided for it and should be known.

    Raises `BadFile` for broken or contradictory files, `Unsupported` for models that have no decoder here, `BadWeight`
    for a weight that `dtype` can't hold, `UsageError` for a device that is not there or has no room.
    """
    checkpoint = path if isinstance(path, Checkpoint) else _formats.open(path)
    check_model(checkpoint)
    otherwise = otherwise_in_llama_cpp(checkpoint, of_others(checkpoint)) if checkpoint.dialect == "gguf" else []
    checkpoint = with_ones(with_kept(_with_scales(translate(checkpoint, "gguf"))))
    where = pick_device(device)
    kind = pick_dtype(dtype, where, checkpoint)
    _check_activations(activations, where, kind)
    most = None if memory is None else limit(memory, where)
    if dtype == "auto" and kind == torch.float16:
        model = _in_float16(checkpoint, where, most)
    else:
        model = build(checkpoint, where, kind, most)
    takers = [m for m in model.modules() if isinstance(m, Stored)]
    for module in takers:
        module.activations = activations
    if activations == "int8" and not any(m.block_type and m.block_type.name in integer_products.TYPES for m in takers):
        model.notes.append(f"{model.where}: has no weights that rounded activations are for, so they change nothing")
    model.notes += [f"{model.where}: {note}" for note in otherwise]
    return model.eval()


def _with_scales(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with per-tensor scales multiplied into their weights, which are decoded for it."""
    arch = archs.by_gguf(str(checkpoint.metadata.get("general.architecture")))
    own = arch.scales if arch else ()
    scales = scales_of(checkpoint.tensors, own)
    tensors = folded(checkpoint.tensors, str(checkpoint.where), own) if scales else checkpoint.tensors
    kept = {n: t for n, t in tensors.items() if n not in scales and not n.endswith(".input_scale")}
    return checkpoint if len(kept) == len(checkpoint.tensors) else checkpoint.but(tensors=kept)


def _in_float16(checkpoint: Checkpoint, device: torch.device, memory: int | None = None) -> Model:
    """The model in float16 if that holds its weights and what it computes, else in bfloat16 or float32, with a note."""
    try:
        if describe(checkpoint).passes_float16:
            raise _Overflow("models of its family pass float16's 65504 inside")
        model = build(checkpoint, device, torch.float16, memory)
        if not runs_finite(model):
            raise _Overflow("it passes float16's 65504 inside")
    except (BadWeight, _Overflow) as error:
        why = str(error) if isinstance(error, _Overflow) else f"tensor {cut(error.tensor)} passes float16's 65504"
    else:
        return model
    wider = torch.bfloat16 if _has_bfloat16(device) else torch.float32
    model = build(checkpoint, device, wider, memory)
    model.notes.append(f"{model.where}: computed in {str(wider).removeprefix('torch.')}, because {why}")
    return model


class _Overflow(Exception):
    """float16 is too narrow for a model; says why."""


@torch.inference_mode()
def runs_finite(model: Model, count: int = 32) -> bool:
    """Whether the model computes finite numbers for `count` tokens from all over its vocabulary: a quick probe."""
    size = model.decoder.vocab_size
    count = min(count, size, model.most_tokens or count)
    tokens = torch.arange(count, device=model.device) * (size // count)
    run = model.hidden if model.decoder.headless else model
    return bool(run(tokens[None]).isfinite().all())


def _check_activations(activations: str, device: torch.device, dtype: torch.dtype | None) -> None:
    if activations not in ACTIVATIONS:
        raise UsageError(f"unknown activations {activations!r}; give {' or '.join(ACTIVATIONS)}")
    if activations == "int8" and device.type not in ("cpu", "meta"):
        raise UsageError(f"int8 activations are for the CPU, not {str(device)!r}; use --device cpu, or float")
    if activations == "int8" and dtype == torch.float64:
        raise UsageError("int8 activations are rounded from float32, not f64; leave one of the two out")


def build(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None, memory: int | None = None) -> Model:
    """A model over a checkpoint in GGUF's dialect; see `pick_dtype` for `dtype` None, `load` for `memory`."""
    checkpoint = alone(checkpoint)
    decoder = describe(checkpoint)
    _check_tables(checkpoint, decoder)
    types = _storage(checkpoint, device, dtype)
    if device.type == "cpu":
        stored_types = {kind for kind in types.values() if not isinstance(kind, torch.dtype) and not kind.is_plain()}
        warm.prepare(warm.decoding(kind) for kind in stored_types)
    stored = {name: _nbytes(tensor, types[name]) for name, tensor in checkpoint.tensors.items()}
    needed = sum(stored.values())
    sizes = Sizes({n: t.shape for n, t in checkpoint.tensors.items()}, stored, (dtype or torch.float32).itemsize)
    try:
        with torch.device("meta"):
            made = Model if decoder.recurrent is None else RecurrentModel
            model = made(decoder, types, dtype or torch.float32)
        with about(checkpoint.source):
            if memory is None or (plan := plan_streaming(sizes, memory)).resident:
                _fill(model, checkpoint, device)
            else:
                model.home, model.wants = device, Weights(model, checkpoint.tensors, device, sizes, plan)
    except (torch.OutOfMemoryError, MemoryError):
        raise _no_room(device, needed) from None
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise _no_room(device, needed) from None
    model.metadata = dict(checkpoint.metadata)
    model.tokenizer = _tokenizer(checkpoint)
    model.where = checkpoint.where
    model.notes += [f"{model.where}: {note}" for note in unread(decoder, checkpoint.metadata)]
    return model


def _check_tables(checkpoint: Checkpoint, decoder: Decoder) -> None:
    """Experts that a table gives to each word (DeepSeek V4) are some that there are."""
    for i, layer in enumerate(decoder.layers):
        experts = layer.mlp and layer.mlp.experts
        if experts and experts.told:
            name = f"blk.{i}.{TABLES[0]}.weight"
            found = checkpoint.tensors[name].numpy()
            if found.min() < 0 or found.max() >= experts.count:
                worst = found.min() if found.min() < 0 else found.max()
                raise BadFile(
                    f"{checkpoint.where}: tensor {name!r} sends a word to expert {worst}, but there are "
                    f"{experts.count}, counted from 0; convert the original again"
                )


def _no_room(device: torch.device, needed: int) -> LlmconvError:
    free = f" and has {torch.cuda.mem_get_info(device)[0]:,} free" if device.type == "cuda" else ""
    return UsageError(
        f"device {str(device)!r} is out of memory: the weights need {needed:,} bytes{free}; quantize the model or use "
        "another device"
    )


def _storage(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None
) -> dict[str, type[BlockType] | torch.dtype]:
    """How each tensor will be kept: its blocks, or numbers of a dtype.  Says which types are decoded at load."""
    out: dict[str, type[BlockType] | torch.dtype] = {}
    decoded = set()
    for name, tensor in checkpoint.tensors.items():
        own = PLAIN.get(tensor.type.name)
        if len(tensor.shape) < 2:  # norms and biases: their few numbers stay exact
            out[name] = torch.float64 if dtype == torch.float64 else torch.float32
        elif own is not None or tensor.type.is_plain():
            out[name] = dtype or (torch.float32 if own in (None, torch.float64) else own)
        elif device.type in ("cpu", "meta") or tensor.type.name in gpu.DECODERS:
            out[name] = tensor.type
        else:
            decoded.add(tensor.type.name)
            out[name] = dtype or torch.bfloat16
    if decoded:
        names = ", ".join(sorted(decoded))
        warnings.warn(f"{names} weights are decoded at load: {device.type} has no kernel for them", stacklevel=4)
    return out


def _nbytes(tensor: Tensor, stored: type[BlockType] | torch.dtype) -> int:
    return tensor.n_elements * stored.itemsize if isinstance(stored, torch.dtype) else tensor.nbytes


def _fill(model: Model, checkpoint: Checkpoint, device: torch.device) -> None:
    """Give every parameter and buffer its storage on `device` and its values."""
    for name, (module, part) in slots_of(model).items():
        old = getattr(module, part)
        tensor = tensor_of(checkpoint.tensors, name)
        put(module, part, read_tensor(tensor, old.shape, old.dtype, device))


def _tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's tokenizer, or None when it has none; of two models that are compared only one tokenizes."""
    from llmconv.convert import vocab

    found = vocab.of(checkpoint)
    return None if found is None else vocab.tokenizer(found, at_once=False)
