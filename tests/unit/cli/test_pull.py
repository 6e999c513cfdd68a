from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import ModelNotFoundError


def test_says_where_the_model_is(run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def pull(repo_id: str, *, original: bool, revision: str | None) -> Path:
        asked.append((repo_id, original, revision))
        return tmp_path

    monkeypatch.setattr("ossia.model.checkpoint.load.pull", pull)
    result = run("pull", "openai/gpt-oss-20b")
    assert result.stdout == f"openai/gpt-oss-20b is in {tmp_path}\n"
    assert "ossia chat openai/gpt-oss-20b" in result.stderr
    run("pull", "openai/gpt-oss-20b", "--original", "--revision", "v1")
    assert asked == [("openai/gpt-oss-20b", False, None), ("openai/gpt-oss-20b", True, "v1")]


def test_without_a_network(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(*_: Any, **__: Any) -> Path:
        raise ModelNotFoundError("the hub cannot be reached; connect, or copy the folder")

    monkeypatch.setattr("ossia.model.checkpoint.load.pull", pull)
    result = run("pull", "openai/gpt-oss-20b")
    assert (result.exit_code, result.stderr) == (1, "ossia: the hub cannot be reached; connect, or copy the folder\n")


def test_a_name_that_is_no_hub_id(run: Any) -> None:
    result = run("pull", "gpt oss")
    assert result.exit_code == 1
    assert "gpt oss" in result.stderr
