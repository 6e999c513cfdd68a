"""Whole runs of a small model: resumed to the bit, better than before, packaged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.rl.helpers import EchoTask, make_config, make_env, make_loaded

from ossia.core.errors import CorruptFileError, TensorMismatchError, TrainingError
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels.mxfp4 import round_mxfp4
from ossia.model.loading import LoadedModel
from ossia.tools.registry import ToolSet
from ossia.training.attention import DenseRowAttention
from ossia.training.loss import next_token_loss
from ossia.training.optimizer import MuonAdamW
from ossia.training.rl import env as module
from ossia.training.rl.config import (
    RATES,
    GateConfig,
    PolicyConfig,
    RLConfig,
    RLRunConfig,
    RolloutConfig,
    ValidationConfig,
)
from ossia.training.rl.loop import RLRun
from ossia.training.rl.report import StepReport, ValidationReport
from ossia.training.rl.state import BEST, CHECKPOINT, load_best


@pytest.fixture(autouse=True)
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TASKS", {"echo": EchoTask()})


def small(**fields: Any) -> RLConfig:
    changes: dict[str, Any] = {
        "rollout": RolloutConfig(problems=4, samples=8, efforts=("low",), max_tokens=8, kv_cache_bytes=1 << 22),
        "validation": ValidationConfig(problems=4, every=100),
        "run": RLRunConfig(steps=4, checkpoint_every=1, tensorboard=False),
    }
    return make_config(**(changes | fields))


def warm(tokenizer: Tokenizer, *, steps: int, seed: int = 5) -> LoadedModel:
    """A model that has learned to answer with a word of the task, half of the time the right one, else any."""
    loaded = make_loaded(tokenizer, seed=seed, scale=0.05)
    envs = [make_env(dataclasses.replace(make_env().problem, prompt=f"Say {word}.")) for word in EchoTask.words]
    optimizer = MuonAdamW(
        loaded.model.named_parameters(), config=dataclasses.replace(RATES, muon_lr=0.02, adamw_lr=3e-3)
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows, targets = [], []
        for env, right in zip(envs, EchoTask.words, strict=True):
            opening = env.opening(loaded.identity, tools=ToolSet())
            prompt = render(opening, tokenizer=tokenizer, next_role="assistant")
            is_told = bool(torch.rand((), generator=generator) < 0.5)
            word = right if is_told else EchoTask.words[int(torch.randint(4, (), generator=generator))]
            said = tokenizer.encode_with_specials(f"<|channel|>final<|message|>{word}<|return|>")
            rows.append([*prompt, *said][:-1])
            targets.append([-100] * (len(prompt) - 1) + said)
        size = max(map(len, rows))
        ids = torch.tensor([row + [0] * (size - len(row)) for row in rows])
        wanted = torch.tensor([row + [-100] * (size - len(row)) for row in targets])
        attention = DenseRowAttention(torch.zeros_like(ids, dtype=torch.int32), window=16)
        positions = torch.arange(size).repeat(len(rows))
        hidden = loaded.model(ids.flatten(), positions=positions, attention=attention)
        next_token_loss(loaded.model.logits(hidden), wanted.flatten()).backward()
        optimizer.step(scale=1.0)
        loaded.model.zero_grad(set_to_none=True)
    return loaded


@pytest.fixture(scope="module")
def warmed(tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    return warm(tokenizer, steps=120).model.state_dict()


def fresh(tokenizer: Tokenizer, weights: dict[str, torch.Tensor]) -> LoadedModel:
    loaded = make_loaded(tokenizer)
    loaded.model.load_state_dict(weights)
    return loaded


def test_a_resumed_run_is_the_same_to_the_bit(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    whole = RLRun(small(), tmp_path / "whole", loaded=fresh(tokenizer, warmed))
    whole.run()
    first = RLRun(small(), tmp_path / "parts", loaded=fresh(tokenizer, warmed))
    first.run(max_steps=2)
    assert first.step == 2
    second = RLRun(small(), tmp_path / "parts", loaded=fresh(tokenizer, warmed))
    assert second.step == 2
    second.run()
    assert whole.step == second.step == 4
    for name, value in whole.learner.master_weights().items():
        assert torch.equal(value, second.learner.master_weights()[name]), name
    rows = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert any(not torch.equal(value, warmed[name]) for name, value in whole.learner.weights().items())


def test_rows_behind_the_checkpoint_are_written_anew(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    run = RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed))
    run.run(max_steps=2)
    rows = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "reward": 0.0}) + '\n{"step": 3, "rew')  # killed while it wrote
    RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed)).run(max_steps=1)
    after = (tmp_path / "metrics.jsonl").read_text()
    assert after.startswith(rows)
    assert [json.loads(row)["step"] for row in after.splitlines()] == [0, 1, 2, 3]


def test_the_engine_runs_the_trainers_own_parameters(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    run = RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed))
    assert run.engine.runner.model is run.learner.model  # type: ignore[attr-defined]
    report = run.take_step()
    assert report.learned is not None
    assert run.take_step().learned is not None  # the gate is open after an update, too


def test_a_tampered_engine_stops_the_run_and_the_checkpoint_stays(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    run = RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed))
    run.run(max_steps=1)
    saved = (tmp_path / CHECKPOINT).read_bytes()
    other = RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed))
    rollout, learn = other.rollout.sample, other.learner.model.lm_head.weight

    def tamper(*args: Any, **kwargs: Any) -> Any:
        groups = rollout(*args, **kwargs)
        with torch.no_grad():
            learn.mul_(1.02)
        return groups

    other.rollout.sample = tamper  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="step 2: trainer and engine differ"):
        other.run()
    assert (tmp_path / CHECKPOINT).read_bytes() == saved


def test_a_checkpoint_that_does_not_fit_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed)).save()
    larger = make_loaded(tokenizer)
    shape = dataclasses.replace(larger.model.config, hidden_size=64)
    wide = dataclasses.replace(larger, model=type(larger.model)(shape, dtype=torch.float32))
    with pytest.raises(TensorMismatchError):
        RLRun(small(), tmp_path, loaded=wide)
    (tmp_path / CHECKPOINT).write_bytes(b"torn")
    with pytest.raises(CorruptFileError, match="delete it to start anew"):
        RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed))


def test_a_group_that_agrees_teaches_nothing(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RLRun(small(), tmp_path, loaded=make_loaded(tokenizer))  # random: never right
    before = {name: value.clone() for name, value in run.learner.weights().items()}
    report = run.take_step()
    assert (report.used_groups, report.learned, report.pass_rate) == (0, None, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in run.learner.weights().items())


@pytest.mark.slow
def test_a_small_model_learns_an_easy_task_from_reward_alone(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    """It answers with another word a third of the time; after 32 steps it says the one that it is asked for."""
    config = small(
        rollout=RolloutConfig(problems=16, samples=8, efforts=("low",), max_tokens=8, kv_cache_bytes=1 << 22),
        policy=PolicyConfig(updates=2, experts="dense"),
        optimizer=dataclasses.replace(RATES, muon_lr=1e-3, adamw_lr=2e-3),
        validation=ValidationConfig(problems=4, every=10),
        run=RLRunConfig(steps=32, checkpoint_every=20, tensorboard=False),
    )
    reports: list[StepReport] = []

    def note(report: StepReport | ValidationReport) -> None:
        if isinstance(report, StepReport):
            reports.append(report)

    run = RLRun(config, tmp_path, loaded=fresh(tokenizer, warmed))
    run.run(on_log=note)
    first, last = (sum(r.reward for r in part) / 5 for part in (reports[:5], reports[-5:]))
    assert first < 0.8
    assert last > 0.85
    assert all(report.learned is None or report.learned.difference.mean < 1e-5 for report in reports)
    best = load_best(tmp_path)
    assert best is not None
    assert best.score == run.best[0] if run.best else False
    assert (tmp_path / BEST).exists()


def test_tensorboard_gets_what_the_file_gets(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor]
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = small(run=RLRunConfig(steps=2, checkpoint_every=1))
    RLRun(config, tmp_path, loaded=fresh(tokenizer, warmed)).run(max_steps=1)
    RLRun(config, tmp_path, loaded=fresh(tokenizer, warmed)).run()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    got = [(event.step, event.value) for event in events.Scalars("reward")]
    assert got == [(row["step"], pytest.approx(row["reward"])) for row in rows if "reward" in row]
    wanted = {"reward", "pass_rate", "tokens/low", "entropy", "importance", "gate/mean", "gate/largest"}
    assert wanted <= set(events.Tags()["scalars"])


@pytest.mark.parametrize("experts", ["frozen", "mxfp4", "dense"])
def test_what_becomes_of_the_experts(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor], experts: str
) -> None:
    """Rounded experts are what the engine runs, and what packing keeps to the bit; frozen ones never change."""
    rates = dataclasses.replace(RATES, muon_lr=0.02, adamw_lr=1e-3, warmup=0.0)
    config = small(policy=PolicyConfig(experts=experts), optimizer=rates)
    run = RLRun(config, tmp_path, loaded=fresh(tokenizer, warmed))
    name = "layers.1.mlp.experts.down"
    before = run.learner.weights()[name].clone()
    report = run.take_step()
    assert report.learned is not None
    after, master = run.learner.weights()[name], run.learner.master_weights()[name]
    assert torch.equal(after, before) == (experts == "frozen")
    assert torch.equal(after, round_mxfp4(master)) == (experts == "mxfp4")
    assert report.learned.difference.mean < 1e-5
    second = run.take_step()
    assert second.learned is None or second.learned.difference.mean < 1e-5


@pytest.mark.parametrize("experts", ["frozen", "mxfp4"])
def test_an_engine_with_packed_experts_agrees_with_the_trainer(
    tmp_path: Path,
    tokenizer: Tokenizer,
    warmed: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    experts: str,
) -> None:
    """As on a GPU: the engine's model is another one, packed anew at each update, and the gate stays open."""
    monkeypatch.setattr(RLRun, "_is_packed", lambda _: True)
    loaded = fresh(tokenizer, warmed)
    for name, parameter in loaded.model.named_parameters():
        if name.endswith((".experts.gate_up", ".experts.down")):
            parameter.data.copy_(round_mxfp4(parameter.data))  # as a shipped file has them
    rates = dataclasses.replace(RATES, muon_lr=0.02, adamw_lr=1e-3, warmup=0.0)
    gate = GateConfig(max_mean=1e-3, max_single=0.1)  # the kernels take packed experts' activations in 16 bits
    run = RLRun(small(policy=PolicyConfig(experts=experts), optimizer=rates, gate=gate), tmp_path, loaded=loaded)
    assert run.engine.runner.model is not run.learner.model  # type: ignore[attr-defined]
    assert [run.take_step().learned is not None for _ in range(3)].count(True) >= 2


def test_a_gpu_without_memory_is_told_which_knob(
    tmp_path: Path, tokenizer: Tokenizer, warmed: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RLRun(small(), tmp_path, loaded=fresh(tokenizer, warmed))

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(run.learner, "learn", fail)
    with pytest.raises(TrainingError, match=r"lower run\.tokens_per_forward \(now 8192\)"):
        run.take_step()
