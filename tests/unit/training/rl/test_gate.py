"""The gate, on one small model run by engine and trainer."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from tests.unit.training.rl.helpers import make_config, make_env, make_loaded

from ossia.core.errors import TrainingError
from ossia.engine.build import EngineConfig, build_engine
from ossia.harmony.content import Effort
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import LoadedModel
from ossia.training.rl.config import GateConfig, PolicyConfig, RewardConfig, RolloutConfig, gate_bounds
from ossia.training.rl.gate import Difference, check_gate, compare
from ossia.training.rl.learner import Learner
from ossia.training.rl.pack import pack
from ossia.training.rl.rollout import Rollout
from ossia.training.rl.trajectory import Datum, make_data

ROLLOUT = RolloutConfig(samples=4, max_tokens=40)
BOUNDS = GateConfig(max_mean=1e-4, max_single=1e-2)


def sample(engine_model: LoadedModel) -> list[Datum]:
    """Episodes of random tokens, half of them good."""
    engine = build_engine(engine_model, config=EngineConfig(num_pages=512, records_routing=True))
    rollout = Rollout(engine, loaded=engine_model, config=ROLLOUT, reward=RewardConfig())
    groups = rollout.sample([make_env(), make_env(effort=Effort.HIGH)], seed=1)
    episodes = [trajectory for group in groups for trajectory in group.trajectories]
    return [datum for i, t in enumerate(episodes) for datum in make_data(t, advantage=1.0 if i % 2 else -1.0)]


def copy_with(loaded: LoadedModel, *, dtype: torch.dtype) -> LoadedModel:
    return dataclasses.replace(loaded, model=copy.deepcopy(loaded.model).to(dtype))


def measure(learner: Learner, data: list[Datum], *, replay: bool) -> Difference:
    passes = pack(data, max_tokens=512, padding=0, replay=replay)
    scores = torch.cat([learner.score(rows).logprobs for rows in passes])
    return compare(scores, torch.cat([rows.engine for rows in passes]))


def test_trainer_and_engine_agree_to_rounding(loaded: LoadedModel) -> None:
    data = sample(loaded)
    report = Learner(loaded.model, config=make_config(gate=BOUNDS), padding=0).learn(data, lr_scale=0.1, step=1)
    assert report.difference.mean < 1e-5  # float32 both: 2^-24 times what a few hundred additions make of it
    assert report.difference.largest < 1e-3
    assert report.importance == pytest.approx(1.0, abs=1e-4)
    assert report.truncated == 0
    assert report.num_tokens == sum(datum.num_sampled for datum in data)


@pytest.mark.parametrize("name", ["layers.1.mlp.experts.down", "lm_head.weight", "layers.0.attn.sinks"])
def test_tampered_weights_shut_the_gate(loaded: LoadedModel, name: str) -> None:
    """One tensor that differs by a few percent is enough; nothing is learned, and the numbers are told."""
    data = sample(loaded)
    learner = Learner(loaded.model, config=make_config(gate=BOUNDS), padding=0)
    with torch.no_grad():
        dict(loaded.model.named_parameters())[name].mul_(1.05)
    before = {key: value.clone() for key, value in learner.weights().items()}
    with pytest.raises(TrainingError, match=r"step 7: trainer and engine differ .* nats on average \(bound"):
        learner.learn(data, lr_scale=1.0, step=7)
    assert all(torch.equal(value, before[key]) for key, value in learner.weights().items())


def test_replayed_routing_leaves_a_smaller_difference(tokenizer: Tokenizer) -> None:
    """An engine in bfloat16 and a trainer in float32: rounding flips some choices, unless they are replayed."""
    wide = make_loaded(tokenizer, seed=3)
    narrow = copy_with(wide, dtype=torch.bfloat16)
    wide.model.load_state_dict({name: value.float() for name, value in narrow.model.state_dict().items()})
    data = sample(narrow)
    learner = Learner(wide.model, config=make_config(), padding=0)
    with_replay, without = measure(learner, data, replay=True), measure(learner, data, replay=False)
    assert with_replay.mean < without.mean
    assert with_replay.largest < without.largest


def test_a_choice_that_was_replayed_is_the_choice_that_counts(loaded: LoadedModel) -> None:
    """The other way round: choices that the engine never made are followed, too, and the gate sees it."""
    data = sample(loaded)
    learner = Learner(loaded.model, config=make_config(gate=BOUNDS), padding=0)
    assert data[0].routing is not None
    wrong = [dataclasses.replace(datum, routing=(datum.routing + 1) % 8) for datum in data if datum.routing is not None]
    with pytest.raises(TrainingError, match="trainer and engine differ"):
        learner.learn(wrong, lr_scale=1.0, step=1)


def test_compare_says_mean_largest_and_divergence() -> None:
    got = compare(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -2.0]))
    assert got.mean == pytest.approx(0.25)
    assert got.largest == pytest.approx(0.5)
    assert got.kl == pytest.approx((math.exp(0.5) - 1 - 0.5) / 2)


@pytest.mark.parametrize(
    ("difference", "is_open"),
    [
        (Difference(1e-5, 1e-3, 0.0), True),
        (Difference(2e-4, 1e-3, 0.0), False),
        (Difference(1e-5, 2e-2, 0.0), False),
        (Difference(math.nan, math.nan, math.nan), False),
    ],
)
def test_either_bound_shuts_the_gate(difference: Difference, is_open: bool) -> None:
    if is_open:
        check_gate(difference, config=BOUNDS, step=1)
        return
    with pytest.raises(TrainingError, match=r"bound gate\.max_mean 0\.0001"):
        check_gate(difference, config=BOUNDS, step=1)


def test_bounds_follow_from_the_precision_unless_they_are_given() -> None:
    narrow, wide = gate_bounds(GateConfig(), is_float32=True), gate_bounds(GateConfig(), is_float32=False)
    assert narrow.max_mean is not None and wide.max_mean is not None  # noqa: PT018
    assert narrow.max_mean < wide.max_mean
    assert gate_bounds(GateConfig(max_mean=0.5), is_float32=True).max_mean == 0.5


def test_several_updates_use_each_datum_once(loaded: LoadedModel) -> None:
    data = sample(loaded)
    learner = Learner(
        loaded.model,
        config=make_config(policy=PolicyConfig(updates=3, kl=0.01, experts="dense"), gate=BOUNDS),
        padding=0,
    )
    report = learner.learn(data, lr_scale=1.0, step=1)
    assert learner.optimizer.num_updates == 3
    assert report.num_tokens == sum(datum.num_sampled for datum in data)
    assert report.kl >= 0
