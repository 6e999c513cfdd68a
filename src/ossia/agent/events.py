"""What an agent run tells, step by step. Every step of the loop is one of these."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

from ossia.engine.output_event import TokenLogprob
from ossia.engine.turn import Turn, Usage
from ossia.harmony.events import Event
from ossia.harmony.message import Conversation, Message
from ossia.tools.base import ToolProgress, ToolResult


class StopReason(StrEnum):
    """Why a run ended."""

    ANSWERED = "answered"
    """The model gave its answer."""
    CALLS_PENDING = "calls_pending"
    """The model called tools that are the caller's own: run them, append their results and run again."""
    MAX_TURNS = "max_turns"
    """It took as many turns as it may, and yet called. The calls stand unanswered in the conversation."""
    MAX_CALLS = "max_calls"
    """It made as many calls as it may, and called again."""
    MAX_TOKENS = "max_tokens"
    """A turn, or the whole run, reached its limit of tokens. A call that was cut off is not made."""
    CANCELLED = "cancelled"
    """The engine was told to stop the turn."""
    DEADLINE = "deadline"
    """The run's time was up."""
    ERROR = "error"
    """The turn failed; the run's `error` says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStarted:
    """The model begins to write its turn number `index`, from 0."""

    index: int
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDelta:
    """What the model wrote.

    Attributes:
        index: which turn.
        events: in harmony's terms: message starts, text, ends, repairs. None for the tokens of a header.
        usage: the turn's tokens so far.
        logprobs: of the new tokens, if asked for.
        is_cut: the turn ends with these events because it may not be longer.
    """

    index: int
    events: tuple[Event, ...]
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] | None = None
    is_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnded:
    """The turn is over."""

    index: int
    turn: Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class CallStarted:
    """A tool will be asked. The calls of a turn are told in order, before any of them is made.

    `call` is the assistant's message; `number` counts the run's calls from 0.
    """

    number: int
    call: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class CallProgressed:
    """A tool that still runs has said something."""

    number: int
    progress: ToolProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class CallEnded:
    """A tool has answered. Calls of one turn end in any order; their results are appended in the order of the calls."""

    number: int
    call: Message
    result: ToolResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The run is over; the last event.

    Attributes:
        reason: why.
        conversation: the whole, with all that was said in the run: what the next run goes on from.
        usage: the tokens of all turns; `num_prompt` and `num_cached` count each turn's prompt anew.
        num_turns, num_calls: how many there were.
        pending: the calls that are the caller's to answer.
        error: what went wrong, for ERROR.
    """

    reason: StopReason
    conversation: Conversation
    usage: Usage
    num_turns: int
    num_calls: int
    pending: tuple[Message, ...] = ()
    error: str | None = None


AgentEvent: TypeAlias = TurnStarted | TurnDelta | TurnEnded | CallStarted | CallProgressed | CallEnded | RunEnded
