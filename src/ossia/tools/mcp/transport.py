"""HTTP to MCP servers whose addresses are not trusted: each connection goes to an address that was checked."""

from __future__ import annotations

from typing import Any

from ossia.tools.browser.connect import Resolver, checked_addresses, resolve
from ossia.tools.browser.policy import FetchPolicy
from ossia.tools.extras import need


def make_client(
    *, headers: dict[str, str], timeout_s: float, is_private_allowed: bool, resolver: Resolver = resolve
) -> Any:
    """An HTTP client. Unless private addresses are allowed, every request is checked as a page's would be.

    Names are resolved once and the address that was checked is connected to; TLS still verifies the name.
    """
    http = need("httpx2")
    timeout = http.Timeout(timeout_s, read=max(timeout_s, 300.0))  # a stream of events may be silent for long
    inner = http.AsyncHTTPTransport(trust_env=False)
    if is_private_allowed:
        return http.AsyncClient(headers=headers, timeout=timeout, transport=inner, trust_env=False)
    policy = FetchPolicy()

    class CheckedTransport(http.AsyncBaseTransport):
        async def handle_async_request(self, request: Any) -> Any:
            url = request.url
            policy.check(scheme=url.scheme, host=url.host, port=url.port, has_user=bool(url.userinfo), url=str(url))
            address = (await checked_addresses(url.host, policy, resolver))[0]
            checked = http.Request(
                request.method,
                url.copy_with(host=str(address)),
                headers=request.headers.raw,  # with the name as Host
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": url.host},
            )
            return await inner.handle_async_request(checked)

        async def aclose(self) -> None:
            await inner.aclose()

    return http.AsyncClient(headers=headers, timeout=timeout, transport=CheckedTransport(), trust_env=False)
