"""llama2.c's `.bin`: a header of 7 int32 (version 0) or 256 bytes (version 1), then float32 tensors in a fixed order.

Source: karpathy/llama2.c, `run.c` (`Config`, `memory_map_weights`) and `export.py`.  Tensors bear the names of run.c's
`TransformerWeights`, one for all layers; the header is the metadata.  The tokenizer file beside it (`tok512.bin`,
`tokenizer.bin`) is a side file.  Read only.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path

from llmconv.errors import BadFile, Unsupported, at
from llmconv.formats import limits
from llmconv.formats.checkpoint import Checkpoint
from llmconv.formats.files import open_regular
from llmconv.formats.format import Format
from llmconv.formats.source import Source
from llmconv.quant import plain

NAME = "llama2c"

_FIELDS = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
_MAGIC = 0x616B3432  # "ak42"
_HEADER = 256


def _config(head: bytes) -> tuple[int, dict[str, int], bool] | None:
    """(version, sizes, tied head) by a file's first bytes; None when they are none of llama2.c's."""
    if len(head) < 37:
        return None
    if struct.unpack_from("<I", head)[0] == _MAGIC:
        version = struct.unpack_from("<i", head, 4)[0]
        sizes = dict(zip(_FIELDS, struct.unpack_from("<7i", head, 8), strict=True))
        tied = bool(head[36])
    else:
        version = 0
        sizes = dict(zip(_FIELDS, struct.unpack_from("<7i", head), strict=True))
        tied = sizes["vocab_size"] > 0
        sizes["vocab_size"] = abs(sizes["vocab_size"])
    if not all(0 < n < 1 << 24 for n in sizes.values()) or sizes["n_layers"] > 1 << 12:
        return None
    if sizes["dim"] % sizes["n_heads"] or sizes["n_heads"] % sizes["n_kv_heads"]:
        return None
    return version, sizes, tied


def _tensors(version: int, c: dict[str, int], tied: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file."""
    dim, ff, layers, vocab = c["dim"], c["hidden_dim"], c["n_layers"], c["vocab_size"]
    head = dim // c["n_heads"]
    kv = c["n_kv_heads"] * head
    norms = [("rms_att_weight", (layers, dim)), ("rms_ffn_weight", (layers, dim))]
    final = [("rms_final_weight", (dim,))]
    embedding = [("token_embedding_table", (vocab, dim))]
    attention = [
        ("wq", (layers, dim, dim)),
        ("wk", (layers, kv, dim)),
        ("wv", (layers, kv, dim)),
        ("wo", (layers, dim, dim)),
    ]
    mlp = [("w1", (layers, ff, dim)), ("w2", (layers, dim, ff)), ("w3", (layers, ff, dim))]
    classifier = [] if tied else [("wcls", (vocab, dim))]
    if version == 0:
        rotary = [("freq_cis_real", (c["seq_len"], head // 2)), ("freq_cis_imag", (c["seq_len"], head // 2))]
        return [*embedding, norms[0], *attention, norms[1], *mlp, *final, *rotary, *classifier]
    return [*norms, *final, *embedding, *attention, *mlp, *classifier]


def sniff(path: Path, head: bytes) -> bool:
    """By the header, and for version 0, which has no magic number, by the file's exact size."""
    if path.is_dir() or (found := _config(head)) is None:
        return False
    version, sizes, tied = found
    if struct.unpack_from("<I", head)[0] == _MAGIC:
        return True
    return path.stat().st_size == 28 + 4 * sum(math.prod(shape) for _, shape in _tensors(version, sizes, tied))


def open(path: Path) -> Checkpoint:
    with open_regular(path) as file:
        head = file.read(_HEADER)
    found = _config(head)
    if found is None:
        raise BadFile(f"{at(path)}: has no header of llama2.c, expected seven sizes that fit each other")
    version, sizes, tied = found
    if version not in (0, 1):
        raise Unsupported(f"{at(path)}: is of llama2.c's version {version}; export versions 0 and 1 (float32) are read")
    source, offset = Source.of(path), 28 if version == 0 else _HEADER
    out = Checkpoint(format=NAME, source=path, dialect="llama2c", metadata={**sizes, "shared_classifier": tied})
    out.info["version"] = version
    for name, shape in _tensors(version, sizes, tied):
        tensor = source.tensor(name, shape, plain.F32, offset)
        offset += tensor.nbytes
        out.add(tensor)
    if offset != source.size:
        raise BadFile(f"{at(path)}: is {source.size:,} bytes, expected {offset:,} by its header; fetch it again")
    for name in (f"tok{sizes['vocab_size']}.bin", "tokenizer.bin"):
        beside = path.parent / name
        if beside.is_file() and beside.stat().st_size <= limits.SIDE_FILE_BYTES:
            out.files["tokenizer.bin"] = beside
            break
    return out


FORMAT = Format(name=NAME, dialect="llama2c", sniff=sniff, open=open)
