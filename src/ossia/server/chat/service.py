"""Runs chat completions: a body to a turn, and the turn to chunks or to one object."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from ossia import __version__
from ossia.core.errors import OssiaError
from ossia.server.auth import Caller
from ossia.server.chat.messages import read_messages
from ossia.server.chat.params import ChatParams, constraint_of, num_logprobs, read_params, read_sampling, read_stop
from ossia.server.chat.schema import ChatBody
from ossia.server.chat.writer import ChoiceWriter, usage_body
from ossia.server.conversation.answer import AnswerRules
from ossia.server.conversation.run import AnswersRun, Ask, encode_prompt, start_run
from ossia.server.errors import error_info
from ossia.server.sse import frame

if TYPE_CHECKING:
    from ossia.server.context import ServerContext

FINGERPRINT = f"ossia-{__version__}"
DONE = frame("[DONE]")


def read_chat(context: ServerContext, body: ChatBody, *, owner: str) -> tuple[Ask, ChatParams]:
    """What a body asks for.

    Raises:
        ApiError, InvalidInputError: something is malformed or cannot be done; `param` names it.
    """
    params = read_params(body)
    policy = context.settings.reasoning
    messages = read_messages(body.messages, replay=context.replay, owner=owner, policy=policy)
    limit = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    ask = Ask(
        messages=messages,
        rules=params.rules,
        effort=params.effort,
        answers=AnswerRules(
            policy,
            stop=read_stop(body.stop),
            is_parallel=params.rules.parallel,
            shows_preambles=params.rules.format is None,
        ),
        sampling=read_sampling(
            body, max_tokens=limit, logprobs=num_logprobs(body), constraint=constraint_of(params.rules)
        ),
    )
    return ask, params


async def render_chat(context: ServerContext, body: ChatBody, *, owner: str) -> tuple[int, ...]:
    """The prompt that such a request would give. Raises as `start_chat`."""
    context.check_takes_work(body.model)
    ask, _ = read_chat(context, body, owner=owner)
    return await encode_prompt(context, ask.messages, rules=ask.rules, effort=ask.effort)


async def start_chat(context: ServerContext, body: ChatBody, *, caller: Caller) -> ChatRun:
    """Hand a request to the engine.

    Raises:
        ApiError, InvalidInputError, ContextLengthError, EngineOverloadedError, EngineDeadError: it cannot be done.
    """
    context.check_takes_work(body.model)
    ask, params = read_chat(context, body, owner=caller.key_id)
    name = context.new_id("chatcmpl")
    run = await start_run(context, ask, caller=caller, request_id=name)
    return ChatRun(context, body, run=run, params=params, name=name)


class ChatRun:
    """One chat completion."""

    def __init__(
        self, context: ServerContext, body: ChatBody, *, run: AnswersRun, params: ChatParams, name: str
    ) -> None:
        self._run = run
        self._has_usage = body.stream_options is not None and body.stream_options.include_usage is True
        self._envelope: dict[str, Any] = {
            "id": name,
            "object": "chat.completion",
            "created": int(context.clock()),
            "model": context.model.name,
            "service_tier": "default",
            "system_fingerprint": FINGERPRINT,
        }
        self._writers = [
            ChoiceWriter(
                i,
                rules=params.rules,
                tokenizer=context.model.tokenizer,
                is_legacy=params.is_legacy,
                has_logprobs=body.logprobs is True,
            )
            for i in range(len(run.readers))
        ]

    def leave(self) -> None:
        """Give up, if it is not over."""
        self._run.leave()

    async def complete(self) -> dict[str, Any]:
        """The completion at once.

        Raises:
            ApiError, EngineDeadError: an answer failed.
        """
        async for answer, parts in self._run.shown():
            self._writers[answer].push(parts)
        choices: list[dict[str, Any]] = []
        for writer, reader in zip(self._writers, self._run.readers, strict=True):
            reader.check()
            writer.finish(reader)
            choices.append(writer.choice(reader))
        return {**self._envelope, "choices": choices, "usage": usage_body(self._run.usages)}

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The completion as a stream of chunks."""
        head = json.dumps({**self._envelope, "object": "chat.completion.chunk"}, separators=(",", ":"))[:-1]
        head = f'data: {head},"choices":['
        tail = '],"usage":null}\n\n' if self._has_usage else "]}\n\n"
        try:
            async for answer, parts in self._run.shown():
                chunks = self._writers[answer].push(parts)
                reader = self._run.readers[answer]
                if reader.ending is not None:
                    reader.check()
                    chunks += self._writers[answer].finish(reader)
                if chunks:
                    yield "".join([f"{head}{chunk}{tail}" for chunk in chunks]).encode()
            if self._has_usage:
                usage = json.dumps(usage_body(self._run.usages), separators=(",", ":"))
                yield f'{head}],"usage":{usage}}}\n\n'.encode()
        except OssiaError as error:
            yield frame(json.dumps(error_info(error).body))
        yield DONE
