"""What comes of a question, told piece by piece: the text and what it belongs to, the tokens, the messages to keep."""

from __future__ import annotations

import time
from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from ossia.agent.events import AgentEvent, CallEnded, RunEnded, TurnDelta, TurnEnded, TurnStarted
from ossia.core.errors import InvalidInputError
from ossia.engine.turn import Usage
from ossia.harmony.events import ContentDelta, Event, FinishReason, MessageStart
from ossia.harmony.message import Channel, Message, Role
from ossia.tools.base import ToolResult


class Kind(StrEnum):
    """What a piece of a turn is to its reader."""

    REASONING = "reasoning"
    PREAMBLE = "preamble"  # commentary to nobody in particular: told to the user between calls
    CALL = "call"
    ANSWER = "answer"
    RESULT = "result"  # what a tool said


class Delta(NamedTuple):
    """A piece of text (often none), and to what it belongs (None inside a header)."""

    kind: Kind | None
    text: str


class Run:
    """A question's run in progress: what came of it so far.

    Attributes:
        end: how it ended; None for one in progress, or stopped.
        is_stopped: the user stopped it.
        num_prompt_tokens: tokens that the model was given for its first turn.
        seconds_to_first: from the start to the first token; 0 before that.
        seconds: from the start to the last token.
        finish_reason: how the last turn ended, in harmony's terms; LENGTH for one that is not over.
        num_repairs: where the parser had to mend what the model wrote.
    """

    def __init__(self) -> None:
        self.end: RunEnded | None = None
        self.is_stopped = False
        self.num_prompt_tokens = 0
        self.seconds_to_first = 0.0
        self.seconds = 0.0
        self.finish_reason = FinishReason.LENGTH
        self.num_repairs = 0
        self._start = time.perf_counter()
        self._past = Usage(0, 0, 0, 0)  # of the turns that are over
        self._now = Usage(0, 0, 0, 0)
        self._kind: Kind | None = None
        self._partial = ""  # the answer, as far as a turn in progress has written it
        self._messages: list[Message] = []
        self._results: dict[int, ToolResult] = {}

    def take(self, event: AgentEvent) -> list[Delta]:
        """Take the next event; the pieces of text in it."""
        match event:
            case TurnStarted():
                self._kind, self._partial = None, ""
                self._close_calls()
                self.num_prompt_tokens = self.num_prompt_tokens or event.num_prompt_tokens
            case TurnDelta():
                self._now = event.usage
                self.seconds = time.perf_counter() - self._start
                self.seconds_to_first = self.seconds_to_first or self.seconds
                deltas = read_events(event.events, self._kind)
                if deltas:
                    self._kind = deltas[-1].kind
                self._partial += "".join(delta.text for delta in deltas if delta.kind is Kind.ANSWER)
                return deltas
            case TurnEnded():
                self._past = Usage(*(a + b for a, b in zip(self._past, event.turn.usage, strict=True)))
                self._now = Usage(0, 0, 0, 0)
                self._partial = ""
                self._messages += event.turn.messages
                self.finish_reason = event.turn.finish_reason
                self.num_repairs += len(event.turn.repairs)
            case CallEnded():
                self._results[event.number] = event.result
            case RunEnded():
                self._close_calls()
                self.end = event
            case _:
                pass
        return []

    def _close_calls(self) -> None:
        for number in sorted(self._results):
            self._messages += self._results.pop(number).messages

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was said behind the question. Of a run that was stopped: up to the answer that it had begun, if any."""
        if self.end is not None or not self._partial:
            return tuple(self._messages)
        return (*self._messages, Message(Role.ASSISTANT, content=self._partial, channel=Channel.FINAL))

    @property
    def is_worth_keeping(self) -> bool:
        """Whether a conversation can go on from here: reasoning alone would be no turn to build on."""
        if self.end is None:
            return bool(self._partial)
        return bool(self.messages) and (bool(self.answer) or self.finish_reason is FinishReason.STOP)

    @property
    def num_tokens(self) -> int:
        """Tokens sampled, of all turns."""
        return self._past.num_output + self._now.num_output

    @property
    def num_reasoning_tokens(self) -> int:
        """Those of them that belong to reasoning."""
        return self._past.num_reasoning + self._now.num_reasoning

    def text_of(self, *kinds: Kind) -> str:
        """The contents of the messages of these kinds, one under the other."""
        return "\n".join(message.text for message in self.messages if kind_of(message) in kinds)

    @property
    def answer(self) -> str:
        return self.text_of(Kind.ANSWER)


def read_events(events: Iterable[Event], kind: Kind | None) -> list[Delta]:
    """The text that events bring, and what it belongs to, where `kind` is what the text before them belonged to."""
    deltas: list[Delta] = []
    for event in events:
        if isinstance(event, MessageStart):
            kind = kind_of(event)
            deltas.append(Delta(kind, ""))
        elif isinstance(event, ContentDelta):
            deltas.append(Delta(kind, event.text))
    return deltas


def kind_of(message: MessageStart | Message) -> Kind:
    """What a message is to its reader."""
    if message.role is Role.TOOL:
        return Kind.RESULT
    if message.recipient:
        return Kind.CALL
    if message.channel == Channel.ANALYSIS:
        return Kind.REASONING
    return Kind.PREAMBLE if message.channel == Channel.COMMENTARY else Kind.ANSWER


def require_text(text: str, *, what: str) -> str:
    """The text without white space around it.

    Raises:
        InvalidInputError: nothing is left.
    """
    stripped = text.strip()
    if not stripped:
        raise InvalidInputError(f"the {what} is empty; write something for the model to answer", param=what)
    return stripped
