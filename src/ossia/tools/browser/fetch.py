"""Fetching one page within a policy."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ossia.tools.browser.connect import Resolver, make_backend, resolve
from ossia.tools.browser.policy import FetchDeniedError, FetchError, FetchPolicy
from ossia.tools.browser.robots import ALLOW_ALL, DENY_ALL, MAX_BYTES, Robots, parse_robots
from ossia.tools.extras import need

_MAX_URL_CHARS = 4096
_MAX_HOSTS = 1000
_ROBOTS_SECONDS = 3600.0
_MAX_CRAWL_DELAY_S = 10.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_ACCEPT = "text/html,application/xhtml+xml,application/pdf;q=0.9,text/plain;q=0.9,*/*;q=0.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawPage:
    """A page as it came.

    Attributes:
        url: the last address, behind all redirects.
        content_type: lower case, without parameters; empty if none was given.
        charset: from the header, or None.
    """

    url: str
    data: bytes
    content_type: str = ""
    charset: str | None = None


class Fetcher:
    """Fetches pages.

    Args:
        policy: what is allowed.
        resolver: of host names.
        clock: seconds, for rate limits.
    """

    def __init__(
        self,
        policy: FetchPolicy | None = None,
        *,
        resolver: Resolver = resolve,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy or FetchPolicy()
        self._resolver = resolver
        self._clock = clock
        self._next: OrderedDict[str, float] = OrderedDict()
        self._robots: OrderedDict[str, tuple[float, Robots]] = OrderedDict()

    async def fetch(self, url: str) -> RawPage:
        """The page at an address, behind its redirects.

        Raises:
            FetchDeniedError: the policy, the address it leads to, or the site's robots.txt forbids it.
            FetchError: it could not be had: unknown host, no answer in time, an error status, too large.
        """
        try:
            async with asyncio.timeout(self.policy.timeout_s):
                return await self._follow(url)
        except TimeoutError as error:
            raise FetchError(f"{url[:200]} did not answer within {self.policy.timeout_s:g} s.") from error

    async def _follow(self, url: str) -> RawPage:
        for _ in range(self.policy.max_redirects + 1):
            parsed = self._parse(url)
            if self.policy.is_robots_respected:
                robots = await self._robots_of(parsed)
                if not robots.is_allowed(parsed.raw_path.decode("ascii")):
                    raise FetchDeniedError(f"The site's robots.txt forbids to fetch {url[:200]}.")
                delay = min(robots.delay_s, _MAX_CRAWL_DELAY_S)
            else:
                delay = 0.0
            await self._wait_for_turn(parsed.host, delay)
            page = await self._get(parsed, max_bytes=self.policy.max_bytes)
            if isinstance(page, RawPage):
                return page
            url = str(parsed.join(page))
        raise FetchError(f"More than {self.policy.max_redirects} redirects.")

    def _parse(self, url: str) -> Any:
        http = need("httpx2")
        if len(url) > _MAX_URL_CHARS:
            raise FetchDeniedError(f"The address has {len(url)} characters; at most {_MAX_URL_CHARS} are opened.")
        try:
            parsed = http.URL(url.strip()).copy_with(fragment=None)
        except (http.InvalidURL, ValueError, UnicodeError) as error:
            raise FetchDeniedError(f"{url[:200]!r} is no address that can be opened.") from error
        self.policy.check(
            scheme=parsed.scheme, host=parsed.host, port=parsed.port, has_user=bool(parsed.userinfo), url=url
        )
        return parsed

    async def _robots_of(self, parsed: Any) -> Robots:
        """Asked once an hour. A site without the file allows everything; one that fails to answer, nothing."""
        origin = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}"
        known = self._robots.get(origin)
        if known is not None and known[0] > self._clock():
            return known[1]
        url = parsed.copy_with(raw_path=b"/robots.txt")
        robots = ALLOW_ALL
        try:
            for _ in range(self.policy.max_redirects + 1):
                found = await self._get(url, max_bytes=MAX_BYTES)
                if isinstance(found, RawPage):
                    robots = parse_robots(found.data.decode("utf-8", "replace"), self.policy.user_agent)
                    break
                url = self._parse(str(url.join(found)))
        except _StatusError as error:
            robots = DENY_ALL if error.status >= 500 else ALLOW_ALL
        except _TooLargeError:
            robots = ALLOW_ALL
        _remember(self._robots, origin, (self._clock() + _ROBOTS_SECONDS, robots))
        return robots

    async def _wait_for_turn(self, host: str, delay: float) -> None:
        interval = max(self.policy.min_interval_s, delay)
        now = self._clock()
        start = max(self._next.get(host, now), now)
        if start - now > self.policy.max_wait_s:
            raise FetchError(f"Too many requests to {host} at a time; try later.")
        _remember(self._next, host, start + interval)
        if start > now:
            await asyncio.sleep(start - now)

    async def _get(self, parsed: Any, *, max_bytes: int) -> RawPage | str:
        """One request: the page, or where it redirects to."""
        core, http = need("httpcore2", package="httpx2"), need("httpx2")
        timeout = self.policy.connect_timeout_s
        times = {"connect": timeout, "read": self.policy.timeout_s, "write": timeout, "pool": timeout}
        target = core.URL(scheme=parsed.raw_scheme, host=parsed.raw_host, port=parsed.port, target=parsed.raw_path)
        headers = {
            "Host": parsed.netloc.decode("ascii"),
            "User-Agent": self.policy.user_agent,
            "Accept": _ACCEPT,
            "Accept-Encoding": "gzip, deflate",
        }
        try:
            async with (
                core.AsyncConnectionPool(
                    ssl_context=http.create_ssl_context(trust_env=False),
                    network_backend=make_backend(self.policy, self._resolver),
                ) as pool,
                pool.stream("GET", target, headers=headers, extensions={"timeout": times}) as response,
            ):
                fields = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in response.headers}
                if response.status in _REDIRECTS and fields.get("location"):
                    return fields["location"]
                if response.status >= 400:
                    raise _StatusError(str(parsed), response.status)
                data = await _read(response.aiter_stream(), fields, max_bytes=max_bytes)
        except (core.NetworkError, core.ProtocolError, core.TimeoutException, OSError) as error:
            if isinstance(error, TimeoutError) and not isinstance(error, core.TimeoutException):
                raise
            raise FetchError(f"{parsed.host} cannot be reached: {type(error).__name__}.") from error
        content_type, charset = _split_type(fields.get("content-type", ""))
        return RawPage(url=str(parsed), data=data, content_type=content_type, charset=charset)


class _StatusError(FetchError):
    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{url[:200]} answered with the status {status}.")
        self.status = status


class _TooLargeError(FetchError):
    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"The page has more than {max_bytes} bytes.")


async def _read(chunks: AsyncIterator[bytes], fields: Mapping[str, str], *, max_bytes: int) -> bytes:
    """The body, decompressed piece by piece, so that a bomb costs no more than the limit."""
    if fields.get("content-length", "").isdigit() and int(fields["content-length"]) > max_bytes:
        raise _TooLargeError(max_bytes)
    encoding = fields.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)
    elif encoding == "deflate":
        decoder = zlib.decompressobj()
    elif encoding in ("", "identity"):
        decoder = None
    else:
        raise FetchError(f"The page is compressed as {encoding[:40]!r}, which was not asked for.")
    body = bytearray()
    async for chunk in chunks:
        if decoder is None:
            body += chunk
        else:
            try:
                body += decoder.decompress(chunk, max_bytes + 1 - len(body))
            except zlib.error as error:
                raise FetchError("The page's compression is broken.") from error
        if len(body) > max_bytes:
            raise _TooLargeError(max_bytes)
    return bytes(body)


def _split_type(text: str) -> tuple[str, str | None]:
    kind, _, rest = text.partition(";")
    charset = None
    for item in rest.split(";"):
        key, _, value = item.partition("=")
        if key.strip().lower() == "charset":
            charset = value.strip().strip("\"'")[:40] or None
    return kind.strip().lower(), charset


def _remember(table: OrderedDict[str, Any], key: str, value: object) -> None:
    table[key] = value
    table.move_to_end(key)
    while len(table) > _MAX_HOSTS:
        table.popitem(last=False)
