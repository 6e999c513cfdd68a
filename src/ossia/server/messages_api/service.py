"""Runs /v1/messages: a body to a turn, and the turn to events or to one message."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from ossia.agent.turns import Sampling
from ossia.core.errors import OssiaError
from ossia.harmony.message import Message
from ossia.server.auth import Caller
from ossia.server.chat.params import constraint_of, read_stop
from ossia.server.conversation.answer import AnswerRules, Ending
from ossia.server.conversation.run import AnswersRun, Ask, encode_prompt, start_run
from ossia.server.errors import error_info
from ossia.server.messages_api.blocks import BlockReader
from ossia.server.messages_api.params import MessagesParams, read_params
from ossia.server.messages_api.schema import CountBody, MessagesBody
from ossia.server.messages_api.writer import BlockWriter, event
from ossia.server.settings import ReasoningPolicy
from ossia.server.sse import frame

if TYPE_CHECKING:
    from ossia.engine.turn import Usage
    from ossia.server.context import ServerContext

_REASONS = {
    Ending.STOP: "end_turn",
    Ending.STOP_STRING: "stop_sequence",
    Ending.CALL: "tool_use",
    Ending.LENGTH: "max_tokens",
}


def _read_messages(context: ServerContext, body: CountBody, *, owner: str) -> list[Message]:
    reader = BlockReader(replay=context.replay, sealer=context.sealer, owner=owner)
    return reader.read(body.messages, system=body.system)


async def render_messages(context: ServerContext, body: CountBody, *, owner: str) -> tuple[int, ...]:
    """The prompt that such a request would give. Raises as `start_messages`."""
    context.check_takes_work(body.model)
    params = read_params(body, policy=context.settings.reasoning)
    messages = _read_messages(context, body, owner=owner)
    return await encode_prompt(context, messages, rules=params.rules, effort=params.effort)


async def start_messages(context: ServerContext, body: MessagesBody, *, caller: Caller) -> MessagesRun:
    """Hand a request to the engine.

    Raises:
        ApiError, InvalidInputError, ContextLengthError, EngineOverloadedError, EngineDeadError: it cannot be done.
    """
    context.check_takes_work(body.model)
    params = read_params(body, policy=context.settings.reasoning)
    ask = Ask(
        messages=_read_messages(context, body, owner=caller.key_id),
        rules=params.rules,
        effort=params.effort,
        answers=AnswerRules(
            params.policy,
            stop=read_stop(body.stop_sequences),
            is_parallel=params.rules.parallel,
            shows_preambles=params.rules.format is None,
        ),
        sampling=Sampling(
            temperature=body.temperature,
            top_p=body.top_p,
            top_k=body.top_k or 0,
            min_p=body.min_p or 0.0,
            seed=body.seed,
            max_tokens=body.max_tokens,
            constraint=constraint_of(params.rules),
        ),
        call_prefix="toolu",
    )
    name = context.new_id("msg")
    run = await start_run(context, ask, caller=caller, request_id=name)
    return MessagesRun(context, body, run=run, params=params, name=name, owner=caller.key_id)


class MessagesRun:
    """One message of the assistant."""

    def __init__(
        self,
        context: ServerContext,
        body: MessagesBody,
        *,
        run: AnswersRun,
        params: MessagesParams,
        name: str,
        owner: str,
    ) -> None:
        self._run = run
        self._max_tokens = body.max_tokens
        self._writer = BlockWriter(
            rules=params.rules,
            shows_thinking=params.shows_thinking,
            redacts=context.settings.reasoning is ReasoningPolicy.HIDDEN,
            seals=lambda message: context.sealer.seal([message], owner=owner),
        )
        self._envelope: dict[str, Any] = {
            "id": name,
            "type": "message",
            "role": "assistant",
            "model": context.model.name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def leave(self) -> None:
        """Give up, if it is not over."""
        self._run.leave()

    async def complete(self) -> dict[str, Any]:
        """The message at once.

        Raises:
            ApiError, EngineDeadError: the answer failed.
        """
        async for _, parts in self._run.shown():
            self._writer.push(parts)
        self._run.readers[0].check()
        self._writer.finish()
        usage = usage_body(self._run.usages[0])
        return {**self._envelope, "content": self._writer.blocks, **self._ending(), "usage": usage}

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The message as a stream of events."""
        opening = {"input_tokens": self._run.num_prompt, "output_tokens": 0}
        opening |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
        try:
            yield (event("message_start", message={**self._envelope, "usage": opening}) + event("ping")).encode()
            async for _, parts in self._run.shown():
                events = self._writer.push(parts)
                if events:
                    yield "".join(events).encode()
            self._run.readers[0].check()
            ending = event("message_delta", delta=self._ending(), usage=usage_body(self._run.usages[0]))
            yield "".join([*self._writer.finish(), ending, event("message_stop")]).encode()
        except OssiaError as error:
            yield frame(json.dumps(error_info(error).anthropic_body()), "error")

    def _ending(self) -> dict[str, Any]:
        reader = self._run.readers[0]
        assert reader.ending is not None, "the answer is over"
        reason = _REASONS[reader.ending]
        if reader.ending is Ending.LENGTH and self._run.usages[0].num_output < self._max_tokens:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": reader.stop}


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tokens, in the words of Messages, which counts cached ones apart."""
    return {
        "input_tokens": usage.num_prompt - usage.num_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.num_cached,
        "output_tokens": usage.num_output,
        "output_tokens_details": {"thinking_tokens": usage.num_reasoning},
    }
