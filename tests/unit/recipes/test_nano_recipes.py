"""The recipes that train nano can be read, and the next one teaches every task."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossia.tasks.registry import TASKS
from ossia.training.config import load_recipe
from ossia.training.rl.recipe import load_rl_recipe
from ossia.training.sft_config import load_sft_config

RECIPES = Path(__file__).parents[3] / "recipes"


def test_the_next_nano_is_taught_every_task() -> None:
    recipe = load_recipe(str(RECIPES / "speedrun" / "nano" / "pretrain.toml"))
    assert set(recipe.data.mix) == {"text", *TASKS}
    assert sum(recipe.data.mix.values()) == pytest.approx(1, abs=0.01)
    assert recipe.model == load_recipe(str(RECIPES / "nano.toml")).model


@pytest.mark.parametrize("name", ["nano", "tiny"])
def test_each_stage_of_the_speedrun_has_its_recipe(name: str) -> None:
    folder = RECIPES / "speedrun" / name
    assert set(load_recipe(str(folder / "pretrain.toml")).data.corpora.values()) == {f"runs/{name}/corpus"}
    fine_tuning = load_sft_config(recipe=str(folder / "sft.toml"))
    assert (RECIPES.parent / fine_tuning.data.file).is_file()
    assert load_rl_recipe(str(folder / "rl.toml")).init == f"runs/{name}/sft/model"
