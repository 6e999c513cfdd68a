from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError, ModelNotFoundError
from ossia.training.config import DataConfig, LossConfig, OptimizerConfig, load_recipe

FOLDER = Path(__file__).parents[3] / "recipes"
RECIPES = [FOLDER / "nano.toml", FOLDER / "tiny.toml"]
TINY = str(FOLDER / "tiny.toml")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(path: Path) -> None:
    assert load_recipe(str(path)).name == path.stem


def test_a_recipe_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(TINY).parents[1])
    assert load_recipe("tiny") == load_recipe(TINY)


def test_sections_left_out_take_defaults() -> None:
    config = load_recipe(TINY)
    assert (config.trainer.optimizer, config.trainer.loss) == (OptimizerConfig(), LossConfig())
    assert (config.trainer.run.steps, config.model.hidden_size) == (100, 64)


def test_overrides_replace_and_add() -> None:
    overrides = {"run.steps": 7, "optimizer.betas": [0.8, 0.9], "loss.balance": 1, "data.mix": {"add": 2}, "name": "x"}
    config = load_recipe(TINY, overrides=overrides)
    assert config.trainer.run.steps == 7
    assert config.trainer.optimizer.betas == (0.8, 0.9)
    assert config.trainer.loss.balance == 1
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
        ({"run.precision": "fp8"}, r"run\.precision is 'fp8'; allowed: auto, float32, bfloat16"),
        ({"quantize.experts": "int4"}, r"quantize\.experts is 'int4'; allowed: mxfp4"),
        ({"average.decay": 1.0}, r"average\.decay is 1\.0; allowed: from 0 to below 1"),
        ({"guard.windows": 3}, r"\[guard\]: windows; known are .*window"),
        ({"guard.max_skipped": 0}, "max_skipped must be a positive number"),
        ({"data.num_workers": -1}, "num_workers must be 0 or more"),
        ({"init": 3}, "init must name a model, got 3"),
        ({"init": "nano"}, r"init = 'nano' and a \[model\] section"),
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


def write_recipe(folder: Path, text: str) -> str:
    path = folder / "recipe.toml"
    path.write_text(text)
    return str(path)


def test_a_run_may_begin_with_a_model(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 'init = "nano"\n[data]\nmix = {spell = 1}\n')
    config = load_recipe(recipe)
    assert (config.init, config.model.vocab_size) == ("nano", 8192)
    assert "nano" in config.identity.model_identity
    config = load_recipe(recipe, overrides={"identity.model_identity": "You are another."})
    assert config.identity.model_identity == "You are another."


def test_a_model_to_begin_with_that_is_not_there(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, 'init = "no-such-model"\n[data]\nmix = {spell = 1}\n')
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        load_recipe(recipe)
