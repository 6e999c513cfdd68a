"""What may be fetched, how much of it, and how often."""

from __future__ import annotations

from dataclasses import dataclass

from ossia.core.errors import InvalidInputError
from ossia.tools.base import FailureKind, ToolError
from ossia.tools.browser.addresses import is_public, parse_literal

USER_AGENT = "OssiaBrowser/1.0"
_SCHEMES = ("http", "https")
_FIRST_FREE_PORT = 1024


class FetchError(ToolError):
    """A page that could not be had; the message is for the model."""


class FetchDeniedError(FetchError):
    """A page that may not be fetched."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind=FailureKind.DENIED)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """Rules for fetching.

    Attributes:
        is_private_allowed: whether private, loopback and link-local addresses may be fetched from.
        allowed_hosts: if not empty, only these hosts and those below them (`example.org` allows `www.example.org`).
        blocked_hosts: never these, nor those below them.
        max_bytes: of a page, after decompression, and of what comes over the wire.
        max_redirects: each is checked like a first address.
        timeout_s: for the whole of a page, redirects and all.
        connect_timeout_s: for one connection.
        is_robots_respected: whether robots.txt is asked.
        min_interval_s: between two requests to one host.
        max_wait_s: how long a request may wait for its turn before it is refused.
        user_agent: sent, and looked for in robots.txt.
    """

    is_private_allowed: bool = False
    allowed_hosts: tuple[str, ...] = ()
    blocked_hosts: tuple[str, ...] = ()
    max_bytes: int = 10 << 20
    max_redirects: int = 5
    timeout_s: float = 30.0
    connect_timeout_s: float = 10.0
    is_robots_respected: bool = True
    min_interval_s: float = 1.0
    max_wait_s: float = 20.0
    user_agent: str = USER_AGENT

    def __post_init__(self) -> None:
        for name in ("max_bytes", "timeout_s", "connect_timeout_s"):
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be above 0", param=name)

    def check(self, *, scheme: str, host: str, port: int | None, has_user: bool, url: str) -> None:
        """Checks what an address itself says; names are resolved and checked when a connection is made.

        Raises:
            FetchDeniedError: it may not be fetched.
        """
        if scheme not in _SCHEMES:
            raise FetchDeniedError(f"Only http and https addresses can be opened, not {url[:200]!r}.")
        if not host:
            raise FetchDeniedError(f"{url[:200]!r} has no host.")
        if has_user:
            raise FetchDeniedError("Addresses with a user name or password in them are not opened.")
        if port is not None and port < _FIRST_FREE_PORT and port not in (80, 443) and not self.is_private_allowed:
            raise FetchDeniedError(f"Port {port} is not opened.")
        if self.allowed_hosts and not _is_below(host, self.allowed_hosts):
            raise FetchDeniedError(f"The host {host!r} is not among those that may be opened.")
        if _is_below(host, self.blocked_hosts):
            raise FetchDeniedError(f"The host {host!r} may not be opened.")
        literal = parse_literal(host)
        if literal is not None and not self.is_private_allowed and not is_public(literal):
            raise FetchDeniedError(f"{host!r} is not a public address.")


def _is_below(host: str, names: tuple[str, ...]) -> bool:
    host = host.lower().rstrip(".")
    return any(host == name.lower() or host.endswith(f".{name.lower()}") for name in names)
