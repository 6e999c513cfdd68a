"""The training loop: batches in, updated weights out, with logs, checkpoints and guards."""

# Shapes: B rows, S tokens a row, T = B * S.

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ossia.core.errors import TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.transformer import AttentionBackend, Transformer, init_weights
from ossia.training.attention import DenseRowAttention, FlexRowAttention
from ossia.training.config import TrainConfig
from ossia.training.data.packing import Batch, batches
from ossia.training.loss import RecordingRouter, next_token_loss
from ossia.training.optimizer import MuonAdamW, max_load_ratio, schedule
from ossia.training.run_state import load_run, save_run


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
    """Trains one model on one device."""

    def __init__(self, config: TrainConfig, *, tokenizer: Tokenizer, folder: Path, device: torch.device) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.folder = folder
        self.device = device
        is_gpu = device.type == "cuda"
        self.model = Transformer(config.model, dtype=torch.bfloat16 if is_gpu else torch.float32, device=device)
        init_weights(self.model, seed=config.data.seed)
        self.optimizer = MuonAdamW(self.model.named_parameters(), config=config.optimizer)
        self.step = 0
        self.seconds = 0.0
        state = load_run(folder)
        if state is not None:
            self.optimizer.load_state(state.tensors, num_updates=state.step)
            self.step, self.seconds = state.step, state.seconds
        is_compiled = config.run.compile if config.run.compile is not None else is_gpu
        self._attend: Callable[..., Any] = torch.compile(flex_attention) if is_compiled else flex_attention
        self._losses = torch.compile(self._compute_losses) if is_compiled else self._compute_losses

    def _compute_losses(self, batch: Batch, attention: AttentionBackend) -> StepLosses:
        router = RecordingRouter()
        hidden = self.model(
            batch.ids.flatten(), positions=batch.positions.flatten(), attention=attention, router=router
        )
        cross_entropy = next_token_loss(self.model.logits(hidden), batch.targets.flatten())
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
        stream = batches(
            self.config.data,
            tokenizer=self.tokenizer,
            identity=self.config.identity,
            first_step=self.step,
            pin=self.device.type == "cuda",
        )
        started = last_log = time.perf_counter()
        seconds_before, last_step = self.seconds, self.step
        losses: StepLosses | None = None
        with suppress(KeyboardInterrupt), (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
            while self.progress() < 1:
                lr_scale = schedule(self.progress(), config=self.config.optimizer)
                losses, grad_norm = self._train_step(next(stream).to(self.device), lr_scale)
                self.step += 1
                now = time.perf_counter()
                self.seconds = seconds_before + now - started
                if self.step % self.config.run.log_every == 0:
                    speed = (self.step - last_step) * self._tokens_per_step() / (now - last_log)
                    last_log, last_step = now, self.step
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

    def _train_step(self, batch: Batch, lr_scale: float) -> tuple[StepLosses, Tensor]:
        losses = self._losses(batch, self._attention(batch))
        losses.total.backward()
        grad_norm = self.optimizer.step(scale=lr_scale)
        for parameter in self.model.parameters():
            parameter.grad = None
        return losses, grad_norm

    def _attention(self, batch: Batch) -> AttentionBackend:
        window = self.config.model.sliding_window
        if self.device.type == "cuda":
            return FlexRowAttention(batch.documents, window=window, attend=self._attend)
        return DenseRowAttention(batch.documents, window=window)

    def _tokens_per_step(self) -> int:
        return self.config.data.rows * self.config.data.sequence_length

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
