"""The tree of errors as it is drawn, against the classes of the whole package."""

from __future__ import annotations

import ast
import re

from ossia.core import errors
from ossia.core.paths import PACKAGE_ROOT

FOREIGN = {"Exception", "ValueError", "ImportError", "PermissionError"}


def classes() -> dict[str, list[str]]:
    """Each public error class of the package, read from its source, and its bases."""
    found: dict[str, list[str]] = {}
    for file in PACKAGE_ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error") and not node.name.startswith("_"):
                assert node.name not in found, f"two errors are named {node.name}"
                found[node.name] = [ast.unparse(base) for base in node.bases]
    return found


def drawn() -> dict[str, list[str]]:
    """The same from the drawing."""
    found: dict[str, list[str]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)(\w+Error)\b(?: \((\w+)\))?", line)
        if match:
            branch, name, foreign = match.groups()
            depth = len(branch) // 4
            del path[depth:]
            found[name] = [*path[-1:], *([foreign] if foreign else [])]
            path.append(name)
    return found


def test_every_error_is_drawn_where_it_stands() -> None:
    real = classes()
    assert real.pop("OssiaError") == ["Exception"]
    picture = drawn()
    assert picture.pop("OssiaError") == []
    assert picture == real
    assert {base for bases in real.values() for base in bases} <= FOREIGN | real.keys() | {"OssiaError"}
