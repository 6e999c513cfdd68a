"""`ossia train rl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ossia.cli.train.rl import describe_step, describe_validation, read_config
from ossia.core.errors import InvalidInputError
from ossia.training.rl.env import find_tasks
from ossia.training.rl.gate import Difference
from ossia.training.rl.learner import LearnReport
from ossia.training.rl.report import StepReport, ValidationReport

RECIPES = Path(__file__).parents[4] / "recipes"


def test_a_model_with_tasks_needs_no_recipe() -> None:
    config = read_config(None, model="nano", tasks="add, compare", overrides=["run.steps=3"])
    assert (config.name, config.init, dict(config.tasks)) == ("nano-rl", "nano", {"add": 1.0, "compare": 1.0})
    assert config.run.steps == 3
    assert config.policy.kl == 0


def test_options_replace_what_the_recipe_says() -> None:
    recipe = str(RECIPES / "nano-rl.toml")
    plain = read_config(recipe, model=None, tasks=None, overrides=None)
    assert plain.init == "nano"
    assert plain.reward.length_price["low"] > plain.reward.length_price["medium"]
    changed = read_config(recipe, model="here", tasks="spell", overrides=["gate.max_mean=0.5"])
    assert (changed.init, dict(changed.tasks), changed.gate.max_mean) == ("here", {"spell": 1.0}, 0.5)
    assert changed.optimizer == plain.optimizer


@pytest.mark.parametrize("name", ["nano-rl", "tiny-rl"])
def test_recipes_name_tasks_that_exist(name: str) -> None:
    assert find_tasks(read_config(str(RECIPES / f"{name}.toml"), model=None, tasks=None, overrides=None).tasks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--out", "x"), "there is nothing to train"),
        (("--out", "x", "--model", "nano"), "there is nothing to train"),
        (("--out", "x", "--model", "nano", "--tasks", "dance"), "there is no task dance"),
        (("--out", "x", "--recipe", "none-such"), "no recipe 'none-such'"),
        (("--out", "x", "--model", "nano", "--tasks", "add", "--set", "rollout.samples=1"), "at least 2"),
        (("--out", "x", "--model", "nano", "--tasks", "add", "--set", "rollout.speed=1"), "unknown key"),
        (("--out", "x", "--model", "no-such-model", "--tasks", "add"), "no-such-model"),
    ],
)
def test_what_cannot_be_run_is_told(run: Any, options: tuple[str, ...], message: str) -> None:
    result = run("train", "rl", *options)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())


def test_a_recipe_without_a_model(tmp_path: Path) -> None:
    path = tmp_path / "bare.toml"
    path.write_text("[tasks]\nadd = 1\n")
    with pytest.raises(InvalidInputError, match="init is None"):
        read_config(str(path), model=None, tasks=None, overrides=None)
    path.write_text('init = "nano"\n[tasks]\nadd = "often"\n')
    with pytest.raises(InvalidInputError, match=r"tasks\.add must be a number"):
        read_config(str(path), model=None, tasks=None, overrides=None)


def test_reports_as_lines() -> None:
    learned = LearnReport(
        difference=Difference(2e-7, 3e-6, 0.0),
        entropy=0.25,
        importance=1.0,
        largest_importance=1.0,
        truncated=0.0,
        clipped=0.0,
        kl=0.0,
        grad_norm=1.0,
        num_tokens=100,
    )
    report = StepReport(
        step=7,
        reward=0.5,
        pass_rate=0.625,
        clean=1.0,
        pass_by_effort={"low": 0.625},
        tokens_by_effort={"low": 8.0},
        groups=12,
        used_groups=5,
        lr_scale=1.0,
        learned=learned,
    )
    assert describe_step(report) == (
        "step 7  reward 0.500  right 62%  8 tokens  5 of 12 groups differ  entropy 0.250  gate 2.0e-07"
    )
    held_out = ValidationReport(step=10, score=0.75, pass_rates={"add/low": 0.75}, tokens={"add/low": 8.0}, clean=1.0)
    assert describe_validation(held_out) == "held out after step 10: 75.0%  (add/low 75%)"


@pytest.mark.slow
def test_a_run_of_two_steps_gives_a_model(run: Any, tmp_path: Path) -> None:
    sizes = ["rollout.problems=4", "rollout.samples=4", "validation.problems=2", "run.steps=2", "rollout.max_tokens=32"]
    sets = [word for size in (*sizes, 'rollout.efforts=["low"]') for word in ("--set", size)]
    options = ("--model", "nano", "--tasks", "add", "--out", str(tmp_path), "--device", "cpu", *sets)
    result = run("train", "rl", *options)
    assert result.exit_code == 0, result.stderr
    assert str(tmp_path / "model") in result.stdout.replace("\n", "")
    rows = [json.loads(row) for row in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 2]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["ossia"]["name"] == "nano-rl"
    found = run("info", str(tmp_path / "model"))
    assert found.exit_code == 0, found.stderr
    assert "mxfp4" in found.stdout
