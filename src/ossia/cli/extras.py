"""Commands that need optional packages say which extra has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ossia.core.errors import MissingExtraError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Around imports of packages of an extra.

    Raises:
        MissingExtraError: one of them is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package == "ossia":
            raise
        raise MissingExtraError(package, extra=name) from error
