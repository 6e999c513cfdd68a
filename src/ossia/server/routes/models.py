"""GET /v1/models: the one model that is served, to OpenAI's clients and to Anthropic's, which send their own header."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from ossia.core.errors import ModelNotFoundError
from ossia.server.context import context_of
from ossia.server.errors import wants_anthropic

if TYPE_CHECKING:
    from ossia.agent.turns import ServedModel

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(request: Request) -> JSONResponse:
    """All models."""
    model = context_of(request).model
    if wants_anthropic(request.scope):
        page = {"data": [_anthropic_body(model)], "has_more": False, "first_id": model.name, "last_id": model.name}
        return JSONResponse(page)
    return JSONResponse({"object": "list", "data": [_body(model)]})


@router.get("/{name:path}")
async def get_model(request: Request, name: str) -> JSONResponse:
    """One model; its name may hold slashes."""
    model = context_of(request).model
    if name != model.name:
        raise ModelNotFoundError(f"the model {name[:100]!r} is not served here; {model.name!r} is")
    return JSONResponse(_anthropic_body(model) if wants_anthropic(request.scope) else _body(model))


def _body(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_at,
        "owned_by": "ossia",
        "max_model_len": model.context_length,
    }


def _anthropic_body(model: ServedModel) -> dict[str, Any]:
    created = datetime.fromtimestamp(model.created_at, UTC).isoformat().replace("+00:00", "Z")
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": created,
        "lifecycle": "active",
        "max_input_tokens": model.context_length,
        "max_tokens": model.context_length,
    }
