"""Request bodies: bytes to checked values, within bounds, with errors that name the parameter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from ossia.server.context import context_of
from ossia.server.errors import ApiError

_M = TypeVar("_M", bound=BaseModel)
_MAY_OVERFLOW = re.compile(rb"[0-9][eE]\+?[0-9]{3}|[0-9]{309}")
_MAX_MESSAGE = 300
_BRANCHES = frozenset({"str", "int", "float", "bool"})
"""Pydantic's names for branches of a union, as far as they look like names of fields."""


async def read_model(request: Request, model: type[_M]) -> _M:
    """The body as a value of a pydantic model.

    Raises:
        ApiError: too large, not JSON, or not of that shape; `param` names the first place at fault.
    """
    data = await read_json(request)
    return validate(model, data)


def validate(model: type[_M], data: object, *, at: str = "") -> _M:
    """A value of a pydantic model from decoded JSON.

    Args:
        at: where the data stand in the body, put in front of the parameter's name.

    Raises:
        ApiError: another shape; `param` names the first place at fault.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise invalid(error, at=at) from error


async def read_json(request: Request) -> Any:
    """The body, decoded.

    Raises:
        ApiError: it is too large (413), not JSON, too deep, or holds a number that no double can hold.
    """
    limits = context_of(request).settings.limits
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        # Also a guard: a web page can send other types to a server on its user's machine without asking.
        raise ApiError(
            f"the Content-Type is {kind or 'absent'!r}; send application/json",
            status=415,
            code="unsupported_media_type",
        )
    body = await read_bytes(request, limit=limits.max_body_bytes)
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(f"the body is not JSON: {error}", code="invalid_json") from error
    if body.count(b"[") + body.count(b"{") > limits.max_json_depth or _MAY_OVERFLOW.search(body):
        _check_tree(data, max_depth=limits.max_json_depth)
    return data


async def read_bytes(request: Request, *, limit: int) -> bytes:
    """The body as it came; never holds more than `limit` bytes of it.

    Raises:
        ApiError: it is larger (413).
    """
    too_large = ApiError(f"the body is larger than {limit} bytes", status=413, code="request_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def _check_tree(data: object, *, max_depth: int) -> None:
    todo = [(data, 1)]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, float) and not math.isfinite(value):
            raise ApiError("the body holds a number beyond the range of a double", code="invalid_json")
        if isinstance(value, int) and value.bit_length() > 1023:
            raise ApiError("the body holds a number beyond the range of a double", code="invalid_json")
        children: list[object] = []
        if isinstance(value, dict):
            children = list(cast("dict[str, object]", value).values())
        elif isinstance(value, list):
            children = cast("list[object]", value)
        if children and depth >= max_depth and any(isinstance(child, dict | list) for child in children):
            raise ApiError(f"the body nests deeper than {max_depth} levels", code="invalid_json")
        todo += [(child, depth + 1) for child in children]


def invalid(error: ValidationError, *, at: str = "") -> ApiError:
    """What pydantic found, in OpenAI's words: the first fault, and where it is."""
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    param = _path(first, at=at)
    kind = first["type"]
    if kind == "missing":
        code, message = "missing_required_parameter", f"the required parameter {param!r} is missing"
    elif kind.endswith(("_type", "_parsing")):
        code, message = "invalid_type", f"{param}: {first['msg']}; got {_kind_of(first.get('input'))}"
    else:
        code, message = "invalid_value", f"{param}: {first['msg']}"
    return ApiError(message[:_MAX_MESSAGE], code=code, param=param or None)


def _path(details: ErrorDetails, *, at: str) -> str:
    path = at
    for part in details["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part[0].islower() and part not in _BRANCHES:
            path += f".{part}" if path else part
    return path[:_MAX_MESSAGE]


def _kind_of(value: object) -> str:
    names: Mapping[type, str] = {
        type(None): "null", bool: "a boolean", int: "an integer", float: "a number", str: "a string",
        list: "an array", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), type(value).__name__)
