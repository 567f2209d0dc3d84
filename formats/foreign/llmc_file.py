"""llm.c's `.bin` of a GPT-2: a header of 256 int32, then all tensors in a fixed order, float32 or bfloat16.

Source: karpathy/llm.c, `train_gpt2.py` (`write_model`) and `train_gpt2.c`.  Versions 1 and 3 are float32, 2 and 5
bfloat16; from 3 on the embedding has rows of padding behind the vocabulary, which are left out.  Tensors get nanoGPT's
names, a layer each.  Read only.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.formats.foreign.mappings import REST
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.quant import plain

NAME = "llmc"

_MAGIC, _HEADER = 20240326, 1024
_TYPES = {1: plain.F32, 2: plain.BF16, 3: plain.F32, 5: plain.BF16}
_FIELDS = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")


def sniff(path: Path, head: bytes) -> bool:
    return not path.is_dir() and len(head) >= _HEADER and struct.unpack_from("<i", head)[0] == _MAGIC


def open(path: Path) -> Checkpoint:
    """The tensors, and the sizes as a training program's configuration; `BadFile` for a file of another length."""
    with open_regular(path) as file:
        head = file.read(_HEADER)
    version, *numbers, padded = struct.unpack_from("<7i", head, 4)
    if version not in _TYPES:
        known = ", ".join(map(str, _TYPES))
        raise Unsupported(f"{at(path)}: is of llm.c's version {version}, expected {known}; write it with train_gpt2.py")
    sizes = dict(zip(_FIELDS, numbers, strict=True))
    rows = padded if version > 2 else sizes["vocab_size"]
    if not all(0 < n < 1 << 24 for n in numbers) or sizes["n_layer"] > 1 << 12 or rows < sizes["vocab_size"]:
        raise BadFile(f"{at(path)}: has impossible sizes in its header ({sizes}); fetch it again")
    source, offset, kind = Source.of(path), _HEADER, _TYPES[version]
    out = Checkpoint(format=NAME, source=path, dialect="plain", parts=[path], info={"version": version})
    for name, layers, shape in _tensors(sizes, rows):
        size = math.prod(shape) * kind.layout.itemsize
        for i in range(layers or 1):
            kept = (sizes["vocab_size"], *shape[1:]) if shape[0] == rows and name.endswith("wte.weight") else shape
            if offset + size <= source.size:
                out.add(source.tensor(name.replace("{i}", str(i)), kept, kind, offset))
            offset += size
    if offset != source.size:
        raise BadFile(f"{at(path)}: is {source.size:,} bytes, expected {offset:,} by its header; fetch it again")
    out.metadata[REST] = json.dumps({"model_args": {**sizes, "activation": "gelu_tanh"}})
    if rows > sizes["vocab_size"]:
        out.notes.append(f"{rows - sizes['vocab_size']} rows of padding behind the embedding are left out")
    return out


def _tensors(sizes: dict[str, int], rows: int) -> list[tuple[str, int, tuple[int, ...]]]:
    """(name, layers that follow each other, shape of one) in the order of the file."""
    n, layers = sizes["n_embd"], sizes["n_layer"]
    linear = {"attn.c_attn": (3 * n, n), "attn.c_proj": (n, n), "mlp.c_fc": (4 * n, n), "mlp.c_proj": (n, 4 * n)}
    blocks: list[tuple[str, tuple[int, ...]]] = []
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        shape = linear.get(part, (n,))
        blocks += [(f"transformer.h.{{i}}.{part}.weight", shape), (f"transformer.h.{{i}}.{part}.bias", shape[:1])]
    return [
        ("transformer.wte.weight", 0, (rows, n)),
        ("transformer.wpe.weight", 0, (sizes["block_size"], n)),
        *((name, layers, shape) for name, shape in blocks),
        ("transformer.ln_f.weight", 0, (n,)),
        ("transformer.ln_f.bias", 0, (n,)),
    ]


FORMAT = Format(name=NAME, dialect="plain", sniff=sniff, open=open)
