"""From what a user types to a model folder on this machine."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ossia.core.errors import ModelNotFoundError
from ossia.core.paths import PACKAGE_ROOT, models_home

BUILT_IN = "nano"
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name_or_path: str | Path) -> Path:
    """The folder of a model.

    In this order: "nano", the model in the package; a folder; a hub id that `pull` fetched; a hub id in the Hugging
    Face cache, where other tools may have put it. A folder is returned as it is, whole or not: loading says what lacks.

    Raises:
        ModelNotFoundError: none of these.
    """
    name = str(name_or_path)
    if name == BUILT_IN:
        if (PACKAGE_ROOT / BUILT_IN / "config.json").is_file():
            return PACKAGE_ROOT / BUILT_IN
        raise ModelNotFoundError(f"this installation lacks the built-in model ({PACKAGE_ROOT / BUILT_IN}); reinstall")
    path = Path(name).expanduser()
    if name and path.is_dir():  # an empty path would be the current folder
        return path
    if is_repo_id(name):
        for folder in (pulled_folder(name), *cached_snapshots(name)):
            if folder.is_dir():
                return folder
        raise ModelNotFoundError(
            f"{name} is not on this machine; fetch it with: ossia pull {name}. "
            f"If it is a folder: there is none at {path.absolute()}"
        )
    raise ModelNotFoundError(
        f"{name!r} leads to no model: it is neither '{BUILT_IN}', nor a folder, nor a hub id such as openai/gpt-oss-20b"
    )


def is_repo_id(name: str) -> bool:
    """Whether a name has the form `organisation/model`."""
    return bool(_REPO_ID.fullmatch(name)) and not any(set(half) <= {"."} for half in name.split("/"))


def pulled_folder(repo_id: str) -> Path:
    """Where `pull` puts a model."""
    return models_home() / repo_id


def cached_snapshots(repo_id: str) -> list[Path]:
    """The model's snapshots in the Hugging Face cache, the one that `main` points to first."""
    from huggingface_hub import constants

    base = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    snapshots = base / "snapshots"
    if not snapshots.is_dir():
        return []
    main = base / "refs" / "main"
    preferred = main.read_text(encoding="utf-8").strip() if main.is_file() else ""
    return sorted(snapshots.iterdir(), key=lambda path: (path.name != preferred, -os.stat(path).st_mtime))
