"""The loop with its commands, driven by a list of lines."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ossia.cli.chat.commands import COMMANDS, Chat
from ossia.cli.chat.display import RunDisplay
from ossia.cli.chat.loop import run_loop
from ossia.cli.chat.session import ChatSession
from ossia.core.errors import CheckpointError
from ossia.harmony.message import Effort

HELLO = "<|channel|>final<|message|>Hello!<|return|>"


class Screen(io.StringIO):
    """Types Ctrl-C when a text appears, once."""

    interrupt_at = ""

    def write(self, text: str) -> int:
        if self.interrupt_at and self.interrupt_at in text:
            self.interrupt_at = ""
            super().write(text)
            signal.raise_signal(signal.SIGINT)
            return len(text)
        return super().write(text)


class Driver:
    def __init__(self, script: Any) -> None:
        self.script = script
        self.screen = Screen()
        session = ChatSession(lambda: script.backend, effort=Effort.LOW, date="2026-01-02")
        self.chat = Chat(session, RunDisplay(out=self.screen, notes=self.screen))

    def type(self, *lines: str | type[BaseException]) -> str:
        """What the screen shows after these lines; the end of the list is Ctrl-D."""
        typed = iter(lines)

        def read_line(prompt: str) -> str:
            line = next(typed, EOFError)
            if not isinstance(line, str):
                raise line
            return line

        run_loop(self.chat, read_line=read_line)
        assert next(typed, None) is None, "the loop ended before all lines were read"
        return self.screen.getvalue()


@pytest.fixture
def driver(script: Any) -> Iterator[Driver]:
    driver = Driver(script)
    with driver.chat.session:
        yield driver


def test_a_question_and_blank_lines(driver: Driver) -> None:
    shown = driver.type("", "  ", "What is 17 + 25?")
    assert "17 + 25 = 42.\n" in shown
    assert "thinking, " in shown
    assert "17+25 is 42" not in shown


def test_reasoning_can_be_switched(driver: Driver) -> None:
    shown = driver.type("/reasoning", "What is 17 + 25?", "/reasoning")
    assert "17+25 is 42\n17 + 25 = 42.\n" in shown
    assert "thinking" not in shown
    assert shown.index("reasoning is shown") < shown.index("reasoning is hidden")


def test_effort(driver: Driver) -> None:
    shown = driver.type("/effort", "/effort extreme", "/effort high")
    assert "reasoning effort: low\n" in shown
    assert all(name in shown for name in ("'low'", "'medium'", "'high'"))
    assert driver.chat.session.effort is Effort.HIGH


def test_new(driver: Driver) -> None:
    assert "a new conversation" in driver.type("What is 17 + 25?", "/new")
    assert driver.chat.session.num_questions == 0


def test_save(driver: Driver, tmp_path: Path) -> None:
    path = tmp_path / "my chat.json"
    assert "nothing to save" in driver.type("/save")
    assert f"saved to {path}" in driver.type("What is 17 + 25?", f"/save {path}")
    assert "17 + 25 = 42." in path.read_text()
    assert "17+25 is 42" not in path.read_text()
    assert "cannot write" in driver.type(f"/save {tmp_path}")


def test_help_names_every_command(driver: Driver) -> None:
    shown = driver.type("/help")
    assert all(command.usage in shown and command.summary in shown for command in COMMANDS.values())


def test_unknown_command(driver: Driver) -> None:
    assert "there is no command /etc/passwd" in driver.type("/etc/passwd x")


@pytest.mark.parametrize("word", ["/quit", "/exit"])
def test_quit_leaves(driver: Driver, word: str) -> None:
    driver.type(word)
    assert driver.script.prompts == []


def test_one_ctrl_c_at_the_prompt_warns_and_two_leave(driver: Driver) -> None:
    shown = driver.type(KeyboardInterrupt, "What is 17 + 25?", KeyboardInterrupt, KeyboardInterrupt)
    assert shown.count("Ctrl-C again") == 2
    assert "17 + 25 = 42." in shown


def test_ctrl_c_stops_an_answer_and_the_talk_goes_on(driver: Driver) -> None:
    driver.script.completions[:] = ["<|channel|>final<|message|>One, two, three, four<|return|>", HELLO]
    driver.screen.interrupt_at = "two"
    shown = driver.type("Count", "Hi")
    assert "One, two\n(stopped)\n" in shown
    assert "Hello!\n" in shown
    assert "One, two<|end|>" in driver.script.prompts[1]
    assert len(driver.script.engine.cancelled) == 1
    assert driver.script.engine.open == set()


def test_ctrl_c_while_the_model_loads(driver: Driver) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    driver.chat.session._get_backend = interrupted  # pyright: ignore[reportPrivateUsage]
    assert "(stopped)" in driver.type("Hi")


def test_a_full_context_says_how_long_how_much_fits_and_what_to_do(driver: Driver) -> None:
    driver.script.completions[:] = [HELLO]
    shown = driver.type("word " * 500, "/new", "Hi")
    assert "holds 399" in shown
    assert "/new starts a new one" in shown
    assert "Hello!" in shown


def test_turns_that_end_without_an_answer_are_explained(driver: Driver) -> None:
    call = "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    driver.script.completions[:] = [
        *[call] * 4,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|return|>",
    ]
    shown = driver.type("a", "b")
    assert shown.index("called tools for 4 turns") < shown.index("without an answer")


def test_an_engine_that_fails_is_told(driver: Driver) -> None:
    driver.script.engine.die()
    assert "the engine died" in driver.type("Hi")


def test_tools_are_listed(driver: Driver) -> None:
    assert "there are no tools; start with --tools" in driver.type("/tools")


def test_a_model_that_does_not_load_is_told(driver: Driver) -> None:
    def fail() -> Any:
        raise CheckpointError("model.safetensors is truncated")

    driver.chat.session._get_backend = fail  # pyright: ignore[reportPrivateUsage]
    assert "model.safetensors is truncated" in driver.type("Hi")
