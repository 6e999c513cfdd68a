"""One answer of a turn as clients of the stateless APIs see it: thoughts, texts and calls, cut where the client said.

Chat Completions and Messages write the same parts in their own words:

    PartStart(kind, recipient, call_id) -> PartDelta(text, logprobs)* -> PartEnd(message)

Stop strings count in what is shown as text, never in a thought or a call. A turn that may make one call ends with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from ossia.engine.output import StopMatcher
from ossia.engine.request import FinishReason
from ossia.harmony.events import ContentDelta, MessageEnd, MessageStart
from ossia.harmony.message import Channel, Message
from ossia.server.errors import SERVER_ERROR, ApiError
from ossia.server.replay import ReplayCache, Said
from ossia.server.settings import ReasoningPolicy

if TYPE_CHECKING:
    from ossia.agent.turns import RunningTurn, TurnNews
    from ossia.engine.output_event import TokenLogprob
    from ossia.engine.turn import TurnReader
    from ossia.harmony.tokenizer import Tokenizer

TEXT_SEPARATOR = "\n\n"
"""Stands between a preamble and what follows, where an API has one text for both."""
THOUGHT_SEPARATOR = "\n"


class Kind(Enum):
    """What a part is."""

    THOUGHT = "thought"
    TEXT = "text"
    CALL = "call"


class PartStart(NamedTuple):
    """A part begins. `recipient` and `call_id` are a call's."""

    kind: Kind
    recipient: str = ""
    call_id: str = ""


class PartDelta(NamedTuple):
    """More of it. With logprobs, those of the tokens whose text begins in it."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class PartEnd(NamedTuple):
    """It is over. The message is what the model said, whatever was shown of it."""

    message: Message
    is_whole: bool


Part: TypeAlias = PartStart | PartDelta | PartEnd


class Ending(Enum):
    """How an answer ended."""

    STOP = "stop"
    STOP_STRING = "stop_string"
    CALL = "call"
    LENGTH = "length"
    FAILED = "failed"


class AnswerRules(NamedTuple):
    """What is shown of an answer, and where it is cut.

    Attributes:
        policy: what is shown of thoughts.
        stop: texts that end it.
        is_parallel: several calls may follow one another.
        shows_preambles: what the model says to the user before a call is a text; else it is a thought.
    """

    policy: ReasoningPolicy
    stop: tuple[str, ...] = ()
    is_parallel: bool = True
    shows_preambles: bool = True


class AnswerReader:
    """Reads the news of one answer.

    Args:
        reader: of the turn, which takes the news first.
        new_call_id: names calls.

    Attributes:
        said: what the model said that was shown whole, in order; calls with their ids.
        ending: how it ended; None before that.
        stop: the stop string that ended it.
    """

    def __init__(
        self, rules: AnswerRules, *, reader: TurnReader, tokenizer: Tokenizer, new_call_id: Callable[[], str]
    ) -> None:
        self.said: list[tuple[str, Message]] = []
        self.ending: Ending | None = None
        self.stop: str | None = None
        self.reader = reader
        self._rules = rules
        self._is_special = tokenizer.is_special
        self._new_call_id = new_call_id
        self._matcher = StopMatcher(rules.stop) if rules.stop else None
        self._kind: Kind | None = None
        self._call_id = ""
        self._num_messages = 0
        self._num_calls = 0
        self._state = 0  # of the matcher
        self._held = ""  # text that may become a stop string
        self._num_read = 0  # characters of the open text
        self._num_shown = 0
        self._logprobs: list[tuple[int, TokenLogprob]] = []  # not shown yet, with the place where their text begins

    def read(self, news: TurnNews) -> list[Part]:
        """What becomes visible; nothing once the answer is over."""
        parts: list[Part] = []
        if self.ending is not None:
            return parts
        if news.logprobs and self._kind is Kind.TEXT:
            self._logprobs += [
                (self._num_read, entry) for entry in news.logprobs if not self._is_special(entry.token_id)
            ]
        for event in news.events:
            if isinstance(event, ContentDelta):
                self._delta(event.text, parts)
            elif isinstance(event, MessageStart):
                self._start(event, parts)
            elif isinstance(event, MessageEnd):
                self._end(event, parts, is_last=news.is_last)
            if self.ending is not None:
                return parts
        if news.is_last:
            self.ending = self._find_ending()
        return parts

    def check(self) -> None:
        """Raises ApiError (500) if the answer failed."""
        if self.ending is not Ending.FAILED:
            return
        messages = {
            FinishReason.DEADLINE: "the answer took too long",
            FinishReason.CANCELLED: "the server stopped before the answer was done",
        }
        finish = self.reader.engine_finish
        text = messages.get(finish, "the model failed on this request") if finish else "the answer broke off"
        raise ApiError(text, status=500, code=SERVER_ERROR)

    def _find_ending(self) -> Ending:
        match self.reader.engine_finish:
            case FinishReason.STOP:
                return Ending.CALL if self._num_calls else Ending.STOP
            case FinishReason.LENGTH:
                return Ending.LENGTH
            case _:
                return Ending.FAILED

    def _start(self, event: MessageStart, parts: list[Part]) -> None:
        if event.recipient is not None and event.recipient != "all":
            self._kind, self._call_id = Kind.CALL, self._new_call_id()
            parts.append(PartStart(Kind.CALL, event.recipient, self._call_id))
            return
        is_thought = event.channel is Channel.ANALYSIS
        is_hidden_preamble = event.channel is Channel.COMMENTARY and not self._rules.shows_preambles
        self._kind = Kind.THOUGHT if is_thought or is_hidden_preamble else Kind.TEXT
        self._state, self._held, self._num_read, self._num_shown = 0, "", 0, 0
        parts.append(PartStart(self._kind))

    def _delta(self, text: str, parts: list[Part]) -> None:
        if self._kind is Kind.TEXT:
            self._text(text, parts)
        elif self._kind is Kind.CALL or (self._kind is Kind.THOUGHT and self._rules.policy is ReasoningPolicy.RAW):
            parts.append(PartDelta(text))

    def _text(self, text: str, parts: list[Part]) -> None:
        self._num_read += len(text)
        if self._matcher is not None:
            text = self._match(self._matcher, text)
        self._show(text, parts)

    def _match(self, matcher: StopMatcher, text: str) -> str:
        """Look for stop strings; gives what can be shown."""
        if not self._state and not matcher.may_begin_in(text):
            return text
        self._state, stop, end = matcher.feed(text, state=self._state)
        if stop is not None:
            self.stop, self.ending = stop, Ending.STOP_STRING
            return (self._held + text[:end])[: -len(stop)]
        ready = self._held + text
        num_held = matcher.num_held(self._state)
        self._held = ready[len(ready) - num_held :]
        return ready[: len(ready) - num_held]

    def _show(self, text: str, parts: list[Part], *, is_end: bool = False) -> None:
        self._num_shown += len(text)
        logprobs: tuple[TokenLogprob, ...] = ()
        if self._logprobs:
            shown = self._num_shown
            logprobs = tuple(entry for place, entry in self._logprobs if is_end or place < shown)
            self._logprobs = self._logprobs[len(logprobs) :]
        if text or logprobs:
            parts.append(PartDelta(text, logprobs))

    def _end(self, event: MessageEnd, parts: list[Part], *, is_last: bool) -> None:
        message = self.reader.messages[self._num_messages]
        self._num_messages += 1
        if self._kind is None:
            return
        is_whole = event.stop is not None or not (is_last and self.reader.engine_finish is FinishReason.LENGTH)
        if self._kind is Kind.TEXT:
            self._show(self._held, parts, is_end=True)
        is_call = self._kind is Kind.CALL
        parts.append(PartEnd(message, is_whole))
        if is_whole:
            self.said.append((self._call_id if is_call else "", message))
            self._num_calls += is_call
        self._kind = None
        if is_call and is_whole and not self._rules.is_parallel:
            self.ending = Ending.CALL


class Shown(NamedTuple):
    """What became visible of one of the answers."""

    answer: int
    parts: list[Part]


async def show(
    turn: RunningTurn, readers: Sequence[AnswerReader], *, summarise: Callable[[str], Awaitable[str]] | None
) -> AsyncIterator[Shown]:
    """What becomes visible of all answers, until the last is over. To be iterated within `async with turn`.

    Args:
        summarise: where the policy is to show summaries: makes one of a thought. It stands in the thought's place.
    """
    num_open = len(readers)
    async for news in turn:
        reader = readers[news.answer]
        if reader.ending is not None:
            continue
        parts = reader.read(news)
        if summarise is not None:
            parts = await _with_summaries(parts, summarise)
        yield Shown(news.answer, parts)
        if reader.ending is not None:
            num_open -= 1
            if not num_open:
                return


async def _with_summaries(parts: list[Part], summarise: Callable[[str], Awaitable[str]]) -> list[Part]:
    found: list[Part] = []
    for part in parts:
        if isinstance(part, PartEnd) and part.is_whole and _is_thought(part.message):
            summary = await summarise(part.message.text)
            found += [PartDelta(summary)] if summary else []
        found.append(part)
    return found


def _is_thought(message: Message) -> bool:
    return message.channel == Channel.ANALYSIS and not message.is_call and bool(message.text.strip())


def remember(replay: ReplayCache, *, owner: str, said: Sequence[tuple[str, Message]]) -> None:
    """Keep what was said, so that it goes back in as it was sampled: calls by their ids, texts by what they say."""
    before: list[Message] = []
    for call_id, message in said:
        if call_id:
            entry = Said(tuple(before), message)
            replay.keep(owner, call_id, entry)
            replay.keep(owner, call_key(message.recipient or "", message.text), entry)
            before = []
        else:
            before.append(message)
            if message.channel != Channel.ANALYSIS:
                replay.keep(owner, text_key(message.text, is_final=message.channel == Channel.FINAL), Said((), message))
    texts = [message for call_id, message in said if not call_id and message.channel != Channel.ANALYSIS]
    if len(texts) > 1 and texts[-1].channel == Channel.FINAL:
        joined = TEXT_SEPARATOR.join(message.text for message in texts)
        replay.keep(owner, text_key(joined, is_final=True), Said(tuple(texts[:-1]), texts[-1]))


def text_key(text: str, *, is_final: bool) -> str:
    """Under which a text is kept: clients of these APIs send no ids of messages."""
    return f"{'final' if is_final else 'preamble'}:{_digest(text)}"


def call_key(recipient: str, content: str) -> str:
    """Under which a call is kept for clients that send no ids of calls."""
    return f"call:{_digest(f'{recipient} {content}')}"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
