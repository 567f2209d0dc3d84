"""Hyper-parameters: a `Key` says by which name each ecosystem calls one, and of which kind its value is.

From a GGUF's keys come the dimensions (`DIMS`), over which shapes and conditions of the tables are expressions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llmconv.convert.tables import own_keys
from llmconv.convert.tables.ops import evaluate
from llmconv.errors import BadFile, cut

__all__ = ["DIMS", "Key", "dims_of", "keys", "whole"]


@dataclass(frozen=True)
class Key:
    """A hyper-parameter in both ecosystems.

    gguf: the key, without the architecture's name before it ("block_count").
    names: in config.json (or a document), the first being written back; dots step into an object.
    kind: one of `KINDS`: "u32", "f32", "bool", "str", "count" (a whole number of at least 1), "f32s", ...
    default: what a config without it means: a value, or "= expression" over the dimensions; None: not written.
    values: config value -> GGUF value, for enumerations.
    """

    gguf: str
    names: tuple[str, ...]
    kind: str = "u32"
    default: Any = None
    values: Mapping[Any, Any] | None = None

    def typed(self, value: Any, item: str) -> Any:
        """The value as GGUF types it; `BadFile`, calling it `item`, for one of another kind."""
        if self.values is not None:
            if value not in self.values:
                raise BadFile(f"{item} is {cut(value, 60)}, expected one of {', '.join(map(repr, self.values))}")
            value = self.values[value]
        try:
            found = KINDS[self.kind](value)
            if self.gguf.endswith("epsilon") and not found >= 0:
                raise ValueError("negative")
            if "freq_base" in self.gguf and not found > 0:
                raise ValueError("no base of powers")
            return found
        except (TypeError, ValueError, OverflowError):
            raise BadFile(f"{item} is {cut(value, 60)}, expected {_WORDS[self.kind]}") from None

    def check_listed(self, values: Any, item: str) -> None:
        """`BadFile` for an array where a key has one value for the whole model, or of something else than numbers."""
        if self.gguf in _OF_ALL or self.gguf.endswith("epsilon"):
            raise BadFile(f"{item} is {cut(values, 60)}, expected {_WORDS[self.kind]}")
        several = self.kind.endswith("s") or len(values)
        if self.kind != "str" and not (several and np.asarray(values).dtype.kind in "biuf"):
            raise BadFile(f"{item} is {cut(values, 60)}, expected numbers")


_OF_ALL = {"block_count", "context_length", "embedding_length", "vocab_size", "rope.freq_base"}
"""Keys of which no layer has one of its own."""


def whole(value: Any) -> int:
    """A whole number as it stands in JSON or GGUF; `TypeError` for anything that would have to be bent into one."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise TypeError("not a whole number")
    return int(value)


def _single(value: Any) -> np.float32:
    """A number that single precision holds as a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError("not a number")
    with np.errstate(over="ignore"):
        number = np.float32(value)
    if not np.isfinite(number):
        raise ValueError("not finite")
    return number


def _count(value: Any) -> np.uint32:
    if not 0 < (number := whole(value)) < 1 << 31:
        raise ValueError("not a count")
    return np.uint32(number)


def _of(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"not a {kind.__name__}")
        return value

    return check


KINDS: dict[str, Callable[[Any], Any]] = {
    "u32": lambda v: np.uint32(whole(v)),
    "count": _count,
    "i32": lambda v: np.int32(whole(v)),
    "f32": _single,
    "bool": _of(bool),
    "str": _of(str),
    "u32s": lambda v: np.array([whole(n) for n in v], np.uint32),
    "i32s": lambda v: np.array([whole(n) for n in v], np.int32),
    "f32s": lambda v: np.array([_single(n) for n in v], np.float32),
}

_WORDS = {
    "u32": "a whole number from 0 to 4294967295",
    "count": "a whole number of at least 1",
    "i32": "a whole number",
    "f32": "a number (finite, not below 0 for an epsilon, above 0 for a rotary base)",
    "bool": "true or false",
    "str": "a text",
    "u32s": "a list of whole numbers",
    "i32s": "a list of whole numbers",
    "f32s": "a list of numbers",
}


def keys(text: str) -> tuple[Key, ...]:
    """A table of keys, one a line: `gguf_key  kind  hf_name|alias  [default]`; "#" starts a comment."""
    out = []
    for line in text.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        gguf, kind, names, *rest = line.split(None, 3)
        default: Any = rest[0] if rest else None
        if default is not None and not default.startswith("="):
            default = {"true": True, "false": False}.get(default, default)
            if isinstance(default, str) and kind in ("u32", "i32", "f32"):
                default = float(default) if kind == "f32" else int(default)
        out.append(Key(gguf, tuple(n for n in names.split("|") if n != "-"), kind, default))
    return tuple(out)


# Dimension <- GGUF key, and what its absence means.  In order: an expression may use what stands before it.
DIMS: tuple[tuple[str, str, str], ...] = (
    ("n_layer", "block_count", "0"),
    ("n_ctx", "context_length", "0"),
    ("n_embd", "embedding_length", "0"),
    ("n_ff", "feed_forward_length", "0"),
    ("n_head", "attention.head_count", "0"),
    ("n_head_kv", "attention.head_count_kv", "n_head"),
    ("head_dim", "attention.key_length", "n_embd // n_head"),
    ("head_dim_v", "attention.value_length", "n_embd // n_head"),
    ("n_rot", "rope.dimension_count", "head_dim"),
    ("n_vocab", "vocab_size", "0"),
    ("n_expert", "expert_count", "0"),
    ("n_expert_used", "expert_used_count", "0"),
    ("n_ff_exp", "expert_feed_forward_length", "n_ff"),
    ("n_ff_small", "expert_chunk_feed_forward_length", "0"),
    ("n_expert_shared", "expert_shared_count", "0"),
    ("n_ff_shexp", "expert_shared_feed_forward_length", "n_expert_shared * n_ff_exp"),
    ("n_dense", "leading_dense_block_count", "0"),
    ("sparse", "moe_layers", "1"),
    ("n_nextn", "nextn_predict_layers", "0"),
    ("q_lora", "attention.q_lora_rank", "0"),
    ("kv_lora", "attention.kv_lora_rank", "0"),
    ("window", "attention.sliding_window", "0"),
    ("swa", "attention.sliding_window_pattern", "0"),  # of a layer: 1 with a window, else 0
    ("d_swa", "attention.key_length_swa", "head_dim"),
    ("n_shared", "attention.shared_kv_layers", "0"),
    ("n_ple", "embedding_length_per_layer_input", "0"),
    ("n_ple_vocab", "vocab_size_per_layer_input", "0"),
    ("n_altup", "altup.num_inputs", "0"),
    ("n_step", "interleave_moe_layer_step", "1"),
    ("index_heads", "attention.indexer.head_count", "0"),
    ("index_full", "attention.indexer.types", "1"),
    ("index_dim", "attention.indexer.key_length", "0"),
    ("n_laurel", "laurel_rank", "64"),
    ("n_token_types", "token_type_count", "2"),
    ("n_word", "word_embedding_length", "n_embd"),
    ("d_word", "word_embedding_length", "0"),
    ("n_code", "codec_vocab_size", "0"),
    ("n_behind", "vectors_behind_words", "2"),
    ("d_latent", "latent_length", "32"),
    ("n_conv", "shortconv.l_cache", "0"),
    ("d_conv", "ssm.conv_kernel", "0"),
    ("d_inner", "ssm.inner_size", "0"),
    ("d_state", "ssm.state_size", "0"),
    ("dt_rank", "ssm.time_step_rank", "0"),
    ("n_group", "ssm.group_count", "0"),
    ("n_latent", "moe_latent_size", "0"),
    ("kda_dim", "kda.head_dim", "0"),
    ("n_routed", "expert_latent_length", "n_embd"),  # numbers that experts see; whether these are others: 1 or 0
    ("routes", "expert_latent_length", "0"),
    ("interval", "full_attention_interval", "4"),
    ("recurrent", "attention.recurrent_layers", "0 - 1"),
    ("nope", "attention.key_length_mla", "0"),
    ("v_mla", "attention.value_length_mla", "0"),
    ("kv_lora_swa", "attention.kv_lora_rank_swa", "kv_lora"),
    ("nope_swa", "attention.key_length_mla_swa", "nope"),
    ("v_mla_swa", "attention.value_length_mla_swa", "v_mla"),
    ("n_skip", own_keys.SKIPPED, "0"),
    ("n_decoder", "decoder_block_count", "n_layer"),
    ("n_buckets", "attention.relative_buckets_count", "0"),
    ("each_gate", "attention.gate_per_number", "0"),  # whether attention has a gate for each number: 1 or 0
    ("folds", "rope.dimension_sections", "0"),  # whether positions are three-fold: 1 or 0
    ("n_wkv", "wkv.head_size", "64"),
    ("n_mix", "time_mix_extra_dim", "32"),
    ("n_decay", "time_decay_extra_dim", "64"),
    ("n_rescale", "rescale_every_n_layers", "0"),
    ("n_decay_rank", "attention.decay_lora_rank", "64"),
    ("n_iclr_rank", "attention.iclr_lora_rank", "64"),
    ("n_value_rank", "attention.value_residual_mix_lora_rank", "32"),
    ("n_gate_rank", "attention.gate_lora_rank", "0"),
    ("n_adapter", "adapters.count", "0"),
    ("n_rank", "adapters.lora_rank", "0"),
    ("n_stack", "hrm.layers_per_stack", "0"),
    ("n_draft", "draft_vocab_size", "n_vocab"),  # of drafts: how many words they know; the model's width
    ("n_target", "target_hidden_size", "n_embd"),
    ("n_read", "target_layers", "3"),  # how many layers of the model they read
    ("n_markov", "markov_rank", "0"),
    ("qkv_groups", "attention.qkv_groups", "1"),  # of a folder's matrix of queries, keys and values together
    ("ff_apart", "feed_forward_apart", "0"),  # whether gate and up are two matrices: 1 or 0
    ("n_moe_every", "moe_every_n_layers", "0"),
    ("own_scale", "attention.scale", "0"),  # whether it states what scores are multiplied by: 1 or 0
    ("conv_kernel", "conv_kernel_size", "0"),
    ("conv_group", "conv_group_size", "1"),
    ("n_selector", "selector_rank", "0"),
    ("n_backbone", "embedding_length_out", "0"),
    ("n_hc", "hyper_connection.count", "0"),  # streams beside each other; the rank of what mixes them
    ("hc_rank", "hyper_connection.low_rank", "0"),
    ("ratio", "attention.compress_ratios", "0"),  # of a layer: how many tokens its attention makes one of
    ("n_gram", "ple.ngram_size", "0"),  # of a table of n-grams: the longest, heads of each length, rows, files
    ("n_gram_heads", "ple.heads_per_ngram", "0"),
    ("ple_rows", "ple.table_rows", "0"),
    ("n_parts", "ple.table_parts", "1"),
    ("ple_kernel", "ple.conv_kernel", "0"),
    ("ple_at", "ple.layers", "0"),  # its layer, counted from 1; 0: none
    ("n_hash", "hash_layer_count", "0"),  # layers whose experts the words choose
    ("o_groups", "attention.output_group_count", "1"),
    ("o_lora", "attention.output_lora_rank", "0"),
    ("n_kpool", "attention.indexer.kpool", "1"),
    ("n_features", "features_length", "0"),  # of what makes sound of codes: numbers of a code, of its two halves
    ("d_post", "posnet.embedding_length", "0"),
    ("n_post", "posnet.block_count", "0"),
    ("d_next", "convnext.embedding_length", "0"),
    ("n_next", "convnext.block_count", "0"),
    ("n_proj", "projection_dim", "0"),  # of towers: the text model's width, and how a picture or sound is cut
    ("image", "image_size", "0"),
    ("patch", "patch_size", "0"),
    ("n_mel", "num_mel_bins", "0"),
    ("scale", "projector.scale_factor", "0"),
    ("merge", "spatial_merge_size", "0"),
    ("stack", "projector.stack_factor", "0"),
    ("n_sam_layer", "sam.block_count", "0"),
    ("n_sam", "sam.embedding_length", "0"),
    ("n_sam_head", "sam.head_count", "0"),
)
LABELS = "classifier.output_labels"
"""What the numbers that a classifier gives are called; their count is the dimension n_cls."""


def _flag(value: Any) -> int:
    """One of an array: a whole number, or a flag as one."""
    return int(value) if isinstance(value, bool | np.bool_) else whole(value)


SCALED_BY = "scaled_by"
"""What stands before the names of numbers that weights are multiplied by (`tables.times`): keys, and one dimension."""


def _factors(metadata: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The factors by name: a number, or a tuple of several."""
    start, out = f"{arch}.{SCALED_BY}.", {}
    for key in metadata:
        if key.startswith(start):
            try:
                values: Any = np.asarray(metadata[key], np.float32)
            except (TypeError, ValueError):
                values = np.empty((0, 0))
            if values.ndim > 1 or not np.isfinite(values).all():
                raise BadFile(f"key '{key}' is {cut(metadata[key], 60)}, expected numbers")
            out[key.removeprefix(start)] = tuple(values.tolist()) if values.ndim else float(values)
    return out


_THERE = {"folds", "each_gate", "ff_apart", "routes", "own_scale"}  # 1 where the key is there
_COUNTED = {"n_read"}  # how many an array lists
_FIRST = {"ple_at"}  # the first of an array, counted from 1
_SINGLE = {"n_layer", "n_embd", "n_vocab"}  # never one for each layer


def dims_of(metadata: Mapping[str, Any], arch: str, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The dimensions that a GGUF's metadata states; per-layer arrays stay arrays (see `Architecture.layer`).

    extra: further ones, and what the absence of a key means where it is not what `DIMS` says.
    """
    out: dict[str, Any] = {}
    numbers: dict[str, int] = {}  # of those so far, what expressions can speak of
    for name, key, default in DIMS:
        value = metadata.get(key if key.startswith(own_keys.OWN) else f"{arch}.{key}")
        if value is None:
            found: Any = evaluate((extra or {}).get(name, default), numbers)
        else:
            try:
                found = _dimension(name, value)
            except TypeError:
                raise BadFile(f"key '{arch}.{key}' is {cut(value)}, expected a whole number") from None
        out[name] = found
        if isinstance(found, int):
            numbers[name] = found
    if factors := _factors(metadata, arch):
        out[SCALED_BY] = factors
    labels = metadata.get(f"{arch}.{LABELS}", ())
    out["n_cls"] = len(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else 0
    numbers["n_cls"] = out["n_cls"]
    for name, expression in (extra or {}).items():
        if name not in out:
            out[name] = numbers[name] = evaluate(expression, numbers)
    return out


def _dimension(name: str, value: Any) -> Any:
    """What a key's value says: a number, or one for each layer.   `TypeError` where it is none."""
    many = isinstance(value, np.ndarray | list | tuple)
    if name in _THERE:
        return 1
    if name in _COUNTED and many:
        return len(value)
    if name in _FIRST:
        return whole(np.ravel(value)[0]) + 1 if np.size(value) else 0
    return [_flag(v) for v in value] if many and name not in _SINGLE else whole(value)
