"""Hugging Face's dialect: a model folder's tensors and config.json <-> GGUF's, by the tables of `convert.archs`.

Both directions are lazy and exact.  What GGUF has no place for goes into keys of our own (see `carried`); a GGUF
from somebody else has none of them, and its config.json is rebuilt from its keys.  An architecture without a table
keeps its own names (`convert.dialects.own_names`).
"""

from __future__ import annotations

from llmconv.convert.dialects.hugging_face.into_gguf import to_gguf
from llmconv.convert.dialects.hugging_face.out_of_gguf import from_gguf

__all__ = ["from_gguf", "to_gguf"]
