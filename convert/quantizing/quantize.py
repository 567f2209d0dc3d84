"""Quantize a model: any source straight to quantized GGUFs, in one read, in bounded memory."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmconv.convert.quantizing.plan import Recipe, parse_override
from llmconv.convert.quantizing.quantized import Quantized, QuantizedFile, QuantizedTensor
from llmconv.convert.quantizing.to_gguf import to_gguf
from llmconv.convert.reading import Reading
from llmconv.convert.writing.options import Writing
from llmconv.errors import BadFile, UsageError, at, cut, kind_of
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.formats.limits import in_bytes
from llmconv.formats.places import outbox
from llmconv.formats.writing.checks import check_target
from llmconv.progress import Progress
from llmconv.quant import by_name
from llmconv.quant.filetypes import FOLDERS, INT8, INTEGERS, REPACKS, file_type
from llmconv.quant.recipe import tensor_type_rules

if TYPE_CHECKING:
    from llmconv.convert.quantizing.mix import Wish
    from llmconv.quant.imatrix import Importance

__all__ = ["Quantized", "QuantizedFile", "QuantizedTensor", "quantize"]

StrPath = str | os.PathLike[str]
_MOST_RULES = 16 << 20


def quantize(
    src: StrPath | Checkpoint,
    dst: StrPath | None = None,
    type: str | Sequence[str] = "Q4_K_M",
    *,
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    tensor_type_file: StrPath | None = None,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    leave_output_tensor: bool = False,
    allow_requantize: bool = False,
    imatrix: StrPath | None = None,
    calibration: Any = None,
    target_size: int | str | None = None,
    bpw: float | None = None,
    target_kld: float | None = None,
    types: Sequence[str] = (),
    min_types: Sequence[str] = (),
    save_recipe: StrPath | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    override_kv: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    keep_split: bool = False,
    split_max_size: int | str = 0,
    fallback: str | None = None,
    round_sums: bool = False,
    group_size: int | None = None,
    provenance: bool = False,
    portable: bool = False,
    dry_run: bool = False,
    jobs: int | None = None,
    allow_nonfinite: bool = False,
    resumable: bool = False,
    lora: StrPath | None = None,
    layout: str | None = None,
    config: StrPath | None = None,
    vocab: StrPath | None = None,
    pre: str | None = None,
    strict: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Quantized:
    """Quantize a model of any format to GGUF, as llama-quantize would, byte for byte on the same GGUF.

    src: a GGUF (split or not), a safetensors file or model folder, a legacy JSON or MessagePack file; or a model that
        `llmconv.open` gave or that was made in memory.
    dst: the output; when there are several types a folder (made if its parent is there) or a name with `{type}` in
        it.  By default `NAME-TYPE.gguf` beside the source.  `hf://ORG/NAME[@BRANCH][/FOLDER]` sends the files to a
        repository of the Hub as they are finished, and commits them with a card (see `quantizing.sent`).
    type: a file type (Q4_K_M, Q8_0, ...; see `quant.filetypes`), or several, all made from one read of the source;
        or INT8: a model folder, or a lone `.safetensors`, as compressed-tensors stores it
        (`convert.scaled.compressed_tensors`); or W4A16, W4A16_ASYM, NVFP4A16, MXFP4A16, MLX (MLX2 … MLX8, MLX_MXFP4):
        the same in four bits, or so many, what is in such bits already number for number (`four_bits`,
        `float_folders`); or FP8_DYNAMIC, FP8_BLOCK; or REPACK (AUTO): a GGUF, of a quantized folder every layer in the
        smallest type that says its numbers exactly, its integers and scales carried, and compared after (`repack`).
    pure: no mixing; any block type may then be named as `type`.
    tensor_types: `REGEX=TYPE`, the first that is found in a tensor's name decides its type; tensor_type_file: a file
        of more of them, separated by spaces or lines.
    output_tensor_type, token_embedding_type: block types for `output.weight` and `token_embd.weight`.
    leave_output_tensor: `output.weight` stays as it is.
    allow_requantize: tensors that are quantized already may become another type.
    calibration: `llmconv.OnText("text.txt")`, or what `llmconv.calibrate` made of this model and a text: tensors are
        rounded so that errors cost little there.  Types are those of a run with an importance matrix, the size is the
        same.
    target_size, bpw, target_kld: instead of `type`, a mix that is predicted to lose the least within so many bytes of
        file (or "3.4G") or bits a weight, or the smallest predicted to lose no more nats than that
        (plainly rounded; with a calibration).  What errors cost is taken from `calibration`, from `imatrix`, or from
        the weights alone, worse each time.
    types: what a mix may use; K, legacy and IQ4 types and F16 by default.  min_types: `REGEX=TYPE`, no fewer bits than
        that for tensors that match.  save_recipe: a file to write the mix to, for `tensor_type_file`.
    imatrix: a file of importance weights; include_weights, exclude_weights: parts of names that limit it.
    override_kv: `KEY=TYPE:VALUE`, metadata to set.
    prune_layers: layers to leave out; the others move up.
    keep_split: as many files as the source has.   split_max_size: bytes of tensors in a file at most, 0: all in one.
    fallback: of REPACK, the block type of matrices that would be in F32 (those that no type says exactly).
    round_sums: of REPACK, layers with zero points become Q4_1, smaller than the exact Q5_0: their sums are rounded to
        float16, and a note says how far.
    group_size: of W4A16, W4A16_ASYM and MLX, columns that share a scale: 32, 64 or 128.
    provenance: record the source, its content hash, the type and our version in the metadata (a certificate that
        `verify_provenance` checks); the source is read once more for it.
    portable: with no keys of ours, for publishing; a note says what can't come back.
    dry_run: only plan; nothing is read or written.
    jobs: threads (default: processors).
    allow_nonfinite: NaN and infinities are let through; otherwise they are refused, by tensor and index.
    resumable: an interrupted run leaves `NAME.partial`, and the same call goes on from its last complete tensor; of a
        calibration, what it has found and what is rounded, layer by layer.
    lora, layout, config, vocab, pre, strict: how the source is read, as in `convert_file`.
    force: existing outputs are replaced.
    progress: called with each `Step`; done and total are bytes of the source.

    Raises `UsageError`, `BadFile`, `Unsupported` or `OutputError`; nothing is left behind then.
    """
    if not isinstance(src, str | os.PathLike | Checkpoint):
        raise UsageError(f"quantize takes a path or a Checkpoint, not {kind_of(src)}; llmconv.open(path) gives one")
    recipe = Recipe(
        pure=pure,
        tensor_types=tensor_type_rules([*tensor_types, *_listed(tensor_type_file)]),
        output_type=by_name(output_tensor_type) if output_tensor_type else None,
        embedding_type=by_name(token_embedding_type) if token_embedding_type else None,
        leave_output=leave_output_tensor,
        matrix=_matrix(imatrix, include_weights, exclude_weights),
        matrix_file=os.fsdecode(imatrix) if imatrix is not None else "",
        overrides=[parse_override(text) for text in override_kv],
        prune_layers=tuple(prune_layers),
        keep_split=keep_split,
        split_max_size=in_bytes(split_max_size, "split_max_size"),
        allow_requantize=allow_requantize,
        calibrated=calibration is not None,
    )
    wish = _wish(
        None if target_size is None else in_bytes(target_size, "target_size"), bpw, target_kld, types, min_types
    )
    if save_recipe is not None:
        if wish is None:
            raise UsageError("only a mix has a recipe to save; give --target-size, --bpw or --target-kld")
        check_target(Path(save_recipe), force=force)
    reading = Reading(layout, config, vocab, pre, strict, lora)
    writing = Writing(
        force, jobs, progress, provenance, dry_run, portable=portable, allow_nonfinite=allow_nonfinite,
        resumable=resumable,
    )  # fmt: skip
    if resumable and isinstance(src, Checkpoint):
        raise UsageError("a resumable run recognises its input by its file; give the path instead of an open model")
    wanted = [type] if isinstance(type, str) else list(type)
    if not wanted:
        raise UsageError("no type to quantize to; give one, such as Q4_K_M")
    started = time.monotonic()
    if calibration is not None:
        _check_calibration(recipe, writing, wanted, group_size)
    as_repack = any(name.upper() in REPACKS for name in wanted)
    if as_repack:
        _check_repack(recipe, writing, wanted)
    elif fallback is not None or round_sums:
        flag = "--round-sums" if round_sums else "--fallback"
        raise UsageError(f"{flag} is for what REPACK can't say exactly; give -t REPACK, or leave it out")
    if group_size is not None and (group_size not in (32, 64, 128) or wanted[0].upper() not in INTEGERS):
        raise UsageError(
            f"a group size of {group_size} for {wanted[0]}, expected 32, 64 or 128 for W4A16, W4A16_ASYM or MLX"
        )
    as_folder = any(name.upper() in FOLDERS for name in wanted)
    as_int8 = as_folder or any(name.upper() == INT8 for name in wanted)
    if layout or config or vocab or pre:
        from llmconv.convert.effects import with_effect  # loads every dialect, 0.3 s that most runs save

        src, reading = with_effect(src, "safetensors" if as_int8 else "gguf", reading)
    if keep_split and split_max_size:
        raise UsageError("--keep-split has as many files as the source, --split-max-size as it takes; choose one")
    if split_max_size and (as_int8 or as_repack):
        raise UsageError(f"--split-max-size is for GGUF of chosen types, not {wanted[0].upper()}; leave it out")

    def make(dst: StrPath | None, recipe: Recipe = recipe, writing: Writing = writing) -> Quantized:
        # Of these four most runs need the last one, and import no other.
        if wish is not None:
            from llmconv.convert.quantizing.to_mix import to_mix

            return to_mix(src, dst, reading, recipe, writing, (wish, calibration, save_recipe))
        if as_repack:
            from llmconv.convert.quantizing.to_repacked import to_repacked

            return to_repacked(src, dst, reading, writing, by_name(fallback) if fallback else None, round_sums)
        if as_int8:
            from llmconv.convert.quantizing.to_folder import to_folder

            return to_folder(src, dst, wanted, reading, writing, group_size, calibration)
        chosen = list(dict.fromkeys(file_type(name, pure) for name in wanted))
        return to_gguf(src, dst, chosen, reading, recipe, writing, calibration)

    if outbox.is_hub(dst):
        from llmconv.convert.quantizing.sent import sent

        result = sent(str(dst), make, recipe, writing, whole=as_int8 or as_repack)
    else:
        result = make(dst)
    return dataclasses.replace(result, seconds=time.monotonic() - started)


def _wish(
    size: int | None, bpw: float | None, kld: float | None, types: Sequence[str], least: Sequence[str]
) -> Wish | None:
    """What is wanted of a mix, if one is wanted."""
    if size is None and bpw is None and kld is None:
        if types or least:
            raise UsageError("--types and --min-type are of a mix; give --target-size, --bpw or --target-kld")
        return None
    from llmconv.convert.quantizing.mix import TYPES, Wish

    known = [by_name(name).name for name in types] or TYPES
    return Wish(size, bpw, kld, known, tensor_type_rules(least))


def _check_calibration(recipe: Recipe, writing: Writing, types: Sequence[str], group: int | None) -> None:
    """What does not go with a calibration."""
    from llmconv.convert.quantizing.to_folder import CALIBRATED

    if recipe.matrix is not None:
        raise UsageError("a calibration knows more than an importance matrix; leave --imatrix out")
    if recipe.prune_layers:
        raise UsageError("a model without some of its layers is another than was calibrated; leave --prune-layers out")
    folders = [name.upper() for name in types if name.upper() in (INT8, *FOLDERS)]
    if folders and folders[0] not in CALIBRATED:
        raise UsageError(
            f"{folders[0]} is rounded without a calibration; leave it out, or choose {', '.join(CALIBRATED)} or a type "
            "of GGUFs"
        )
    if writing.provenance:
        raise UsageError("--provenance does not go with a calibration, which decides bytes by more than the source")
    if writing.resumable and folders:
        raise UsageError(f"--resumable is for GGUF, {folders[0]} makes safetensors; leave one of them out")


def _check_repack(recipe: Recipe, writing: Writing, types: Sequence[str]) -> None:
    """What does not go with a repacking, which has no choice."""
    if len(types) > 1:
        raise UsageError("REPACK decides every type itself; make other types in a run of their own")
    given = {
        "--pure": recipe.pure,
        "--tensor-type": recipe.tensor_types,
        "--output-tensor-type": recipe.output_type,
        "--token-embedding-type": recipe.embedding_type,
        "--imatrix": recipe.matrix,
        "--prune-layers": recipe.prune_layers,
        "--keep-split": recipe.keep_split,
        "--calibrate": recipe.calibrated,
        "--override-kv": recipe.overrides,
    }
    for flag, value in given.items():
        if value:
            raise UsageError(f"{flag} does not go with REPACK, which carries numbers as they are; leave it out")


def _matrix(path: StrPath | None, include: Sequence[str], exclude: Sequence[str]) -> Importance | None:
    """The importance matrix, as far as it is to be used."""
    if path is None:
        if include or exclude:
            raise UsageError("--include-weights and --exclude-weights choose from an importance matrix; give --imatrix")
        return None
    from llmconv.convert.quantizing.importance import read_importance

    whole = read_importance(path)
    for flag, parts in (("--include-weights", include), ("--exclude-weights", exclude)):
        for part in parts:
            if not any(part in name for name in whole.entries):
                some = cut(next(iter(whole.entries), ""))
                raise UsageError(f"{flag} {part!r} is in no name of {at(path)}, such as {some}; correct it")
    found = whole.filtered(include, exclude)
    if not found.entries:
        raise UsageError(f"{at(path)}: nothing of it is left by --exclude-weights; leave it out, or --imatrix")
    found.check(at(path))
    return found


def _listed(path: StrPath | None) -> list[str]:
    """The rules in a file, separated by white space."""
    if path is None:
        return []
    with open_regular(Path(path)) as file:
        raw = file.read(_MOST_RULES + 1)
    if len(raw) > _MOST_RULES:
        raise BadFile(f"{at(path)}: is larger than {_MOST_RULES:,} bytes, expected REGEX=TYPE rules")
    try:
        return raw.decode().split()
    except UnicodeDecodeError:
        raise BadFile(f"{at(path)}: is not UTF-8 text, expected REGEX=TYPE rules") from None
