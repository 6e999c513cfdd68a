from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.agent.events import AgentEvent, CallEnded, CallProgressed, CallStarted
from ossia.cli.chat import display as module
from ossia.cli.chat.display import MAX_CHARS, RunDisplay, describe_file, describe_result, shorten, thinking_line
from ossia.cli.turn import Delta, Kind
from ossia.harmony.message import Message, Role
from ossia.tools.base import FailureKind, Source, ToolFile, ToolProgress, ToolResult, reply

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


NO_EVENT: Any = None
CALL = Message(Role.ASSISTANT, content="print(1)", recipient="python", channel="analysis")


def show(display: RunDisplay, *steps: Delta | AgentEvent, num_tokens: int = 2) -> None:
    """Show pieces of text and events, and finish."""
    run: Any = SimpleNamespace(num_reasoning_tokens=num_tokens)
    for step in steps:
        if isinstance(step, Delta):
            display.show(run, NO_EVENT, [step])
        else:
            display.show(run, step, [])
    display.finish(run)


def result(text: str, **more: Any) -> CallEnded:
    return CallEnded(number=0, call=CALL, result=ToolResult(messages=(reply(CALL, text),), **more))


@pytest.fixture(autouse=True)
def one_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    monkeypatch.setenv("NO_COLOR", "1")


def test_a_pipe_gets_the_answer_alone() -> None:
    out = io.StringIO()
    show(RunDisplay(out=out, notes=None), *TURN)
    assert out.getvalue() == "It is 3.\n"


def test_a_terminal_gets_one_line_about_the_reasoning() -> None:
    screen = Terminal()
    show(RunDisplay(out=screen, notes=screen), *TURN)
    lines = screen.getvalue().split("\n")
    assert lines[0].split("\r\x1b[K")[-1].startswith("thinking, ")
    assert lines[0].endswith("s, 2 tokens")
    assert lines[1:] == ["It is 3.", ""]
    assert "hm" not in screen.getvalue()


def test_notes_that_are_no_terminal_get_the_line_once() -> None:
    out, notes = io.StringIO(), io.StringIO()
    show(RunDisplay(out=out, notes=notes), *TURN)
    assert out.getvalue() == "It is 3.\n"
    assert notes.getvalue().count("thinking") == 1
    assert "\x1b" not in notes.getvalue()


def test_reasoning_is_shown_when_asked_for() -> None:
    screen = Terminal()
    show(RunDisplay(out=screen, notes=screen, shows_reasoning=True), *TURN)
    assert screen.getvalue() == "hm...\nIt is 3.\n"


def test_shown_reasoning_never_mixes_with_a_piped_answer() -> None:
    out, notes = io.StringIO(), io.StringIO()
    show(RunDisplay(out=out, notes=notes, shows_reasoning=True), *TURN)
    assert (out.getvalue(), notes.getvalue()) == ("It is 3.\n", "hm...\n")


def test_a_terminal_is_not_steered_by_the_model_and_a_pipe_gets_what_it_wrote() -> None:
    turn = [Delta(Kind.ANSWER, "a\x1b[2Jb\x07")]
    screen, pipe = Terminal(), io.StringIO()
    show(RunDisplay(out=screen, notes=screen), *turn)
    show(RunDisplay(out=pipe, notes=None), *turn)
    assert (screen.getvalue(), pipe.getvalue()) == ("a[2Jb\n", "a\x1b[2Jb\x07\n")


def test_the_cursor_is_at_a_line_start_afterwards() -> None:
    screen = Terminal()
    show(RunDisplay(out=screen, notes=screen), Delta(Kind.ANSWER, "It is"))
    assert screen.getvalue() == "It is\n"


def test_an_answer_that_ends_its_line_gets_no_second_end() -> None:
    out = io.StringIO()
    show(RunDisplay(out=out, notes=None), *[Delta(Kind.ANSWER, "done\n")])
    assert out.getvalue() == "done\n"


def test_no_answer_is_no_line() -> None:
    out = io.StringIO()
    show(RunDisplay(out=out, notes=None), *TURN[:3])
    assert out.getvalue() == ""


def test_notes_are_dim_where_colours_are_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR")
    screen = Terminal()
    RunDisplay(out=screen, notes=screen).note("hello")
    assert screen.getvalue() == "\x1b[2mhello\n\x1b[0m"


def test_thinking_line() -> None:
    assert thinking_line(1.24, 84) == "thinking, 1.2 s, 84 tokens"
    assert thinking_line(0, 1) == "thinking, 0.0 s, 1 token"


def test_calls_and_results_are_shown_between_thinking_and_answer() -> None:
    screen = Terminal()
    steps = [
        Delta(Kind.REASONING, "hm"),
        Delta(Kind.CALL, "print(1)"),
        CallStarted(number=0, call=CALL),
        result("1\n"),
        Delta(Kind.ANSWER, "It is 1."),
    ]
    show(RunDisplay(out=screen, notes=screen), *steps)
    lines = screen.getvalue().split("\x1b[K")[-1].split("\n")
    assert lines[0].startswith("thinking, ")
    assert lines[1:] == ["-> python", "   print(1)", "<-", "   1", "It is 1.", ""]


def said(text: str, *, number: int = 0) -> CallProgressed:
    return CallProgressed(number=number, progress=ToolProgress(tool="python", text=text))


def test_the_line_that_a_tool_writes_is_seen_until_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    screen = Terminal()
    steps = [CallStarted(number=0, call=CALL), said("step 1\nst"), said("ep\x1b[2J 2\n"), said("a line that is long")]
    show(RunDisplay(out=screen, notes=screen), *steps, result("all of it"))
    shown = screen.getvalue().split("\r\x1b[K")
    assert shown == ["-> python\n   print(1)\n   st", "   step[2J ", "   a line t", "<-\n   all of it\n"]


def test_lines_of_several_tools_do_not_mix() -> None:
    screen = Terminal()
    show(RunDisplay(out=screen, notes=screen), said("on"), said("tw", number=1), said("e"), said("o", number=1))
    assert screen.getvalue().split("\r\x1b[K") == ["   on", "   tw", "   one", "   two", ""]


def test_notes_that_are_no_terminal_get_the_result_alone() -> None:
    notes = io.StringIO()
    show(RunDisplay(out=io.StringIO(), notes=notes), said("step 1"), result("step 1"))
    assert notes.getvalue() == "<-\n   step 1\n"


def test_a_pipe_gets_no_calls() -> None:
    out = io.StringIO()
    show(RunDisplay(out=out, notes=None), CallStarted(number=0, call=CALL), result("1"), Delta(Kind.ANSWER, "1"))
    assert out.getvalue() == "1\n"


def test_failures_and_files_are_named() -> None:
    file = ToolFile(name="a.png", mime_type="image/png", size=12345, path="/mnt/data/a.png")
    shown = describe_result(result("no", failure=FailureKind.DENIED, files=(file,)).result)
    assert shown == "<- (denied)\n   no\n   file a.png, image/png, 12,345 bytes, /mnt/data/a.png"
    assert describe_file(ToolFile(name="b", mime_type="text/plain", size=1)) == "b, text/plain, 1 bytes"


def test_what_a_tool_says_cannot_steer_the_terminal() -> None:
    screen = Terminal()
    show(RunDisplay(out=screen, notes=screen), result("a\x1b[2Jb"))
    assert screen.getvalue() == "<-\n   a[2Jb\n"


@pytest.mark.parametrize("text", ["x\n" * 50, "x" * 5000, "\n".join(["y" * 300] * 4)])
def test_long_texts_are_shortened_and_say_by_how_much(text: str) -> None:
    shown = shorten(text).split("\n")
    assert len(shown) <= 9
    assert sum(map(len, shown)) <= MAX_CHARS + 100
    left = int(shown[-1].split()[1].replace(",", ""))
    kept = "\n".join(line[3:] for line in shown[:-1])
    assert left == len(text.rstrip()) - len(kept)


def test_a_short_text_is_shown_whole() -> None:
    assert shorten("a\nb\n") == "   a\n   b"


def test_citations_become_footnotes() -> None:
    out = io.StringIO()
    source = Source(cursor=3, url="https://example.org/a", title="Apples")
    steps = [
        result("[3] Apples", sources=(source,)),
        Delta(Kind.ANSWER, "They are red\u30103\u2020L5"),
        Delta(Kind.ANSWER, "-L9\u3011."),
    ]
    display = RunDisplay(out=out, notes=None)
    show(display, *steps)
    assert out.getvalue() == "They are red[1].\n[1] Apples, https://example.org/a, lines 5-9\n"
    out.truncate(0)
    out.seek(0)
    show(display, Delta(Kind.ANSWER, "As said\u30103\u2020L5\u3011, and \u30109\u2020L1\u3011."))
    assert out.getvalue() == "As said[1], and \u30109\u2020L1\u3011.\n[1] Apples, https://example.org/a, line 5\n"
