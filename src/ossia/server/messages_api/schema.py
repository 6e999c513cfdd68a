"""What clients send to /v1/messages. Parameters that this server does not know are passed over."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ossia.server.chat.schema import MAX_MESSAGES, MAX_STOPS
from ossia.server.responses.schema import Body, JsonObject


class OutputConfig(Body):
    effort: str | None = None
    format: JsonObject | None = None


class CountBody(Body):
    """What makes the prompt; also the body of /v1/messages/count_tokens and of the render."""

    model: str | None = None
    messages: Annotated[list[JsonObject], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[JsonObject] | None = None
    tools: list[JsonObject] | None = None
    tool_choice: JsonObject | None = None
    thinking: JsonObject | None = None
    output_config: OutputConfig | None = None
    output_format: JsonObject | None = None
    mcp_servers: list[JsonObject] | None = None


class MessagesBody(CountBody):
    """The body of POST /v1/messages. `min_p` and `seed` are not Anthropic's."""

    max_tokens: Annotated[int, Field(ge=1)]
    stream: bool | None = None
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    metadata: JsonObject | None = None
