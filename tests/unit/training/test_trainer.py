from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.unit.training.training_helpers import make_trainer
from torch import Tensor

from ossia.core.errors import TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.config import TrainConfig
from ossia.training.run_state import load_run
from ossia.training.trainer import StepReport, Trainer


def make(config: TrainConfig, tokenizer: Tokenizer, folder: Path) -> Trainer:
    return make_trainer(config, tokenizer, folder)


def train(config: TrainConfig, tokenizer: Tokenizer, folder: Path) -> tuple[dict[int, float], dict[str, Tensor]]:
    """Train to the end; returns the loss by step and the master weights."""
    losses: dict[int, float] = {}

    def note(report: StepReport, share: float) -> None:
        losses[report.step] = report.loss

    trainer = make(config, tokenizer, folder)
    trainer.train(on_log=note)
    return losses, trainer.master_weights()


def with_steps(config: TrainConfig, steps: int) -> TrainConfig:
    return replace(config, trainer=replace(config.trainer, run=replace(config.trainer.run, steps=steps)))


def steady(config: TrainConfig) -> TrainConfig:
    """Rates that do not depend on the length of the run, so that a short run is the start of a longer one."""
    return replace(
        config, trainer=replace(config.trainer, optimizer=replace(config.trainer.optimizer, warmup=0.0, decay=0.0))
    )


def test_resuming_equals_going_on(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = steady(config)
    whole, weights = train(with_steps(config, 4), tokenizer, tmp_path / "whole")
    first, _ = train(with_steps(config, 2), tokenizer, tmp_path / "parts")
    second, resumed = train(with_steps(config, 4), tokenizer, tmp_path / "parts")
    assert (list(first), list(second)) == ([1, 2], [3, 4])
    assert whole == first | second
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_the_loss_falls_and_metrics_are_written(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    losses, _ = train(with_steps(config, 12), tokenizer, tmp_path)
    assert losses[12] < losses[1] - 0.3
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert {row["step"]: row["loss"] for row in rows} == losses
    assert all(row["max_load"] >= 1 and row["grad_norm"] > 0 for row in rows)


def test_the_model_holds_the_masters(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make(with_steps(config, 1), tokenizer, tmp_path)
    start = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    masters = trainer.master_weights()
    assert masters.keys() == start.keys()
    changed = 0
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter.detach(), masters[name])
        changed += not torch.equal(parameter.detach(), start[name])
    assert changed == len(start)


def test_a_finished_run_trains_no_further(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = with_steps(config, 1)
    _, weights = train(config, tokenizer, tmp_path)
    losses, again = train(config, tokenizer, tmp_path)
    assert losses == {}
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_stopping_early_saves(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make(config, tokenizer, tmp_path)
    trainer.train(stop_after_seconds=0.0)
    state = load_run(tmp_path)
    assert state is not None
    assert state.step == trainer.step == 1
    assert 0 < trainer.progress() < 1


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(1, 100), (100, 2), (100, 100)])
def test_a_loss_that_is_no_number_never_replaces_a_checkpoint(
    config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path, log_every: int, checkpoint_every: int
) -> None:
    train(with_steps(config, 2), tokenizer, tmp_path)
    run = replace(config.trainer.run, steps=6, log_every=log_every, checkpoint_every=checkpoint_every)
    config = replace(config, trainer=replace(config.trainer, run=run))
    trainer = make(config, tokenizer, tmp_path)
    with torch.no_grad():
        trainer.model.norm.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss became nan at step .*lower optimizer\.muon_lr"):
        trainer.train()
    state = load_run(tmp_path)
    assert state is not None
    assert state.step == 2
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors.values())


def test_an_example_is_blind_to_its_neighbours(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Changing the first document of each row leaves the hidden states of all the others as they were."""
    trainer = make(config, tokenizer, tmp_path)
    batch = trainer.source.batch(0)
    is_first = batch.documents == 0
    other = batch._replace(ids=torch.where(is_first, (batch.ids + 1) % tokenizer.vocab_size, batch.ids))

    def hidden(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return trainer.model(
                ids.flatten(),
                positions=batch.positions.flatten(),
                attention=trainer._attention(batch),  # pyright: ignore[reportPrivateUsage]
            )

    one, two = hidden(batch.ids), hidden(other.ids)
    rest = ~is_first.flatten()
    assert rest.any()
    # Rounding alone may differ: tokens are sorted by expert, so sums run over blocks of other sizes.
    torch.testing.assert_close(one[rest], two[rest], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(one[~rest], two[~rest], atol=1e-2)
