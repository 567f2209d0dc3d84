"""`Architecture`: one declarative table per model family, Hugging Face <-> GGUF, read in both directions.

A row (`rows`) says which tensors of a GGUF are which of a Hugging Face model and by what ops; a key (`keys`) says the
same of a hyper-parameter.  From a row's shape expression come the checks and the sizes; `decoder`
names the pieces that the runtime builds the model from.  GGUF's names are the canonical ones.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmconv.convert.tables import scores
from llmconv.convert.tables.class_defaults import completed
from llmconv.convert.tables.config import Settings, look_up, put, rope_config, rope_keys, usable
from llmconv.convert.tables.keys import Key, dims_of, keys
from llmconv.convert.tables.kinds import check_kinds
from llmconv.convert.tables.loader import Loader
from llmconv.convert.tables.ops import Dims, evaluate
from llmconv.convert.tables.pieces import Pieces, activation
from llmconv.convert.tables.rows import Form, Row, Slot, at_layer, flag_of, row, slots
from llmconv.convert.tables.scalars import Small
from llmconv.convert.tables.windows import window_keys, windows_config
from llmconv.errors import BadFile, Unsupported

__all__ = ["Architecture", "Form", "HfName", "Key", "Made", "Row", "Slot", "keys", "row"]


@dataclass(frozen=True)
class HfName:
    """A model class of transformers that this architecture covers."""

    cls: str
    model_type: str
    when: str = ""
    """An expression over the dimensions that picks this name when a config.json is rebuilt from a GGUF alone."""
    around: bool = False
    """A multimodal class that is this architecture only where the text model inside is of that type."""


@dataclass(frozen=True)
class Made:
    """A tensor that only GGUF has, computed from the configuration (rope_freqs), and read back into it.

    make: (config, dims) -> float32 array, or None when the model has none.
    read: (values, config) -> None; completes a config rebuilt from a GGUF alone.
    """

    gguf: str
    make: Callable[[Mapping[str, Any], Dims], Any]
    read: Callable[[Any, dict[str, Any]], None]
    kinds: tuple[str, ...] = ("llama3", "longrope", "su")
    """Kinds of rotary scaling that it is made for."""


@dataclass(frozen=True)
class Architecture:
    """A model family.  See this module's description.

    gguf: its name in GGUF (general.architecture).
    hf: the transformers classes it covers; the first is the one written when nothing says otherwise.
    prefixes: what `{p}` may be, the modern one first.
    dropped: regular expressions of HF tensors that are derived data and are left out (rotary tables, causal masks).
    kept: regular expressions of HF tensors that GGUF has no place for (a pooler); they travel in the metadata.
    unplaced: regular expressions of HF tensors that llmconv leaves out with a note: nothing has a place for them.
    alone: of those kept, tensors of the layers for further tokens -> what they are in a GGUF of these alone.
    scalars: numbers that are tensors there and keys in GGUF.
    constants: keys that are written whatever the configuration says; after a "/" one without the family's name.
    decoder: named pieces for the runtime, see `convert.tables.pieces`.
    reads: settings of a config.json, by spaces, that are computed with and stand in no key or row: what hooks read.
    inert: settings that change nothing in this family (those of any family: `convert.tables.settings`).
    fixed: settings of which only this value (or one of a tuple) is computed here.
    disputed: names of a configuration's settings that transformers ignores, and the model's own code does not; they
        are computed as in that code.
    ignored: names of those that the table knows, and the class of this configuration does not.
    loader: where llama.cpp computes less than the file says.
    """

    gguf: str
    hf: tuple[HfName, ...]
    keys: tuple[Key, ...]
    rows: tuple[Row, ...]
    made: tuple[Made, ...] = ()
    prefixes: tuple[str, ...] = ("model.", "", "language_model.model.", "model.language_model.")
    dropped: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    kept: tuple[str, ...] = ()
    computed: Mapping[str, str] = field(default_factory=dict)
    """Of tensors that are `kept`, those that are computed with: a regular expression -> the name that they have when
    the model is run, `{}` the layer's number, its first group."""
    dense: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    """Layers behind pooling that llama.cpp computes: the tensor's name without ".weight" -> the usual folder of such a
    module, and the keys of its columns and rows ("" for none)."""
    unplaced: tuple[str, ...] = ()
    alone: Mapping[str, str] = field(default_factory=dict)
    scalars: tuple[Small, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, str] = field(default_factory=dict)
    tied: bool = False
    """Whether a config that does not say means a tied head."""
    finish: Callable[[dict[str, Any], Mapping[str, Any], Dims], None] | None = None
    """(metadata without the architecture's prefix, config, dims): keys that no line of the table can express."""
    rebuild: Callable[[dict[str, Any], Mapping[str, Any], Dims], None] | None = None
    """(config, metadata without the prefix, dims): the way back of `finish`."""
    renewed: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda own: {}
    """(a GGUF's metadata without the prefix): the keys of an older file as newer ones have them."""
    decoder: Pieces = field(default_factory=Pieces)
    reads: str = ""
    inert: str = ""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    disputed: Callable[[Mapping[str, Any]], Iterable[str]] = lambda config: ()
    ignored: Callable[[Mapping[str, Any]], Iterable[str]] = lambda config: ()
    loader: Loader = field(default_factory=Loader)
    inside: str = ""
    """The type of a text model, where a configuration has all settings but the outer ones in one of its own."""
    told: Callable[[Mapping[str, Any], Dims], dict[str, Any]] = lambda tensors, dims: {}
    """(tensors of a GGUF, dims): keys of ours that files of others leave to their tensors."""
    named: Callable[[Mapping[str, Any], Any], Any] | None = None
    """(a configuration, the `Vocab` of a folder's files): with tokens that only the configuration speaks of."""
    unsaid: bool = False
    """Its folders have no config.json: tensors say it (see `convert.tables.implied`)."""
    fits: Callable[[Mapping[str, Any]], bool] = lambda config: True
    """Of tables whose transformers classes have the same name, whether a configuration is this one's."""

    @functools.cached_property
    def scales(self) -> frozenset[str]:
        """Tensors of the table that are called as per-tensor scales are, and are none."""
        return frozenset(name for r in self.rows for name in r.gguf if name.endswith(".scale"))

    @functools.cached_property
    def settings(self) -> frozenset[str]:
        """The settings of a config.json that the table computes with or knows to change nothing, dots for objects."""
        names = {name for key in self.keys for name in key.names}
        names |= {flag_of(r.optional).setting for r in self.rows if isinstance(r.optional, str)}
        names |= {*self.reads.split(), *self.inert.split(), self.decoder.get("activation_key", "hidden_act")}
        return frozenset(names)

    @functools.cached_property
    def computed_with(self) -> frozenset[str]:
        """Those settings that are computed with."""
        return frozenset({*self.settings, *self.fixed} - (set(self.inert.split()) - set(self.reads.split())))

    def __post_init__(self) -> None:
        unknown = set(self.decoder) - set(Pieces.__annotations__)
        if unknown:
            raise ValueError(f"architecture {self.gguf}: unknown pieces {', '.join(sorted(unknown))}; see `Pieces`")
        rows = scores.scored(self.rows, (name.cls for name in self.hf), self.decoder.get("causal", True))
        object.__setattr__(self, "rows", rows)  # of any family: there is no other place to say it once

    def variant(self, gguf: str, *hf: HfName, **changes: Any) -> Architecture:
        """This table with differences: `rows` and `keys` replace those of the same GGUF name and add the others.

        `drop` names rows and keys to leave out; `decoder`, `dims`, `constants` and `fixed` are merged over the
        parent's, `reads`, `inert` and `loader` added to them.
        """
        drop = set(changes.pop("drop", ()))
        rows = _merged(self.rows, changes.pop("rows", ()), lambda r: r.gguf, drop)
        merged_keys = _merged(self.keys, changes.pop("keys", ()), lambda k: k.gguf, drop)
        for name in ("reads", "inert"):
            changes[name] = f"{getattr(self, name)} {changes.get(name, '')}"
        changes["loader"] = self.loader.more(changes.get("loader", Loader()))
        for name in ("decoder", "dims", "constants", "fixed"):
            changes[name] = {**getattr(self, name), **changes.get(name, {})}
        changes["constants"] = {k: v for k, v in changes["constants"].items() if v is not None}
        return dataclasses.replace(self, gguf=gguf, hf=hf, rows=rows, keys=merged_keys, **changes)

    def extended(self, rows: tuple[Row, ...]) -> Architecture:
        """This table with more rows, which may bear names it has already (under another `when`)."""
        return dataclasses.replace(self, rows=(*self.rows, *rows))

    def covers(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration of a class that several tables have is this table's; whoever reads one of no use says
        what is wrong with it."""
        try:
            return self.fits(config)
        except (BadFile, Unsupported, AttributeError, LookupError, TypeError, ValueError):
            return True

    def dims_of(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Dimensions by name, from a GGUF's metadata."""
        return dims_of(metadata, self.gguf, self.dims)

    def modern(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """A GGUF's metadata, an older file's as newer ones have it."""
        start = f"{self.gguf}."
        own = {k.removeprefix(start): v for k, v in metadata.items() if k.startswith(start)}
        try:
            return {**metadata, **{start + k: v for k, v in self.renewed(own).items()}}
        except (TypeError, ValueError):
            return dict(metadata)  # whoever reads those keys says what is wrong with them

    def slots(self, dims: Mapping[str, Any]) -> Iterator[Slot]:
        """Every row at every layer where it exists, in GGUF's customary order."""
        return slots(self.rows, dims)

    def metadata(self, config: Mapping[str, Any], source: str = "config.json") -> dict[str, Any]:
        """config.json (see `normalized`) -> GGUF keys, `general.architecture` first."""
        config = self.completed(config)
        check_kinds(config, self.computed_with, source)
        with usable(config, source):
            return self._metadata(config, source)

    def completed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A flat configuration with what its class in transformers takes for what it does not state."""
        return completed(config, (key.names for key in self.keys))

    def _metadata(self, config: Mapping[str, Any], source: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in self.keys:
            value = look_up(config, key.names)
            if value is None and isinstance(key.default, str) and key.default.startswith("="):
                value = evaluate(key.default[1:], at_layer(dims_of(found, self.gguf, self.dims), 0)) or None
            elif value is None and _is_null(config, key.names) and key.gguf.endswith("softcapping") and key.default:
                value = _NO_CAP
            elif value is None and _is_null(config, key.names) and key.kind == "bool":
                value = False
            elif value is None:
                value = key.default
            if value is None:
                continue
            found[f"{self.gguf}.{key.gguf}"] = key.typed(value, f"{source}: {(key.names or (key.gguf,))[0]}")
        own = {k.removeprefix(self.gguf + "."): v for k, v in found.items()}
        rope_keys(own, config, source, self.decoder.get("yarn_truncate", True))
        self._check_rope(config, source)
        own.update(self.constants)
        self._activation_key(own, config)
        if self.finish is not None:
            dims = at_layer(self.dims_of({f"{self.gguf}.{k}": v for k, v in own.items()}), 0)
            self.finish(own, config, dims)
        if scores.SCORE in self.rows:
            scores.keys(own, config)
        others = own.keys() & _OTHER_KINDS or "lightning" in self.decoder  # whose kinds of layers are others
        if "layer_types" in self.settings and not others:
            window_keys(own, config, self.decoder, source)
        named = {k[1:] if k.startswith("/") else f"{self.gguf}.{k}": v for k, v in own.items() if v is not None}
        return {"general.architecture": self.gguf} | named

    def _check_rope(self, config: Mapping[str, Any], source: str) -> None:
        """`Unsupported` for rotary scaling by a tensor of divisors, in a family that has none."""
        kind = str((config.get("rope") or {}).get("rope_type")).lower()
        wanted = _DIVISORS.get(kind)
        if wanted and not any(made.gguf == f"{wanted}.weight" and kind in made.kinds for made in self.made):
            way = 'use layout="plain" to keep its tensors'
            raise Unsupported(f"{source}: rope type {kind!r} is not known of a {self.gguf} model; {way}")

    def _activation_key(self, own: dict[str, Any], config: Mapping[str, Any]) -> None:
        """`hidden_activation`, where the configuration names another activation than the family's own."""
        usual, setting = self.decoder.get("activation", "silu"), self.decoder.get("activation_key", "hidden_act")
        stated = config.get(setting) if setting else None
        if stated is not None and not isinstance(stated, str):
            raise ValueError("expected a text")
        if isinstance(stated, str) and activation(stated) != usual and usual != "swiglu_oai":
            own["hidden_activation"] = stated

    def check_keys(self, metadata: Mapping[str, Any]) -> None:
        """`BadFile` when a GGUF's key that this table knows holds a value of another kind."""
        for key in self.keys:
            name = f"{self.gguf}.{key.gguf}"
            value = metadata.get(name)
            if value is None or key.values is not None:
                continue
            if isinstance(value, np.ndarray | list | tuple):
                key.check_listed(value, f"key {name!r}")
            else:
                dataclasses.replace(key, kind=key.kind.replace("2s", "2")).typed(value, f"key {name!r}")

    def config(self, metadata: Mapping[str, Any], tensors: Container[str] | None = None) -> dict[str, Any]:
        """GGUF keys -> a config.json for transformers, as far as the keys go.

        tensors: names of those that there are; a class may be told by one that is not.
        """
        dims = at_layer(self.dims_of(metadata), 0)
        names = (r.gguf[0].replace("{i}", str(i)) for r in self.rows for i in (0, 1) if tensors is not None)
        dims |= {without(name): 1 for name in names if tensors is not None and name not in tensors}
        name = next((n for n in self.hf if n.when and evaluate(n.when, dims)), self.hf[0])
        out: dict[str, Any] = {"architectures": [name.cls], "model_type": name.model_type}
        own = Settings({"rope.freq_base": np.float32(10000.0)})  # what its absence means in llama.cpp
        own |= {k.removeprefix(self.gguf + "."): v for k, v in metadata.items() if k.startswith(self.gguf + ".")}
        for key in self.keys:
            if not key.names or (value := own.get(key.gguf)) is None:
                continue
            if isinstance(value, np.ndarray):
                value = value.tolist()
            elif isinstance(value, np.generic):
                value = value.item()
            if key.values is not None:
                value = next((k for k, v in key.values.items() if v == value), None)
                if value is None:
                    continue  # which no configuration says
            elif value == _NO_CAP and key.gguf.endswith("softcapping"):
                value = None
            elif isinstance(value, float) and key.kind == "f32":
                value = float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
            put(out, key.names[0], value)
        with usable(own, f"the keys of {self.gguf}"):
            rope_config(out, own)
            if "hidden_activation" in own and (setting := self.decoder.get("activation_key", "hidden_act")):
                out[setting] = str(own["hidden_activation"])
            if "layer_types" in self.settings:
                windows_config(out, own, self.decoder)
            if self.rebuild is not None:
                self.rebuild(out, own, dims)
            if scores.SCORE in self.rows:
                scores.rebuilt(out, own, dims)
        for setting, value in out.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise BadFile(f"the keys of {self.gguf}: {setting} would be {value}; is the file whole?")
        return out

    def nested(self, config: dict[str, Any]) -> dict[str, Any]:
        """A rebuilt configuration as the class has it: what is the text model's inside."""
        if not self.inside:
            return config
        text = {k: v for k, v in config.items() if k not in _OUTER or (k == "eos_token_id" and k in self.settings)}
        outer = {k: config[k] for k in _OUTER if k in config}
        return {
            **outer,
            "text_config": {"model_type": self.inside, **text, "tie_word_embeddings": self.is_tied(config)},
        }

    def is_tied(self, config: Mapping[str, Any]) -> bool:
        """Whether the head of a model of this configuration is its embedding."""
        stated = config.get("tie_word_embeddings")
        return self.tied if stated is None else bool(stated)

    def expected(self, table_row: Row, config: Mapping[str, Any]) -> bool:
        """Whether a model of this configuration has the row."""
        optional = table_row.optional
        if isinstance(optional, bool):
            return not optional
        if not isinstance(optional, str):
            return optional(config)
        flag = flag_of(optional)
        found = self.is_tied(config) if flag.setting == "tie_word_embeddings" else config.get(flag.setting)
        return flag.there == (flag.usual if found is None else bool(found))


def _is_null(config: Mapping[str, Any], names: Iterable[str]) -> bool:
    """Whether a configuration says that there is none, which is not to say nothing."""
    return any(name in config for name in names)


_NO_CAP = 1e9
"""A cap that no number comes near, of families whose readers take a missing one for the usual and divide by it."""
_OUTER = (
    *("architectures", "model_type", "torch_dtype", "tie_word_embeddings", "bos_token_id", "eos_token_id"),
    *("pad_token_id", "backbone_hidden_size", "use_ordered_embeddings", "num_centroids"),
)
"""Settings that stand around a text model's."""
_OTHER_KINDS = {"shortconv.l_cache", "ssm.conv_kernel", "attention.indexer.top_k", "interleave_moe_layer_step"}
_DIVISORS = {
    "llama3": "rope_freqs",
    "proportional": "rope_freqs",
    "longrope": "rope_factors_long",
    "su": "rope_factors_long",
}
"""Kinds of rotary scaling that are tensors of divisors in a GGUF."""


def without(name: str) -> str:
    """What conditions of an `HfName` call the absence of a tensor: "cls.weight" is `without_cls`."""
    return "without_" + name.removesuffix(".weight").replace(".", "_")


def _merged(old: Any, new: Any, name: Callable[[Any], Any], drop: set[str]) -> Any:
    def dropped(item: Any) -> bool:
        own = name(item)
        return own in drop if isinstance(own, str) else any(n in drop for n in own)

    replaced = {name(item): item for item in new}
    known = {name(item) for item in old}
    kept = [replaced.get(name(item), item) for item in old if not dropped(item) or name(item) in replaced]
    return (*kept, *(item for item in new if name(item) not in known))
