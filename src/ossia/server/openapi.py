"""The OpenAPI page: FastAPI's, with the request bodies that routes read themselves.

Routes take bytes and check them against a pydantic model (`body.read_model`), which keeps limits and errors ours; they
say which with `**describe(Model)`.
"""

from __future__ import annotations

import functools
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

_MARK = "x-ossia-model"
_REF = "#/components/schemas/{model}"

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}


def describe(model: type[BaseModel], *, is_required: bool = True) -> dict[str, Any]:
    """What a route that reads this model says of itself, as keyword arguments of its decorator."""
    schema = model.model_json_schema(ref_template=_REF)
    content = {"application/json": {"schema": {_MARK: schema}}}
    return {"openapi_extra": {"requestBody": {"required": is_required, "content": content}}}


def install_openapi(app: FastAPI) -> None:
    """Have the app tell of bodies, of errors, and of keys."""
    app.openapi = functools.partial(_build, app)


def _build(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema:
        return app.openapi_schema
    page = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas: dict[str, Any] = page.setdefault("components", {}).setdefault("schemas", {})
    schemas["Error"] = ERROR_SCHEMA
    page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    page["security"] = [{"key": []}, {}]
    error = {
        "description": "An error",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    for path in page.get("paths", {}).values():
        for operation in path.values():
            responses = operation.setdefault("responses", {})
            responses.pop("422", None)  # FastAPI's own; ours is 400
            responses.setdefault("4XX", error)
            responses.setdefault("5XX", error)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                model = content["schema"].pop(_MARK, None)
                if model is not None:
                    schemas.update(model.pop("$defs", {}))
                    content["schema"] = model
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    app.openapi_schema = page
    return page
