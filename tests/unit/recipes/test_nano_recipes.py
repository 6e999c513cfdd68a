"""The recipes that train nano can be read, and the next one teaches every task."""

from __future__ import annotations

from pathlib import Path

import pytest

from ossia.tasks.registry import TASKS
from ossia.training.config import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def test_the_next_nano_is_taught_every_task() -> None:
    recipe = load_recipe(str(RECIPES / "nano2.toml"))
    assert set(recipe.data.mix) == {"text", *TASKS}
    assert sum(recipe.data.mix.values()) == pytest.approx(1, abs=0.01)
    assert recipe.model == load_recipe(str(RECIPES / "nano.toml")).model
