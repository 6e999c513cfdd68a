"""`ossia chat` at a real (pseudo) terminal: signals, line editing and live output need one."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="pseudo terminals are a Unix thing")

PATIENCE = 30.0

# Runs the real command with a model that counts slowly when asked to count, calls a tool when asked to, and otherwise
# answers at once.
PROGRAM = """
import sys
from types import SimpleNamespace
from ossia.cli import backend
from ossia.cli.main import main
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults

TOKENIZER = Tokenizer.o200k_harmony()
ANSWER = (
    "<|channel|>analysis<|message|>secret thought<|end|><|start|>assistant<|channel|>final<|message|>"
    "It is \\x1b[31m42.<|return|>"
)
PATCH = "*** Begin Patch\\n*** Add File: new.txt\\n+hello\\n*** End Patch"

def script(prompt):
    engine.seconds_per_event = 0.0
    last = prompt.rpartition("<|message|>")[2]
    if "count" in last:
        engine.seconds_per_event = 0.02
        return "<|channel|>final<|message|>" + " ".join(map(str, range(1500)))
    if "make a file" in last:
        return f"<|channel|>commentary to=apply_patch<|message|>{PATCH}<|call|>"
    return ANSWER

def open_backend(name, *, device, **sizes):
    loaded = LoadedModel(
        name=name,
        model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=4096)),
        tokenizer=TOKENIZER,
        identity=Identity(model_identity="You are a script.", knowledge_cutoff=None),
        sampling=SamplingDefaults(),
    )
    return backend.Backend(loaded, engine)

engine = ScriptedEngine(TOKENIZER, script=script)
backend.open_backend = open_backend
sys.argv = ["ossia", "chat", *sys.argv[1:]]
main()
"""


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, *args: str, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "OSSIA_HOME": str(home), "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=take_terminal,  # so that Ctrl-C reaches it as a signal
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def interrupt(self) -> None:
        """Type Ctrl-C. Readline misses a signal that comes between its drawing the prompt and its waiting for a key."""
        time.sleep(0.3)
        self.type("\x03")

    def wait_for(self, pattern: str) -> str:
        """Read until the pattern is on the screen; return what was shown up to its end, and forget that part."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern, self.shown)):
            ready, _, _ = select.select([self._ours], [], [], max(0.0, deadline - time.monotonic()))
            chunk = b""
            if ready:
                with contextlib.suppress(OSError):  # EIO: the program has ended
                    chunk = os.read(self._ours, 4096)
            if not chunk:
                raise AssertionError(f"{pattern!r} did not appear in {self.shown!r}")
            self.shown += chunk.decode(errors="replace")
        seen, self.shown = self.shown[: match.end()], self.shown[match.end() :]
        return seen

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._ours)


def take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@contextlib.contextmanager
def opened(*args: str, home: Path) -> Iterator[Terminal]:
    terminal = Terminal(*args, home=home)
    try:
        terminal.wait_for("/help lists the commands")
        terminal.wait_for("> ")
        yield terminal
    finally:
        terminal.close()


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with opened(home=tmp_path) as terminal:
        yield terminal


@pytest.mark.slow
def test_question_answer_save_and_quit(terminal: Terminal, tmp_path: Path) -> None:
    terminal.type("What is 6 x 7?\n")
    shown = terminal.wait_for(r"42\.\r\n")
    assert re.search(r"thinking, \d+\.\d s, \d+ tokens", shown)
    assert "secret thought" not in shown
    assert "\x1b[31m" not in shown
    terminal.type("/save\n")
    terminal.wait_for("saved to ")
    terminal.type("/quit\n")
    assert terminal.process.wait(PATIENCE) == 0
    (saved,) = (tmp_path / "chats").iterdir()
    assert "42." in saved.read_text()


@pytest.mark.slow
def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Terminal) -> None:
    terminal.type("please count\n")
    terminal.wait_for("3 4 ")
    terminal.interrupt()
    terminal.wait_for(r"\(stopped\)")
    terminal.wait_for("> ")
    terminal.type("What is 6 x 7?\n")
    terminal.wait_for(r"42\.\r\n")
    terminal.type("/quit\n")
    assert terminal.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_at_the_prompt_the_second_ctrl_c_leaves(terminal: Terminal) -> None:
    terminal.interrupt()
    terminal.wait_for("Ctrl-C again")
    terminal.wait_for("> ")
    terminal.interrupt()
    assert terminal.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_ctrl_d_leaves(terminal: Terminal) -> None:
    terminal.type("\x04")
    assert terminal.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_a_call_is_shown_and_made_only_if_it_is_allowed(tmp_path: Path) -> None:
    with opened("--tools", "apply_patch", "--root", str(tmp_path), home=tmp_path) as terminal:
        terminal.type("make a file\n")
        shown = terminal.wait_for("allow .*apply_patch")
        assert "*** Add File: new.txt" in shown
        terminal.type("n\n")
        assert "did not allow" in terminal.wait_for(r"42\.\r\n")
        assert not (tmp_path / "new.txt").exists()
        terminal.type("make a file\n")
        terminal.wait_for("allow .*apply_patch")
        terminal.type("y\n")
        terminal.wait_for(r"42\.\r\n")
        assert (tmp_path / "new.txt").read_text() == "hello\n"
        terminal.type("/quit\n")
        assert terminal.process.wait(PATIENCE) == 0


@pytest.mark.slow
def test_ctrl_c_at_the_question_about_a_call_stops_the_answer(tmp_path: Path) -> None:
    with opened("--tools", "apply_patch", "--root", str(tmp_path), home=tmp_path) as terminal:
        terminal.type("make a file\n")
        terminal.wait_for("allow .*apply_patch.*: ")
        terminal.interrupt()
        terminal.wait_for(r"\(stopped\)")
        terminal.wait_for("> ")
        assert not (tmp_path / "new.txt").exists()
        terminal.type("What is 6 x 7?\n")
        terminal.wait_for(r"42\.\r\n")
        terminal.type("/quit\n")
        assert terminal.process.wait(PATIENCE) == 0
