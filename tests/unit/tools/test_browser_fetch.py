"""Fetching: addresses, redirects, rebinding, sizes, times, robots and rates; all against servers on this machine."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.tools.browser.addresses import Address, is_public, parse_literal
from ossia.tools.browser.connect import checked_addresses
from ossia.tools.browser.fetch import Fetcher, RawPage
from ossia.tools.browser.policy import FetchDeniedError, FetchError, FetchPolicy
from ossia.tools.browser.robots import parse_robots

pytest.importorskip("httpx2", reason="the extra ossia[tools] is not installed")
LOOPBACK = ipaddress.ip_address("127.0.0.1")
Answer = Callable[[BaseHTTPRequestHandler], None]


class Site:
    """A server whose answers a test sets by path; it notes what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append(self.path)
                answer = site.answers.get(self.path.partition("?")[0])
                if answer is None:
                    self.send_error(404)
                else:
                    answer(self)

            def log_message(self, *_: object) -> None:
                return

        class Quiet(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # a client that leaves early is what is tested

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self, path: str, body: bytes, **headers: str) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            for name, value in {"Content-Type": "text/plain", **headers}.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(body)))
            handler.end_headers()
            handler.wfile.write(body)

        self.answers[path] = answer

    def redirect(self, path: str, to: str, status: int = 302) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Location", to)
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        self.answers[path] = answer


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def policy(**options: Any) -> FetchPolicy:
    return FetchPolicy(**{"is_private_allowed": True, "min_interval_s": 0.0, "timeout_s": 5.0, **options})


def fetch(url: str, **options: Any) -> RawPage:
    return asyncio.run(Fetcher(policy(**options)).fetch(url))


# ---- addresses ----


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "127.0.0.1.",
        "0", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0xa9fea9fe", "2852039166",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::", "::1", "[::1]", "::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:169.254.169.254", "::127.0.0.1",
        "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "2001:db8::1", "100::1", "64:ff9b:1::1",
        "2001:0:4136:e378:8000:63bf:80ff:fffe",
    ],
)  # fmt: skip
def test_private_addresses_in_every_spelling_are_refused(host: str) -> None:
    address = parse_literal(host)
    assert address is not None
    assert not is_public(address)
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    with pytest.raises(FetchDeniedError):
        asyncio.run(Fetcher().fetch(f"http://{bracketed}/"))


@pytest.mark.parametrize(
    "host", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "134744072"]
)
def test_public_addresses_pass(host: str) -> None:
    address = parse_literal(host)
    assert address is not None
    assert is_public(address)


@pytest.mark.parametrize("host", ["example.com", "cafe.de", "1e100.net", "dead.beef.example", "localhost", "3com.com"])
def test_names_are_no_literals(host: str) -> None:
    assert parse_literal(host) is None


@given(st.ip_addresses(v=4))
def test_mapped_addresses_are_judged_as_what_they_map(address: ipaddress.IPv4Address) -> None:
    mapped = ipaddress.ip_address(f"::ffff:{address}")
    assert is_public(mapped) == is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://example.com/", "gopher://example.com/", "data:text/html,x", "javascript:alert(1)",
        "//example.com/", "example.com", "http://", "http://user:pw@example.com/", "http://example.com:22/",
        "http://example.com:6553600/", "http://exa mple.com/", "http://[::1", "", "http://a" + "a" * 5000,
        "http://example.com\\@127.0.0.1/", "http://127.0.0.1#@example.com/", "http://①②⑦.⓪.⓪.①/",
    ],
)  # fmt: skip
def test_addresses_that_are_never_opened(url: str) -> None:
    async def resolver(host: str) -> list[Address]:
        return [ipaddress.ip_address("127.0.0.1")]

    with pytest.raises(FetchDeniedError):
        asyncio.run(Fetcher(resolver=resolver).fetch(url))


def test_hosts_can_be_allowed_and_blocked() -> None:
    rules = FetchPolicy(allowed_hosts=("example.org",), blocked_hosts=("bad.example.org",))
    for host, is_fine in (
        ("example.org", True),
        ("www.Example.org", True),
        ("notexample.org", False),
        ("x.bad.example.org", False),
    ):
        try:
            rules.check(scheme="https", host=host, port=None, has_user=False, url="")
            assert is_fine
        except FetchDeniedError:
            assert not is_fine


# ---- names ----


def test_a_name_for_a_private_address_is_refused_and_not_contacted(site: Site) -> None:
    async def resolver(host: str) -> list[Address]:
        return [LOOPBACK]

    site.page("/", b"secret")
    fetcher = Fetcher(FetchPolicy(timeout_s=5, is_robots_respected=False), resolver=resolver)
    with pytest.raises(FetchDeniedError, match="public"):
        asyncio.run(fetcher.fetch(f"http://innocent.example:{site.port}/"))
    assert site.asked == []


def test_a_name_that_mixes_public_and_private_addresses_is_refused() -> None:
    async def resolver(host: str) -> list[Address]:
        return [ipaddress.ip_address("8.8.8.8"), LOOPBACK]

    with pytest.raises(FetchDeniedError):
        asyncio.run(checked_addresses("x.example", FetchPolicy(), resolver))


def test_rebinding_gains_nothing(site: Site) -> None:
    """The name is public when asked first and private afterwards; the connection goes where the check looked."""
    site.page("/", b"secret")
    answers = [ipaddress.ip_address("192.0.2.7"), LOOPBACK]
    seen: list[str] = []

    async def resolver(host: str) -> list[Address]:
        seen.append(host)
        return [answers.pop(0) if len(answers) > 1 else answers[0]]

    async def go() -> list[Address]:
        rules = FetchPolicy(is_private_allowed=True, connect_timeout_s=0.3, timeout_s=1, is_robots_respected=False)
        fetcher = Fetcher(rules, resolver=resolver)
        with pytest.raises(FetchError):
            await fetcher.fetch(f"http://rebind.example:{site.port}/")
        return []

    asyncio.run(go())
    assert seen == ["rebind.example"]
    assert site.asked == []


def test_the_name_is_sent_though_the_address_is_connected_to(site: Site) -> None:
    hosts: list[str] = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        hosts.append(handler.headers["Host"])
        handler.send_response(204)
        handler.end_headers()

    site.answers["/"] = answer

    async def resolver(host: str) -> list[Address]:
        return [LOOPBACK]

    asyncio.run(
        Fetcher(policy(is_robots_respected=False), resolver=resolver).fetch(f"http://named.example:{site.port}/")
    )
    assert hosts == [f"named.example:{site.port}"]


# ---- redirects ----


def test_redirects_are_followed_and_the_last_address_is_told(site: Site) -> None:
    site.redirect("/a", "/b", 301)
    site.redirect("/b", f"{site.url}/c?x=1", 307)
    site.page("/c", b"there", Content_Type="text/html; charset=latin-1")
    page = fetch(f"{site.url}/a#part")
    assert (page.url, page.data, page.content_type, page.charset) == (
        f"{site.url}/c?x=1",
        b"there",
        "text/html",
        "latin-1",
    )


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:a9fe:a9fe]/",
        "file:///etc/passwd",
        "http://2130706433/",
        "http://metadata.internal/",
    ],
)
def test_redirects_are_checked_like_first_addresses(site: Site, target: str) -> None:
    """The first hop is let through as a test host; every hop after it is under the real rules."""

    async def resolver(host: str) -> list[Address]:
        return [LOOPBACK] if host == "metadata.internal" else [ipaddress.ip_address("169.254.169.254")]

    site.redirect("/a", target)
    fetcher = Fetcher(FetchPolicy(is_private_allowed=True, is_robots_respected=False, timeout_s=5), resolver=resolver)
    real = fetcher._get

    async def get_then_tighten(parsed: Any, *, max_bytes: int) -> Any:
        found = await real(parsed, max_bytes=max_bytes)
        fetcher.policy = FetchPolicy(is_robots_respected=False, timeout_s=5)
        return found

    fetcher._get = get_then_tighten  # type: ignore[method-assign]  # to see the second hop alone
    with pytest.raises(FetchDeniedError):
        asyncio.run(fetcher.fetch(f"{site.url}/a"))
    assert site.asked == ["/a"]


def test_endless_redirects_end(site: Site) -> None:
    site.redirect("/a", "/a")
    with pytest.raises(FetchError, match="redirects"):
        fetch(f"{site.url}/a", is_robots_respected=False)
    assert len(site.asked) == 6


# ---- sizes and times ----


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_what_is_compressed_is_read_within_the_limit(site: Site, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    site.page("/small", pack(b"x" * 1000), Content_Encoding=encoding)
    site.page("/bomb", pack(bytes(30_000_000)), Content_Encoding=encoding)
    assert fetch(f"{site.url}/small", max_bytes=1000).data == b"x" * 1000
    with pytest.raises(FetchError, match="more than 1000 bytes"):
        fetch(f"{site.url}/bomb", max_bytes=1000)


def test_other_compressions_and_broken_ones_are_refused(site: Site) -> None:
    site.page("/br", b"x", Content_Encoding="br")
    site.page("/broken", b"not gzip", Content_Encoding="gzip")
    for path in ("/br", "/broken"):
        with pytest.raises(FetchError, match="compress"):
            fetch(site.url + path)


def test_a_length_that_never_ends_is_cut(site: Site) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(65_536))
        except OSError:
            return

    site.answers["/endless"] = answer
    with pytest.raises(FetchError, match="more than"):
        fetch(f"{site.url}/endless", max_bytes=200_000)


def test_a_server_that_drips_is_left(site: Site) -> None:
    done = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        try:
            while not done.wait(0.05):
                handler.wfile.write(b"x")
                handler.wfile.flush()
        except OSError:
            return

    site.answers["/drip"] = answer
    with pytest.raises(FetchError, match="did not answer within"):
        fetch(f"{site.url}/drip", timeout_s=0.5)
    done.set()


def test_errors_are_told(site: Site) -> None:
    with pytest.raises(FetchError, match="status 404"):
        fetch(f"{site.url}/nothing")
    with pytest.raises(FetchError, match="cannot be reached"):
        fetch("http://127.0.0.1:9/")


# ---- robots and rates ----


def test_robots_are_respected(site: Site) -> None:
    site.page("/robots.txt", b"User-agent: *\nDisallow: /private\nAllow: /private/open\n")
    for path in ("/fine", "/private/x", "/private/open/x"):
        site.page(path, b"x")
    assert fetch(f"{site.url}/fine").data == b"x"
    assert fetch(f"{site.url}/private/open/x").data == b"x"
    with pytest.raises(FetchDeniedError, match=r"robots\.txt"):
        fetch(f"{site.url}/private/x")
    assert fetch(f"{site.url}/private/x", is_robots_respected=False).data == b"x"


def test_robots_are_asked_once_and_a_failing_site_is_left_alone(site: Site) -> None:
    site.page("/a", b"x")

    async def twice() -> None:
        fetcher = Fetcher(policy())
        await fetcher.fetch(f"{site.url}/a")
        await fetcher.fetch(f"{site.url}/a")

    asyncio.run(twice())
    assert site.asked == ["/robots.txt", "/a", "/a"]
    site.answers["/robots.txt"] = lambda handler: handler.send_error(503)
    with pytest.raises(FetchDeniedError, match=r"robots\.txt"):
        fetch(f"{site.url}/a")


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow:", "/x", True),
        ("User-agent: ossiabrowser\nDisallow: /a\n\nUser-agent: *\nDisallow: /", "/b", True),
        ("User-agent: ossiabrowser\nUser-agent: other\nDisallow: /a", "/a", False),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: *\nDisallow: /*.pdf$", "/x/y.pdf", False),
        ("User-agent: *\nDisallow: /*.pdf$", "/x/y.pdf?z", True),
        ("User-agent: *\nDisallow: /a*b*c", "/a1b2c3", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
        ("User-agent: *\nDisallow: /%7Ejoe", "/~joe/x", False),
        ("# nothing\nnonsense\nDisallow: /", "/x", True),
    ],
)
def test_robots_rules(rules: str, path: str, allowed: bool) -> None:
    assert parse_robots(rules, "OssiaBrowser/1.0").is_allowed(path) is allowed


@given(st.text(max_size=200), st.text(max_size=50))
def test_robots_never_fail(text: str, path: str) -> None:
    allowed = parse_robots(f"User-agent: *\n{text}", "x").is_allowed(f"/{path}")
    assert allowed in (True, False)
    # Rules for others are nobody else's.
    assert parse_robots("User-agent: other\nDisallow: /", "x").is_allowed(f"/{path}")


def test_a_host_is_not_asked_too_often(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("ossia.tools.browser.fetch.asyncio.sleep", sleep)
    fetcher = Fetcher(FetchPolicy(min_interval_s=2, max_wait_s=3), clock=lambda: now[0])

    async def go() -> None:
        await fetcher._wait_for_turn("a", 0)
        await fetcher._wait_for_turn("b", 0)
        await fetcher._wait_for_turn("a", 0)
        now[0] = 103.0
        await fetcher._wait_for_turn("a", 0)
        await fetcher._wait_for_turn("a", 0)
        with pytest.raises(FetchError, match="Too many"):
            await fetcher._wait_for_turn("a", 0)

    asyncio.run(go())
    assert slept == [2.0, 1.0, 3.0]
