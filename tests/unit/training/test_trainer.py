from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.training_helpers import make_trainer
from torch import Tensor

from ossia.core.errors import InvalidInputError, TensorMismatchError, TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.mxfp4 import round_mxfp4
from ossia.model.checkpoint.load import load_model
from ossia.model.transformer import Transformer
from ossia.training.config import TrainConfig
from ossia.training.metrics import StepReport
from ossia.training.package import package_model
from ossia.training.quantize import is_expert_matrix
from ossia.training.run import train as train_recipe
from ossia.training.trainer_config import AverageConfig, QuantizeConfig


def train(config: TrainConfig, tokenizer: Tokenizer, folder: Path) -> tuple[dict[int, float], dict[str, Tensor]]:
    """Train to the end; returns the loss by step and the master weights."""
    losses: dict[int, float] = {}

    def note(report: StepReport, share: float) -> None:
        losses[report.step] = report.loss

    trainer = make_trainer(config, tokenizer, folder)
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
    trainer = make_trainer(with_steps(config, 1), tokenizer, tmp_path)
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
    trainer = make_trainer(config, tokenizer, tmp_path)
    trainer.train(stop_after_seconds=0.0)
    again = make_trainer(config, tokenizer, tmp_path)
    assert again.step == trainer.step == 1
    assert 0 < trainer.progress() < 1
    assert again.seconds == trainer.seconds > 0


def test_ctrl_c_waits_for_the_step_and_saves(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """It is pressed when step 3 is counted and not yet learned; the run goes on as one that was never stopped."""
    config = steady(with_steps(config, 6))
    whole, weights = train(config, tokenizer, tmp_path / "whole")
    trainer = make_trainer(config, tokenizer, tmp_path / "stopped")
    update = trainer.optimizer.step

    def pressed(**options: Any) -> None:
        if trainer.step == 3:
            signal.raise_signal(signal.SIGINT)
        update(**options)

    trainer.optimizer.step = pressed
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) is before
    assert trainer.step == 3
    rest, resumed = train(config, tokenizer, tmp_path / "stopped")
    assert rest == {step: loss for step, loss in whole.items() if step > 3}
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_a_second_ctrl_c_does_not_wait(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    trainer = make_trainer(with_steps(config, 6), tokenizer, tmp_path)

    def pressed_twice(loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was held, too")

    trainer.guard.judge = pressed_twice
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert trainer.checkpoints.latest() is None


@pytest.mark.parametrize(("log_every", "checkpoint_every"), [(1, 100), (100, 2), (100, 100)])
def test_weights_that_are_no_numbers_never_replace_a_checkpoint(
    config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path, log_every: int, checkpoint_every: int
) -> None:
    train(with_steps(config, 2), tokenizer, tmp_path)
    run = replace(config.trainer.run, steps=8, log_every=log_every, checkpoint_every=checkpoint_every)
    guard = replace(config.trainer.guard, max_skipped=3)
    config = replace(config, trainer=replace(config.trainer, run=run, guard=guard))
    trainer = make_trainer(config, tokenizer, tmp_path)
    with torch.no_grad():
        trainer.model.norm.weight.fill_(float("nan"))
        trainer.optimizer.state["master.norm.weight"].fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"steps in a row were left out.*lower optimizer\.muon_lr"):
        trainer.train()
    again = make_trainer(config, tokenizer, tmp_path)
    assert again.step == 2
    assert all(torch.isfinite(tensor).all() for tensor in again.optimizer.state.values())


def test_a_batch_that_breaks_the_loss_has_no_say(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A parameter that is no number for one step: the masters are untouched by it, and the run goes on."""
    trainer = make_trainer(with_steps(config, 4), tokenizer, tmp_path)
    batches = [trainer.source.batch(k) for k in range(2)]
    with torch.no_grad():
        trainer.model.norm.weight.fill_(float("nan"))
    before = {name: tensor.clone() for name, tensor in trainer.optimizer.masters().items()}
    trainer.take_step(batches[0])
    assert trainer.guard.num_skipped == 1
    for name, master in trainer.optimizer.masters().items():  # the moments are empty yet: nothing but decay
        torch.testing.assert_close(master, before[name], rtol=1e-3, atol=0)
    step = trainer.take_step(batches[1])
    assert step.losses.cross_entropy.isfinite()
    assert (trainer.guard.num_skipped, trainer.guard.num_skipped_in_a_row) == (1, 0)


def test_parameters_in_bfloat16_learn_alike(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    run = replace(config.trainer.run, steps=12, precision="bfloat16")
    rough = replace(config, trainer=replace(config.trainer, run=run))
    losses, weights = train(rough, tokenizer, tmp_path / "rough")
    exact, _ = train(with_steps(config, 12), tokenizer, tmp_path / "exact")
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert not all(torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())
    # Rounding at 2^-8 in every product, over steps that lower the loss by more than 0.3.
    assert all(abs(losses[step] - exact[step]) < 0.05 for step in exact)


def test_too_little_memory_says_which_knobs(
    config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(config, tokenizer, tmp_path)

    def run_out(batch: object, attention: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And more.")

    monkeypatch.setattr(trainer, "_losses", run_out)
    knobs = r"data\.rows.*run\.activation_checkpointing.*data\.sequence_length"
    with pytest.raises(TrainingError, match=rf"step 1: .*CUDA out of memory.*{knobs}"):
        trainer.train()
    monkeypatch.setattr(trainer, "_objective", run_out)
    with pytest.raises(TrainingError, match=rf"step 1: .*CUDA out of memory.*{knobs}"):
        trainer.evaluate([trainer.source.batch(0)])


def test_too_little_memory_for_the_optimizer(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. And more.")

    monkeypatch.setattr("ossia.training.trainer.MuonAdamW", run_out)
    with pytest.raises(TrainingError, match=r"before the first step: .*CUDA out of memory.*more GPUs"):
        train_recipe(config, tmp_path)


def test_activations_computed_again_change_nothing(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = replace(
        config, trainer=replace(config.trainer, run=replace(config.trainer.run, activation_checkpointing=True))
    )
    kept, weights = train(config, tokenizer, tmp_path / "kept")
    recomputed, same = train(again, tokenizer, tmp_path / "recomputed")
    assert kept == recomputed
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize("recomputes", [False, True], ids=["whole", "by layer"])
def test_evaluating_compiles_nothing(
    config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recomputes: bool
) -> None:
    def compile_nothing(work: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **named: object) -> object:
            raise AssertionError(f"{work} would have been compiled")

        return run

    monkeypatch.setattr(torch, "compile", compile_nothing)
    run = replace(config.trainer.run, compile=True, activation_checkpointing=recomputes)
    compiled = make_trainer(replace(config, trainer=replace(config.trainer, run=run)), tokenizer, tmp_path / "compiled")
    eager = make_trainer(config, tokenizer, tmp_path / "eager")
    batches = [compiled.source.batch(number).rows(slice(0, 1)) for number in range(2)]
    # Logits are made of all targets by the one and of learned ones by the other: products of other shapes.
    assert compiled.evaluate(batches) == pytest.approx(eager.evaluate(batches), rel=1e-5)
    with pytest.raises(AssertionError, match="would have been compiled"):
        compiled.take_step(batches[0])


def test_the_average_follows_the_weights(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    average = AverageConfig(decay=0.75, start=0.5)
    config = replace(config, trainer=replace(config.trainer, average=average))
    trainer = make_trainer(config, tokenizer, tmp_path / "whole")
    expected: dict[str, Tensor] = {}

    def follow(report: StepReport, share: float) -> None:
        for name, master in trainer.optimizer.masters().items():
            old = expected.get(name, master)
            expected[name] = master.clone() if share <= 0.5 else 0.75 * old + 0.25 * master

    trainer.train(on_log=follow)
    for name, weight in trainer.master_weights().items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-7)
    first = make_trainer(config, tokenizer, tmp_path / "parts")
    first.train(stop_after_seconds=0.0)
    _, resumed = train(config, tokenizer, tmp_path / "parts")
    assert all(torch.equal(resumed[name], weight) for name, weight in trainer.master_weights().items())


def test_the_forward_pass_sees_the_experts_as_they_are_packed(
    config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = replace(config, trainer=replace(config.trainer, quantize=QuantizeConfig(experts="mxfp4", start=0.5)))
    trainer = make_trainer(config, tokenizer, tmp_path)
    rounded: dict[int, bool] = {}

    def look(report: StepReport, share: float) -> None:
        seen = trainer.model.layers[0].mlp.experts.gate_up.detach()
        rounded[report.step] = torch.equal(seen, round_mxfp4(seen))

    trainer.train(on_log=look)
    assert rounded == {1: False, 2: True, 3: True, 4: True}
    trained = dict(trainer.model.named_parameters())
    package_model(trainer.master_weights(), tmp_path / "model", config=config, tokenizer=tokenizer)
    packaged = load_model(tmp_path / "model", dtype=torch.float32, packed_experts=False)
    for name, parameter in packaged.named_parameters():
        want = trained[name].detach()
        assert torch.equal(parameter, want if is_expert_matrix(name) else want.bfloat16().float()), name
    batch = trainer.source.batch(0)

    def logits(model: Transformer) -> Tensor:
        with torch.no_grad():
            attention = trainer._attention(batch)  # pyright: ignore[reportPrivateUsage]
            hidden = model(batch.ids.flatten(), positions=batch.positions.flatten(), attention=attention)
            return model.logits(hidden)

    with torch.no_grad():  # what is not packed is shipped in bfloat16
        for name, parameter in trainer.model.named_parameters():
            if not is_expert_matrix(name):
                parameter.copy_(parameter.bfloat16())
    assert torch.equal(logits(trainer.model), logits(packaged))


def test_experts_that_cannot_be_packed(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = replace(config.model, hidden_size=48)
    trainer = replace(config.trainer, quantize=QuantizeConfig(experts="mxfp4"))
    with pytest.raises(InvalidInputError, match=r"quantize\.experts needs .* multiples of 32, but got 48 and 32"):
        make_trainer(replace(config, model=model, trainer=trainer), tokenizer, tmp_path)


def test_a_run_with_another_shape_is_refused(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    train(with_steps(config, 1), tokenizer, tmp_path)
    wider = replace(config, model=replace(config.model, intermediate_size=64))
    with pytest.raises(TensorMismatchError, match=r"checkpoints/step-1 has .* this run wants .*another folder"):
        make_trainer(wider, tokenizer, tmp_path)


def test_an_example_is_blind_to_its_neighbours(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Changing the first document of each row leaves the hidden states of all the others as they were."""
    trainer = make_trainer(config, tokenizer, tmp_path)
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
