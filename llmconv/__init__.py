"""llmconv: convert and quantize language models between legacy JSON, safetensors and GGUF.

Everything here is loaded when first used, so that `import llmconv` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; a test keeps it equal to the table below
    from llmconv.adapter import save_adapter as save_adapter
    from llmconv.api import (
        Result as Result,
        convert_file as convert_file,
        open as open,
        save as save,
    )
    from llmconv.convert.quantizing.quantize import quantize as quantize
    from llmconv.errors import (
        BadFile as BadFile,
        BadKey as BadKey,
        BadWeight as BadWeight,
        Cancelled as Cancelled,
        LlmconvError as LlmconvError,
        MissingExtra as MissingExtra,
        MissingTensor as MissingTensor,
        OutputError as OutputError,
        OutputExists as OutputExists,
        UnknownName as UnknownName,
        UnknownTensor as UnknownTensor,
        Unsupported as Unsupported,
        UsageError as UsageError,
        WrongShape as WrongShape,
    )
    from llmconv.formats.checkpoint import Checkpoint as Checkpoint
    from llmconv.formats.limits import parse_size as parse_size
    from llmconv.formats.sharing.team import together as together
    from llmconv.formats.tensor import Tensor as Tensor
    from llmconv.ollama import OllamaModel as OllamaModel, to_ollama as to_ollama
    from llmconv.progress import Step as Step
    from llmconv.publish import Upload as Upload, upload as upload
    from llmconv.quant.warm import warmup as warmup
    from llmconv.reports import (
        content_hash as content_hash,
        diff as diff,
        grids as grids,
        histogram as histogram,
        inspect_file as inspect_file,
        shaped as shaped,
        shares as shares,
        size as size,
        statistics as statistics,
        streaming as streaming,
        training_memory as training_memory,
        verify as verify,
        verify_provenance as verify_provenance,
        view as view,
        vocabulary as vocabulary,
    )
    from llmconv.runtime.calibrate.calibration import (
        Calibration as Calibration,
        OnText as OnText,
        calibrate as calibrate,
    )
    from llmconv.runtime.calibrate.imatrix import ImportanceMatrix as ImportanceMatrix, imatrix as imatrix
    from llmconv.runtime.calibrate.verified import Verified as Verified
    from llmconv.runtime.embedding.embed import embed as embed
    from llmconv.runtime.generate import generate as generate
    from llmconv.runtime.live.callback import GGUFCallback as GGUFCallback
    from llmconv.runtime.live.giving import state_dict as state_dict, to_torch as to_torch
    from llmconv.runtime.live.taking import from_torch as from_torch, save_gguf as save_gguf
    from llmconv.runtime.load import load as load
    from llmconv.runtime.measure.compare import compare as compare
    from llmconv.runtime.measure.perplexity import perplexity as perplexity
    from llmconv.runtime.measure.sweep import sweep as sweep
    from llmconv.runtime.measure.texts import Text as Text
    from llmconv.runtime.sampling import Sampling as Sampling
    from llmconv.runtime.training.config import TrainConfig as TrainConfig
    from llmconv.runtime.training.loop import train as train
    from llmconv.text import ModelTokenizer as ModelTokenizer, tokenizer as tokenizer
    from llmconv.tools import edit as edit, merge as merge, split as split

__version__ = "0.1.0"

# Public name -> the module that holds it.  `export as other` where the module's own name for it differs.
_PUBLIC: dict[str, str] = {
    "open": "llmconv.api",
    "save": "llmconv.api",
    "convert_file": "llmconv.api",
    "content_hash": "llmconv.reports",
    "diff": "llmconv.reports",
    "grids": "llmconv.reports",
    "histogram": "llmconv.reports",
    "inspect_file": "llmconv.reports",
    "size": "llmconv.reports",
    "statistics": "llmconv.reports",
    "streaming": "llmconv.reports",
    "training_memory": "llmconv.reports",
    "vocabulary": "llmconv.reports",
    "shaped": "llmconv.reports",
    "shares": "llmconv.reports",
    "verify": "llmconv.reports",
    "verify_provenance": "llmconv.reports",
    "view": "llmconv.reports",
    "sweep": "llmconv.runtime.measure.sweep",
    "together": "llmconv.formats.sharing.team",
    "train": "llmconv.runtime.training.loop",
    "TrainConfig": "llmconv.runtime.training.config",
    "edit": "llmconv.tools",
    "merge": "llmconv.tools",
    "parse_size": "llmconv.formats.limits",
    "to_ollama": "llmconv.ollama",
    "OllamaModel": "llmconv.ollama",
    "upload": "llmconv.publish",
    "Upload": "llmconv.publish",
    "split": "llmconv.tools",
    "load": "llmconv.runtime.load",
    "from_torch": "llmconv.runtime.live.taking",
    "save_adapter": "llmconv.adapter",
    "save_gguf": "llmconv.runtime.live.taking",
    "to_torch": "llmconv.runtime.live.giving",
    "state_dict": "llmconv.runtime.live.giving",
    "GGUFCallback": "llmconv.runtime.live.callback",
    "perplexity": "llmconv.runtime.measure.perplexity",
    "compare": "llmconv.runtime.measure.compare",
    "embed": "llmconv.runtime.embedding.embed",
    "generate": "llmconv.runtime.generate",
    "Sampling": "llmconv.runtime.sampling",
    "Text": "llmconv.runtime.measure.texts",
    "quantize": "llmconv.convert.quantizing.quantize",
    "warmup": "llmconv.quant.warm",
    "calibrate": "llmconv.runtime.calibrate.calibration",
    "OnText": "llmconv.runtime.calibrate.calibration",
    "Calibration": "llmconv.runtime.calibrate.calibration",
    "Verified": "llmconv.runtime.calibrate.verified",
    "imatrix": "llmconv.runtime.calibrate.imatrix",
    "ImportanceMatrix": "llmconv.runtime.calibrate.imatrix",
    "Checkpoint": "llmconv.formats.checkpoint",
    "Tensor": "llmconv.formats.tensor",
    "Result": "llmconv.api",
    "Step": "llmconv.progress",
    "tokenizer": "llmconv.text",
    "ModelTokenizer": "llmconv.text",
    "LlmconvError": "llmconv.errors",
    "BadFile": "llmconv.errors",
    "BadKey": "llmconv.errors",
    "BadWeight": "llmconv.errors",
    "Cancelled": "llmconv.errors",
    "MissingExtra": "llmconv.errors",
    "MissingTensor": "llmconv.errors",
    "OutputError": "llmconv.errors",
    "OutputExists": "llmconv.errors",
    "UnknownName": "llmconv.errors",
    "UnknownTensor": "llmconv.errors",
    "Unsupported": "llmconv.errors",
    "UsageError": "llmconv.errors",
    "WrongShape": "llmconv.errors",
}

__all__ = ["__version__", *_PUBLIC]

# Library that some public names need -> the extra of ours that brings it.
_EXTRAS = {"torch": "torch", "transformers": "transformers"}


def _load(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmconv' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        return _without(name, error.name)  # not kept: it may be installed while we run
    globals()[name] = value
    return value


def _without(name: str, module: str) -> Any:
    """What stands for a name whose library is not installed: it can be looked at, and says so when it is called."""

    def missing(*_: Any, **__: Any) -> Any:
        from llmconv.errors import MissingExtra

        raise MissingExtra("running a model", module, _EXTRAS[module])

    missing.__name__ = missing.__qualname__ = name
    missing.__doc__ = f"Not usable here: needs {module}, which is not installed (pip install {module})."
    return missing


if not TYPE_CHECKING:  # where a name that is not in the table would pass as anything
    __getattr__ = _load


def __dir__() -> list[str]:
    return sorted(__all__)
