from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ossia.cli.train.options import parse_override
from ossia.core.errors import InvalidInputError

RECIPE = Path(__file__).parents[4] / "recipes" / "tiny.toml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("run.steps=100", ("run.steps", 100)),
        ("optimizer.muon_lr=1e-2", ("optimizer.muon_lr", 0.01)),
        ("data.mix={add=1.0}", ("data.mix", {"add": 1.0})),
        ("name=nano", ("name", "nano")),
        ("name = 'a b'", ("name", "a b")),
        ("run.resume=false", ("run.resume", False)),
        ("name=a=b", ("name", "a=b")),
        ("name=", ("name", "")),
    ],
)
def test_overrides_are_toml_or_text(text: str, expected: tuple[str, Any]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("text", ["run.steps", "=5", ""])
def test_a_malformed_override(text: str) -> None:
    with pytest.raises(InvalidInputError, match="key=value"):
        parse_override(text)


def test_a_malformed_override_is_told_before_anything_is_imported(run: Any) -> None:
    result = run("train", "pretrain", "--recipe", "nano", "--out", "x", "--set", "oops")
    assert result.exit_code == 1
    assert "--set 'oops'" in result.stderr


def test_an_unknown_recipe(run: Any) -> None:
    result = run("train", "pretrain", "--recipe", "no-such-recipe", "--out", "x")
    assert result.exit_code == 1
    assert "no-such-recipe" in result.stderr


def test_a_run_that_was_stopped_is_no_success(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ossia.training.run.train", stopped)
    result = run("train", "pretrain", "--recipe", str(RECIPE), "--out", str(tmp_path))
    assert result.exit_code == 130
    assert "stopped before its end; the same line again goes on" in result.stderr
    assert result.stdout == ""
