"""What clients send to /v1/chat/completions and /v1/completions.

Parameters that this server does not know are passed over, as clients are ahead of servers; those that it knows and
cannot do are refused where they would change the answer.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from ossia.server.responses.schema import Body, JsonObject

MAX_ANSWERS = 128
MAX_MESSAGES = 10_000
MAX_STOPS = 16

Seed: TypeAlias = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Stop: TypeAlias = str | list[str]
Penalty: TypeAlias = Annotated[float, Field(ge=-2, le=2)]
NumAnswers: TypeAlias = Annotated[int, Field(ge=1, le=MAX_ANSWERS)]


class StreamOptions(Body):
    include_usage: bool | None = None


class SamplingBody(Body):
    """What both APIs have. `top_k`, `min_p` and `repetition_penalty` are not OpenAI's, but other servers have them."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: NumAnswers | None = None
    seed: Seed | None = None
    stop: Stop | None = None
    logit_bias: dict[str, float] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    user: str | None = None


class ChatBody(SamplingBody):
    """The body of POST /v1/chat/completions, and of its render."""

    messages: Annotated[list[JsonObject], Field(min_length=1, max_length=MAX_MESSAGES)]
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    functions: list[JsonObject] | None = None
    function_call: str | JsonObject | None = None
    response_format: JsonObject | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    reasoning_effort: str | None = None
    reasoning: JsonObject | None = None
    modalities: list[str] | None = None
    audio: JsonObject | None = None
    web_search_options: JsonObject | None = None
    metadata: JsonObject | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None


class CompletionBody(SamplingBody):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    suffix: str | None = None
