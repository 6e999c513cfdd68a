from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ossia.cli.chat.session import ChatSession, write_text
from ossia.cli.turn import SamplingChoice
from ossia.core.errors import ContextLengthError, InvalidInputError, StorageError
from ossia.harmony.message import Effort, conversation_from_dict

SECOND = "<|channel|>final<|message|>You are welcome.<|return|>"


@pytest.fixture
def session(script: Any) -> ChatSession:
    return ChatSession(lambda: script.loaded, effort=Effort.LOW, date="2026-01-02", choice=SamplingChoice())


def test_history_is_replayed_without_earlier_reasoning(script: Any, session: ChatSession) -> None:
    # An odd way to write it, which only a replay of the sampled ids gives back.
    script.completions[:] = [
        "<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>text<|message|>42<|return|>",
        SECOND,
    ]
    list(session.ask("What is 17 + 25?"))
    list(session.ask("Thanks"))
    assert "analysis<|message|>" not in script.prompts[1]
    assert script.prompts[1].endswith(
        "<|start|>user<|message|>What is 17 + 25?<|end|>"
        "<|start|>assistant<|channel|>final <|constrain|>text<|message|>42<|end|>"
        "<|start|>user<|message|>Thanks<|end|><|start|>assistant"
    )


def test_a_turn_that_was_stopped_before_its_answer_leaves_nothing(script: Any, session: ChatSession) -> None:
    script.completions[:] = ["<|channel|>analysis<|message|>hm"]
    list(session.ask("What is 17 + 25?"))
    assert session.num_questions == 0


def test_a_partial_answer_is_kept_and_closed(script: Any, session: ChatSession) -> None:
    script.completions[:] = ["<|channel|>final<|message|>17 + 25 is", SECOND]
    list(session.ask("What is 17 + 25?"))
    list(session.ask("Go on"))
    assert "<|start|>assistant<|channel|>final<|message|>17 + 25 is<|end|><|start|>user" in script.prompts[1]


def test_an_interrupted_turn_can_be_kept(script: Any, session: ChatSession) -> None:
    tokenizer = script.loaded.tokenizer

    def interrupted() -> Iterator[int]:
        yield from tokenizer.encode_with_specials("<|channel|>final<|message|>One, two")
        raise KeyboardInterrupt

    script.completions[:] = [interrupted]
    turn = session.start_turn("Count")
    with pytest.raises(KeyboardInterrupt):
        list(turn)
    session.keep("Count", turn)
    assert turn.answer == "One, two"
    assert session.num_questions == 1


def test_effort_and_clear(script: Any, session: ChatSession) -> None:
    script.completions.append(SECOND)
    list(session.ask("What is 17 + 25?"))
    session.clear()
    session.effort = Effort.HIGH
    list(session.ask("Thanks"))
    assert "Reasoning: low" in script.prompts[0]
    assert "Reasoning: high" in script.prompts[1]
    assert "17 + 25" not in script.prompts[1]


def test_a_full_context_leaves_the_conversation_as_it_was(script: Any, session: ChatSession) -> None:
    list(session.ask("What is 17 + 25?"))
    with pytest.raises(ContextLengthError):
        session.start_turn("word " * 400)
    assert session.num_questions == 1


def test_an_empty_question(session: ChatSession) -> None:
    with pytest.raises(InvalidInputError, match="empty"):
        session.start_turn("  ")


@pytest.mark.parametrize("with_reasoning", [True, False])
def test_save_as_json(script: Any, session: ChatSession, tmp_path: Path, with_reasoning: bool) -> None:
    list(session.ask("What is 17 + 25?"))
    path = session.save(tmp_path / "deep" / "chat.json", with_reasoning=with_reasoning)
    conversation = conversation_from_dict(json.loads(path.read_text())["conversation"])
    texts = [message.text for message in conversation]
    assert texts == ["", "What is 17 + 25?", *(["17+25 is 42"] if with_reasoning else []), "17 + 25 = 42."]


def test_save_as_lines(script: Any, session: ChatSession, tmp_path: Path) -> None:
    list(session.ask("What is 17 + 25?"))
    path = session.save(tmp_path / "chat.jsonl", with_reasoning=False)
    assert [json.loads(line)["role"] for line in path.read_text().splitlines()] == ["system", "user", "assistant"]


def test_saves_lie_in_ossia_home_unless_told_otherwise(
    script: Any, session: ChatSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path))
    list(session.ask("What is 17 + 25?"))
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
