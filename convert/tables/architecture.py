"""`Architecture`: one declarative table per model family, read in both directions.

A row says which tensors of a GGUF are which tensors of a Hugging Face model and by what ops; a key says the same of a
hyper-parameter.  From a row's shape expression come the checks, the parameter count and the sizes; `decoder` names the
pieces that the runtime builds the model from.  GGUF's names are the canonical ones.

Patterns: `{i}` is the layer, `{e}` the expert, `{q}` and `{k}` the head, `{p}` what stands before the model's own
names ("model.").  Shapes and conditions are expressions over the dimensions (see `DIMS`), in which `i` is the layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert.tables.ops import Dims, Op, evaluate
from llmconv.errors import BadFile

__all__ = ["DIMS", "SERIES", "Architecture", "Form", "HfName", "Key", "Made", "Row", "Slot", "dims_of", "keys", "row"]


SERIES = {"{e}": "n_expert", "{q}": "n_head", "{k}": "n_head_kv"}
"""Patterns that stand for several names, and the dimension that says how many."""


@dataclass(frozen=True)
class Form:
    """One way in which Hugging Face models store a row: the names and the ops to GGUF's."""

    hf: tuple[str, ...]
    ops: tuple[Op, ...] = ()
    beside: str = ""
    """A GGUF tensor that is there only in models of this form: how to tell it from a GGUF alone."""

    def names(self, dims: Dims, prefix: str) -> tuple[str, ...]:
        """The tensor names of one layer, experts and heads counted out."""
        out = []
        for pattern in self.hf:
            name = pattern.replace("{p}", prefix).replace("{i}", str(dims.get("i", 0)))
            series = next((s for s in SERIES if s in name), None)
            if series is None:
                out.append(name)
            else:
                out += [name.replace(series, str(n)) for n in range(dims.get(SERIES[series], 0))]
        return tuple(out)


Optional = bool | str | Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Row:
    """Tensors of a GGUF and the forms in which they come from Hugging Face.

    gguf: names; with `{i}` there is one set per layer.
    shapes: one shape per name, "n_head * head_dim, n_embd".
    when: an expression; the row exists only where it holds.
    optional: False: must be there; True: may be missing; the name of a configuration flag (or "!flag"): may be missing,
        and counts as there when the flag is set.  "flag=true": set in a config that does not say.  A function of the
        configuration says it where no flag does.
    """

    gguf: tuple[str, ...]
    forms: tuple[Form, ...]
    shapes: tuple[str, ...]
    when: str = ""
    optional: Optional = False

    @property
    def per_layer(self) -> bool:
        return "{i}" in self.gguf[0]


def row(
    gguf: str | tuple[str, ...],
    hf: str | tuple[str, ...],
    shape: str | tuple[str, ...],
    *ops: Op,
    when: str = "",
    optional: Optional = False,
    alt: tuple[Form, ...] = (),
) -> Row:
    """A row of the table; see `Row`.  `alt` are further forms, tried in order."""
    return Row(
        (gguf,) if isinstance(gguf, str) else gguf,
        (Form((hf,) if isinstance(hf, str) else hf, ops), *alt),
        (shape,) if isinstance(shape, str) else shape,
        when,
        optional,
    )


@dataclass(frozen=True)
class Key:
    """A hyper-parameter in both ecosystems.

    gguf: the key, without the architecture's name before it ("block_count").
    hf: names in config.json, the first being written back; dots step into an object ("attn_config.clip_qkv").
    kind: "u32", "f32", "bool", "str", "u32s", "f32s" or "i32s".
    default: what a config without it means: a value, or "= expression" over the dimensions; None: not written.
    values: config value -> GGUF value, for enumerations.
    """

    gguf: str
    hf: tuple[str, ...]
    kind: str = "u32"
    default: Any = None
    values: Mapping[Any, Any] | None = None


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


def _of(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(f"not a {kind.__name__}")
        return value

    return check


_KINDS: dict[str, Callable[[Any], Any]] = {
    "u32": lambda v: np.uint32(whole(v)),
    "i32": lambda v: np.int32(whole(v)),
    "f32": _single,
    "bool": _of(bool),
    "str": _of(str),
    "u32s": lambda v: np.array([whole(n) for n in v], np.uint32),
    "i32s": lambda v: np.array([whole(n) for n in v], np.int32),
    "f32s": lambda v: np.array([_single(n) for n in v], np.float32),
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
    ("n_expert_shared", "expert_shared_count", "0"),
    ("n_ff_shexp", "expert_shared_feed_forward_length", "n_expert_shared * n_ff_exp"),
    ("n_dense", "leading_dense_block_count", "0"),
    ("q_lora", "attention.q_lora_rank", "0"),
    ("kv_lora", "attention.kv_lora_rank", "0"),
    ("window", "attention.sliding_window", "0"),
    ("n_token_types", "token_type_count", "2"),
    ("n_word", "word_embedding_length", "n_embd"),
    ("nope", "attention.key_length_mla", "0"),
    ("v_mla", "attention.value_length_mla", "0"),
)


_SINGLE = {"n_layer", "n_embd", "n_vocab"}  # never one for each layer


def dims_of(metadata: Mapping[str, Any], arch: str, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The dimensions that a GGUF's metadata states; per-layer arrays stay arrays (see `Architecture.layer`)."""
    out: dict[str, Any] = {}
    for name, key, default in DIMS:
        value = metadata.get(f"{arch}.{key}")
        if value is None:
            out[name] = evaluate(default, {k: v for k, v in out.items() if isinstance(v, int)})
            continue
        try:
            many = isinstance(value, np.ndarray | list | tuple) and name not in _SINGLE
            out[name] = [whole(v) for v in value] if many else whole(value)
        except TypeError:
            raise BadFile(f"key '{arch}.{key}' is {value!r}, expected a whole number") from None
    for name, expression in (extra or {}).items():
        out[name] = evaluate(expression, {k: v for k, v in out.items() if isinstance(v, int)})
    return out


@dataclass(frozen=True)
class HfName:
    """A model class of transformers that this architecture covers."""

    cls: str
    model_type: str
    when: str = ""
    """An expression over the dimensions that picks this name when a config.json is rebuilt from a GGUF alone."""


@dataclass(frozen=True)
class Made:
    """A tensor that only GGUF has, computed from the configuration (rope_freqs), and read back into it.

    make: (config, dims) -> float32 array, or None when the model has none.
    read: (values, config) -> None; completes a config rebuilt from a GGUF alone.
    """

    gguf: str
    make: Callable[[Mapping[str, Any], Dims], Any]
    read: Callable[[Any, dict[str, Any]], None]


@dataclass(frozen=True)
class Slot:
    """A row at one layer: names filled in, shapes evaluated."""

    row: Row
    gguf: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dims: Dims

    def hf(self, form: int, prefix: str) -> tuple[str, ...]:
        return self.row.forms[form].names(self.dims, prefix)


@dataclass(frozen=True)
class Architecture:
    """A model family.  See this module's description.

    gguf: its name in GGUF (general.architecture).
    hf: the transformers classes it covers; the first is the one written when nothing says otherwise.
    prefixes: what `{p}` may be, the modern one first.
    dropped: regular expressions of HF tensors that are derived data and are left out (rotary tables, causal masks).
    kept: regular expressions of HF tensors that GGUF has no place for (a pooler); they travel in the metadata.
    constants: keys that are written whatever the configuration says.
    decoder: named pieces for the runtime, see `convert.tables.decoder`.
    """

    gguf: str
    hf: tuple[HfName, ...]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    made: tuple[Made, ...] = ()
    prefixes: tuple[str, ...] = ("model.", "", "language_model.model.", "model.language_model.")
    dropped: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    kept: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, str] = field(default_factory=dict)
    tied: bool = False
    """Whether a config that does not say means a tied head."""
    finish: Callable[[dict[str, Any], Mapping[str, Any], Dims], None] | None = None
    """(metadata without the architecture's prefix, config, dims): keys that no line of the table can express."""
    rebuild: Callable[[dict[str, Any], Mapping[str, Any], Dims], None] | None = None
    """(config, metadata without the prefix, dims): the way back of `finish`."""
    decoder: Mapping[str, Any] = field(default_factory=dict)

    def variant(self, gguf: str, *hf: HfName, **changes: Any) -> Architecture:
        """This table with differences: `rows` and `keys` replace those of the same GGUF name and add the others.

        `drop` names rows and keys to leave out; `decoder`, `dims` and `constants` are merged over the parent's.
        """
        drop = set(changes.pop("drop", ()))
        rows = _merged(self.rows, changes.pop("rows", ()), lambda r: r.gguf, drop)
        merged_keys = _merged(self.keys, changes.pop("keys", ()), lambda k: k.gguf, drop)
        for name in ("decoder", "dims", "constants"):
            changes[name] = {**getattr(self, name), **changes.get(name, {})}
        changes["constants"] = {k: v for k, v in changes["constants"].items() if v is not None}
        return dataclasses.replace(self, gguf=gguf, hf=hf, rows=rows, keys=merged_keys, **changes)

    def extended(self, rows: tuple[Row, ...]) -> Architecture:
        """This table with more rows, which may bear names it has already (under another `when`)."""
        return dataclasses.replace(self, rows=(*self.rows, *rows))

    def dims_of(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Dimensions by name, from a GGUF's metadata."""
        return dims_of(metadata, self.gguf, self.dims)

    @staticmethod
    def layer(dims: Mapping[str, Any], i: int) -> dict[str, int]:
        """The dimensions at layer `i`: per-layer arrays give their i-th value."""
        out = {k: (v[i] if i < len(v) else 0) if isinstance(v, list) else v for k, v in dims.items()}
        out["i"] = i
        return out

    def slots(self, dims: Mapping[str, Any]) -> Iterator[Slot]:
        """Every row at every layer where it exists, in GGUF's customary order."""
        for table_row in self.rows:
            if not table_row.per_layer:
                yield from self._slot(table_row, self.layer(dims, 0))
        for i in range(dims["n_layer"]):
            here = self.layer(dims, i)
            for table_row in self.rows:
                if table_row.per_layer:
                    yield from self._slot(table_row, here)

    @staticmethod
    def _slot(table_row: Row, dims: dict[str, int]) -> Iterator[Slot]:
        if table_row.when and not evaluate(table_row.when, dims):
            return
        shapes = tuple(tuple(evaluate(s, dims) for s in shape.split(",")) for shape in table_row.shapes)
        yield Slot(table_row, tuple(n.replace("{i}", str(dims["i"])) for n in table_row.gguf), shapes, dims)

    def metadata(self, config: Mapping[str, Any], source: str = "config.json") -> dict[str, Any]:
        """config.json (see `normalized`) -> GGUF keys, `general.architecture` first."""
        from llmconv.convert.tables.config import usable

        with usable(config, source):
            return self._metadata(config, source)

    def _metadata(self, config: Mapping[str, Any], source: str) -> dict[str, Any]:
        from llmconv.convert.tables.config import look_up, rope_keys

        found: dict[str, Any] = {}
        for key in self.keys:
            value = look_up(config, key.hf)
            if value is None and isinstance(key.default, str) and key.default.startswith("="):
                value = evaluate(key.default[1:], self.layer(dims_of(found, self.gguf, self.dims), 0)) or None
            elif value is None:
                value = key.default
            if value is None:
                continue
            if key.values is not None:
                if value not in key.values:
                    known = ", ".join(map(repr, key.values))
                    raise BadFile(f"{source}: {key.hf[0]} is {value!r}, expected one of {known}")
                value = key.values[value]
            try:
                found[f"{self.gguf}.{key.gguf}"] = _KINDS[key.kind](value)
                if key.gguf.endswith("epsilon") and not found[f"{self.gguf}.{key.gguf}"] >= 0:
                    raise ValueError("negative")
            except (TypeError, ValueError, OverflowError):
                raise BadFile(f"{source}: {key.hf[0]} is {value!r}, expected {_WORDS[key.kind]}") from None
        own = {k.removeprefix(self.gguf + "."): v for k, v in found.items()}
        rope_keys(own, config, source)
        own.update(self.constants)
        if self.finish is not None:
            dims = self.layer(self.dims_of({f"{self.gguf}.{k}": v for k, v in own.items()}), 0)
            self.finish(own, config, dims)
        return {"general.architecture": self.gguf} | {f"{self.gguf}.{k}": v for k, v in own.items() if v is not None}

    def check_keys(self, metadata: Mapping[str, Any]) -> None:
        """`BadFile` when a GGUF's key that this table knows holds a value of another kind."""
        for key in self.keys:
            name = f"{self.gguf}.{key.gguf}"
            value = metadata.get(name)
            if value is None or key.values is not None or isinstance(value, np.ndarray | list | tuple):
                continue
            try:
                _KINDS[key.kind.removesuffix("s") if key.kind.endswith("2s") else key.kind](value)
            except (TypeError, ValueError, OverflowError):
                raise BadFile(f"key {name!r} is {value!r:.60}, expected {_WORDS[key.kind]}") from None

    def config(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """GGUF keys -> a config.json for transformers, as far as the keys go."""
        from llmconv.convert.tables.config import Settings, put, rope_config, usable

        dims = self.layer(self.dims_of(metadata), 0)
        name = next((n for n in self.hf if n.when and evaluate(n.when, dims)), self.hf[0])
        out: dict[str, Any] = {"architectures": [name.cls], "model_type": name.model_type}
        own = Settings({"rope.freq_base": np.float32(10000.0)})  # what its absence means in llama.cpp
        own |= {k.removeprefix(self.gguf + "."): v for k, v in metadata.items() if k.startswith(self.gguf + ".")}
        for key in self.keys:
            if not key.hf or (value := own.get(key.gguf)) is None:
                continue
            if isinstance(value, np.ndarray):
                value = value.tolist()
            elif isinstance(value, np.generic):
                value = value.item()
            if key.values is not None:
                value = next((k for k, v in key.values.items() if v == value), value)
            elif isinstance(value, float) and key.kind == "f32":
                value = float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
            put(out, key.hf[0], value)
        with usable(own, f"the keys of {self.gguf}"):
            rope_config(out, own)
            if self.rebuild is not None:
                self.rebuild(out, own, dims)
        return out

    def count_parameters(self, metadata: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> int:
        """Parameters of a model of these dimensions; optional rows count where `config`'s flags say they exist."""
        total = 0
        for slot in self.slots(self.dims_of(metadata)):
            if self.expected(slot.row, config or {}):
                total += sum(int(np.prod(shape, dtype=np.int64)) for shape in slot.shapes)
        return total

    def expected(self, table_row: Row, config: Mapping[str, Any]) -> bool:
        """Whether a model of this configuration has the row."""
        flag = table_row.optional
        if isinstance(flag, bool):
            return not flag
        if not isinstance(flag, str):
            return flag(config)
        name, _, given = flag.lstrip("!").partition("=")
        default = self.tied if name == "tie_word_embeddings" else given == "true"
        found = config.get(name)
        value = bool(default if found is None else found)
        return not value if flag.startswith("!") else value


_WORDS = {
    "u32": "a whole number from 0 to 4294967295",
    "i32": "a whole number",
    "f32": "a number (finite, and not below 0 for an epsilon)",
    "bool": "true or false",
    "str": "a text",
    "u32s": "a list of whole numbers",
    "i32s": "a list of whole numbers",
    "f32s": "a list of numbers",
}


def _merged(old: Any, new: Any, name: Callable[[Any], Any], drop: set[str]) -> Any:
    def dropped(item: Any) -> bool:
        own = name(item)
        return own in drop if isinstance(own, str) else any(n in drop for n in own)

    replaced = {name(item): item for item in new}
    known = {name(item) for item in old}
    kept = [replaced.get(name(item), item) for item in old if not dropped(item) or name(item) in replaced]
    return (*kept, *(item for item in new if name(item) not in known))
