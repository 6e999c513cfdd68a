"""Where a server may listen."""

from __future__ import annotations

import pytest

from ossia.core.errors import InvalidInputError
from ossia.server.settings import Limits, ReasoningPolicy, ServerSettings, check_exposure, is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *[(host, True) for host in ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]")],
        *[(host, False) for host in ("0.0.0.0", "::", "192.168.1.4", "localhost.evil.example", "")],
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_an_open_server_stays_on_this_machine():
    check_exposure(ServerSettings(), has_keys=False)
    check_exposure(ServerSettings(host="0.0.0.0"), has_keys=True)
    check_exposure(ServerSettings(host="0.0.0.0", allow_open=True), has_keys=False)
    check_exposure(ServerSettings(host="0.0.0.0", requires_key=True), has_keys=False)
    for settings, has_keys in (
        (ServerSettings(host="0.0.0.0"), False),
        (ServerSettings(host="::", requires_key=False), True),
    ):
        with pytest.raises(InvalidInputError, match="--allow-open"):
            check_exposure(settings, has_keys=has_keys)


def test_values_are_checked():
    assert ServerSettings(reasoning="hidden").reasoning is ReasoningPolicy.HIDDEN
    for wrong in ({"port": 70_000}, {"api_keys": ("short",)}, {"ttl_seconds": 0.0}, {"drain_seconds": -1.0}):
        with pytest.raises(InvalidInputError):
            ServerSettings(**wrong)
    with pytest.raises(ValueError, match="loud"):
        ServerSettings(reasoning="loud")
    with pytest.raises(InvalidInputError):
        Limits(max_body_bytes=0)
