"""The training loop: batches in, updated weights out, with logs, checkpoints and guards."""

# Shapes: B rows, S tokens a row, T = B * S.

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ossia.core.errors import TrainingError
from ossia.core.files import write_text
from ossia.model.transformer import AttentionBackend, Transformer
from ossia.training.attention import DenseRowAttention, FlexRowAttention
from ossia.training.data.packing import Batch
from ossia.training.data.stream import BatchSource, stream
from ossia.training.loss import RecordingRouter, count_learned, next_token_loss
from ossia.training.optimizer import MuonAdamW, max_load_ratio, schedule
from ossia.training.run_state import load_run, save_run
from ossia.training.trainer_config import TrainerConfig


class StepLosses(NamedTuple):
    """What one forward pass gives: scalars, and the experts' loads [L, E]."""

    total: Tensor
    cross_entropy: Tensor
    balance: Tensor
    loads: Tensor


class StepReport(NamedTuple):
    """What is logged every so many steps."""

    step: int
    loss: float
    balance: float
    max_load: float
    grad_norm: float
    lr_scale: float
    tokens_per_second: float
    seconds: float


Progress = Callable[[StepReport, float], None]
"""Called at each log with the report and the share of the run that is done."""


class Trainer:
    """Trains a model on batches by number, and goes on from the checkpoint in `folder` if there is one.

    Step k + 1 learns from batch k, and batch k depends on nothing that happened before, so a run that was killed and
    begun again gives the losses, to the bit, of one that was not.

    Args:
        model: dense, on the device to train on; its parameters are updated in place.
        source: the batches. Targets that are IGNORED carry no loss.
        config: optimizer, losses and the length of the run.
        folder: checkpoints and metrics.
        num_workers: processes that make batches ahead.

    Raises:
        TensorMismatchError: the checkpoint in `folder` is of a model of another shape.
        CorruptFileError: it cannot be read.
    """

    def __init__(
        self, model: Transformer, *, source: BatchSource, config: TrainerConfig, folder: Path, num_workers: int = 0
    ) -> None:
        self.model = model
        self.source = source
        self.config = config
        self.folder = folder
        self.device = model.norm.weight.device
        self._num_workers = num_workers
        self.optimizer = MuonAdamW(self.model.named_parameters(), config=config.optimizer)
        self.step = 0
        self.seconds = 0.0
        state = load_run(folder)
        if state is not None:
            self.optimizer.load_state(state.tensors, num_updates=state.step)
            self.step, self.seconds = state.step, state.seconds
        is_compiled = config.run.compile if config.run.compile is not None else self.device.type == "cuda"
        self._attend: Callable[..., Any] = torch.compile(flex_attention) if is_compiled else flex_attention
        self._losses = torch.compile(self._compute_losses) if is_compiled else self._compute_losses

    def _compute_losses(self, batch: Batch, attention: AttentionBackend) -> StepLosses:
        router = RecordingRouter()
        hidden = self.model(
            batch.ids.flatten(), positions=batch.positions.flatten(), attention=attention, router=router
        )
        loss_weights = None if batch.weights is None else batch.weights.flatten()
        cross_entropy = next_token_loss(self.model.logits(hidden), batch.targets.flatten(), weights=loss_weights)
        side = router.losses()
        weights = self.config.loss
        total = cross_entropy + weights.balance * side.balance + weights.router_z * side.z
        return StepLosses(total, cross_entropy.detach(), side.balance.detach(), side.loads)

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        run = self.config.run
        by_time = self.seconds / (60 * run.max_minutes) if run.max_minutes else 0.0
        return max(self.step / run.steps, by_time)

    def train(self, *, on_log: Progress | None = None, stop_after_seconds: float | None = None) -> None:
        """Train to the end of the schedule, or until `stop_after_seconds` of this call, and save a checkpoint.

        Raises:
            TrainingError: the loss is not a number; the last checkpoint is from before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        batches = stream(self.source, first=self.step, num_workers=self._num_workers, pin=self.device.type == "cuda")
        started = last_log = time.perf_counter()
        seconds_before, num_tokens = self.seconds, 0
        losses: StepLosses | None = None
        with suppress(KeyboardInterrupt), open_metrics(self.folder, first=self.step) as metrics:
            while self.progress() < 1:
                lr_scale = schedule(self.progress(), config=self.config.optimizer)
                batch = next(batches)
                losses, grad_norm = self._train_step(batch.to(self.device), lr_scale)
                self.step += 1
                num_tokens += batch.ids.numel()
                now = time.perf_counter()
                self.seconds = seconds_before + now - started
                if self.step % self.config.run.log_every == 0:
                    speed = num_tokens / (now - last_log)
                    last_log, num_tokens = now, 0
                    report = self._report(losses, grad_norm, lr_scale, speed)
                    metrics.write(json.dumps(report._asdict()) + "\n")
                    metrics.flush()
                    if on_log is not None:
                        on_log(report, self.progress())
                if self.step % self.config.run.checkpoint_every == 0:
                    self._require_finite(losses)
                    self.save()
                if stop_after_seconds is not None and now - started > stop_after_seconds:
                    break
        if losses is not None:
            self._require_finite(losses)
        self.save()

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean cross-entropy over all targets of these batches, weighted where they are; nothing is learned."""
        total = count = 0.0
        for batch in batches:
            here = batch.to(self.device)
            size = float(count_learned(here.targets, here.weights))
            total += size * float(self._losses(here, self._attention(here)).cross_entropy)
            count += size
        return total / count if count else math.nan

    def _train_step(self, batch: Batch, lr_scale: float) -> tuple[StepLosses, Tensor]:
        losses = self._losses(batch, self._attention(batch))
        losses.total.backward()
        grad_norm = self.optimizer.step(scale=lr_scale)
        for parameter in self.model.parameters():
            parameter.grad = None
        return losses, grad_norm

    def _attention(self, batch: Batch) -> AttentionBackend:
        window = self.model.config.sliding_window
        if self.device.type == "cuda":
            return FlexRowAttention(batch.documents, window=window, attend=self._attend)
        return DenseRowAttention(batch.documents, window=window)

    def _report(self, losses: StepLosses, grad_norm: Tensor, lr_scale: float, speed: float) -> StepReport:
        loss = self._require_finite(losses)
        return StepReport(
            step=self.step,
            loss=loss,
            balance=float(losses.balance),
            max_load=max_load_ratio(list(losses.loads)),
            grad_norm=float(grad_norm),
            lr_scale=lr_scale,
            tokens_per_second=speed,
            seconds=self.seconds,
        )

    def _require_finite(self, losses: StepLosses) -> float:
        """The loss as a number; without this check before each checkpoint, ruined weights would replace good ones."""
        loss = float(losses.cross_entropy)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {self.step}; lower optimizer.muon_lr or adamw_lr and run again: it "
                f"resumes from the last checkpoint in {self.folder}"
            )
        return loss

    def save(self) -> None:
        """Write a checkpoint of the run."""
        save_run(self.folder, tensors=self.optimizer.state, step=self.step, seconds=self.seconds)

    def master_weights(self) -> dict[str, Tensor]:
        """The float32 weights by parameter name, from which a model is exported."""
        prefix = "master."
        return {k.removeprefix(prefix): v for k, v in self.optimizer.state.items() if k.startswith(prefix)}


def open_metrics(folder: Path, *, first: int) -> TextIO:
    """Open `metrics.jsonl` to go on after step `first`: what a run that was killed had written beyond is dropped."""
    path = folder / "metrics.jsonl"
    rows: list[str] = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, KeyError, TypeError):  # the last line of a run that was killed may be cut off
                if json.loads(line)["step"] <= first:
                    rows.append(line + "\n")
    write_text(path, "".join(rows))
    return path.open("a", encoding="utf-8")
