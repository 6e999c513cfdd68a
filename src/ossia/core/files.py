"""Writing files so that a failure leaves what was there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ossia.core.errors import StorageError


def write_text(path: Path, text: str) -> None:
    """Write a file aside and rename it into place, making its folder if need be.

    Raises:
        StorageError: it cannot be written; a file that was there is as it was.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
            aside = Path(file.name)
            file.write(text)
        os.replace(aside, path)
    except OSError as error:
        if aside is not None:
            aside.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path} ({error}); free some space or choose another place") from error
