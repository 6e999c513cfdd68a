from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ossia.agent.events import AgentEvent
from ossia.cli.chat.session import ChatSession, write_text
from ossia.cli.turn import Delta, Run
from ossia.core.errors import ContextLengthError, InvalidInputError, StorageError
from ossia.harmony.message import Effort, conversation_from_dict
from ossia.tools.functions import FunctionsTool
from ossia.tools.registry import ToolSet

SECOND = "<|channel|>final<|message|>You are welcome.<|return|>"


@pytest.fixture
def session(script: Any) -> Iterator[ChatSession]:
    with ChatSession(lambda: script.backend, effort=Effort.LOW, date="2026-01-02") as session:
        yield session


def ignore(run: Run, event: AgentEvent, deltas: list[Delta]) -> None:
    pass


def ask(session: ChatSession, text: str) -> Run:
    return session.ask(text, show=ignore)


def test_history_is_replayed_without_earlier_reasoning(script: Any, session: ChatSession) -> None:
    # An odd way to write it, which only a replay of the sampled ids gives back.
    script.completions[:] = [
        "<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>text<|message|>42<|return|>",
        SECOND,
    ]
    ask(session, "What is 17 + 25?")
    ask(session, "Thanks")
    assert "analysis<|message|>" not in script.prompts[1]
    assert script.prompts[1].endswith(
        "<|start|>user<|message|>What is 17 + 25?<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>text<|message|>42<|end|>"
        "<|start|>user<|message|>Thanks<|end|><|start|>assistant"
    )


def test_a_turn_that_was_cut_off_before_its_answer_leaves_nothing(script: Any, session: ChatSession) -> None:
    script.completions[:] = ["<|channel|>analysis<|message|>hm"]
    ask(session, "What is 17 + 25?")
    assert session.num_questions == 0


def test_a_partial_answer_is_kept_and_closed(script: Any, session: ChatSession) -> None:
    script.completions[:] = ["<|channel|>final<|message|>17 + 25 is", SECOND]
    ask(session, "What is 17 + 25?")
    ask(session, "Go on")
    assert "<|start|>assistant<|channel|>final<|message|>17 + 25 is<|end|><|start|>user" in script.prompts[1]


def stop_at(text: str) -> Any:
    def show(run: Run, event: AgentEvent, deltas: list[Delta]) -> None:
        if any(text in delta.text for delta in deltas):
            signal.raise_signal(signal.SIGINT)

    return show


def test_an_answer_that_was_stopped_is_kept(script: Any, session: ChatSession) -> None:
    script.completions[:] = ["<|channel|>final<|message|>One, two, three<|return|>", SECOND]
    run = session.ask("Count", show=stop_at("two"))
    assert (run.is_stopped, run.answer, session.num_questions) == (True, "One, two", 1)
    assert script.engine.open == set()
    ask(session, "Go on")
    assert "<|message|>One, two<|end|>" in script.prompts[1]


def test_reasoning_that_was_stopped_is_not_kept(script: Any, session: ChatSession) -> None:
    run = session.ask("What is 17 + 25?", show=stop_at("25"))
    assert (run.is_stopped, session.num_questions) == (True, 0)


def test_ctrl_c_stops_tools_and_the_next_question_is_answered(script: Any) -> None:
    seen: list[str] = []

    async def wait() -> str:
        """Wait."""
        seen.append("began")
        signal.raise_signal(signal.SIGINT)
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return "never"

    call = "<|channel|>commentary to=functions.wait <|constrain|>json<|message|>{}<|call|>"
    script.completions.insert(0, call)
    tools = ToolSet([FunctionsTool([wait])])
    with ChatSession(lambda: script.backend, effort=Effort.LOW, date="2026-01-02", tools=tools) as session:
        assert ask(session, "Wait").is_stopped
        assert seen == ["began", "cancelled"]
        assert ask(session, "What is 17 + 25?").answer == "17 + 25 = 42."
    assert "functions.wait" not in script.prompts[1].partition("<|start|>user")[2]


def test_tools_are_declared_called_and_kept_in_the_history(script: Any) -> None:
    def double(n: int) -> int:
        """Double a number."""
        return 2 * n

    call = '<|channel|>commentary to=functions.double <|constrain|>json<|message|>{"n": 21}<|call|>'
    script.completions[:] = [call, "<|channel|>final<|message|>42<|return|>", SECOND]
    tools = ToolSet([FunctionsTool([double])])
    with ChatSession(lambda: script.backend, effort=Effort.LOW, date="2026-01-02", tools=tools) as session:
        assert ask(session, "Double 21").answer == "42"
        ask(session, "Thanks")
    assert "type double = (_: {" in script.prompts[0]
    assert "<|start|>functions.double to=assistant<|channel|>commentary<|message|>42<|end|>" in script.prompts[2]


def test_the_end_closes_tools_and_engine(script: Any, session: ChatSession) -> None:
    ask(session, "What is 17 + 25?")
    session.close()
    assert not script.engine.is_alive


def test_effort_and_clear(script: Any, session: ChatSession) -> None:
    script.completions.append(SECOND)
    ask(session, "What is 17 + 25?")
    session.clear()
    session.effort = Effort.HIGH
    ask(session, "Thanks")
    assert "Reasoning: low" in script.prompts[0]
    assert "Reasoning: high" in script.prompts[1]
    assert "17 + 25" not in script.prompts[1]


def test_a_full_context_leaves_the_conversation_as_it_was(script: Any, session: ChatSession) -> None:
    ask(session, "What is 17 + 25?")
    with pytest.raises(ContextLengthError):
        ask(session, "word " * 400)
    assert session.num_questions == 1


def test_an_empty_question(session: ChatSession) -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        ask(session, "  ")


@pytest.mark.parametrize("with_reasoning", [True, False])
def test_save_as_json(script: Any, session: ChatSession, tmp_path: Path, with_reasoning: bool) -> None:
    ask(session, "What is 17 + 25?")
    path = session.save(tmp_path / "deep" / "chat.json", with_reasoning=with_reasoning)
    conversation = conversation_from_dict(json.loads(path.read_text())["conversation"])
    texts = [message.text for message in conversation]
    assert texts == ["", "What is 17 + 25?", *(["17+25 is 42"] if with_reasoning else []), "17 + 25 = 42."]


def test_save_as_lines(script: Any, session: ChatSession, tmp_path: Path) -> None:
    ask(session, "What is 17 + 25?")
    path = session.save(tmp_path / "chat.jsonl", with_reasoning=False)
    assert [json.loads(line)["role"] for line in path.read_text().splitlines()] == ["system", "user", "assistant"]


def test_saves_lie_in_ossia_home_unless_told_otherwise(
    script: Any, session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path))
    ask(session, "What is 17 + 25?")
    path = session.save(None, with_reasoning=False)
    assert path.parent == tmp_path / "chats"
    assert path.is_file()


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.json"
    path.write_text("old")

    def replace(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(StorageError, match="No space left"):
        write_text(path, "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["chat.json"]
    assert path.read_text() == "old"


def test_a_folder_cannot_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        write_text(tmp_path / "folder", "new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
