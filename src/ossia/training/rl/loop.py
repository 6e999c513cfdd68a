"""A whole run: sample groups, learn from them, hand the weights to the engine, and keep the best.

    envs -> Rollout (engine) -> groups -> advantages -> data -> Learner (gate, then update) -> Engine.update_weights

Step k draws its problems and samples from the seed and from k, and updates from weights that the checkpoint has to the
bit: a run that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ossia.core.errors import TrainingError
from ossia.engine.build import EngineConfig, build_engine
from ossia.model.checkpoint.load import load_model, resolve_model
from ossia.model.checkpoint.source import read_config
from ossia.model.loading import LoadedModel, find_tokenizer, read_identity, read_json_if_any, read_sampling
from ossia.model.transformer import Transformer
from ossia.model.update import update_weights
from ossia.training.optimizer import schedule
from ossia.training.package import repackage_model
from ossia.training.rl.advantage import data_of
from ossia.training.rl.config import RLConfig
from ossia.training.rl.env import draw_envs, draw_held_out, find_tasks
from ossia.training.rl.learner import Learner
from ossia.training.rl.report import MetricsLog, StepReport, ValidationReport, summarize_step, summarize_validation
from ossia.training.rl.rollout import Rollout
from ossia.training.rl.state import Best, RLState, load_best, load_state, save_best, save_state

Progress = Callable[[StepReport | ValidationReport], None]
"""Called with each report."""


class RLRun:
    """One run in one folder: made anew, or resumed from what the folder holds.

    Args:
        config: the recipe.
        folder: the run's own: checkpoint, best weights, metrics.
        loaded: the model to begin with, dense, which is trained in place; `load_trainable` makes one.

    Attributes:
        step: steps done.
        best: what the best weights scored, and at which step; None before the first validation.

    Raises:
        InvalidInputError: an unknown task, or an engine that cannot be made.
        CorruptFileError, TensorMismatchError: the folder holds something else than this run's checkpoint.
    """

    def __init__(self, config: RLConfig, folder: Path, *, loaded: LoadedModel) -> None:
        self.config, self.folder, self.loaded = config, folder, loaded
        self._tasks = find_tasks(config.tasks)
        self.learner = Learner(loaded.model, config=config, padding=loaded.tokenizer.endoftext)
        self.step = 0
        state, best = load_state(folder), load_best(folder)
        if state is not None:
            self.learner.optimizer.load_state(state.tensors, num_updates=state.num_updates)
            self.step = state.step
        self.best = None if best is None else (best.score, best.step)
        rollout = config.rollout
        self.engine = build_engine(
            engine_model(loaded, weights=self.learner.weights(), is_packed=self._is_packed()),
            config=EngineConfig(
                max_num_seqs=rollout.max_num_seqs,
                max_queue=1 << 20,
                kv_cache_bytes=rollout.kv_cache_bytes,
                records_routing=rollout.replay_routing,
            ),
        )
        self.engine.update_weights(self.learner.weights())
        self.rollout = Rollout(self.engine, loaded=loaded, config=rollout, reward=config.reward)
        self._held_out = draw_held_out(
            self._tasks, efforts=rollout.efforts, number=config.validation.problems, seed=config.validation.seed
        )

    def _is_packed(self) -> bool:
        """Whether the engine has a model of its own: on a GPU, whose kernels want packed experts, if packing leaves the
        experts as they are."""
        return self.learner.device.type == "cuda" and self.config.policy.experts != "dense"

    def run(self, *, on_log: Progress | None = None, max_steps: int | None = None) -> None:
        """Go on to the end, or for `max_steps` steps, and write a checkpoint.

        Ctrl-C ends it, too: what came after the last checkpoint is then lost, for a step may have been half done.

        Raises:
            TrainingError: the gate is shut or a gradient is no number; the last checkpoint is from before.
            StorageError: a checkpoint could not be written.
        """
        config = self.config
        end = config.run.steps if max_steps is None else min(config.run.steps, self.step + max_steps)
        log = MetricsLog(self.folder, step=self.step, tensorboard=config.run.tensorboard)
        with log as metrics:

            def tell(report: StepReport | ValidationReport) -> None:
                metrics.write(report)
                if on_log is not None:
                    on_log(report)

            if self.best is None:
                tell(self.validate())
            while self.step < end:
                tell(self.take_step())
                is_last = self.step == config.run.steps
                if is_last or self.step % config.validation.every == 0:
                    tell(self.validate())
                if is_last or self.step % config.run.checkpoint_every == 0:
                    self.save()
        self.save()

    def take_step(self) -> StepReport:
        """Sample, learn, and give the engine the new weights."""
        config, seed = self.config, self.config.run.seed
        rng = random.Random(f"{seed} {self.step}")
        envs = draw_envs(
            self._tasks,
            weights=config.tasks,
            efforts=config.rollout.efforts,
            number=config.rollout.problems,
            rng=rng,
        )
        groups = self.rollout.sample(envs, seed=rng.getrandbits(62))
        data = data_of(groups, scale=config.policy.scale)
        lr_scale = schedule(self.step / config.run.steps, config=config.optimizer)
        try:
            learned = self.learner.learn(data, lr_scale=lr_scale, step=self.step + 1) if data else None
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {self.step + 1}: the GPU has no memory left for the update; lower run.tokens_per_forward (now "
                f"{config.run.tokens_per_forward}), rollout.kv_cache_bytes or rollout.max_tokens, and run again: it "
                "resumes from the last checkpoint"
            ) from error
        self.engine.update_weights(self.learner.weights())
        self.step += 1
        return summarize_step(groups, step=self.step, lr_scale=lr_scale, learned=learned)

    def validate(self) -> ValidationReport:
        """Answer the held-out problems greedily; keep the weights if they do better than any before."""
        report = summarize_validation(self.rollout.answer(self._held_out), step=self.step)
        if self.best is None or report.score > self.best[0]:
            self.best = (report.score, self.step)
            save_best(self.folder, Best(self.learner.master_weights(), report.score, self.step))
        return report

    def save(self) -> None:
        """Write a checkpoint."""
        optimizer = self.learner.optimizer
        save_state(self.folder, RLState(optimizer.state, self.step, optimizer.num_updates))


def engine_model(loaded: LoadedModel, *, weights: Mapping[str, Tensor], is_packed: bool) -> LoadedModel:
    """What the engine runs: the trainer's own model, or one with packed experts that has the same values."""
    if not is_packed:
        return loaded
    weight = loaded.model.norm.weight
    packed = Transformer(loaded.model.config, dtype=weight.dtype, device=weight.device, packed_experts=True)
    update_weights(packed, weights)
    return dataclasses.replace(loaded, model=packed.eval())


def train_rl(
    config: RLConfig, folder: Path, *, device: torch.device | str | None = None, on_log: Progress | None = None
) -> Path:
    """Train as the recipe says, resuming what `folder` holds, and package the best weights in `folder/model`.

    Args:
        config: the recipe.
        folder: the run's own.
        device: where to train and to sample; a GPU if there is one.
        on_log: called with each report.

    Returns:
        The folder of the packaged model.

    Raises:
        OssiaError: as `RLRun`, `RLRun.run` and `repackage_model`.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    run = RLRun(config, folder, loaded=load_trainable(config.init, device=place))
    run.run(on_log=on_log)
    best = load_best(folder)
    assert best is not None
    repackage_model(best.weights, folder / "model", init=config.init, name=config.name)
    return folder / "model"


def load_trainable(name_or_path: str, *, device: torch.device | str = "cpu") -> LoadedModel:
    """Load a model to train: its experts unpacked, in float32 on a CPU and bfloat16 on a GPU.

    Raises:
        ModelNotFoundError, CheckpointError: as `ossia.model.loading.load`.
    """
    folder, place = resolve_model(name_or_path), torch.device(device)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    config = read_config(folder)
    return LoadedModel(
        name=name_or_path,
        model=load_model(folder, device=place, dtype=dtype, packed_experts=False),
        tokenizer=find_tokenizer(folder, vocab_size=config.vocab_size),
        identity=read_identity(read_json_if_any(folder / "config.json")),
        sampling=read_sampling(read_json_if_any(folder / "generation_config.json")),
    )
