from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.training.config import DataConfig, LossConfig, OptimizerConfig, load_recipe

RECIPES = sorted((Path(__file__).parents[3] / "recipes").glob("*.toml"))
TINY = str(next(path for path in RECIPES if path.stem == "tiny"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(str(path)).name == path.stem


def test_a_recipe_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(TINY).parents[1])
    assert load_recipe("tiny") == load_recipe(TINY)


def test_sections_left_out_take_defaults() -> None:
    config = load_recipe(TINY)
    assert (config.optimizer, config.loss) == (OptimizerConfig(), LossConfig())
    assert (config.run.steps, config.model.hidden_size) == (100, 64)


def test_overrides_replace_and_add() -> None:
    overrides = {"run.steps": 7, "optimizer.betas": [0.8, 0.9], "loss.balance": 1, "data.mix": {"add": 2}, "name": "x"}
    config = load_recipe(TINY, overrides=overrides)
    assert config.run.steps == 7
    assert config.optimizer.betas == (0.8, 0.9)
    assert config.loss.balance == 1
    assert config.data.mix == {"add": 2}
    assert config.name == "x"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"run.stepz": 5}, r"\[run\]: stepz; known are .*steps"),
        ({"runs.steps": 5}, "unknown section in the recipe: runs"),
        ({"run.steps": "many"}, r"run\.steps must be of type int, got 'many'"),
        ({"run.steps": True}, r"run\.steps must be of type int"),
        ({"run.steps": 1.5}, r"run\.steps must be of type int"),
        ({"run.steps": 0}, "steps must be a positive number, got 0"),
        ({"run.max_minutes": "ten"}, r"run\.max_minutes"),
        ({"data.sequence_length": -1}, "sequence_length must be a positive number"),
        ({"data.mix": {}}, r"data\.mix must give"),
        ({"data.mix": {"add": 0.0}}, r"data\.mix must give"),
        ({"data.mix": {"add": -1.0, "spell": 5.0}}, r"data\.mix must give"),
        ({"data.mix": {"add": "often"}}, r"data\.mix must be"),
        ({"data.corpora": "books.jsonl"}, r"data\.corpora must be"),
        ({"optimizer.betas": [0.9]}, r"optimizer\.betas must be"),
        ({"optimizer.warmup": "slow"}, r"optimizer\.warmup must be of type float"),
        ({"identity.model_identity": 3}, r"identity\.model_identity must be of type str"),
        ({"identity": {}}, "model_identity"),
        ({"data": 3}, r"\[data\] must be a table"),
        ({"name.first": "x"}, r"cannot set name\.first: name is no table"),
        ({"model.hidden_size": 0}, "hidden_size"),
    ],
)
def test_bad_values_are_named(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_recipe(TINY, overrides=overrides)


def test_a_missing_recipe_says_where_it_was_looked_for() -> None:
    with pytest.raises(InvalidInputError, match=r"no recipe 'nope': looked for nope and recipes.nope\.toml"):
        load_recipe("nope")


@pytest.mark.parametrize("content", [b"[run\n", b"\xff\xfe"])
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match="not a TOML recipe"):
        load_recipe(str(path))


def test_a_mix_is_required() -> None:
    with pytest.raises(InvalidInputError, match="mix"):
        DataConfig()
