"""Python callables as tools: type hints become the schema, results and errors become tool messages.

The schema comes from pydantic; `Annotated[int, Field(description=...)]` describes an argument, and the docstring's
text before its sections describes the function. Async functions are awaited, others run in a thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import FUNCTIONS, FunctionTool, ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.arguments import parse_object
from ossia.tools.base import FailureKind, ToolContext, ToolError, ToolResult, failure, reply
from ossia.tools.extras import need

MAX_RESULT_CHARS = 100_000
_SECTIONS = ("args:", "arguments:", "parameters:", "returns:", "raises:", "yields:", "example:", "examples:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A callable with its declaration.

    Attributes:
        validate: turns decoded JSON into keyword arguments; raises pydantic's ValidationError.
    """

    tool: FunctionTool
    run: Callable[..., Any]
    validate: Callable[[Mapping[str, Any]], dict[str, Any]]


def describe_function(function: Callable[..., Any], *, name: str | None = None) -> Function:
    """Reads a callable's signature.

    Raises:
        InvalidInputError: a parameter without a type hint, one that is positional only or variadic, or a type that
            has no JSON Schema.
        MissingExtraError: pydantic is not installed.
    """
    pydantic = need("pydantic")
    title = name or getattr(function, "__name__", None)
    if not title or title == "<lambda>":
        raise InvalidInputError("a function without a name cannot be a tool; give name=", param="tools")
    try:
        signature = inspect.signature(function, eval_str=True)
    except (TypeError, ValueError, NameError) as error:
        raise InvalidInputError(f"the signature of {title!r} cannot be read: {error}", param="tools") from error
    fields: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise InvalidInputError(
                f"{title}({parameter}) cannot be called by name; use plain parameters", param="tools"
            )
        if parameter.annotation is parameter.empty:
            raise InvalidInputError(f"{title}({parameter.name}) has no type hint; add one", param="tools")
        default = ... if parameter.default is parameter.empty else parameter.default
        # An alias keeps names that pydantic reserves (`schema`, `_x`) usable.
        fields[f"p_{parameter.name}"] = (
            parameter.annotation,
            pydantic.Field(default, alias=parameter.name)
            if not _has_field(parameter.annotation, pydantic)
            else _aliased(parameter.annotation, default, parameter.name, pydantic),
        )
    try:
        model = pydantic.create_model(title, __config__=pydantic.ConfigDict(extra="forbid"), **fields)
        schema = model.model_json_schema(by_alias=True) if fields else None
    except Exception as error:
        raise InvalidInputError(f"the type hints of {title!r} have no JSON Schema: {error}", param="tools") from error
    tool = FunctionTool(title, description=_description(function), parameters=_clean(schema))

    def validate(arguments: Mapping[str, Any]) -> dict[str, Any]:
        checked = model.model_validate(dict(arguments))
        # Parameters that were not sent keep the function's own defaults.
        return {name.removeprefix("p_"): getattr(checked, name) for name in checked.model_fields_set}

    return Function(tool=tool, run=function, validate=validate)


class FunctionsTool:
    """Python functions under one namespace, `functions` unless told otherwise.

    Args:
        functions: callables with type hints.
        namespace: what stands before the dot.
        timeout_s: a call that takes longer is answered so. A thread cannot be stopped: a function that is not async
            runs on in the background.
    """

    def __init__(
        self, functions: Iterable[Callable[..., Any]], *, namespace: str = FUNCTIONS, timeout_s: float | None = None
    ) -> None:
        described = [
            function if isinstance(function, Function) else describe_function(function) for function in functions
        ]
        self._functions = {function.tool.name: function for function in described}
        self._declaration = ToolNamespace(namespace, tools=tuple(function.tool for function in described))
        self._timeout_s = timeout_s

    @property
    def name(self) -> str:
        return self._declaration.name

    @property
    def is_builtin(self) -> bool:
        return False

    def declaration(self) -> ToolNamespace:
        return self._declaration

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        name = (message.recipient or "").rpartition(".")[2]
        function = self._functions.get(name)
        if function is None:
            known = ", ".join(self._functions)
            text = f"There is no function {name!r}; these exist: {known}."
            return failure(message, text, kind=FailureKind.NO_SUCH_TOOL)
        try:
            arguments = function.validate(parse_object(message))
        except ToolError as error:
            return failure(message, str(error), kind=error.kind)
        except ValueError as error:  # pydantic's ValidationError is one
            return failure(message, _validation_text(name, error), kind=FailureKind.INVALID_ARGUMENTS)
        try:
            async with asyncio.timeout(self._timeout_s):
                value = await _run(function.run, arguments)
            return ToolResult(messages=(reply(message, result_text(value)),))
        except TimeoutError:
            text = f"{name} took longer than {self._timeout_s} s and was given up."
            return failure(message, text, kind=FailureKind.TIMEOUT)
        except Exception as error:  # noqa: BLE001  the function's fault is the model's to read
            return failure(message, f"{name} raised {type(error).__name__}: {error}", kind=FailureKind.FAILED)

    async def close(self) -> None:
        return


def result_text(value: object) -> str:
    """A returned value as the model reads it: text as it is, anything else as JSON, cut at MAX_RESULT_CHARS."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_jsonable)
    if len(text) > MAX_RESULT_CHARS:
        text = f"{text[:MAX_RESULT_CHARS]}\n[... {len(text) - MAX_RESULT_CHARS} characters left out]"
    return text


async def _run(function: Callable[..., Any], arguments: dict[str, Any]) -> object:
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(**arguments)
    value = await asyncio.to_thread(function, **arguments)
    return await value if inspect.isawaitable(value) else value


def _has_field(annotation: object, pydantic: Any) -> bool:
    return any(isinstance(item, type(pydantic.Field())) for item in getattr(annotation, "__metadata__", ()))


def _aliased(annotation: Any, default: object, name: str, pydantic: Any) -> object:
    """The alias joins what `Annotated[..., Field(...)]` says."""
    return pydantic.fields.FieldInfo.merge_field_infos(
        *(item for item in annotation.__metadata__ if isinstance(item, pydantic.fields.FieldInfo)),
        pydantic.Field(default, alias=name),
    )


def _jsonable(value: object) -> object:
    if hasattr(value, "model_dump"):
        return cast("Any", value).model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, set | frozenset | tuple):
        return list(cast("Iterable[object]", value))
    return str(value)


def _description(function: Callable[..., Any]) -> str:
    kept: list[str] = []
    for line in (inspect.getdoc(function) or "").splitlines():
        if line.strip().lower() in _SECTIONS:
            break
        kept.append(line)
    return "\n".join(kept).strip()


def _clean(schema: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Without the titles that pydantic makes up: each would be a comment in the prompt."""
    if schema is None:
        return None

    def walk(value: Any, *, is_properties: bool = False) -> Any:
        if isinstance(value, dict):
            items = cast("dict[str, Any]", value).items()
            return {
                key: walk(item, is_properties=key in ("properties", "$defs") and not is_properties)
                for key, item in items
                if is_properties or key != "title"
            }
        return [walk(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value

    return walk(schema)


def _validation_text(name: str, error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return f"Invalid arguments for {name}: {error}"
    lines = [
        f"- {'.'.join(str(part) for part in item['loc']) or 'arguments'}: {item['msg']}"
        for item in errors(include_url=False, include_context=False, include_input=False)
    ]
    return "\n".join([f"Invalid arguments for {name}:", *lines])
