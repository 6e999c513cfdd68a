"""robots.txt (RFC 9309): who may fetch what. The longest matching rule counts, and `allow` wins a tie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

MAX_BYTES = 512 << 10
_MAX_RULES = 5000


@dataclass(frozen=True, slots=True)
class Robots:
    """The rules of one site for one agent.

    Attributes:
        rules: (path pattern, whether it allows).
        delay_s: what `Crawl-delay` asks for, or 0.
    """

    rules: tuple[tuple[str, bool], ...] = ()
    delay_s: float = 0.0

    def is_allowed(self, path: str) -> bool:
        """Whether a path with its query may be fetched."""
        path = _normalize(path)
        best, allowed = -1, True
        for pattern, allows in self.rules:
            if _matches(pattern, path) and (len(pattern) > best or (len(pattern) == best and allows)):
                best, allowed = len(pattern), allows
        return allowed


ALLOW_ALL = Robots()
DENY_ALL = Robots(rules=(("/", False),))


def parse_robots(text: str, agent: str) -> Robots:
    """Reads the groups that name the agent's first word; without one, those for `*`."""
    token = re.split(r"[/\s]", agent, maxsplit=1)[0].lower()
    groups: dict[str, list[tuple[str, bool]]] = {}
    delays: dict[str, float] = {}
    names: list[str] = []
    is_open = False
    num_rules = 0
    for line in text.splitlines():
        key, found, value = line.partition("#")[0].partition(":")
        if not found:
            continue
        key, value = key.strip().lower(), value.strip()
        if key == "user-agent":
            if not is_open:
                names = []
            is_open = True
            names.append(re.split(r"[/\s]", value, maxsplit=1)[0].lower())
            for name in names:
                groups.setdefault(name, [])
        elif key in ("allow", "disallow"):
            is_open = False
            num_rules += 1
            if value and num_rules <= _MAX_RULES:
                for name in names:
                    groups[name].append((_normalize(value), key == "allow"))
        elif key == "crawl-delay":
            is_open = False
            if re.fullmatch(r"\d{1,5}(\.\d{1,3})?", value):
                delays.update(dict.fromkeys(names, float(value)))
    name = token if token in groups else "*"
    return Robots(rules=tuple(groups.get(name, ())), delay_s=delays.get(name, 0.0))


def _matches(pattern: str, path: str) -> bool:
    """`*` stands for anything, `$` at the end for the end. Linear in the path for each part of the pattern."""
    is_anchored = pattern.endswith("$")
    parts = pattern.removesuffix("$").split("*")
    if not path.startswith(parts[0]):
        return False
    at = len(parts[0])
    for i, part in enumerate(parts[1:], 1):
        if is_anchored and i == len(parts) - 1:
            return len(path) - len(part) >= at and path.endswith(part)
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return not is_anchored or at == len(path)


def _normalize(path: str) -> str:
    """One spelling for percent-encoded characters; `*` and `$` keep their meaning."""
    return quote(unquote(path), safe="/*$?&=:@!'(),;+~-._")
