from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ossia.cli.terminal import strip_controls


def test_escape_sequences_lose_their_teeth() -> None:
    assert strip_controls("a\x1b[2Jb\x9b31mc\x07\r\x08\x7f") == "a[2Jb31mc"


def test_lines_tabs_and_other_scripts_stay() -> None:
    assert strip_controls("one\n\ttwo é 漢 🙂\u200d") == "one\n\ttwo é 漢 🙂\u200d"


@given(st.text())
def test_nothing_that_steers_a_terminal_is_left(text: str) -> None:
    assert all(char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160) for char in strip_controls(text))
