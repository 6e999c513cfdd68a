from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from ossia.core.errors import InvalidInputError
from ossia.training.rl.config import (
    GateConfig,
    PolicyConfig,
    RewardConfig,
    RLConfig,
    RLRunConfig,
    RolloutConfig,
    ValidationConfig,
)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RolloutConfig(samples=1), "samples is 1; allowed: at least 2"),
        (lambda: RolloutConfig(problems=0), "problems is 0"),
        (lambda: PolicyConfig(experts="int4"), "experts is 'int4'; allowed: frozen, mxfp4, dense"),
        (lambda: RolloutConfig(efforts=()), "efforts is empty"),
        (lambda: RolloutConfig(efforts=("most",)), "unknown reasoning effort"),
        (lambda: RewardConfig(length_price={"low": 1.0}), "length_price.low is 1.0"),
        (lambda: RewardConfig(length_price={"much": 0.1}), "unknown reasoning effort"),
        (lambda: PolicyConfig(scale="rank"), "scale is 'rank'"),
        (lambda: PolicyConfig(updates=0), "updates is 0"),
        (lambda: PolicyConfig(clip_low=1.5), "clip_low is 1.5"),
        (lambda: PolicyConfig(max_importance=0.5), "max_importance is 0.5"),
        (lambda: GateConfig(max_mean=math.nan), "max_mean is nan"),
        (lambda: ValidationConfig(problems=0), "problems is 0"),
        (lambda: RLRunConfig(steps=0), "steps is 0"),
        (lambda: RLConfig(name="a", init="nano", tasks={}), "tasks"),
        (lambda: RLConfig(name="a", init="nano", tasks={"add": 0.0}), "tasks"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message.replace("[", r"\[")):
        make()


def test_defaults_are_on_policy_without_kl() -> None:
    config = RLConfig(name="a", init="nano", tasks={"add": 1.0})
    assert config.policy == PolicyConfig(scale="mean", updates=1, kl=0.0, max_importance=2.0)
    assert dict(config.reward.length_price) == {}
