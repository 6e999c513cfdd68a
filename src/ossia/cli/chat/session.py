"""A conversation with a model: what was said, and how the next turn joins it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ossia.cli.turn import Delta, Kind, SamplingChoice, Turn, kind_of, require_text
from ossia.core.files import write_text
from ossia.core.paths import data_home
from ossia.harmony.message import Conversation, Effort, Message, Role, conversation_to_dict
from ossia.harmony.parse import FinishReason
from ossia.model.loading import LoadedModel


class ChatSession:
    """Keeps the history of a conversation. The model may still be loading: it is asked for with the first question.

    Attributes:
        effort: reasoning effort of the next turn.
        instructions: text of the developer message, if any.
    """

    def __init__(
        self,
        get_model: Callable[[], LoadedModel],
        *,
        effort: Effort,
        date: str,
        instructions: str | None = None,
        choice: SamplingChoice,
    ) -> None:
        self._get_model = get_model
        self.effort = effort
        self.date = date
        self.instructions = instructions
        self.choice = choice
        self._history: list[Message] = []

    @property
    def num_questions(self) -> int:
        return sum(message.role == Role.USER for message in self._history)

    def start_turn(self, text: str) -> Turn:
        """Begin a turn with a question. Nothing is kept until `keep`.

        Raises:
            InvalidInputError: the question is empty.
            ContextLengthError: the conversation does not fit the context any more.
        """
        question = Message(role=Role.USER, content=require_text(text, what="question"))
        return Turn(self._get_model(), self._conversation(question), choice=self.choice)

    def ask(self, text: str) -> Iterator[Delta]:
        """A whole turn: begin, sample, keep."""
        turn = self.start_turn(text)
        yield from turn
        self.keep(text, turn)

    def keep(self, text: str, turn: Turn) -> None:
        """Add a question and what came of its turn to the history.

        A turn that was stopped before it answered leaves nothing: reasoning alone would be no turn to build on.
        """
        turn.finish()
        if turn.messages and (turn.answer or turn.finish_reason != FinishReason.LENGTH):
            self._history += [Message(role=Role.USER, content=text.strip()), *turn.messages]

    def clear(self) -> None:
        """Forget the conversation; effort, instructions and sampling stay."""
        self._history.clear()

    def save(self, path: Path | None, *, with_reasoning: bool) -> Path:
        """Write the conversation as JSON, or a message a line if the name ends in .jsonl; return where it is.

        The JSON form is what `ossia harmony render` takes.

        Raises:
            StorageError: it cannot be written; a file that was there is as it was.
        """
        path = path or data_home() / "chats" / f"{datetime.now():%Y-%m-%d_%H%M%S}.json"
        messages = [message for message in self._history if with_reasoning or kind_of(message) is not Kind.REASONING]
        record = conversation_to_dict(self._conversation(history=messages))
        write_text(path, to_lines(record["messages"]) if path.suffix == ".jsonl" else to_json(record))
        return path

    def _conversation(self, *more: Message, history: list[Message] | None = None) -> Conversation:
        first = self._get_model().opening(effort=self.effort, date=self.date, instructions=self.instructions)
        return Conversation(messages=(*first, *(self._history if history is None else history), *more))


def to_json(record: dict[str, Any]) -> str:
    return json.dumps({"conversation": record, "next_role": None}, indent=2) + "\n"


def to_lines(messages: list[Any]) -> str:
    return "".join(json.dumps(message) + "\n" for message in messages)
