"""The training loop: batches in, updated weights out, with logs, checkpoints and guards."""

# Shapes: B rows, S tokens a row, L layers, E experts.

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.attention.flex_attention import flex_attention

from ossia.model.transformer import AttentionBackend, Transformer
from ossia.training.attention import DocumentRowAttention, FlexRowAttention
from ossia.training.average import WeightAverage
from ossia.training.checkpoints import Checkpoints
from ossia.training.data.batches.packing import Batch
from ossia.training.data.batches.stream import BatchSource, stream
from ossia.training.flops import mfu, peak_flops
from ossia.training.guard import SpikeGuard
from ossia.training.interrupt import HeldInterrupt, held_interrupt
from ossia.training.loss import count_learned
from ossia.training.memory import memory_explained
from ossia.training.metrics import MetricsLog, Progress, StepReport, open_metrics
from ossia.training.objective import Objective, StepLosses, compile_layers, recompute_layers, uncompiled_layers
from ossia.training.optimizer import MuonAdamW, max_load_ratio, schedule
from ossia.training.parallel import shard, whole
from ossia.training.quantize import check_quantizable, is_active, round_experts
from ossia.training.random_state import random_state, set_random_state
from ossia.training.trainer_config import TrainerConfig

__all__ = ["Progress", "StepReport", "Trainer"]

Told = TypeVar("Told", bool, float)


class TakenStep(NamedTuple):
    """What is known of the step just taken, still on the device."""

    losses: StepLosses
    grad_norm: Tensor
    lr_scale: float


class Trainer:
    """Trains a model on batches by number, and goes on from the checkpoint in `folder` if there is one.

    Step k + 1 learns from batch k, and batch k depends on nothing that happened before, so a run that was killed and
    begun again gives the losses, to the bit, of one that was not.

    Args:
        model: dense, on the device to train on; its parameters are updated in place.
        source: the batches. Targets that are IGNORED carry no loss.
        config: optimizer, losses, guards and the length of the run.
        folder: checkpoints and metrics.
        num_workers: processes that make batches ahead.
        mesh: the processes that train together, each on its rows of a batch: the model is dealt over them, in place.

    Raises:
        InvalidInputError: the model cannot be trained as the config says.
        TensorMismatchError: the checkpoint in `folder` is of a model of another shape.
        CorruptFileError: it cannot be read.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        source: BatchSource,
        config: TrainerConfig,
        folder: Path,
        num_workers: int = 0,
        mesh: DeviceMesh | None = None,
    ) -> None:
        check_quantizable(config.quantize, model.config)
        self.model = model
        self.source = source
        self.config = config
        self.folder = folder
        self.device = model.norm.weight.device
        self.mesh = mesh
        self._num_workers = num_workers
        self._attend: Callable[..., Any] = flex_attention
        self._objective = self._make_objective()
        self._losses: Callable[[Batch, AttentionBackend], StepLosses] = self._objective
        if self._is_compiled:
            self._attend = torch.compile(flex_attention)
            if not self._is_by_layer:
                self._losses = torch.compile(self._objective)
        self.optimizer = MuonAdamW(model.named_parameters(), config=config.optimizer)
        self.guard = SpikeGuard(config.guard, device=self.device)
        self.average = WeightAverage(self.optimizer.masters(), config=config.average) if config.average.decay else None
        self.checkpoints = Checkpoints(folder)
        self.step = 0
        self.seconds = 0.0
        self._resume()

    # ---- the run ----

    def progress(self) -> float:
        """Share of the run that is done, by steps or by time, whichever is further."""
        run = self.config.run
        by_time = self.seconds / (60 * run.max_minutes) if run.max_minutes else 0.0
        return max(self.step / run.steps, by_time)

    def train(self, *, on_log: Progress | None = None, stop_after_seconds: float | None = None) -> None:
        """Train to the end of the schedule, or until `stop_after_seconds` of this call, and save a checkpoint.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed. The step under way was finished and a checkpoint written.
            TrainingError: the run learns no more, or the GPU has too little memory; the last checkpoint is from before.
            StorageError: a checkpoint could not be written; the one before is kept.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        tensorboard, is_writing = self.config.run.tensorboard, self._is_first
        try:
            with (
                held_interrupt() as interrupt,
                open_metrics(self.folder, first=self.step, tensorboard=tensorboard, is_writing=is_writing) as metrics,
            ):
                self._run(metrics, interrupt, on_log, stop_after_seconds)
            if self.checkpoints.latest_step() != self.step:
                self._require_learning()
                self._save()
        finally:
            self.checkpoints.finish()
        if interrupt.is_set and self.progress() < 1:
            raise KeyboardInterrupt

    def _run(
        self,
        metrics: MetricsLog,
        interrupt: HeldInterrupt,
        on_log: Progress | None,
        stop_after_seconds: float | None,
    ) -> None:
        run = self.config.run
        batches = self.batches()
        started = last_log = self._clock()
        seconds_before, num_tokens, is_owed, is_compiling = self.seconds, 0, False, self._is_compiled
        while self.progress() < 1:
            with self._memory_explained():
                batch = next(batches)
                last = self.take_step(batch.to(self.device))
            now = self._clock()
            if is_compiling:  # of the first step, which would be the whole of a short warm-up and more
                started, last_log, is_compiling = now, now, False
            else:
                num_tokens += batch.ids.numel() * self._num_processes
            self.seconds = seconds_before + now - started
            if self.step % run.log_every == 0 or self.progress() >= 1:
                speed = num_tokens / (now - last_log) if num_tokens else 0.0
                report = self._report(last, speed, length=batch.ids.shape[1])
                last_log, num_tokens = now, 0
                metrics.add(report)
                if on_log is not None:
                    on_log(report, self.progress())
            self.checkpoints.poll()
            if self.step % run.checkpoint_every == 0 or is_owed:
                is_owed = self.guard.num_skipped_in_a_row > 0
                self._require_learning()
                if not is_owed:  # a step that was left out may be the first of a run that is broken
                    self._save()
            interrupt.is_set = self._first_says(interrupt.is_set)
            if interrupt.is_set or (stop_after_seconds is not None and now - started > stop_after_seconds):
                break

    def take_step(self, batch: Batch) -> TakenStep:
        """Learn from this process's rows of a batch, on the device. Waits for nothing."""
        lr_scale = schedule(self.progress(), config=self.config.optimizer)
        losses = self._losses(batch, self._attention(batch))
        losses.total.backward()
        losses = self._objective.mean_over_processes(losses)
        norm = self.optimizer.grad_norm()
        keep = self.guard.judge(losses.cross_entropy, norm)
        self.step += 1
        self._choose_precision()
        self.optimizer.step(scale=lr_scale, norm=norm, keep=keep)
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.average is not None:
            self.average.update(self.progress())
        return TakenStep(losses, norm, lr_scale)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean cross-entropy over all targets of these batches, weighted where they are; nothing is learned.

        Only attention is compiled here: the whole would be compiled once more for these batches' shape, and then for
        the training's again.
        """
        total = count = 0.0
        with self._memory_explained(), uncompiled_layers(self.model):
            for batch in batches:
                here = batch.to(self.device)
                size = float(count_learned(here.targets, here.weights))
                total += size * float(self._objective(here, self._attention(here)).cross_entropy)
                count += size
        return total / count if count else math.nan

    def master_weights(self) -> dict[str, Tensor]:
        """The float32 weights to export, by parameter name: their average, if the config asks for one.

        With several processes they are gathered, so each of them must call this.
        """
        chosen = self.optimizer.masters() if self.average is None else self.average.weights()
        return {name: whole(tensor) for name, tensor in chosen.items()}

    # ---- parts ----

    @property
    def _num_processes(self) -> int:
        return 1 if self.mesh is None else self.mesh.size()

    @property
    def _is_first(self) -> bool:
        return self.mesh is None or self.mesh.get_rank() == 0

    @property
    def _is_compiled(self) -> bool:
        wanted = self.config.run.compile
        return self.device.type == "cuda" if wanted is None else wanted

    @property
    def _is_by_layer(self) -> bool:
        """Whether layers are compiled one by one: between them something happens that no graph can hold."""
        return self.mesh is not None or self.config.run.activation_checkpointing

    def _make_objective(self) -> Objective:
        only_learned = self.device.type == "cpu" and not self._is_compiled
        objective = Objective(self.model, config=self.config.loss, mesh=self.mesh, only_learned=only_learned)
        if self._is_compiled and self._is_by_layer:
            compile_layers(self.model)
        if self.config.run.activation_checkpointing:
            recompute_layers(self.model)
        if self.mesh is not None:
            shard(objective, self.model.layers, mesh=self.mesh)
        return objective

    def batches(self) -> Iterator[Batch]:
        """This process's rows of the batches from the next step on, in the CPU's memory."""
        place = 0 if self.mesh is None else self.mesh.get_rank()
        return stream(
            self.source,
            first=self.step,
            num_workers=self._num_workers,
            pin=self.device.type == "cuda",
            place=place,
            parts=self._num_processes,
        )

    def _attention(self, batch: Batch) -> AttentionBackend:
        window = self.model.config.sliding_window
        if self.device.type == "cuda":
            return FlexRowAttention(batch.documents, window=window, attend=self._attend)
        return DocumentRowAttention(batch.documents, window=window)

    def _choose_precision(self) -> None:
        """Have the optimizer round the experts from here on, if it is time to."""
        self.optimizer.publish = round_experts if is_active(self.config.quantize, self.progress()) else None

    def _clock(self) -> float:
        """Seconds; the first process's, so that all agree when the time is up."""
        return self._first_says(time.perf_counter())

    def _first_says(self, value: Told) -> Told:
        """A number or a truth, as the first process has it."""
        if self.mesh is None:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(told, src=0)
        return type(value)(told.item())

    def _memory_explained(self) -> AbstractContextManager[None]:
        return memory_explained(
            f"step {self.step + 1}",
            advice="halve data.rows, set run.activation_checkpointing = true, shorten data.sequence_length, or use "
            f"more GPUs (torchrun); the run resumes from the last checkpoint in {self.folder}",
        )

    # ---- reports and checkpoints ----

    def _report(self, last: TakenStep, speed: float, *, length: int) -> StepReport:
        losses = last.losses
        self.guard.check(step=self.step, loss=float(losses.cross_entropy), folder=self.folder)
        peak = peak_flops(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None
        return StepReport(
            step=self.step,
            loss=float(losses.cross_entropy),
            balance=float(losses.balance),
            router_z=float(losses.router_z),
            max_load=max_load_ratio(list(losses.loads)),
            grad_norm=float(last.grad_norm),
            lr_scale=last.lr_scale,
            skipped=self.guard.num_skipped,
            tokens_per_second=speed,
            mfu=None
            if peak is None
            else mfu(speed, self.model.config, sequence_length=length, peak=peak * self._num_processes),
            seconds=self.seconds,
            loads=(losses.loads / losses.loads.mean(dim=-1, keepdim=True)).tolist(),
        )

    def _require_learning(self) -> None:
        self.guard.check(step=self.step, loss=self.guard.last_loss, folder=self.folder)

    def _state(self) -> dict[str, Tensor]:
        average = {} if self.average is None else self.average.state
        return {**self.optimizer.state, **self.guard.state, **average}

    def _save(self) -> None:
        facts = {"seconds": self.seconds, "random": random_state(self.device)}
        self.checkpoints.save(self._state(), step=self.step, facts=facts)

    def _resume(self) -> None:
        state = self._state()
        facts = self.checkpoints.load(state)
        if facts is not None:
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            self.optimizer.num_updates = self.step
            set_random_state(facts["random"], self.device)
        self._choose_precision()
        self.optimizer.put_masters()
