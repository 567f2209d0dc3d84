"""Everything that can be set, in one dataclass: `train`'s argument, the command's flags, the config file's keys."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from llmconv.convert.tables.presets import preset
from llmconv.errors import BadFile, UsageError, at, cut, nearest

__all__ = ["SECTIONS", "TrainConfig", "read_config"]

FINE_TUNING_LR = 1e-4
"""For a model that has learned already: what it knows should not be washed out."""


_MANY = 1 << 31
_LONGEST = 1 << 20
"""Bytes of a settings file."""
ONE = math.nextafter(1, 2)
"""An end of a range that 1 is still in."""


def _setting(default: Any, help: str, low: float = 0, high: float = math.inf, special: float | None = None) -> Any:
    """A setting with its help, and, of a number: from `low` to less than `high`, or the `special` value that says
    "as usual"."""
    return field(default=default, metadata={"help": help, "range": (low, high, special)})


@dataclass(frozen=True)
class TrainConfig:
    """How to train.  Every field is a flag of `llmconv train` (`batch_size`: `--batch-size`) and a config key."""

    data: str = _setting("", "text files or a folder of them, JSON lines, or a JSON list of input/target pairs")
    output: str = _setting("", "folder for checkpoints, logs and exports")
    preset: str = _setting(
        "", "the model's shape: simple-36k, small-10m, gpt2-small, llama-15m and others (see llmconv presets)"
    )
    from_checkpoint: str = _setting("", "continue from a checkpoint of any format instead of a fresh model")
    # The model, where it is not the preset's.
    vocab_size: int = _setting(0, "most tokens in a vocabulary made here (0: the preset's)", high=_MANY)
    dim: int = _setting(0, "width (0: the preset's)", high=_MANY)
    layers: int = _setting(0, "layers (0: the preset's)", high=_MANY)
    heads: int = _setting(0, "attention heads (0: the preset's)", high=_MANY)
    ffn: int = _setting(0, "feed-forward width (0: the preset's)", high=_MANY)
    tokenizer: str = _setting(
        "auto", "vocabulary to make (word, char, bpe, wordpiece), or a model or tokenizer file to take it from"
    )
    dropout: float = _setting(0.0, "dropout on embeddings and on what attention and MLP add", high=1)
    # Data.
    context: int = _setting(0, "tokens in a training sequence (0: the model's own context, at most 1024)", high=_MANY)
    val_fraction: float = _setting(
        -1.0, "share kept for validation (-1: 0.1 of a text, none of pairs)", high=1, special=-1
    )
    # Optimisation.
    steps: int = _setting(1000, "optimizer steps", 1, _MANY)
    batch_size: int = _setting(16, "sequences in a step, over all devices and accumulation", 1, _MANY)
    accumulation: int = _setting(1, "parts a step's batch is computed in, to save memory", 1, _MANY)
    optimizer: Literal["adamw", "sgd"] = _setting("adamw", "what turns gradients into steps")
    lr: float = _setting(0.0, "highest learning rate (0: the preset's, 1e-4 for a checkpoint)")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = _setting("cosine", "course of the learning rate")
    warmup: int = _setting(-1, "steps of linear warm-up (-1: 2 % of the steps)", high=_MANY, special=-1)
    min_lr_ratio: float = _setting(0.1, "last learning rate / highest", high=ONE)
    decay_share: float = _setting(0.2, "last share of the steps in which wsd decays", high=ONE)
    beta1: float = _setting(0.9, "AdamW's first decay, or SGD's momentum", high=1)
    beta2: float = _setting(0.95, "AdamW's second decay", high=1)
    eps: float = _setting(1e-8, "AdamW's epsilon")
    weight_decay: float = _setting(0.1, "weight decay, on matrices only")
    clip: float = _setting(1.0, "largest gradient norm (0: no clipping)")
    # Running.
    device: str = _setting("auto", "where to train: auto, cpu, cuda, mps")
    dtype: Literal["f32", "bf16", "f16"] = _setting("f32", "what to compute in; weights stay float32")
    activation_checkpointing: bool = _setting(False, "recompute activations instead of keeping them")
    compile: bool = _setting(False, "compile the model with torch.compile")
    parallel: Literal["ddp", "fsdp"] = _setting("ddp", "how several processes under torchrun share the work")
    seed: int = _setting(0, "seed of weights, data order and dropout", high=1 << 62)
    # Validation, logs, checkpoints.
    eval_every: int = _setting(0, "steps between validations (0: a tenth of the steps)", high=_MANY)
    eval_sequences: int = _setting(
        -1, "sequences of a validation (0: all of it, -1: all pairs, 320 of a text)", high=_MANY, special=-1
    )
    patience: int = _setting(0, "stop after this many validations without a better one (0: never)", high=_MANY)
    log_every: int = _setting(10, "steps between lines of the log", 1, _MANY)
    save_every: int = _setting(0, "steps between checkpoints (0: as between validations)", high=_MANY)
    keep: int = _setting(2, "checkpoints to keep", 1, _MANY)
    tensorboard: bool = _setting(True, "write TensorBoard events, where tensorboard is installed")
    plot: bool = _setting(True, "draw the loss curve at the end, where matplotlib is installed")
    # Exports.
    export: str = _setting("gguf", "formats to write at the end: gguf, safetensors, json, separated by commas")
    layout: str = _setting("", "the layout of an exported JSON, for the program that reads it; by default its family's")
    export_type: str = _setting("f32", "their type: f32, f16, bf16, f64, or for gguf a quantized type such as Q8_0")

    def __post_init__(self) -> None:
        hints = get_type_hints(TrainConfig)
        for setting in dataclasses.fields(self):
            value = _checked(setting.name, getattr(self, setting.name), hints[setting.name])
            if hints[setting.name] in (int, float):
                _in_range(setting.name, value, *setting.metadata["range"])
            object.__setattr__(self, setting.name, value)
        if self.batch_size % self.accumulation:
            raise UsageError(f"batch_size {self.batch_size} is no multiple of accumulation {self.accumulation}")
        if bool(self.preset) == bool(self.from_checkpoint):
            raise UsageError(
                "say what to train: a fresh model (--preset NAME) or a checkpoint (--from FILE), one of them"
            )

        fixed = [name for name in ("vocab_size", "dim", "layers", "heads", "ffn") if getattr(self, name)]
        if self.from_checkpoint and fixed:
            raise UsageError(f"a checkpoint has its own {fixed[0]}; leave it out, or start a fresh model with --preset")

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, whoever says it.  `UsageError` for an unknown preset."""
        return self.lr or (preset(self.preset).lr if self.preset else FINE_TUNING_LR)

    @property
    def warmup_steps(self) -> int:
        return self.warmup if self.warmup >= 0 else max(1, self.steps // 50)

    @property
    def eval_interval(self) -> int:
        return self.eval_every or max(1, self.steps // 10)

    @property
    def save_interval(self) -> int:
        return self.save_every or self.eval_interval

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on from."""
        free = {"output", "device", "keep", "tensorboard", "plot", "export", "export_type", "log_every", "compile"}
        free |= {"layout", "data", "from_checkpoint"}  # which are compared by what is in them
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in free}


SECTIONS = {
    "What to train": "output",
    "The model, where it is not the preset's": "vocab_size",
    "Data": "context",
    "Optimisation": "steps",
    "Running": "device",
    "Validation, logs, checkpoints": "eval_every",
    "Exports": "export",
}
"""Heading -> the first setting under it, for the command's help."""


def _in_range(name: str, value: float, low: float, high: float, special: float | None) -> None:
    """`UsageError` unless low <= value < high."""
    if low <= value < high or value == special:
        return
    if not math.isfinite(value):
        raise UsageError(f"{name} is {value}, expected a finite number")
    if high < _MANY:
        wanted = f"{low:g} to {1 if high == ONE else f'less than {high:g}'}"
    else:
        wanted = f"at least {low:g}" if low else "0 or more"
    also = "" if special is None else f", or {special:g}"
    raise UsageError(f"{name} is {value}, expected {wanted}{also}")


def _checked(name: str, value: Any, hint: Any) -> Any:
    """The value as the field's type, or `UsageError`."""
    choices = get_args(hint)
    if choices:
        if value not in choices:
            raise UsageError(f"{name} is {cut(value)}, expected {', '.join(choices)}")
        return value
    value = str(value) if hint is str and isinstance(value, Path) else value
    number = isinstance(value, int) and not isinstance(value, bool)
    if number and value.bit_length() > 64:  # which no float may hold, and no message show
        raise UsageError(f"{name} is {cut(value)}, which is more than any setting takes")
    value = float(value) if hint is float and number else value
    if type(value) is not hint:
        wanted = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
        raise UsageError(f"{name} is {cut(value)}, expected {wanted}")
    if hint is str and not _can_be_a_name(value):
        raise UsageError(f"{name} is {cut(value)}, expected text that a file may have for a name")
    return value


def _can_be_a_name(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def read_config(path: str | Path) -> Mapping[str, Any]:
    """Settings from a TOML or JSON file; `BadFile` for one that is neither, or has a key that is no setting."""
    path = Path(path)
    try:
        with path.open("rb") as file:  # a pipe is welcome, so not everything has an end
            text = file.read(_LONGEST).decode()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise BadFile(f"{at(path)}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise BadFile(f"{at(path)}: is no {'JSON' if path.suffix == '.json' else 'TOML'} ({error})") from None
    if not isinstance(found, dict):
        raise BadFile(f"{at(path)}: expected settings by name")
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    for name in found:
        if name not in known:
            near = nearest(name, known)
            raise BadFile(f"{at(path)}: {cut(name)} is no setting{f'; did you mean {near!r}?' if near else ''}")
    return found
