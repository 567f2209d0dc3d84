"""File types: the names under which people ask for a quantized model (Q4_K_M, IQ2_XS, MXFP4_MOE, ...).

A file type is a default block type plus rules (`recipe.py`) that give some tensors another one.  GGUF records its
number under `general.file_type`.  Numbers, names and default types: llama.cpp's `llama_ftype` (include/llama.h).
"""

from __future__ import annotations

from dataclasses import dataclass

from llmconv.errors import UnknownName
from llmconv.quant import block

__all__ = [
    *("ALIASES", "COPY", "FILE_TYPES", "GUESSED", "QUANTIZATION_VERSION", "REPACK"),
    *("FOLDERS", "INT8", "INTEGERS", "MLX", "MLX_MXFP4", "NO_FILE_TYPES", "REPACKS"),
    *("FileType", "file_type", "guessed_number", "number_of"),
]

QUANTIZATION_VERSION = 2
"""ggml's GGML_QNT_VERSION, the layout of the block types: `general.quantization_version`."""


@dataclass(frozen=True, slots=True)
class FileType:
    """name: as users write it.  number: `general.file_type`.  default: the block type of most tensors."""

    name: str
    number: int
    default: str
    note: str = ""


_TABLE = [
    FileType("F32", 0, "F32", "as it was, 32 bits a weight"),
    FileType("F16", 1, "F16", "16 bits, range up to 65504"),
    FileType("BF16", 32, "BF16", "16 bits, float32's range"),
    FileType("Q8_0", 7, "Q8_0", "8.5 bits, hardly any loss"),
    FileType("Q6_K", 18, "Q6_K", "6.56 bits, very little loss"),
    FileType("Q5_K_M", 17, "Q5_K", "5.5 bits, some tensors at 6; little loss"),
    FileType("Q5_K_S", 16, "Q5_K", "5.5 bits"),
    FileType("Q5_1", 9, "Q5_1", "6 bits, older method"),
    FileType("Q5_0", 8, "Q5_0", "5.5 bits, older method"),
    FileType("Q4_K_M", 15, "Q4_K", "4.5 bits, some tensors at 6; the usual choice"),
    FileType("Q4_K_S", 14, "Q4_K", "4.5 bits, some tensors at 5"),
    FileType("Q4_1", 3, "Q4_1", "5 bits, older method"),
    FileType("Q4_0", 2, "Q4_0", "4.5 bits, older method, fast everywhere"),
    FileType("IQ4_NL", 25, "IQ4_NL", "4.5 bits, non-linear levels"),
    FileType("IQ4_XS", 30, "IQ4_XS", "4.25 bits, non-linear levels"),
    FileType("MXFP4_MOE", 38, "MXFP4", "experts in MXFP4, the rest in Q8_0"),
    FileType("Q3_K_L", 13, "Q3_K", "3.44 bits, many tensors at 5"),
    FileType("Q3_K_M", 12, "Q3_K", "3.44 bits, many tensors at 4 or 5"),
    FileType("Q3_K_S", 11, "Q3_K", "3.44 bits"),
    FileType("IQ3_M", 27, "IQ3_S", "3.44 bits, some tensors at 4"),
    FileType("IQ3_S", 26, "IQ3_S", "3.44 bits"),
    FileType("IQ3_XS", 22, "IQ3_S", "3.3 bits; needs an importance matrix"),
    FileType("IQ3_XXS", 23, "IQ3_XXS", "3.06 bits; needs an importance matrix"),
    FileType("Q2_K", 10, "Q2_K", "2.63 bits, many tensors at 3 or 4"),
    FileType("Q2_K_S", 21, "Q2_K", "2.63 bits; needs an importance matrix"),
    FileType("IQ2_M", 29, "IQ2_S", "2.7 bits; needs an importance matrix"),
    FileType("IQ2_S", 28, "IQ2_XS", "2.5 bits; needs an importance matrix"),
    FileType("IQ2_XS", 20, "IQ2_XS", "2.31 bits; needs an importance matrix"),
    FileType("IQ2_XXS", 19, "IQ2_XXS", "2.06 bits; needs an importance matrix"),
    FileType("IQ1_M", 31, "IQ1_M", "1.75 bits; needs an importance matrix"),
    FileType("IQ1_S", 24, "IQ1_S", "1.56 bits; needs an importance matrix"),
    FileType("TQ2_0", 37, "TQ2_0", "2.06 bits, for models trained ternary"),
    FileType("TQ1_0", 36, "TQ1_0", "1.69 bits, for models trained ternary"),
    FileType("Q2_0", 41, "Q2_0", "2.25 bits, groups of 64"),
    FileType("Q1_0", 40, "Q1_0", "1.125 bits, groups of 128"),
]
FILE_TYPES: dict[str, FileType] = {t.name: t for t in _TABLE}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
MEANT = {
    "fp32": "F32", "float32": "F32", "f32": "F32", "fp16": "F16", "float16": "F16", "half": "F16", "bfloat16": "BF16",
    "8bit": "Q8_0", "q8": "Q8_0", "6bit": "Q6_K", "q6": "Q6_K", "5bit": "Q5_K_M", "q5": "Q5_K_M", "int5": "Q5_K_M",
    "4bit": "Q4_K_M", "q4": "Q4_K_M", "int4": "Q4_K_M", "nf4": "Q4_K_M", "awq": "Q4_K_M", "gptq": "Q4_K_M",
    "3bit": "Q3_K_M", "q3": "Q3_K_M", "int3": "Q3_K_M", "2bit": "Q2_K", "q2": "Q2_K", "int2": "Q2_K",
}  # fmt: skip
"""What people elsewhere call it -> the file type to suggest."""
REPACK = FileType("REPACK", -1, "", "every tensor in the smallest type that says its numbers exactly")
COPY = FileType("COPY", -1, "", "every tensor as it is; only metadata changes")

INT8, REPACKS = "INT8", ("REPACK", "AUTO")
MLX = {"MLX": 4, "MLX2": 2, "MLX3": 3, "MLX5": 5, "MLX6": 6, "MLX8": 8}
"""Folders of integers for MLX, and to how many bits floats are rounded."""
INTEGERS = ("W4A16", "W4A16_ASYM", *MLX)
"""Folders of integers in groups: see `convert.quantizing.four_bits`."""
MLX_MXFP4 = "MLX_MXFP4"
FOLDERS = (*INTEGERS, MLX_MXFP4, "NVFP4A16", "MXFP4A16", "FP8_DYNAMIC", "FP8_BLOCK")
"""What becomes a model folder besides INT8; of floats of few bits: see `convert.quantizing.float_folders`."""
NO_FILE_TYPES = (INT8, *FOLDERS, *REPACKS)
"""What a model may be quantized to besides the types of GGUF files."""

GUESSED = 1024
"""Bit of `general.file_type` that llama.cpp sets when the number was inferred from the tensors."""

_NUMBER_OF_BLOCK = {"NVFP4": 39, "MXFP4": 38} | {t.name: t.number for t in _TABLE if t.name == t.default}


def number_of(block_type: str) -> int | None:
    """The number that says that most weights are of this block type, as the reference's converter writes it."""
    return _NUMBER_OF_BLOCK.get(block_type)


def guessed_number(block_type: str) -> int:
    """What the reference's loader takes a file for that states no number, by the type of most of its tensors.

    It knows no MXFP4 there (llama_model_loader in src/llama-model-loader.cpp), whose files count as F32.
    """
    by_default = {t.default: t.number for t in _TABLE} | {"Q3_K": 12, "Q4_K": 15, "Q5_K": 17}
    return (by_default | _NUMBER_OF_BLOCK | {"MXFP4": 0}).get(block_type, 0) | GUESSED


def file_type(name: str, pure: bool = False) -> FileType:
    """The file type called `name` (any case, an alias, or its number).

    With `pure` any block type that can be written may be named as well.  `UsageError` names the nearest otherwise.
    """
    key = name.upper()
    if key == "COPY":
        return COPY
    key = ALIASES.get(key, key)
    if pure and key not in FILE_TYPES and key in block.names():
        kind = block.by_name(key)
        if kind.ggml_id is not None and kind.is_float and kind.can_encode():
            # Where the reference has no file type of that name, the number of one that is mostly of this block type.
            number = next((t.number for t in _TABLE if t.default == key), number_of(key) or 0)
            return FileType(key, number, key)
    found = FILE_TYPES.get(key)
    if found is None and name.isdecimal():
        found = next((t for t in _TABLE if t.number == int(name)), None)
    if found is None:
        pure_only = f"--pure takes the block type {key}" if key in block.names() and not pure else ""
        raise UnknownName("file type", name, [*FILE_TYPES, *ALIASES], pure_only, meant=MEANT)
    return found
