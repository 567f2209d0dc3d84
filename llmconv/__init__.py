"""llmconv: convert and quantize language models between legacy JSON, safetensors and GGUF.

Everything here is loaded when first used, so that `import llmconv` stays light.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that holds it.  `export as other` where the module's own name for it differs.
_PUBLIC: dict[str, str] = {
    "open": "llmconv.api",
    "save": "llmconv.api",
    "convert_file": "llmconv.api",
    "inspect_file": "llmconv.api",
    "content_hash": "llmconv.reports",
    "diff": "llmconv.reports",
    "histogram": "llmconv.reports",
    "size": "llmconv.reports",
    "statistics": "llmconv.reports",
    "vocabulary": "llmconv.reports",
    "shaped": "llmconv.reports",
    "verify": "llmconv.reports",
    "verify_provenance": "llmconv.reports",
    "sweep": "llmconv.runtime.sweep",
    "train": "llmconv.runtime.training.loop",
    "TrainConfig": "llmconv.runtime.training.config",
    "edit": "llmconv.tools",
    "merge": "llmconv.tools",
    "parse_size": "llmconv.tools",
    "split": "llmconv.tools",
    "load": "llmconv.runtime.load",
    "perplexity": "llmconv.runtime.perplexity",
    "compare": "llmconv.runtime.compare",
    "generate": "llmconv.runtime.generate",
    "Sampling": "llmconv.runtime.sampling",
    "Text": "llmconv.runtime.texts",
    "quantize": "llmconv.convert.writing.quantize",
    "warmup": "llmconv.quant.warm",
    "Checkpoint": "llmconv.formats.checkpoint",
    "Tensor": "llmconv.formats.tensor",
    "LlmconvError": "llmconv.errors",
    "BadFile": "llmconv.errors",
    "Unsupported": "llmconv.errors",
    "OutputError": "llmconv.errors",
    "UsageError": "llmconv.errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llmconv' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        from llmconv.errors import UsageError

        raise UsageError("running a model needs torch; install it with: pip install 'llmconv[torch]'") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
