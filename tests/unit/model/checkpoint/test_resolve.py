from __future__ import annotations

from pathlib import Path

import pytest

from ossia.core.errors import ModelNotFoundError
from ossia.model.checkpoint import resolve
from ossia.model.checkpoint.resolve import is_repo_id, resolve_model


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "PACKAGE_ROOT", tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"lacks the built-in model.*nano"):
        resolve_model("nano")
    assert resolve_model(str(make(tmp_path / "nano"))) == resolve_model("nano")


def test_folders(tmp_path: Path) -> None:
    folder = make(tmp_path / "a" / "b")
    assert resolve_model(folder) == folder
    assert resolve_model("a/b").resolve() == folder.resolve()


def test_pulled_models_before_the_cache(tmp_path: Path) -> None:
    base = tmp_path / "hub" / "models--openai--gpt-oss-20b"
    old, new = make(base / "snapshots" / "111"), make(base / "snapshots" / "222")
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(f"{old.name}\n")
    assert resolve_model("openai/gpt-oss-20b") == old
    (base / "refs" / "main").write_text(new.name)
    assert resolve_model("openai/gpt-oss-20b") == new
    pulled = make(tmp_path / "home" / "models" / "openai" / "gpt-oss-20b")
    assert resolve_model("openai/gpt-oss-20b") == pulled


def test_what_to_do_about_a_model_that_is_not_here() -> None:
    with pytest.raises(ModelNotFoundError, match=r"fetch it with: ossia pull openai/gpt-oss-120b"):
        resolve_model("openai/gpt-oss-120b")
    for name in ("nanoo", "", "a/b/c", "../..x", "/nowhere/at/all"):
        with pytest.raises(ModelNotFoundError, match=r"openai/gpt-oss-20b|ossia pull"):
            resolve_model(name)


def test_hub_ids() -> None:
    assert is_repo_id("openai/gpt-oss-20b")
    for name in ("gpt-oss", "../x", "x/..", "a/b/c", "a b/c", "/x", "x/", ""):
        assert not is_repo_id(name)
