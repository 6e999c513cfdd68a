"""A turn of a stateless API, from the client's conversation to what becomes visible of its answers."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ossia.agent.turns import RunningTurn, Sampling
from ossia.harmony.content import Effort
from ossia.harmony.message import Message
from ossia.server.auth import Caller
from ossia.server.conversation.answer import AnswerReader, AnswerRules, Shown, remember, show
from ossia.server.conversation.prompt import build_conversation
from ossia.server.conversation.tools import TurnRules
from ossia.server.responses.summary import summarise
from ossia.server.settings import ReasoningPolicy

if TYPE_CHECKING:
    from ossia.engine.turn import Usage
    from ossia.server.context import ServerContext


class Ask(NamedTuple):
    """What a client asks for, in no API's words.

    Attributes:
        call_prefix: what ids of calls begin with.
    """

    messages: Sequence[Message]
    rules: TurnRules
    effort: Effort
    answers: AnswerRules
    sampling: Sampling
    call_prefix: str = "call"


async def encode_prompt(
    context: ServerContext, messages: Sequence[Message], *, rules: TurnRules, effort: Effort
) -> tuple[int, ...]:
    """The prompt.

    Raises:
        ContextLengthError: it leaves no room for an answer.
        InvalidInputError: a tool or a format that cannot be declared.
    """
    conversation = build_conversation(messages, model=context.model, date=context.today(), rules=rules, effort=effort)
    return await context.turns.encode(conversation)


async def start_run(context: ServerContext, ask: Ask, *, caller: Caller, request_id: str) -> AnswersRun:
    """Make the prompt and hand it to the engine.

    Args:
        request_id: unique among those in progress.

    Raises:
        InvalidInputError, ContextLengthError, EngineOverloadedError, EngineDeadError: it cannot be done.
    """
    prompt = await encode_prompt(context, ask.messages, rules=ask.rules, effort=ask.effort)
    asked = context.turns.request(prompt, sampling=ask.sampling, owner=caller.key_id, request_id=request_id)
    turn = await context.turns.start(asked, tools=ask.rules.recipients)
    return AnswersRun(context, ask, turn=turn, caller=caller, num_prompt=len(prompt))


class AnswersRun:
    """A turn in progress: iterate over `shown` once.

    Attributes:
        readers: one for each answer.
        num_prompt: tokens of the prompt.
    """

    def __init__(self, context: ServerContext, ask: Ask, *, turn: RunningTurn, caller: Caller, num_prompt: int) -> None:
        self._context = context
        self._turn = turn
        self._caller = caller
        self._is_over = False
        self._policy = ask.answers.policy
        self.num_prompt = num_prompt
        self.readers = [
            AnswerReader(
                ask.answers,
                reader=reader,
                tokenizer=context.model.tokenizer,
                new_call_id=functools.partial(context.new_id, ask.call_prefix),
            )
            for reader in turn.readers
        ]

    async def shown(self) -> AsyncIterator[Shown]:
        """What becomes visible, as it comes; what was said is remembered at the end.

        Raises:
            EngineDeadError: the engine stopped.
        """
        summaries = None
        if self._policy is ReasoningPolicy.SUMMARY:
            summaries = functools.partial(summarise, self._context, detail=None, owner=self._caller.key_id)
        try:
            async with self._turn:
                async for news in show(self._turn, self.readers, summarise=summaries):
                    yield news
            for reader in self.readers:
                remember(self._context.replay, owner=self._caller.key_id, said=reader.said)
        finally:
            self.leave()

    def leave(self) -> None:
        """Give up, if it is not over, and take the tokens from the key's account. Call it again as you like."""
        if not self._is_over:
            self._is_over = True
            self._turn.cancel()
            self._context.limiter.charge(self._caller, self._turn.num_tokens)

    @property
    def usages(self) -> list[Usage]:
        """Tokens of each answer so far."""
        return [reader.usage for reader in self._turn.readers]
