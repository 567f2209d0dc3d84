"""The keys of our own: what a model has and its new container has no place for.  Those of containers stand in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OWN = "llmconv."

LAYOUT = "llmconv.layout"
"""PLAIN where tensors bear nobody's names but their own."""
PLAIN = "plain"
OURS = "llmconv"
"""The `format` of documents of named tensors that are made here."""
PROVENANCE = "llmconv.provenance"
TOKENIZER = "llmconv.tokenizer."
"""Switches of a tokenizer that GGUF has no key for."""
WHOLE_JSON = "llmconv.hf.tokenizer_json"
"""Whether the tokenizer.json that is kept says more of the tokenizer than GGUF's keys do."""

# Of a Hugging Face folder: its text files, the weights' metadata and types, which of several ways names were written
# in, the values that arithmetic in float32 would not give back, tensors that GGUF has no name for.
CONFIG = "llmconv.hf.config"
GENERATION_CONFIG = "llmconv.hf.generation_config"
FILE = "llmconv.hf.file."
CUT_FILE = "llmconv.hf.cut."
"""A file of which the vocabulary gives parts back (`convert.vocab.side_files`)."""
WEIGHTS_METADATA = "llmconv.hf.metadata"
NAME = "llmconv.hf.name"
"""The folder's name, of which `general.name` and others were made; another one since is an edited one."""
DTYPES = "llmconv.hf.dtypes"
FORMS = "llmconv.hf.forms"
PREFIX = "llmconv.hf.prefix"
NAMES = "llmconv.hf.names"
"""Names of a folder that are not the table's: the table's -> the folder's."""
ABSENT = "llmconv.hf.absent"
"""What a folder's config.json says is there, and was not: flags, and names of a GGUF's tensors."""
HEAD = "llmconv.hf.head."
"""Of a module's file of weights, of which the GGUF has the numbers as a tensor: all of it before them."""
SKIPPED = "llmconv.hf.positions_skipped"
"""How many rows of a folder's table of positions stand before the first token's (RoBERTa)."""
TARGET = "llmconv.hf.target"
"""Of a draft: what its keys take from the configuration of the model that it drafts for."""
ADAPTER = "llmconv.adapter.base"
"""Of an adapter: the keys of the model that it is for, with their types, by which its rows were ordered."""
RERANKER = "llmconv.hf.reranker"
"""Whether scores are made of a language model's words (Qwen3's rerankers), which its folder does not know of."""
EXACT = "llmconv.hf.exact."
TENSORS = "llmconv.hf.tensors"
TENSOR = "llmconv.hf.tensor."

# Of a JSON document: its layout, its rest, how it was printed, files that lay beside it.
JSON = "llmconv.json."
JSON_LAYOUT = JSON + "layout"
JSON_DOCUMENT = JSON + "document"
JSON_STYLE = JSON + "style"
JSON_CONFIG = JSON + "config."

# Of a lone safetensors file, and of tensors that no type of GGUF holds.
SAFETENSORS_METADATA = "llmconv.safetensors.metadata"
SHAPES = "llmconv.plain.shapes"
BITS = "llmconv.plain.bits"
"""Tensors stored as whole numbers of the same bits: name -> [type, shape]."""

# Of an image model that had diffusers' names: the table by which it was renamed, how many rows each part of a joined
# tensor had, their types where they differ, and the tensors' order where it is not the usual.
DIFFUSERS = "llmconv.diffusers"
DIFFUSERS_ROWS = "llmconv.diffusers.rows"
DIFFUSERS_TYPES = "llmconv.diffusers.types"
DIFFUSERS_ORDER = "llmconv.diffusers.order"

LAYERS = "llmconv.layers"
"""Of a model that listed its layers (Keras, TensorFlow.js): [weight, tensors that it became, how] each."""

GGUF_METADATA = "llmconv.gguf.metadata"
"""In safetensors: keys of a GGUF that the folder has no place for."""
GGUF_SAID = "llmconv.gguf.said"
"""In safetensors: what the folder itself said of those keys by then, as short hashes."""
GGUF_TENSORS = "llmconv.gguf.tensors"
"""In safetensors: names of tensors that a GGUF had and its architecture's table does not know."""
GGUF_FUSED = "llmconv.gguf.fused"
"""In safetensors: names of tensors that a GGUF had in one, and the folder has apart."""


def is_plain(metadata: Mapping[str, Any]) -> bool:
    """Whether a GGUF's tensors bear nobody's names but their own."""
    return bool(metadata.get(LAYOUT) == PLAIN)
