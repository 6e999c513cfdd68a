"""What may be written to a terminal."""

from __future__ import annotations

_CONTROLS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def strip_controls(text: str) -> str:
    """Text without the control characters (C0, DEL, C1) by which a model could steer the reader's terminal."""
    return text.translate(_CONTROLS)
