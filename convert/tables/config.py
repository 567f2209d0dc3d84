"""config.json as the tables read it: nested text models flattened, rotary settings of every vintage in one place."""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from llmconv.convert.tables import implied
from llmconv.errors import BadFile, Unsupported
from llmconv.formats.checkpoint import Checkpoint

__all__ = [
    "LOCAL_THETAS",
    "Settings",
    "TEXT_MODELS",
    "THETAS",
    "has_class",
    "look_up",
    "normalized",
    "put",
    "read_config",
    "rope_config",
    "rope_keys",
    "text_config",
    "usable",
]

TEXT_MODELS = ("text_config", "llm_config", "language_config", "lfm", "transformer_layer_config", "talker_config")
"""Where a config.json of several models keeps the text model's."""
THETAS = ("rope_theta", "global_rope_theta", "rotary_emb_base", "rope_embedding_base")
_SEE_ALL = ("full_attention", "indexed_attention")
"""Layers without a window."""
LOCAL_THETAS = ("rope_local_base_freq", "local_rope_theta", "swa_rope_theta")


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """config.json of a model folder, parsed; without one what the tensors say, {} where they say nothing."""
    data = checkpoint.file("config.json")
    if data is None:
        return implied.settings({name: tensor.shape for name, tensor in checkpoint.tensors.items()})
    try:
        config = json.loads(data, object_pairs_hook=_once)
        if isinstance(config, dict):
            return config
    except KeyError as error:
        raise BadFile(f"{checkpoint.where}: config.json has the key {error.args[0]!r} twice; remove one") from None
    except (ValueError, RecursionError):
        pass
    raise BadFile(f"{checkpoint.where}: config.json is not a JSON object; repair or replace it")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The pairs as an object; `KeyError` for a key that is there twice, of which one would be believed."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise KeyError(Counter(k for k, _ in pairs).most_common(1)[0][0])
    return found


class Settings(dict[str, Any]):
    """Settings that remember which of them was asked for last, so that one that is of no use can be named."""

    def __init__(self, values: Mapping[str, Any], path: str = "", asked: list[str] | None = None):
        super().__init__(values)
        self.path, self.asked = path, [""] if asked is None else asked

    def __getitem__(self, key: str) -> Any:
        return self._found(key, super().__getitem__(key))

    def get(self, key: str, default: Any = None) -> Any:
        return self._found(key, super().get(key, default))

    def _found(self, key: str, value: Any) -> Any:
        self.asked[0] = f"{self.path}{key} is {' '.join(repr(value).split()):.60}"
        return Settings(value, f"{self.path}{key}.", self.asked) if isinstance(value, dict) else value


@contextlib.contextmanager
def usable(settings: Mapping[str, Any], source: str) -> Iterator[None]:
    """`BadFile`, naming the setting that was read last, where one has a value that nothing can be computed with."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        last = f": {settings.asked[0]}, which" if isinstance(settings, Settings) else ""
        raise BadFile(f"{source}{last} is of no use here ({error}); correct it") from None


def look_up(config: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    """The first of `names` that the config gives a value; dots step into objects; None when there is none."""
    for name in names:
        value: Any = config
        for step in name.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def put(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a value, making the objects that dots step into."""
    *steps, last = name.split(".")
    for step in steps:
        config = config.setdefault(step, {})
    config[last] = value


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the text model, where a config.json is that of several models; else all of them."""
    if isinstance(config.get("thinker_config"), Mapping):  # of models that also speak
        config = config["thinker_config"]
    return next((config[name] for name in TEXT_MODELS if isinstance(config.get(name), Mapping)), config)


def has_class(config: Mapping[str, Any], name: str) -> bool:
    """Whether a config.json names that class."""
    classes = config.get("architectures")
    return isinstance(classes, list) and name in classes


def normalized(config: Mapping[str, Any]) -> dict[str, Any]:
    """A flat config: the text model's settings over the outer ones; `rope` and `rope_swa` as objects.

    transformers 5 keeps all of a rotary embedding in `rope_parameters`, older releases in `rope_theta` and
    `rope_scaling`, and models with two kinds of attention have one object for each.
    """
    out = dict(config)
    inner = text_config(config)
    if inner is not config:
        outer: dict[str, Any] = {k: out[k] for k in ("architectures", "model_type") if k in out}
        out = {**out, **inner, **outer}
    given = (out[name] for name in ("rope_parameters", "rope_scaling") if out.get(name) not in (None, {}))
    parameters: Any = next(given, {})
    local = parameters.get("sliding_attention") if isinstance(parameters, Mapping) else None
    for name, value in (("rope_parameters", parameters), ("rope_parameters.sliding_attention", local or {})):
        if not isinstance(value, Mapping):
            raise BadFile(f"config.json: {name} is {value!r:.60}, expected an object")
    rope, local = dict(parameters), {}
    seeing_all = next((parameters[k] for k in _SEE_ALL if isinstance(parameters.get(k), Mapping)), None)
    if seeing_all is not None:
        rope, local = dict(seeing_all), dict(parameters.get("sliding_attention") or {})
    theta, local_theta = look_up(out, THETAS), look_up(out, LOCAL_THETAS)
    if isinstance(theta, list):
        theta, local_theta = _by_kind(theta, out.get("layer_types"))
        out["rope_theta"] = theta
    if theta is not None:
        rope.setdefault("rope_theta", theta)
    if local_theta is not None:
        local.setdefault("rope_theta", local_theta)
    if "rope_type" not in rope and "type" in rope:
        rope["rope_type"] = rope["type"]
    for name in ("original_max_position_embeddings", "partial_rotary_factor"):
        if name not in rope and out.get(name) is not None:
            rope[name] = out[name]
        if rope.get(name) is not None:
            out[name] = rope[name]
    if rope.get("rope_theta") is not None:
        out["rope_theta"] = rope["rope_theta"]
    if local.get("rope_theta") is not None:
        out["rope_local_base_freq"] = local["rope_theta"]
    if out.get("text_vocab_size") is not None:  # of models that say codes of sound, as many as `vocab_size` says
        out["codec_vocab_size"], out["vocab_size"] = out.get("vocab_size"), out["text_vocab_size"]
    if out.get("vocab_size") is None and out.get("padded_vocab_size") is not None:
        out["vocab_size"] = out["padded_vocab_size"]
    out["rope"], out["rope_swa"] = rope, local
    return Settings(out)


def _by_kind(thetas: list[Any], kinds: Any) -> tuple[Any, Any]:
    """Of bases listed by layer, the one of layers that see everything, and that of windows."""
    if any(isinstance(theta, bool) or not isinstance(theta, int | float) for theta in thetas):
        raise BadFile(f"config.json: rope_theta is {thetas!r:.60}, expected numbers")
    found: dict[str, set[Any]] = {"full_attention": set(), "sliding_attention": set()}
    for theta, kind in zip(
        thetas, kinds if isinstance(kinds, list) else ["full_attention"] * len(thetas), strict=False
    ):
        found.setdefault(str(kind), set()).add(theta)
    if any(len(each) > 1 for each in found.values()):
        raise Unsupported("config.json: rope_theta has several numbers for layers of one kind, expected one")
    full, windowed = (next(iter(found[kind]), None) for kind in ("full_attention", "sliding_attention"))
    return (windowed if full is None else full), windowed


# rope_parameters -> GGUF, for YaRN's fine settings.
_YARN = (
    ("beta_fast", "rope.scaling.yarn_beta_fast"),
    ("beta_slow", "rope.scaling.yarn_beta_slow"),
)


def _magnitude(factor: float, multiplier: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by (arXiv:2309.00071): 0.1 m ln(factor) + 1."""
    return 0.1 * multiplier * math.log(factor) + 1.0 if factor > 1 else 1.0


def _yarn_keys(own: dict[str, Any], rope: Mapping[str, Any], truncates: bool) -> None:
    """YaRN's settings; readers of GGUF multiply cos and sin by (1 + 0.1 ln(factor)) attn_factor.

    truncates: whether the family's ramp ends at whole dimensions, where a GGUF does not say.
    """
    factor = own["rope.scaling.factor"] = _factor(rope["factor"])
    original = rope.get("original_max_position_embeddings") or own.get("context_length", 0)
    own["rope.scaling.original_context_length"] = np.uint32(original)
    for name, key in _YARN:
        if rope.get(name):
            own.setdefault(key, np.float32(rope[name]))
    usual = wanted = _magnitude(float(factor))
    over, under = rope.get("mscale"), rope.get("mscale_all_dim")
    if rope.get("attention_factor") is not None:
        wanted = float(rope["attention_factor"])
    elif over and under:
        wanted = _magnitude(float(factor), over) / _magnitude(float(factor), under)
    elif rope.get("attn_factor") is not None:
        wanted *= float(rope["attn_factor"])
    if not 0 < wanted < 1e9:
        raise ValueError("attention_factor is no positive number")
    if not math.isclose(wanted, usual, rel_tol=1e-7):
        own["rope.scaling.attn_factor"] = np.float32(wanted / usual)
    if bool(rope.get("truncate", True)) is not truncates:
        own["rope.scaling.yarn_truncate"] = not truncates


def _factor(value: Any) -> np.float32:
    """How much further a model looks: a positive number; it is divided by."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
        raise ValueError("factor is no positive number")
    return np.float32(value)


def rope_keys(own: dict[str, Any], config: Mapping[str, Any], source: str, truncates: bool = True) -> None:
    """Add the rope.scaling keys to a GGUF's (bare) keys; truncates: see `_yarn_keys`."""
    rope = config.get("rope") or {}
    kind = rope.get("rope_type")
    if kind is not None and not isinstance(kind, str):
        raise BadFile(f"{source}: rope_type is {kind!r}, expected a text")
    try:
        match kind and kind.lower():
            case "llama3" | "proportional" | None | "default" | "none" | "dynamic" | "mrope" | "xdrope":
                pass  # the first two: their factors are a tensor; dynamic: nothing until the context overflows
            case "linear":
                own["rope.scaling.type"] = "linear"
                own["rope.scaling.factor"] = _factor(rope["factor"])
            case "yarn":
                own["rope.scaling.type"] = "yarn"
                _yarn_keys(own, rope, truncates)
            case "su" | "longrope":
                own["rope.scaling.type"] = "longrope"
            case _:
                raise Unsupported(
                    f"{source}: unknown rope type {kind!r}; known: default, linear, dynamic, yarn, llama3, longrope"
                )
    except KeyError as error:
        raise BadFile(f"{source}: rope type {kind!r} lacks {error.args[0]!r}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise BadFile(f"{source}: rope settings {rope!r} are not numbers ({error})") from None


def rope_config(config: dict[str, Any], own: Mapping[str, Any]) -> None:
    """The way back: rope_scaling from a GGUF's (bare) keys."""
    kind = own.get("rope.scaling.type")
    if kind not in ("linear", "yarn"):
        return
    scaling: dict[str, Any] = {"rope_type": kind, "factor": float(own.get("rope.scaling.factor", 1.0))}
    if kind == "yarn":
        original = own.get("rope.scaling.original_context_length", own.get("context_length"))
        if original is not None:
            scaling["original_max_position_embeddings"] = int(original)
        for name, key in _YARN:
            if key in own:
                scaling[name] = float(own[key])
        if "rope.scaling.attn_factor" in own:
            scaling["attention_factor"] = float(own["rope.scaling.attn_factor"]) * _magnitude(scaling["factor"])
        if "rope.scaling.yarn_truncate" in own:
            scaling["truncate"] = bool(own["rope.scaling.yarn_truncate"])
    config["rope_scaling"] = scaling
