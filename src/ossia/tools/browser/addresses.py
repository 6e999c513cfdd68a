"""Which network addresses a page may be fetched from: public ones, unless more is allowed."""

from __future__ import annotations

import ipaddress
import re
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LEGACY_FORM = re.compile(r"[0-9a-fx.]+", re.IGNORECASE)


def parse_literal(host: str) -> Address | None:
    """The address that a host name spells, or None for a real name.

    The C library's old forms count as well: `2130706433`, `0x7f.1` and `0177.0.0.1` are all 127.0.0.1.
    """
    text = host.strip("[]").partition("%")[0]
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        pass
    # A name of hexadecimal letters needs a digit in its last part to be a number: `cafe.de` is a name.
    last = text.rstrip(".").rpartition(".")[2]
    if _LEGACY_FORM.fullmatch(text) and last[:1].isdigit():
        try:
            return ipaddress.IPv4Address(socket.inet_aton(text.rstrip(".")))
        except OSError:
            return None
    return None


def is_public(address: Address) -> bool:
    """Whether an address is one of the public internet, also by what it embeds.

    IPv4 inside of IPv6 (mapped, compatible, 6to4, Teredo, NAT64) counts as that IPv4 address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return False
        inner = embedded_ipv4(address)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (
        address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    )


def embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that traffic to this address ends at, if it embeds one."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    value = int(address)
    if address in _NAT64 or (value >> 32 == 0 and value > 1):
        return ipaddress.IPv4Address(value & 0xFFFFFFFF)
    return None
