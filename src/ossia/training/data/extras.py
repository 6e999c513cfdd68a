"""Optional packages of the extras `ossia[data]` and `ossia[ray]`, imported at use."""

from __future__ import annotations

import importlib
from types import ModuleType

from ossia.core.errors import MissingExtraError


def need(module: str, *, package: str | None = None, extra: str = "data") -> ModuleType:
    """Import a module of an extra.

    Args:
        module: dotted name.
        package: what to install for it, if it is not called as the module's first part.
        extra: which extra of ossia has it.

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
