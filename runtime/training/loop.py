"""The training loop, from the configuration to the exports, in the order in which things happen."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from llmconv.convert.reports.sizing import TrainingMemory, shape_of, training_memory
from llmconv.convert.tables.presets import preset
from llmconv.errors import BadFile, UsageError, at
from llmconv.formats.checkpoint import Checkpoint
from llmconv.runtime.chunks import device_errors
from llmconv.runtime.model import Model
from llmconv.runtime.training import state
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.data import Pairs, Stream, load_data, text_bytes
from llmconv.runtime.training.export import check_exports, check_layout, export, gathered
from llmconv.runtime.training.log import Log, draw_losses, write_summary
from llmconv.runtime.training.optim import learning_rate, make_optimizer
from llmconv.runtime.training.parallel import Team, assemble, build_model
from llmconv.runtime.training.start import context_of, prepare, starting_point
from llmconv.runtime.training.step import train_step, validate
from llmconv.show import Shown

__all__ = ["Trained", "train"]

ONE_THREAD = 1_000_000
"""Parameters below which a CPU trains on one thread: handing out such small products costs more than it saves."""


@dataclass(frozen=True)
class Trained(Shown):
    """What `train` did.

    steps, tokens: done in all; loss, val_loss: the last ones, nats per token; val_perplexity: exp(val_loss);
    best_val_loss: the lowest; seconds, tokens_per_second: of this call; stopped_early: whether patience ran out;
    checkpoint: the last one; exports: the files and folders written; parameters: of the model.
    """

    steps: int
    tokens: int
    loss: float
    val_loss: float
    val_perplexity: float
    best_val_loss: float
    seconds: float
    tokens_per_second: float
    stopped_early: bool
    parameters: int
    checkpoint: Path | None
    exports: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


_WITHOUT_ROOM = (
    "give a smaller --batch-size or --context, more --accumulation, --activation-checkpointing, --dtype bf16, or "
    "several devices with --parallel fsdp"
)
Reporter = Callable[[str, dict[str, Any]], None]
"""Called with "tokenize", "plan", "step" or "validate" and what there is to show, by name."""


def train(config: TrainConfig, *, resume: bool = False, report: Reporter | None = None) -> Trained:
    """Train a model as `config` says; see `TrainConfig`.

    resume: go on from the newest checkpoint in `config.output`; on a CPU the losses continue bit for bit.
    report: called as the run goes, for progress bars.

    Under torchrun every process calls this.  Raises `UsageError`, `BadFile` or `OutputError`, one sentence each.
    """
    if not config.data or not config.output:
        raise UsageError("training needs data to train on and a folder to write to (DATA and -o)")
    kinds, export_type = check_exports(config.export, config.export_type, config.layout)
    for given in (config.data, config.from_checkpoint):  # what is misspelt is named before a folder is made
        if given and not Path(given).exists():
            raise BadFile(f"{at(given)}: no such file or folder; check the path")
    if config.preset:
        preset(config.preset)
    folder = Path(config.output)
    with contextlib.ExitStack() as stack:
        team = assemble(config.device, config.parallel)
        stack.callback(team.close)
        stack.enter_context(device_errors(team.device, _WITHOUT_ROOM))
        return _train(config, resume, report or (lambda kind, facts: None), folder, team, kinds, export_type, stack)


def _train(
    config: TrainConfig,
    resume: bool,
    report: Reporter,
    folder: Path,
    team: Team,
    kinds: list[str],
    export_type: str,
    stack: contextlib.ExitStack,
) -> Trained:
    newest = prepare(folder, config, resume, team)
    start, vocab = starting_point(config, folder, resume, team)
    check_layout(start, config.layout)
    context = context_of(config, start)
    if team.rank == 0:
        total = text_bytes(Path(config.data))
        load = functools.partial(load_data, progress=lambda n: report("tokenize", {"bytes": n, "total": total}))
    else:
        team.barrier()  # the first process tokenizes, the others find it done
        load = functools.partial(load_data)
    training, validation = load(
        Path(config.data), vocab, folder / "data", context=context, val_fraction=config.val_fraction, seed=config.seed
    )
    if team.rank == 0:
        team.barrier()

    shape = shape_of(start)
    n_parameters = start.n_elements
    share = max(1, config.batch_size // config.accumulation // team.size)
    plan = training_memory(
        shape,
        batch=share,
        context=context,
        devices=team.size if team.sharded else 1,
        optimizer_bytes=8 if config.optimizer == "adamw" else 4,  # two moments, or SGD's momentum
        activation_bytes=4 if config.dtype == "f32" else 2,
        checkpointing=config.activation_checkpointing,
    )
    report("plan", {"memory": plan, "parameters": n_parameters, "device": str(team.device), "processes": team.size})

    if team.device.type == "cpu" and n_parameters < ONE_THREAD and "OMP_NUM_THREADS" not in os.environ:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
    torch.manual_seed(config.seed + team.rank)
    model, wrapped = build_model(start, team, functools.partial(_prepare_model, config))
    metadata = dict(model.metadata)
    optimizer = make_optimizer(wrapped, config)
    scaler = torch.amp.GradScaler(team.device.type, enabled=config.dtype == "f16")
    progress = state.Progress()
    if newest is not None:
        progress = state.restore(newest, model, optimizer, team, scaler)
    forward: Any = torch.compile(wrapped) if config.compile else wrapped

    log = Log(folder, progress.step, config.tensorboard) if team.rank == 0 else None
    if log is not None:
        stack.callback(log.close)
    loss = val_loss = grad_norm = math.nan
    began, seen, stopped = time.perf_counter(), 0, False
    mark, mark_tokens = began, 0
    checkpoint: Path | None = newest
    while progress.step < config.steps:
        rate = learning_rate(config, progress.step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = training.batch(progress.step, config.batch_size)
        loss, count, grad_norm = train_step(config, forward, wrapped, optimizer, batch, team, scaler)
        if not math.isfinite(loss):
            raise BadFile(
                f"{at(config.data)}: the loss is {loss} at step {progress.step}; lower --lr, raise --warmup, or use f32"
            )
        progress.step += 1
        progress.tokens += count
        seen += count

        last = progress.step == config.steps
        if log is not None and (progress.step % config.log_every == 0 or last):
            now = time.perf_counter()
            speed = (seen - mark_tokens) / max(1e-9, now - mark)
            mark, mark_tokens = now, seen
            log.write(progress.step, progress.tokens, loss=loss, lr=rate, grad_norm=grad_norm, tokens_per_second=speed)
            report("step", {"step": progress.step, "loss": loss, "lr": rate, "tokens_per_second": speed})
        else:
            report("step", {"step": progress.step})
        if progress.step % config.eval_interval == 0 or last:
            val_loss = validate(config, wrapped, validation, team)
            if val_loss < progress.best:
                progress.best, progress.stale = val_loss, 0
            else:
                progress.stale += 1
            if log is not None:
                log.write(
                    progress.step, progress.tokens, val_loss=val_loss, val_perplexity=math.exp(min(val_loss, 700))
                )
            report("validate", {"step": progress.step, "val_loss": val_loss})
            stopped = bool(config.patience) and progress.stale >= config.patience
            mark, mark_tokens = time.perf_counter(), seen
        if progress.step % config.save_interval == 0 or last or stopped:
            checkpoint = state.save(folder, model, optimizer, progress, config.keep, team, scaler)
        if stopped:
            break
    seconds = time.perf_counter() - began
    if math.isnan(val_loss):  # a finished run was resumed: there was nothing left to do
        val_loss = validate(config, wrapped, validation, team)

    exports: list[Path] = []
    notes = [log.note] if log is not None and log.note else []
    trained = gathered(model, team, metadata)
    if log is not None and trained is not None:
        log.close()
        history = _history(config, start, training, progress.step, seconds)
        exports = export(trained, folder, "model", kinds, export_type, history, config.layout or None)
        picture = draw_losses(folder) if config.plot else None
        if config.plot and picture is None:
            notes.append("no loss curve: matplotlib is not installed")
    result = Trained(
        steps=progress.step,
        tokens=progress.tokens,
        loss=loss,
        val_loss=val_loss,
        val_perplexity=math.exp(min(val_loss, 700)),
        best_val_loss=min(progress.best, val_loss),
        seconds=seconds,
        tokens_per_second=seen / max(1e-9, seconds),
        stopped_early=stopped,
        parameters=n_parameters,
        checkpoint=checkpoint,
        exports=exports,
        notes=notes,
    )
    if log is not None:
        _summarise(folder, config, result, training, plan, picture)
    team.barrier()
    return result


def _prepare_model(config: TrainConfig, model: Model) -> None:
    _add_dropout(model, config.dropout)
    if config.activation_checkpointing:
        _recompute_blocks(model)


def _add_dropout(model: nn.Module, p: float) -> None:
    """Dropout on the embeddings and on what attention and MLP add to the residual, where GPT-2 has it.

    Attention without an output projection has it on its values, of which its output is a mean.
    """
    if not p:
        return

    def drop(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, p, module.training)

    names = {name for name, _ in model.named_modules()}
    for name, module in model.named_modules():
        bare = name.endswith(".attn_v") and name.replace("attn_v", "attn_output") not in names
        if bare or name == "token_embd" or name.endswith((".attn_output", ".ffn_down")):
            module.register_forward_hook(drop)


def _recompute_blocks(model: Any) -> None:
    from torch.utils.checkpoint import checkpoint

    for block in model.blk:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


def _history(
    config: TrainConfig, start: Checkpoint, training: Stream | Pairs, steps: int, seconds: float
) -> dict[str, Any]:
    """What the legacy program writes of a model's training, under its names; SOURCE_DATE_EPOCH fixes the date."""
    made = datetime.fromtimestamp(float(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    shape = shape_of(start)
    return {
        "name": config.preset or Path(config.from_checkpoint).stem,
        "createdAt": made.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "trainingTime": round(seconds, 3),
        "trainingSamples": len(training),
        "epochs": -(-steps * config.batch_size // len(training)),
        "embeddingDim": shape.dim("n_embd"),
        "numLayers": shape.dim("n_layer"),
        "source": "local",
    }


def _summarise(
    folder: Path,
    config: TrainConfig,
    result: Trained,
    training: Stream | Pairs,
    plan: TrainingMemory,
    picture: Path | None,
) -> None:
    what = config.preset or config.from_checkpoint
    unit = "pairs" if isinstance(training, Pairs) else "tokens"
    facts = {
        "model": f"{what}, {result.parameters:,} parameters",
        "data": f"{Path(config.data).name}, {len(training):,} {unit} to train on",
        "steps": f"{result.steps:,} of {config.batch_size} sequences, {result.tokens:,} tokens seen",
        "optimiser": f"{config.optimizer}, learning rate {config.peak_lr:g}, {config.schedule} after "
        f"{config.warmup_steps} steps of warm-up",
        "training loss": f"{result.loss:.4f}",
        "validation loss": f"{result.val_loss:.4f} (best {result.best_val_loss:.4f})",
        "validation perplexity": f"{result.val_perplexity:.4f}",
        "time": f"{result.seconds:.1f} s, {result.tokens_per_second:,.0f} tokens/s",
        "memory planned": f"{plan.total:,} bytes per device",
        "exports": ", ".join(path.name for path in result.exports) or "none",
    }
    write_summary(folder, f"Training {what}", facts, picture)
