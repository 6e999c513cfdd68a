"""What clients send to /v1/responses and /v1/conversations.

Parameters that this server does not know are passed over, as clients are ahead of servers; those that it knows and
cannot do are refused where they would change the answer (`params.py`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from openai.types.responses import ResponseIncludable
from pydantic import BaseModel, ConfigDict, Field

JsonObject: TypeAlias = dict[str, Any]
Key: TypeAlias = Annotated[str, Field(max_length=64)]
Value: TypeAlias = Annotated[str, Field(max_length=512)]
Metadata: TypeAlias = Annotated[dict[Key, Value], Field(max_length=16)]
Id: TypeAlias = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9_-]+$")]


class Body(BaseModel):
    """A request's body: types are not converted, what is unknown is passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)


class ConversationRef(Body):
    id: Id


class PromptBody(Body):
    """What makes the prompt; also the body of /v1/responses/input_tokens."""

    model: str | None = None
    input: str | list[JsonObject] | None = None
    instructions: str | None = None
    previous_response_id: Id | None = None
    conversation: Id | ConversationRef | None = None
    tools: list[JsonObject] | None = None
    tool_choice: str | JsonObject | None = None
    parallel_tool_calls: bool | None = None
    text: JsonObject | None = None
    reasoning: JsonObject | None = None
    truncation: Literal["auto", "disabled"] | None = None

    @property
    def conversation_id(self) -> str | None:
        """The conversation, in whichever of the two forms it was given."""
        return self.conversation.id if isinstance(self.conversation, ConversationRef) else self.conversation


class CreateBody(PromptBody):
    """The body of POST /v1/responses. The last few are Ossia's own."""

    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: JsonObject | None = None
    include: list[ResponseIncludable] | None = None
    metadata: Metadata | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    prompt: JsonObject | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    user: str | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class ConversationBody(Body):
    """The body of POST /v1/conversations."""

    items: Annotated[list[JsonObject], Field(max_length=20)] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Body):
    """The body of POST /v1/conversations/{id}."""

    metadata: Metadata | None


class ItemsBody(Body):
    """The body of POST /v1/conversations/{id}/items."""

    items: Annotated[list[JsonObject], Field(min_length=1, max_length=20)]
