"""The one mapping from errors to HTTP: OpenAI's error object, with the right status, code and parameter.

    {"error": {"message": "...", "type": "invalid_request_error", "param": "temperature", "code": "invalid_value"}}

A route raises what the rooms below raise, or an `ApiError` where only HTTP knows the case; nothing else is to be done.
Anthropic's clients (`wants_anthropic`) get their own error object:

    {"type": "error", "error": {"type": "invalid_request_error", "message": "..."}, "request_id": "..."}
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ossia.core.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineOverloadedError,
    InvalidInputError,
    ModelNotFoundError,
    OssiaError,
    StorageError,
)

if TYPE_CHECKING:
    from starlette.types import Scope

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class ErrorInfo(NamedTuple):
    """An error as HTTP tells it.

    Attributes:
        status: the HTTP status code.
        type: OpenAI's class of the error.
        code: for programs.
        message: for people; holds nothing of another client.
        param: the parameter at fault, as a path: `input[2].content`.
        headers: to send with it, as Retry-After.
    """

    status: int
    type: str
    code: str | None
    message: str
    param: str | None = None
    headers: Mapping[str, str] = {}

    @property
    def body(self) -> dict[str, Any]:
        """What goes over the wire."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def anthropic_body(self, request_id: str | None = None) -> dict[str, Any]:
        """What goes over the wire to Anthropic's clients; their errors have no field for a parameter."""
        kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else INVALID_REQUEST)
        named = self.param is None or self.param in self.message
        message = self.message if named else f"{self.param}: {self.message}"
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def wants_anthropic(scope: Scope) -> bool:
    """Whether a request is meant for Anthropic's API: by its path, or by the header that its clients send."""
    return scope["path"].startswith("/v1/messages") or any(name == b"anthropic-version" for name, _ in scope["headers"])


class ApiError(OssiaError):
    """An error that exists only over HTTP: no such response, a wrong key, too many requests."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,  # noqa: A002 the wire's word
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        kind = type or (INVALID_REQUEST if status < 500 else SERVER_ERROR)
        self.info = ErrorInfo(status, kind, code, message, param, headers or {})


def not_found(message: str, *, param: str | None = None) -> ApiError:
    """404; also for what belongs to another key, which is not to be told apart from what is not there."""
    return ApiError(message, status=404, code="not_found", param=param)


def unsupported(message: str, *, param: str) -> ApiError:
    """400 for what OpenAI has and this server has not."""
    return ApiError(message, status=400, code="unsupported_value", param=param)


def error_info(error: BaseException) -> ErrorInfo:
    """What HTTP says of an error. One that is no OssiaError is logged, and told as 500 without its text."""
    match error:
        case ApiError():
            return error.info
        case ContextLengthError():
            return ErrorInfo(400, INVALID_REQUEST, "context_length_exceeded", str(error), error.param or "input")
        case InvalidInputError():
            return ErrorInfo(400, INVALID_REQUEST, error.code or "invalid_value", str(error), error.param)
        case ModelNotFoundError():
            return ErrorInfo(404, INVALID_REQUEST, "model_not_found", str(error), "model")
        case EngineOverloadedError():
            return ErrorInfo(503, SERVER_ERROR, "overloaded", str(error), None, {"Retry-After": "1"})
        case EngineDeadError():
            return ErrorInfo(503, SERVER_ERROR, "engine_unavailable", str(error))
        case StorageError():
            return ErrorInfo(503, SERVER_ERROR, "storage_unavailable", str(error))
        case _:
            logger.error("internal error", exc_info=error)
            return ErrorInfo(500, SERVER_ERROR, "internal_error", "the server made an error; its log says more")
