"""The Response object around the output: one dict, from which each of its events and its stored form are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ossia.server.responses.items import Item
from ossia.server.responses.params import PromptParams
from ossia.server.responses.schema import CreateBody, JsonObject

if TYPE_CHECKING:
    from ossia.engine.turn import Usage

TERMINAL = {"completed": "response.completed", "incomplete": "response.incomplete", "failed": "response.failed"}
FINISHED = frozenset({"completed", "incomplete", "failed", "cancelled"})


def open_envelope(
    body: CreateBody, params: PromptParams, *, response_id: str, created_at: float, model: str, defaults: JsonObject
) -> JsonObject:
    """A response that is about to begin.

    Args:
        defaults: `temperature` and `top_p` of the model.
    """
    is_background = body.background is True
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(created_at),
        "status": "queued" if is_background else "in_progress",
        "background": is_background,
        "completed_at": None,
        "conversation": {"id": body.conversation_id} if body.conversation_id else None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": defaults["temperature"] if body.temperature is None else body.temperature,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": defaults["top_p"] if body.top_p is None else body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
        **params.echo,
    }


def close_envelope(
    envelope: JsonObject,
    *,
    status: str,
    items: Sequence[Item],
    now: float,
    usage: Usage | None = None,
    error: JsonObject | None = None,
    reason: str | None = None,
) -> JsonObject:
    """The response as it ended.

    Args:
        status: completed, incomplete, failed or cancelled.
        error: `code` and `message`, for a failed one.
        reason: why it is incomplete.
    """
    return {
        **envelope,
        "status": status,
        "completed_at": int(now) if status == "completed" else None,
        "output": [item.body for item in items],
        "error": error,
        "incomplete_details": None if reason is None else {"reason": reason},
        "usage": None if usage is None else usage_body(usage),
    }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Tokens, in the words of the API."""
    return {
        "input_tokens": usage.num_prompt,
        "input_tokens_details": {"cached_tokens": usage.num_cached, "cache_write_tokens": 0},
        "output_tokens": usage.num_output,
        "output_tokens_details": {"reasoning_tokens": usage.num_reasoning},
        "total_tokens": usage.num_prompt + usage.num_output,
    }
