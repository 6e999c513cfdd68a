"""A conversation's next turn: rendered, run by an engine, and read as harmony while it comes. No torch.

Nobody but this module joins the engine (ids in, ids out) with harmony (messages); the agent loop, the server and the
command line build on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ossia.engine.completion import Answer
from ossia.engine.output_event import OutputEvent
from ossia.engine.request import FinishReason as EngineFinish
from ossia.harmony.events import Event, FinishReason, MessageEnd, MessageStart, Repair
from ossia.harmony.message import Channel, Message
from ossia.harmony.parse import HarmonyParser
from ossia.harmony.tokenizer import Tokenizer


class Usage(NamedTuple):
    """Tokens of a turn.

    Attributes:
        num_prompt: what the model was given.
        num_cached: those of them that the prefix cache spared.
        num_output: what it wrote, control tokens and stop token included.
        num_reasoning: those of them in the analysis channel, from `<|message|>` to `<|end|>`: a header tells its
            channel only when it is over.
    """

    num_prompt: int
    num_cached: int
    num_output: int
    num_reasoning: int


class TurnReader:
    """Reads one answer's events as harmony messages.

    Attributes:
        usage: tokens so far.
        error: what went wrong, if the engine ended the answer with ERROR.
        engine_finish: why the engine ended it; None before that.
    """

    def __init__(self, tokenizer: Tokenizer, *, num_prompt: int, tools: Sequence[str] = ()) -> None:
        """Args:
        tokenizer: whose ids these are.
        num_prompt: tokens of the prompt.
        tools: the declared tools, as recipients, which help to read an odd one.
        """
        self._parser = HarmonyParser(tokenizer, role="assistant", tools=tools)
        self._is_reasoning = False
        self.usage = Usage(num_prompt, 0, 0, 0)
        self.engine_finish: EngineFinish | None = None
        self.error: str | None = None

    def push(self, event: OutputEvent) -> list[Event]:
        """What the engine's news brought about in harmony's terms; the parser is finished with the last event."""
        events: list[Event] = []
        num_reasoning = 0
        for token in event.token_ids:
            new = self._parser.push(token)
            was_reasoning = self._is_reasoning
            for part in new:
                if isinstance(part, MessageStart):
                    self._is_reasoning = part.channel is Channel.ANALYSIS and part.recipient is None
                elif isinstance(part, MessageEnd):
                    self._is_reasoning = False
            num_reasoning += was_reasoning or self._is_reasoning
            events += new
        if event.finish_reason is not None:
            self.engine_finish, self.error = event.finish_reason, event.error
            events += self._parser.finish()
        usage = self.usage
        self.usage = usage._replace(
            num_cached=max(usage.num_cached, event.num_cached),
            num_output=usage.num_output + len(event.token_ids),
            num_reasoning=usage.num_reasoning + num_reasoning,
        )
        return events

    def push_answer(self, answer: Answer, *, num_cached: int) -> None:
        """Read an answer that is over, at once."""
        self.push(
            OutputEvent(
                request_id="",
                index=answer.index,
                token_ids=answer.token_ids,
                finish_reason=answer.finish_reason,
                error=answer.error,
                num_cached=num_cached,
            )
        )

    @property
    def is_done(self) -> bool:
        """Whether nothing more can come, also where the model began to speak for others: cancel the request then."""
        return self._parser.is_done

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages complete so far."""
        return tuple(self._parser.messages)

    @property
    def repairs(self) -> tuple[Repair, ...]:
        return tuple(self._parser.repairs)

    @property
    def finish_reason(self) -> FinishReason:
        """How the turn ended; LENGTH also for one that is not over."""
        return self._parser.finish_reason or FinishReason.LENGTH


class Turn(NamedTuple):
    """A turn that is over.

    Attributes:
        messages: what the model said, each with its ids as sampled.
        finish_reason: how it ended, in harmony's terms.
        engine_finish: why the engine stopped.
        usage: its tokens.
        repairs: what the parser had to mend.
        error: what went wrong, for an engine_finish of ERROR.
    """

    messages: tuple[Message, ...]
    finish_reason: FinishReason
    engine_finish: EngineFinish | None
    usage: Usage
    repairs: tuple[Repair, ...] = ()
    error: str | None = None

    @property
    def text(self) -> str:
        """The answer: the contents of `final`."""
        return _join(self.messages, Channel.FINAL)

    @property
    def reasoning(self) -> str:
        """The contents of `analysis`. Raw chain of thought: not for end users."""
        return _join(self.messages, Channel.ANALYSIS)

    @property
    def calls(self) -> tuple[Message, ...]:
        """The tool calls, in order."""
        return tuple(message for message in self.messages if message.is_call)


def finish_turn(reader: TurnReader) -> Turn:
    """What a reader has read, once its answer is over."""
    return Turn(
        messages=reader.messages,
        finish_reason=reader.finish_reason,
        engine_finish=reader.engine_finish,
        usage=reader.usage,
        repairs=reader.repairs,
        error=reader.error,
    )


def _join(messages: Sequence[Message], channel: Channel) -> str:
    return "\n".join(m.text for m in messages if m.channel is channel and not m.is_call)
