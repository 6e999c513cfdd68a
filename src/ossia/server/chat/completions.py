"""/v1/completions: plain text behind plain text, without roles or channels; for base models, scoring and debugging."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from ossia.core.errors import ContextLengthError, OssiaError
from ossia.engine.output_event import OutputEvent, TokenLogprob
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.server.auth import Caller
from ossia.server.chat.params import read_sampling, read_stop
from ossia.server.chat.schema import MAX_ANSWERS, CompletionBody
from ossia.server.chat.service import DONE, FINGERPRINT
from ossia.server.chat.writer import LOWEST_LOGPROB
from ossia.server.errors import SERVER_ERROR, ApiError, error_info, unsupported
from ossia.server.sse import frame

if TYPE_CHECKING:
    from ossia.agent.turns import EventStream
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.server.context import ServerContext

DEFAULT_TOKENS = 16
"""OpenAI's own default for `max_tokens` here."""
MAX_PROMPTS = 128


def read_prompts(body: CompletionBody, *, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The prompts as token ids. Text becomes no control token; ids may be any.

    Raises:
        ApiError: there are too many, or an empty one.
    """
    given = body.prompt
    if given is None:
        return [(tokenizer.endoftext,)]
    if isinstance(given, str):
        return [tuple(tokenizer.encode(given)) or (tokenizer.endoftext,)]
    if given and isinstance(given[0], int):
        return [tuple(cast("list[int]", given))]
    prompts = cast("list[str] | list[list[int]]", given)
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ApiError(
            f"prompt is a list of {len(prompts)}; give 1 to {MAX_PROMPTS}", code="invalid_value", param="prompt"
        )
    found: list[tuple[int, ...]] = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(tuple(tokenizer.encode(prompt)) or (tokenizer.endoftext,))
        elif prompt:
            found.append(tuple(prompt))
        else:
            raise ApiError(f"prompt[{i}] has no token", code="invalid_value", param=f"prompt[{i}]")
    return found


def _check(body: CompletionBody) -> None:
    if body.suffix:
        raise unsupported("this model writes behind a prompt only; leave suffix out", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise unsupported("best_of must equal n here, or be left out", param="best_of")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError("max_tokens is 0 without echo; nothing would come", code="invalid_value", param="max_tokens")


def _request(context: ServerContext, body: CompletionBody, prompt: tuple[int, ...], *, owner: str) -> Request:
    room = context.model.context_length - len(prompt)
    if room < 1:
        raise ContextLengthError(num_tokens=len(prompt), limit=context.model.context_length - 1, param="prompt")
    defaults = context.model.sampling
    chosen = read_sampling(body)
    wanted = DEFAULT_TOKENS if body.max_tokens is None else max(1, body.max_tokens)
    return Request(
        id=context.new_id("cmpl"),
        prompt_ids=prompt,
        cache_salt=owner,
        params=SamplingParams(
            temperature=defaults.temperature if chosen.temperature is None else chosen.temperature,
            top_p=defaults.top_p if chosen.top_p is None else chosen.top_p,
            top_k=chosen.top_k,
            min_p=chosen.min_p,
            repetition_penalty=chosen.repetition_penalty,
            presence_penalty=chosen.presence_penalty,
            frequency_penalty=chosen.frequency_penalty,
            logit_bias=chosen.logit_bias or {},
            seed=chosen.seed,
            n=chosen.n,
            max_tokens=min(wanted, room),
            stop=read_stop(body.stop),
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
        ),
    )


async def start_completion(context: ServerContext, body: CompletionBody, *, caller: Caller) -> CompletionRun:
    """Hand all prompts to the engine.

    Raises:
        ApiError, InvalidInputError, ContextLengthError, EngineOverloadedError, EngineDeadError: it cannot be done.
    """
    context.check_takes_work(body.model)
    _check(body)
    prompts = read_prompts(body, tokenizer=context.model.tokenizer)
    if len(prompts) * (body.n or 1) > MAX_ANSWERS:
        raise ApiError(f"these are more than {MAX_ANSWERS} answers in all", code="invalid_value", param="n")
    requests = [_request(context, body, prompt, owner=caller.key_id) for prompt in prompts]
    streams: list[EventStream] = []
    try:
        for request in requests:
            streams.append(await context.engine.submit(request))  # noqa: PERF401 those before must be known if it fails
    except BaseException:
        for stream in streams:
            stream.cancel()
        raise
    return CompletionRun(context, body, requests=requests, streams=streams, caller=caller)


class _Piece(NamedTuple):
    """What is new of a choice."""

    choice: _Choice
    event: OutputEvent
    text: str
    logprobs: dict[str, Any] | None


class _Choice:
    """One answer in the making."""

    def __init__(self, index: int, request: Request, *, body: CompletionBody, tokenizer: Tokenizer) -> None:
        self.index = index
        self.text = ""
        self.finish: FinishReason | None = None
        self.logprobs: dict[str, Any] | None = None if body.logprobs is None else _empty_logprobs()
        self.num_output = 0
        self._request = request
        self._tokenizer = tokenizer
        self._is_scored = body.max_tokens == 0  # the one token that the engine must write is not told
        self._echoes = body.echo is True
        self._offset = 0

    def take(self, event: OutputEvent) -> _Piece:
        """What an event adds to it."""
        text, logprobs = "", None
        if self.logprobs is not None:
            logprobs = _empty_logprobs()
        if self._echoes:
            self._echoes = False
            text = self._tokenizer.decode(self._request.prompt_ids)
            if logprobs is not None:
                self._log(self._request.prompt_ids, event.prompt_logprobs or (), logprobs, has_controls=True)
        if not self._is_scored:
            text += event.text
            if logprobs is not None:
                self._log(event.token_ids, event.logprobs or (), logprobs)
        self.text += text
        self.num_output += len(event.token_ids)
        self.finish = event.finish_reason
        if logprobs is not None and self.logprobs is not None:
            for name, values in logprobs.items():
                self.logprobs[name] += values
        return _Piece(self, event, text, logprobs)

    def _log(
        self,
        ids: Sequence[int],
        entries: Sequence[TokenLogprob | None],
        found: dict[str, list[Any]],
        *,
        has_controls: bool = False,
    ) -> None:
        """Add some tokens. Control tokens stand in the text of a prompt by name, in that of an answer not at all."""
        for i, token in enumerate(ids):
            name = self._tokenizer.decode((token,))
            entry = entries[i] if i < len(entries) else None
            found["tokens"].append(name)
            found["text_offset"].append(self._offset)
            found["token_logprobs"].append(None if entry is None else max(entry.logprob, LOWEST_LOGPROB))
            top = None
            if entry is not None and entry.top:
                top = {self._tokenizer.decode((t,)): max(lp, LOWEST_LOGPROB) for t, lp in reversed(entry.top)}
            found["top_logprobs"].append(top)
            if has_controls or not self._tokenizer.is_special(token):
                self._offset += len(name)

    def body(self) -> dict[str, Any]:
        """The whole choice."""
        return _choice_body(self.index, self.text, self.logprobs, self.finish)


def _empty_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _choice_body(index: int, text: str, logprobs: dict[str, Any] | None, finish: FinishReason | None) -> dict[str, Any]:
    reason = None if finish is None else ("length" if finish is FinishReason.LENGTH else "stop")
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


class CompletionRun:
    """One completion of some prompts."""

    def __init__(
        self,
        context: ServerContext,
        body: CompletionBody,
        *,
        requests: Sequence[Request],
        streams: Sequence[EventStream],
        caller: Caller,
    ) -> None:
        n = body.n or 1
        self._context = context
        self._streams = streams
        self._caller = caller
        self._has_usage = body.stream_options is not None and body.stream_options.include_usage is True
        self._num_prompt = sum(len(request.prompt_ids) for request in requests)
        self._num_cached = [0] * len(requests)
        self._is_over = False
        self._choices = [
            [_Choice(i * n + j, request, body=body, tokenizer=context.model.tokenizer) for j in range(n)]
            for i, request in enumerate(requests)
        ]
        self._envelope: dict[str, Any] = {
            "id": requests[0].id,
            "object": "text_completion",
            "created": int(context.clock()),
            "model": context.model.name,
            "system_fingerprint": FINGERPRINT,
        }

    def leave(self) -> None:
        """Give up, if it is not over, and take the tokens from the key's account."""
        if not self._is_over:
            self._is_over = True
            for stream in self._streams:
                stream.cancel()
            self._context.limiter.charge(self._caller, self._num_prompt + self._num_output)

    @property
    def _num_output(self) -> int:
        return sum(choice.num_output for choices in self._choices for choice in choices)

    @property
    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": self._num_output,
            "total_tokens": self._num_prompt + self._num_output,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached)},
        }

    async def complete(self) -> dict[str, Any]:
        """The completion at once.

        Raises:
            ApiError, EngineDeadError: an answer failed.
        """
        async for piece in self._pieces():
            _check_finish(piece.event)
        choices = [choice.body() for choices in self._choices for choice in choices]
        return {**self._envelope, "choices": choices, "usage": self._usage}

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The completion as a stream of chunks."""
        more = {"usage": None} if self._has_usage else {}
        try:
            async for piece in self._pieces():
                _check_finish(piece.event)
                finish = piece.event.finish_reason
                if piece.text or finish is not None or (piece.logprobs or {}).get("tokens"):
                    choice = _choice_body(piece.choice.index, piece.text, piece.logprobs, finish)
                    yield _frame({**self._envelope, "choices": [choice], **more})
            if self._has_usage:
                yield _frame({**self._envelope, "choices": [], "usage": self._usage})
        except OssiaError as error:
            yield _frame(error_info(error).body)
        yield DONE

    async def _pieces(self) -> AsyncIterator[_Piece]:
        try:
            async for number, event in _merge(self._streams):
                self._num_cached[number] = max(self._num_cached[number], event.num_cached)
                yield self._choices[number][event.index].take(event)
        finally:
            self.leave()


def _frame(body: dict[str, Any]) -> bytes:
    return frame(json.dumps(body, separators=(",", ":")))


def _check_finish(event: OutputEvent) -> None:
    if event.finish_reason not in (None, FinishReason.STOP, FinishReason.LENGTH):
        raise ApiError("the model failed on this request", status=500, code=SERVER_ERROR)


async def _merge(streams: Sequence[EventStream]) -> AsyncIterator[tuple[int, OutputEvent]]:
    """The events of several streams as they come, with the streams' numbers."""
    if len(streams) == 1:
        async for event in streams[0]:
            yield 0, event
        return
    waits = {asyncio.ensure_future(anext(stream, None)): i for i, stream in enumerate(streams)}
    try:
        while waits:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in sorted(done, key=waits.__getitem__):
                number = waits.pop(wait)
                event = wait.result()
                if event is not None:
                    waits[asyncio.ensure_future(anext(streams[number], None))] = number
                    yield number, event
    finally:
        for wait in waits:
            wait.cancel()
