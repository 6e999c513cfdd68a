"""What a server can be told, as one frozen value."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from ossia.core.errors import InvalidInputError

MIB = 1 << 20
DAY = 86_400.0
HOSTED_TOOLS = ("web_search", "code_interpreter", "mcp")


class ReasoningPolicy(StrEnum):
    """What clients see of the chain of thought."""

    RAW = "raw"
    """All of it. For programs; not for anything that an end user sees."""
    SUMMARY = "summary"
    """A short account of it, which the model itself writes in one more turn."""
    HIDDEN = "hidden"
    """Only that there was some."""


def _at_least(owner: object, name: str, minimum: float) -> None:
    value = getattr(owner, name)
    if value < minimum:
        raise InvalidInputError(f"{name} is {value}; give a number of at least {minimum}", param=name)


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Bounds on what one client may ask.

    Attributes:
        max_body_bytes: of a request's body.
        max_json_depth: how deep arrays and objects may lie in one another.
        requests_per_minute, tokens_per_minute, concurrency: for each key, unless the key has its own; 0 for no limit.
            Tokens are those of prompts and answers together.
        max_background: background responses that may run at once, of all keys together.
        stall_seconds: a stream whose reader takes nothing for so long is cut off and its request cancelled.
    """

    max_body_bytes: int = 32 * MIB
    max_json_depth: int = 100
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrency: int = 0
    max_background: int = 1024
    stall_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "concurrency"):
            _at_least(self, name, 0)
        for name in ("max_body_bytes", "max_json_depth", "max_background", "stall_seconds"):
            _at_least(self, name, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """All choices of an `ossia serve`.

    Attributes:
        host, port: where it listens.
        api_keys: keys given in clear at the start, beside those of the key store; never stored.
        requires_key: refuse requests without a key. None: if there is any key at all.
        allow_open: listen on other than loopback addresses although no key is required.
        allowed_hosts: names that a `Host` header may give beside loopback ones, for a server that listens on loopback
            without keys (a web page could else reach it by rebinding a name of its own).
        cors_origins: origins whose web pages may call the server; none by default.
        reasoning: what clients see of the chain of thought.
        database_url: an SQLAlchemy URL; None for a SQLite file under `data_home()`.
        ttl_seconds: how long stored responses and conversations live; None for ever.
        tools: the tools that the server runs itself for clients: web_search, code_interpreter, mcp.
        limits: bounds for each client.
        drain_seconds: how long a stopping server waits for what is in progress.
        with_docs: serve /docs and /openapi.json.
        has_traces: make OpenTelemetry spans and send them where the SDK's environment variables say.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    requires_key: bool | None = None
    allow_open: bool = False
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    reasoning: ReasoningPolicy = ReasoningPolicy.RAW
    database_url: str | None = None
    ttl_seconds: float | None = 30 * DAY
    tools: tuple[str, ...] = ()
    limits: Limits = Limits()
    drain_seconds: float = 30.0
    with_docs: bool = True
    has_traces: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "reasoning", ReasoningPolicy(self.reasoning))
        if not 0 <= self.port <= 65_535:
            raise InvalidInputError(f"port is {self.port}; give one from 0 (any free one) to 65535", param="port")
        if any(len(key) < 16 for key in self.api_keys):
            raise InvalidInputError(
                "an API key is shorter than 16 characters, which can be guessed; `ossia keys add` makes a good one",
                param="api_key",
            )
        if self.ttl_seconds is not None and self.ttl_seconds <= 0:
            raise InvalidInputError(f"ttl_seconds is {self.ttl_seconds}; give seconds above 0, or none", param="ttl")
        if unknown := [tool for tool in self.tools if tool not in HOSTED_TOOLS]:
            raise InvalidInputError(
                f"there is no tool {unknown[0]!r} for clients; these exist: {', '.join(HOSTED_TOOLS)}", param="tools"
            )
        _at_least(self, "drain_seconds", 0)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone; a name is not looked up."""
    if host.lower() in ("localhost", "localhost."):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_exposure(settings: ServerSettings, *, has_keys: bool) -> None:
    """Refuse to listen where strangers can reach a server that asks for no key.

    Raises:
        InvalidInputError: it would.
    """
    is_open = not (has_keys if settings.requires_key is None else settings.requires_key)
    if is_open and not settings.is_loopback and not settings.allow_open:
        raise InvalidInputError(
            f"host {settings.host!r} is no loopback address and no API key is set, so anyone could use this server; "
            "give --api-key, add one with `ossia keys add`, or say --allow-open if that is what you want",
            param="host",
        )
