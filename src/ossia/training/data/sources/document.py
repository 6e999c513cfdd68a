"""What goes through the pipeline."""

from __future__ import annotations

from typing import NamedTuple


class Document(NamedTuple):
    """A text on its way.

    Attributes:
        source: name of its source in the manifest.
        place: file, and the row within it, for messages.
        text: as read, or as far as it has been cleaned.
        credit: whom its licence wants named; empty if the source names nobody.
    """

    source: str
    place: str
    text: str
    credit: str = ""


class Unreadable(NamedTuple):
    """A row or file that could not be read, where the run was told to skip such."""

    source: str
    place: str
    reason: str
