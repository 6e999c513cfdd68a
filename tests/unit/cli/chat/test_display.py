from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.cli.chat import display as module
from ossia.cli.chat.display import TurnDisplay, thinking_line
from ossia.cli.turn import Delta, Kind

TURN = [
    Delta(None, ""),
    Delta(Kind.REASONING, "hm"),
    Delta(Kind.REASONING, "..."),
    Delta(None, ""),
    Delta(Kind.ANSWER, "It is "),
    Delta(Kind.ANSWER, "3."),
    Delta(None, ""),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status(num_tokens: int = 2) -> Any:
    return SimpleNamespace(num_reasoning_tokens=num_tokens)


@pytest.fixture(autouse=True)
def one_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setenv("NO_COLOR", "1")


def test_a_pipe_gets_the_answer_alone() -> None:
    out = io.StringIO()
    TurnDisplay(out=out, notes=None).show(TURN, status=status())
    assert out.getvalue() == "It is 3.\n"


def test_a_terminal_gets_one_line_about_the_reasoning() -> None:
    screen = Terminal()
    TurnDisplay(out=screen, notes=screen).show(TURN, status=status())
    lines = screen.getvalue().split("\n")
    assert lines[0].split("\r\x1b[K")[-1].startswith("thinking, ")
    assert lines[0].endswith("s, 2 tokens")
    assert lines[1:] == ["It is 3.", ""]
    assert "hm" not in screen.getvalue()


def test_notes_that_are_no_terminal_get_the_line_once() -> None:
    out, notes = io.StringIO(), io.StringIO()
    TurnDisplay(out=out, notes=notes).show(TURN, status=status())
    assert out.getvalue() == "It is 3.\n"
    assert notes.getvalue().count("thinking") == 1
    assert "\x1b" not in notes.getvalue()


def test_reasoning_is_shown_when_asked_for() -> None:
    screen = Terminal()
    TurnDisplay(out=screen, notes=screen, shows_reasoning=True).show(TURN, status=status())
    assert screen.getvalue() == "hm...\nIt is 3.\n"


def test_shown_reasoning_never_mixes_with_a_piped_answer() -> None:
    out, notes = io.StringIO(), io.StringIO()
    TurnDisplay(out=out, notes=notes, shows_reasoning=True).show(TURN, status=status())
    assert (out.getvalue(), notes.getvalue()) == ("It is 3.\n", "hm...\n")


def test_a_terminal_is_not_steered_by_the_model_and_a_pipe_gets_what_it_wrote() -> None:
    turn = [Delta(Kind.ANSWER, "a\x1b[2Jb\x07")]
    screen, pipe = Terminal(), io.StringIO()
    TurnDisplay(out=screen, notes=screen).show(turn, status=status())
    TurnDisplay(out=pipe, notes=None).show(turn, status=status())
    assert (screen.getvalue(), pipe.getvalue()) == ("a[2Jb\n", "a\x1b[2Jb\x07\n")


def test_an_interruption_leaves_the_cursor_at_a_line_start() -> None:
    def interrupted() -> Iterator[Delta]:
        yield Delta(Kind.ANSWER, "It is")
        raise KeyboardInterrupt

    screen = Terminal()
    with pytest.raises(KeyboardInterrupt):
        TurnDisplay(out=screen, notes=screen).show(interrupted(), status=status())
    assert screen.getvalue() == "It is\n"


def test_an_answer_that_ends_its_line_gets_no_second_end() -> None:
    out = io.StringIO()
    TurnDisplay(out=out, notes=None).show([Delta(Kind.ANSWER, "done\n")], status=status())
    assert out.getvalue() == "done\n"


def test_no_answer_is_no_line() -> None:
    out = io.StringIO()
    TurnDisplay(out=out, notes=None).show(TURN[:3], status=status())
    assert out.getvalue() == ""


def test_notes_are_dim_where_colours_are_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    screen = Terminal()
    TurnDisplay(out=screen, notes=screen).note("hello")
    assert screen.getvalue() == "\x1b[2mhello\n\x1b[0m"


def test_thinking_line() -> None:
    assert thinking_line(1.24, 84) == "thinking, 1.2 s, 84 tokens"
    assert thinking_line(0, 1) == "thinking, 0.0 s, 1 token"
