"""Reading recipes: TOML files, and single values given beside them."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ossia.core.errors import InvalidInputError


def read_recipe(name_or_path: str, *, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read a recipe: a path to a TOML file, or the name of one in `recipes/` of the current folder.

    Args:
        name_or_path: where the recipe is.
        overrides: values by dotted key ("run.steps"), which replace those of the file.

    Raises:
        InvalidInputError: there is no such recipe, it is not TOML, or a key to replace lies in no table.
    """
    return set_values(_read_toml(name_or_path), overrides or {})


def set_values(raw: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Replace values of a recipe by dotted key, in place. Raises InvalidInputError if a key lies in no table."""
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition(".")
        target = raw
        for part in section.split(".") if section else ():
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise InvalidInputError(f"cannot set {dotted}: {part} is no table of the recipe", param=dotted)
        target[key] = value
    return raw


def require_sections(raw: Mapping[str, Any], known: Collection[str]) -> None:
    """Raises InvalidInputError if a recipe has a section or a key that it cannot have."""
    unknown = set(raw) - set(known)
    if unknown:
        raise InvalidInputError(
            f"unknown section in the recipe: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}",
            param="recipe",
        )


def _read_toml(name_or_path: str) -> dict[str, Any]:
    candidates = [Path(name_or_path), Path("recipes") / f"{name_or_path}.toml"]
    for path in candidates:
        if path.is_file():
            try:
                return tomllib.loads(path.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise InvalidInputError(f"{path} is not a TOML recipe: {error}", param="recipe") from error
    raise InvalidInputError(
        f"no recipe '{name_or_path}': looked for {' and '.join(str(path) for path in candidates)}", param="recipe"
    )
