"""recipes/grpo.py: the teaching loop runs, agrees with the engine, and stops when it does not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ossia.training.rl.config import PolicyConfig
from ossia.training.rl.loss import TokenValues, policy_loss

RECIPE = Path(__file__).parents[2] / "recipes" / "grpo.py"
OPTIONS = ["--task", "add", "--steps", "1", "--problems", "8", "--samples", "8"]


@pytest.fixture(scope="module")
def grpo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_recipe", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_can_be_read_in_one_sitting() -> None:
    assert len(RECIPE.read_text().splitlines()) <= 250


def test_its_loss_is_that_of_the_full_loop_on_policy() -> None:
    """-mean(w A log pi) has the gradient of the clipped objective at pi = pi_old."""
    engine, old = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.2, -1.0, -0.5])
    advantage = torch.tensor([0.5, 1.0, -0.5])
    now = old.clone().requires_grad_()
    policy_loss(now, TokenValues(engine, old, advantage), config=PolicyConfig()).total.backward()
    assert now.grad is not None
    weights = (old - engine).exp().clamp(max=2.0)
    torch.testing.assert_close(now.grad, -(weights * advantage))


@pytest.mark.slow
def test_it_trains_nano_for_a_step(grpo: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    (reward,) = grpo.main(OPTIONS)
    assert 0 <= reward <= 1
    assert "step 1  reward" in capsys.readouterr().out


@pytest.mark.slow
def test_it_stops_when_trainer_and_engine_differ(grpo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    score = grpo.score

    def tampered(model: torch.nn.Module, episodes: list[object]) -> object:
        with torch.no_grad():
            model.lm_head.weight.mul_(1.02)  # type: ignore[union-attr, operator]
        return score(model, episodes)

    monkeypatch.setattr(grpo, "score", tampered)
    with pytest.raises(SystemExit, match="trainer and engine differ by"):
        grpo.main(OPTIONS)
