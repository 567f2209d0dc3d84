"""The files of a model folder: those of the vocabulary, those that were kept, and a config.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert import vocab
from llmconv.convert.dialects import carried
from llmconv.convert.tables.architecture import Architecture
from llmconv.convert.tables.config import usable
from llmconv.convert.tables.rows import flag_of
from llmconv.errors import Unsupported
from llmconv.formats.checkpoint import Checkpoint

__all__ = ["folder_files"]


def folder_files(
    arch: Architecture,
    checkpoint: Checkpoint,
    dims: Mapping[str, Any],
    present: set[tuple[tuple[str, ...], str]],
    out: Checkpoint,
    notes: list[str],
) -> Iterator[tuple[str, bytes]]:
    """The model folder's files: the vocabulary's, then those that were kept, and a config.json."""
    files = carried.kept_files(checkpoint.metadata)
    found = vocab.from_gguf(checkpoint.metadata)
    if found is not None:
        found.tokens = list(found.tokens)  # a GGUF's are made anew each time that they are asked for
        try:
            yield from vocab.to_files(found).items()
            notes += [*found.notes, *found.twice()]
        except Unsupported as error:
            notes.append(f"no tokenizer files are written, the vocabulary's keys are kept as they are: {error}")
    elif dims["n_vocab"]:
        notes.append("no tokenizer files are written: the GGUF holds no tokens")
    if "config.json" not in files and not arch.unsaid:
        files["config.json"] = _rebuilt(arch, checkpoint, dims, present, out)
    yield from files.items()


def _rebuilt(
    arch: Architecture,
    checkpoint: Checkpoint,
    dims: Mapping[str, Any],
    present: set[tuple[tuple[str, ...], str]],
    out: Checkpoint,
) -> bytes:
    """A config.json for a GGUF that was not made from one by us."""
    sized = {f"{arch.gguf}.vocab_size": np.uint32(dims["n_vocab"])} | dict(checkpoint.metadata)
    config = arch.config(sized, checkpoint.tensors)
    config["vocab_size"] = dims["n_vocab"]
    config["tie_word_embeddings"] = "output.weight" not in checkpoint.tensors
    there: dict[str, bool] = {}  # whether any of the rows that a flag stands for is there
    for table_row in arch.rows:
        flag = table_row.optional
        if isinstance(flag, str) and not flag.endswith("tie_word_embeddings"):
            there[flag] = there.get(flag, False) or (table_row.gguf, table_row.when) in present
    config |= {(found := flag_of(text)).setting: found.there == yes for text, yes in there.items()}
    for made in arch.made:
        if made.gguf in checkpoint.tensors:
            with usable(config, f"{checkpoint.where}: tensor {made.gguf!r}"):
                made.read(checkpoint.tensors[made.gguf].numpy(), config)
    sizes: Counter[str] = Counter()
    for tensor in out.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes
    torch_names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    config["torch_dtype"] = torch_names.get(sizes.most_common(1)[0][0] if sizes else "F32", "float32")
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        value = checkpoint.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if value is not None or f"{name}_token_id" not in config:
            config[f"{name}_token_id"] = None if value is None else int(value)
    return json.dumps(arch.nested(config), indent=2).encode() + b"\n"
