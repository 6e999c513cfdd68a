"""Files of conversations: JSON lines, plain, `.xz` or `.gz`."""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, NamedTuple, cast

from ossia.core.errors import InvalidInputError, OssiaError
from ossia.training.data.chat.rows import ChatRow, read_row

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_OPENERS = {".xz": lzma.open, ".gz": gzip.open}


class BadRowChoice(StrEnum):
    """What a row that is no conversation brings about."""

    STOP = "stop"
    SKIP = "skip"


class BadRow(NamedTuple):
    """A row that was left out, and why."""

    line: int
    reason: str


class GoodRow(NamedTuple):
    """A row and the line that it stands on."""

    line: int
    row: ChatRow


class ChatFile(NamedTuple):
    """What a file holds."""

    path: Path
    rows: tuple[GoodRow, ...]
    skipped: tuple[BadRow, ...]


def read_chat_file(path: str | Path, *, on_error: BadRowChoice = BadRowChoice.STOP) -> ChatFile:
    """Read all conversations of a file; blank lines are passed over.

    Raises:
        InvalidInputError: the file is absent, cannot be unpacked, or holds no conversation; or, with STOP, a row is
            none, with its line number and the reason.
    """
    path = Path(path)
    rows: list[GoodRow] = []
    skipped: list[BadRow] = []
    for item in scan_chat_file(path):
        if isinstance(item, GoodRow):
            rows.append(item)
        elif on_error is BadRowChoice.SKIP:
            skipped.append(item)
        else:
            raise InvalidInputError(
                f"{path}, line {item.line}: {item.reason}. Mend the row, or leave such rows out with --on-error skip",
                param="data",
            )
    if not rows:
        first = (
            f"; line {skipped[0].line}, the first of {len(skipped)} left out: {skipped[0].reason}" if skipped else ""
        )
        raise InvalidInputError(f"{path} holds no conversation to learn{first}", param="data")
    return ChatFile(path, tuple(rows), tuple(skipped))


def scan_chat_file(path: Path) -> Iterator[GoodRow | BadRow]:
    """Each row in turn, good or bad.

    Raises:
        InvalidInputError: the file is absent or cannot be unpacked.
    """
    if not path.is_file():
        raise InvalidInputError(f"{path} is no file; give a file of JSON lines, a conversation each", param="data")
    opener = _OPENERS.get(path.suffix, open)
    try:
        with cast("IO[bytes]", opener(path, "rb")) as lines:
            for number, line in enumerate(lines, start=1):
                text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                if text.strip():
                    yield _read_line(text, number)
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise InvalidInputError(f"{path} cannot be read: {error}", param="data") from error


def _read_line(line: bytes, number: int) -> GoodRow | BadRow:
    try:
        data = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        hint = "; a file holds one JSON object a line, not one array" if line.lstrip()[:1] == b"[" else ""
        return BadRow(number, f"no JSON: {error}{hint}")
    try:
        return GoodRow(number, read_row(data))
    except OssiaError as error:
        return BadRow(number, str(error))
