"""The torch side: run a checkpoint, measure it, generate, train.  Nothing outside this room imports torch."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError:
    from llmconv.errors import UsageError

    raise UsageError("running a model needs torch; install it with: pip install 'llmconv[torch]'") from None
