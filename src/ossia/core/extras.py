"""Optional packages, imported at use; the error for one that is missing names the extra that has it."""

from __future__ import annotations

import importlib
from types import ModuleType

from ossia.core.errors import MissingExtraError


def need(module: str, *, extra: str, package: str | None = None) -> ModuleType:
    """Import a module of an extra.

    Args:
        module: dotted name.
        extra: which extra of ossia has it.
        package: what to install for it, if it is not called as the module's first part.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            raise
        raise MissingExtraError(package or root, extra=extra) from error
