"""Connections that are checked: a name is resolved once, its addresses are checked, and one of them is connected to.

So a name that resolves to a public address for the check and to a private one for the connection (DNS rebinding) gains
nothing. TLS still verifies the name, not the address.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from ossia.tools.browser.addresses import Address, is_public, parse_literal
from ossia.tools.browser.policy import FetchDeniedError, FetchError, FetchPolicy
from ossia.tools.extras import need

Resolver = Callable[[str], Awaitable[list[Address]]]
"""The addresses of a host name."""


async def resolve(host: str) -> list[Address]:
    """By the system's resolver.

    Raises:
        FetchError: the name is unknown.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchError(f"The host {host!r} was not found.") from error
    addresses = [parse_literal(str(item[4][0])) for item in found]
    return list(dict.fromkeys(address for address in addresses if address is not None))


def make_backend(policy: FetchPolicy, resolver: Resolver) -> Any:
    """A network backend of httpcore that connects to checked addresses only."""
    core = need("httpcore2", package="httpx2")
    plain = core.AnyIOBackend()

    class CheckedBackend(core.AsyncNetworkBackend):
        async def connect_tcp(self, host: str, port: int, timeout: float | None = None, **options: Any) -> Any:
            error: Exception | None = None
            for address in await checked_addresses(host, policy, resolver):
                try:
                    return await plain.connect_tcp(str(address), port, timeout=timeout, **options)
                except (core.ConnectError, core.ConnectTimeout) as failed:
                    error = failed
            raise error or FetchError(f"The host {host!r} has no address.")

        async def connect_unix_socket(self, path: str, **_: Any) -> Any:
            raise FetchDeniedError("Local sockets are not opened.")

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(seconds)

    return CheckedBackend()


async def checked_addresses(host: str, policy: FetchPolicy, resolver: Resolver) -> list[Address]:
    """The addresses of a host, all of which may be connected to.

    Raises:
        FetchDeniedError: one of them may not. A name that mixes public and private addresses is refused whole.
        FetchError: there is none.
    """
    literal = parse_literal(host)
    addresses = [literal] if literal is not None else await resolver(host)
    if not addresses:
        raise FetchError(f"The host {host!r} was not found.")
    if not policy.is_private_allowed and not all(is_public(address) for address in addresses):
        raise FetchDeniedError(f"The host {host!r} does not lead to a public address.")
    return addresses
