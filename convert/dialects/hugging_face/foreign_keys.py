"""Keys of a GGUF that a model folder has no place for: its author and licence, roles of tokens, anybody's own keys.

They travel in the safetensors metadata, under `llmconv.gguf.metadata`, and go back into a GGUF that is made again.
What config.json or the tokenizer's files say by then wins over them, since those are what people edit: of a
tokenizer's key that the files said otherwise from the start, a hash of what they said shows whether they still do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from llmconv.convert.dialects import carried
from llmconv.convert.dialects.typed_keys import decode_keys, encode_keys
from llmconv.convert.tables import own_keys
from llmconv.convert.vocab.model import same_value
from llmconv.errors import cut
from llmconv.formats.gguf.gguf_values import encode_value

__all__ = ["OF_THE_FILE", "keep", "put_back"]

OF_THE_FILE = {
    "general.architecture",
    "general.type",
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "general.size_label",
}
"""Keys that say what a file is like; another file of the same model has its own."""
_NAME = "general.name"
_CHANGE_NOTHING = {"vocab_size", "tensor_data_layout"}
"""Of an architecture's keys: what tensors say too."""
_ARRAYS = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type", "merges"))


def keep(metadata: Mapping[str, Any], again: Mapping[str, Any], prefix: str) -> tuple[dict[str, str], list[str]]:
    """What to put into the safetensors metadata, and notes about keys that the folder says otherwise.

    metadata: the GGUF's keys.   again: those that the folder gives when it is converted back.
    prefix: the architecture's name, under which keys are config.json's to say.
    """
    own = own_keys.CONFIG in metadata  # made from a folder, whose name is the model's unless somebody gave it another
    own &= same_value(metadata.get(own_keys.NAME, metadata.get(_NAME)), metadata.get(_NAME))
    lost: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith(own_keys.OWN) or key in OF_THE_FILE or (key == _NAME and own):
            continue
        if (key in _ARRAYS and _ARRAYS[0] in again) or (key in again and _same(value, again[key])):
            continue
        lost[key] = value
    if not lost:
        return {}, []
    other = [
        key for key in lost if key in again and key.startswith(f"{prefix}.") and not same_value(lost[key], again[key])
    ]
    notes = [f"config.json does not say what {', '.join(other)} of the GGUF says; correct it by hand"] if other else []
    said_nowhere = (k for k in lost if again and k not in again and k.startswith(f"{prefix}."))
    unsaid = [k for k in said_nowhere if not _harmless(k, lost[k], metadata)]
    if unsaid:
        some = ", ".join(cut(key) for key in unsaid[:4]) + (f" and {len(unsaid) - 4} more" if len(unsaid) > 4 else "")
        notes.append(f"config.json has no place for {some}: kept in the weights' metadata, for a GGUF to be made again")
    kept = {own_keys.GGUF_METADATA: json.dumps(encode_keys(lost), ensure_ascii=False)}
    if said := {key: _hash(again[key]) for key in lost if key in again and key.startswith("tokenizer.")}:
        kept[own_keys.GGUF_SAID] = json.dumps(said)
    return kept, notes


def put_back(metadata: dict[str, Any], folder: Mapping[str, str], where: str) -> None:
    """Add the keys that are kept in the folder's metadata to those that the folder itself gave."""
    if own_keys.GGUF_METADATA not in folder:
        return
    said = carried.kept_json(folder, own_keys.GGUF_SAID, where)
    for key, value in decode_keys(carried.kept_json(folder, own_keys.GGUF_METADATA, where), where).items():
        if key in OF_THE_FILE or key.startswith(own_keys.OWN):
            continue  # not ours: somebody else wrote this metadata
        as_then = key.startswith("tokenizer.") and key in metadata and said.get(key) == _hash(metadata[key])
        if key not in metadata or key.startswith("general.") or as_then:
            metadata[key] = value


def _hash(value: Any) -> str:
    import hashlib  # loads OpenSSL, which few files need

    return hashlib.sha256(encode_value(value, "")).hexdigest()[:16]


def _harmless(key: str, value: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether a key changes nothing, so that nobody misses it in a config.json."""
    prefix, _, name = key.partition(".")
    if name == "rope.dimension_count":  # as many as a head has, which is the usual
        width, heads = (metadata.get(f"{prefix}.{n}", 0) for n in ("embedding_length", "attention.head_count"))
        usual = metadata.get(f"{prefix}.attention.key_length", np.asarray(width) // np.maximum(heads, 1))
        return bool(np.all(np.asarray(heads) == 0) or np.all(np.asarray(usual) == value))
    return name in _CHANGE_NOTHING or (name == "rope.scaling.finetuned" and not value)


def _same(a: Any, b: Any) -> bool:
    return encode_value(a, "") == encode_value(b, "")
