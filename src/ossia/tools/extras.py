"""Optional packages of the extra `ossia[tools]`, imported at use."""

from __future__ import annotations

import importlib
from types import ModuleType

from ossia.core.errors import MissingExtraError

EXTRA = "tools"


def need(module: str, *, package: str | None = None) -> ModuleType:
    """Imports a module of the extra.

    Args:
        module: dotted name.
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
        raise MissingExtraError(package or root, extra=EXTRA) from error
