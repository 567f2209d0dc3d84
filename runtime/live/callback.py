"""GGUFs of a transformers `Trainer`'s checkpoints, written as it saves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from llmconv.runtime.live.adapters import is_sharded
from llmconv.runtime.live.taking import save_gguf

__all__ = ["GGUFCallback"]


class GGUFCallback(TrainerCallback):
    """`Trainer(callbacks=[llmconv.GGUFCallback("Q8_0")])`: each `checkpoint-N` folder gets a `model-TYPE.gguf`.

    type: as in `save_gguf`.   tokenizer: the trainer's own when None.   options: those of `quantize`.
    Only the first process writes; a model that is sharded over processes is gathered there first.
    """

    def __init__(self, type: str = "Q8_0", tokenizer: Any = None, **options: Any):
        self.type, self.tokenizer, self.options = type, tokenizer, options
        self.paths: list[Path] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Called by the trainer before its first step: what can't be written is said now, not with a checkpoint."""
        if state.is_world_process_zero and not is_sharded(more["model"]):
            self._save(Path(args.output_dir), more, dry_run=True)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Called by the trainer when a checkpoint is written."""
        if not state.is_world_process_zero and not is_sharded(more["model"]):
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        path = self._save(folder, more)
        if state.is_world_process_zero:
            self.paths.append(path)

    def _save(self, folder: Path, more: Mapping[str, Any], **how: Any) -> Path:
        tokenizer = self.tokenizer if self.tokenizer is not None else more.get("processing_class")
        path = folder / f"model-{self.type}.gguf"
        save_gguf(more["model"], path, self.type, tokenizer, **{**self.options, "force": True, **how})
        return path
