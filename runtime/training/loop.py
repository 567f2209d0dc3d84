"""Training, from the configuration to the exports: plan, loop, finish."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path

from llmconv.errors import Cancelled, LlmconvError, at
from llmconv.progress import Progress, Step
from llmconv.runtime.measure.chunks import device_errors
from llmconv.runtime.training.config import TrainConfig
from llmconv.runtime.training.optim import learning_rate
from llmconv.runtime.training.parallel import alone, assemble
from llmconv.runtime.training.plan import Run, check_inputs, plan
from llmconv.runtime.training.saving import state
from llmconv.runtime.training.saving.export import check_exports
from llmconv.runtime.training.saving.finish import Trained, finish
from llmconv.runtime.training.saving.log import Log
from llmconv.runtime.training.step import Done, train_step, validate
from llmconv.runtime.training.stop import Stop

__all__ = ["Trained", "train"]

_WITHOUT_ROOM = (
    "give a smaller --batch-size or --context, more --accumulation, --activation-checkpointing, --dtype bf16, or "
    "several devices with --parallel fsdp"
)


def train(config: TrainConfig, *, resume: bool = False, progress: Progress | None = None) -> Trained:
    """Train a model as `config` says; see `TrainConfig`.

    resume: go on from the newest checkpoint in `config.output`; on a CPU the losses continue bit for bit.
    progress: told of "tokenize", "plan", "train" and "validate"; the first process alone tells.  Raising `Cancelled` in
        it, Ctrl-C or SIGTERM end the run after the step that it is at, with a checkpoint, and raise `Cancelled` here.

    Under torchrun every process calls this.  Raises `UsageError`, `BadFile`, `OutputError` or, when a number is no
    longer finite, `LlmconvError`, one sentence each.
    """
    exports = check_exports(config.export, config.exported_type, config.layout)
    check_inputs(config)
    with contextlib.ExitStack() as stack:
        team = assemble(config.device, config.parallel)
        stack.callback(team.close)
        stack.enter_context(alone(team, config.output))
        stack.enter_context(device_errors(team.device, _WITHOUT_ROOM))
        run = plan(config, resume, team, stack, progress if team.rank == 0 else None)
        with Course(run, progress if team.rank == 0 else None) as course:
            course.go()
        return finish(run, course.seconds, course.tokens, *exports)


class Course(contextlib.AbstractContextManager["Course"]):
    """The way from where a run is to its end, with its log and whoever watches.

    seconds, tokens: of this part of the run.
    """

    def __init__(self, run: Run, progress: Progress | None):
        self.run, self.config, self.position = run, run.config, run.position
        self.stop, self.stopping = Stop(progress), False
        self.log = Log(run.folder, run.position.step, run.config.tensorboard) if run.team.rank == 0 else None
        if self.log is not None and self.log.note:
            run.notes.append(self.log.note)
        self.seconds, self.tokens = 0.0, 0
        self.began = self.mark = time.perf_counter()
        self.mark_tokens = 0

    def __exit__(self, *_: object) -> None:
        if self.log is not None:
            self.log.close()

    def go(self) -> None:
        """Train until the run is over.  `Cancelled` when somebody ended it, with a checkpoint of the last step."""
        config, position = self.config, self.position
        with self.stop:
            if position.step and self.is_due(config.eval_interval) and position.validated != position.step:
                self.validate()
            while not self.run.over and not self.stopping:
                self.step()
                last = position.step == config.steps
                if last or self.is_due(config.eval_interval):
                    self.validate()
                if last or self.is_due(config.save_interval) or self.run.stopped_early or self.stopping:
                    self.run.checkpoint = state.save(self.run.folder, self.run.learner, position, config.keep)
        self.seconds = time.perf_counter() - self.began
        if self.stopping:
            raise Cancelled(
                f"{at(Path(config.output))}: stopped after step {position.step} of {config.steps}, which is saved; go "
                "on with --resume"
            )

    def is_due(self, interval: int) -> bool:
        return self.position.step % interval == 0

    def step(self) -> None:
        """One optimizer step, its line in the log and its report."""
        config, position, learner = self.config, self.position, self.run.learner
        rate = learning_rate(config, position.step)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        batch = self.run.training.batch(position.step, config.batch_size)
        done = train_step(config, learner, batch, position.step, self.stop.asked)
        position.step += 1
        position.tokens += done.tokens
        position.loss = done.loss
        self.tokens += done.tokens
        facts = {}
        if position.step % config.log_every == 0 or position.step == config.steps:
            facts = self.write_down(done, rate)
        self.stop.tell(Step("train", position.step, config.steps, "steps", facts=facts))
        self.stopping = self.stop.asked if self.run.team.size == 1 else done.stop

    def write_down(self, done: Done, rate: float) -> dict[str, float]:
        """A line of the log, and the same as facts."""
        now = time.perf_counter()
        speed = (self.tokens - self.mark_tokens) / max(1e-9, now - self.mark)
        self.mark, self.mark_tokens = now, self.tokens
        values = {"loss": done.loss, "lr": rate, "grad_norm": done.grad_norm, "tokens_per_second": speed}
        if self.log is not None:
            self.log.write(self.position.step, self.position.tokens, **values)
        return values

    def validate(self) -> None:
        """A validation, its line in the log, and what it means for early stopping; nothing when it is broken off."""
        position = self.position
        loss = validate(self.config, self.run.learner, self.run.validation, self._validating)
        if loss is None:
            self.stopping = True
            return
        if not math.isfinite(loss):
            raise LlmconvError(
                f"{at(self.config.data)}: the validation loss is {loss} after step {position.step}; the model's output "
                "is likely too large for its dtype: use --dtype f32, or lower --lr"
            )
        position.val_loss, position.validated = loss, position.step
        if self.is_due(self.config.eval_interval):
            position.stale = 0 if loss < position.best else position.stale + 1
            position.best = min(loss, position.best)
        facts = {"val_loss": loss, "val_perplexity": math.exp(min(loss, 700))}
        if self.log is not None:
            self.log.write(position.step, position.tokens, **facts)
        self.stop.tell(Step("validate", 1, 1, "sequences", item=f"step {position.step:,}", facts=facts))
        self.mark, self.mark_tokens = time.perf_counter(), self.tokens

    def _validating(self, done: int, total: int) -> bool:
        self.stop.tell(Step("validate", done, total, "sequences"))
        return self.stop.asked and self.run.team.size == 1  # several processes stop together, after a step
