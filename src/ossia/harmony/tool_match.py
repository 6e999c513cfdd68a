"""Where a tool's name ends in a header: the declared tools decide, since models glue words to names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

# Built-in tools whose recipients carry no namespace of ours; every other name without a dot is a function's.
_WITHOUT_NAMESPACE = frozenset({"python", "browser", "container"})
_GLUED_WORD = re.compile(r"(?:json|code|text|analysis|commentary|final)\b")
_PLAIN_NAME = re.compile(r"[^\s{]*")


class NameReading(NamedTuple):
    """A recipient, the text behind it, and whether only the declared tools explain it."""

    recipient: str
    rest: str
    is_matched: bool


class ToolNames:
    """The tools that a model may call, as recipients: `functions.get_weather`, `browser.search`, `python`.

    A bare `get_weather` declares `functions.get_weather`.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        recipients = [
            name if "." in name or name in _WITHOUT_NAMESPACE else f"functions.{name}" for name in names if name
        ]
        spellings = {recipient: recipient for recipient in recipients}
        # A bare name means the function of that name before any other tool's.
        for recipient in sorted(recipients, key=lambda name: not name.startswith("functions.")):
            spellings.setdefault(recipient.partition(".")[2] or recipient, recipient)
        self._recipients = frozenset(recipients)
        self._spellings = dict(sorted(spellings.items(), key=lambda item: -len(item[0])))

    def __contains__(self, recipient: object) -> bool:
        return recipient in self._recipients

    def knows(self, name: str) -> bool:
        """Whether this is a declared tool, written in full or bare."""
        return name in self._spellings

    def read(self, text: str) -> NameReading:
        """Reads the recipient that opens `text`, which follows `to=`.

        The longest declared name counts, spaces included, if it ends where a name can end. Otherwise the name goes
        to the first white space or brace, and may be empty.
        """
        plain = _PLAIN_NAME.match(text)
        assert plain is not None
        for spelling, recipient in self._spellings.items():
            if text.startswith(spelling) and _is_boundary(text[len(spelling) :]):
                return NameReading(recipient, text[len(spelling) :], recipient != plain.group())
        return NameReading(plain.group(), text[plain.end() :], False)


def _is_boundary(rest: str) -> bool:
    return not rest or not (rest[0].isalnum() or rest[0] in "_.-") or _GLUED_WORD.match(rest) is not None
