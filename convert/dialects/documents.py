"""JSON's dialect: a document's tensors (`weights.layers[0].wq`) <-> GGUF's names, by the tables of `convert.layouts`.

What a document holds besides weights stays with the model, in keys of our own, so that it comes back as it was:
`llmconv.json.document` (the rest of it, with the places of the tensors), `llmconv.json.layout`, `llmconv.json.style`
(spacing, number format) and `llmconv.json.config.NAME` (files that lay beside it).  A GGUF without them is written
in its family's layout when there is one, else as a map of named tensors.
"""

from __future__ import annotations

from llmconv.convert.dialects.json_documents.into_gguf import to_gguf
from llmconv.convert.dialects.json_documents.out_of_gguf import from_gguf

__all__ = ["from_gguf", "to_gguf"]
