"""The V4A patch format: what the models write to add, update, move and delete files.

    *** Begin Patch
    *** Update File: src/app.py
    *** Move to: src/main.py
    @@ def greet():
     context
    -old
    +new
    *** End Patch

Reading and applying are pure: texts in, texts out. `apply_patch.py` beside this file does the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ossia.tools.base import FailureKind, ToolError

BEGIN, END = "*** Begin Patch", "*** End Patch"
_ADD, _DELETE, _UPDATE, _MOVE = "*** Add File: ", "*** Delete File: ", "*** Update File: ", "*** Move to: "
_END_OF_FILE = "*** End of File"


class PatchError(ToolError):
    """A patch that cannot be read or does not fit; nothing was changed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, kind=FailureKind.INVALID_ARGUMENTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunk:
    """One change.

    Attributes:
        anchors: lines behind `@@`, each to be found before the change, in order.
        old: context and removed lines.
        new: context and added lines.
        is_at_end: the change touches the file's last line.
        line: where the hunk stands in the patch, for messages.
    """

    anchors: tuple[str, ...] = ()
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    is_at_end: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AddFile:
    """A new file."""

    path: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFile:
    """A file to remove."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateFile:
    """Changes to a file, and perhaps a new place for it."""

    path: str
    hunks: tuple[Hunk, ...]
    move_to: str | None = None


Operation = AddFile | DeleteFile | UpdateFile


def parse_patch(text: str) -> tuple[Operation, ...]:
    """Reads a patch. White space round it and a code fence or a here-document round it are taken off.

    Raises:
        PatchError: with the line that cannot be read.
    """
    lines = _unwrap(text)
    if not lines or lines[0].strip() != BEGIN:
        raise PatchError(
            f"A patch begins with the line '{BEGIN}'; this one begins with {lines[0][:80] if lines else ''!r}."
        )
    if lines[-1].strip() != END:
        raise PatchError(f"A patch ends with the line '{END}'; this one ends with {lines[-1][:80]!r}.")
    operations: list[Operation] = []
    i = 1
    while i < len(lines) - 1:
        line = lines[i]
        if line.startswith(_ADD):
            operation, i = _read_add(lines, i)
        elif line.startswith(_DELETE):
            operation, i = DeleteFile(path=_path(line, _DELETE)), i + 1
        elif line.startswith(_UPDATE):
            operation, i = _read_update(lines, i)
        elif not line.strip():
            i += 1
            continue
        else:
            raise PatchError(
                f"Line {i + 1} of the patch is {line[:80]!r}; here '{_ADD.strip()}', '{_UPDATE.strip()}' or "
                f"'{_DELETE.strip()}' must stand."
            )
        operations.append(operation)
    if not operations:
        raise PatchError("The patch changes no file.")
    return tuple(operations)


def apply_hunks(text: str, hunks: Sequence[Hunk], *, path: str) -> str:
    """The text with all hunks applied, in order. Its line ends (\\n or \\r\\n) and its last line's end stay.

    Raises:
        PatchError: lines that are not there; shows them.
    """
    line_end = "\r\n" if "\r\n" in text else "\n"
    has_last_end = not text or text.endswith("\n")
    lines = text.replace("\r\n", "\n").split("\n")
    if has_last_end:
        lines.pop()
    result: list[str] = []
    done = 0
    for hunk in hunks:
        at = _find_hunk(lines, hunk, done, path=path)
        result += lines[done:at]
        # Context is kept as the file has it, since a loose match may differ in white space.
        result += _merge(lines[at : at + len(hunk.old)], hunk)
        done = at + len(hunk.old)
    result += lines[done:]
    body = line_end.join(result)
    return body + line_end if result and has_last_end else body


def _merge(found: Sequence[str], hunk: Hunk) -> list[str]:
    """The new lines, where lines that are in both are taken from the file."""
    kept: dict[str, list[str]] = {}
    for old, real in zip(hunk.old, found, strict=True):
        kept.setdefault(old, []).append(real)
    return [kept[line].pop(0) if kept.get(line) else line for line in hunk.new]


def _find_hunk(lines: Sequence[str], hunk: Hunk, start: int, *, path: str) -> int:
    for anchor in hunk.anchors:
        at = _find(lines, (anchor,), start)
        if at is None:
            raise PatchError(f"{path}: the line behind '@@' was not found: {anchor!r} (line {hunk.line} of the patch).")
        # The anchor itself may be the first line of the change.
        start = at if hunk.old and _same(hunk.old[0], lines[at]) else at + 1
    if not hunk.old:
        return start if hunk.anchors else len(lines)
    if hunk.is_at_end:
        at = len(lines) - len(hunk.old)
        if at >= start and _find(lines, hunk.old, at) == at:
            return at
    at = _find(lines, hunk.old, start)
    if at is None:
        shown = "\n".join(hunk.old)
        raise PatchError(
            f"{path}: these lines were not found from line {start + 1} on (line {hunk.line} of the patch):\n{shown}"
        )
    return at


def _find(lines: Sequence[str], wanted: Sequence[str], start: int) -> int | None:
    """Where the wanted lines stand: exactly, else but for trailing, else but for leading white space too."""
    last = len(lines) - len(wanted)
    for form in (str, str.rstrip, str.strip):
        target = [form(line) for line in wanted]
        for at in range(start, last + 1):
            if form(lines[at]) == target[0] and all(form(lines[at + i]) == line for i, line in enumerate(target)):
                return at
    return None


def _same(one: str, other: str) -> bool:
    return one.strip() == other.strip()


def _read_add(lines: Sequence[str], i: int) -> tuple[AddFile, int]:
    path = _path(lines[i], _ADD)
    body: list[str] = []
    i += 1
    while i < len(lines) - 1 and not _is_header(lines[i]):
        if not lines[i].startswith("+"):
            raise PatchError(
                f"Line {i + 1} of the patch is {lines[i][:80]!r}; every line of a new file begins with '+'."
            )
        body.append(lines[i][1:])
        i += 1
    return AddFile(path=path, text="".join(f"{line}\n" for line in body)), i


def _read_update(lines: Sequence[str], i: int) -> tuple[UpdateFile, int]:
    path = _path(lines[i], _UPDATE)
    i += 1
    move_to = None
    if i < len(lines) - 1 and lines[i].startswith(_MOVE):
        move_to = _path(lines[i], _MOVE)
        i += 1
    hunks: list[Hunk] = []
    while i < len(lines) - 1 and not _is_header(lines[i]):
        hunk, i = _read_hunk(lines, i)
        if hunk.old or hunk.new:
            hunks.append(hunk)
    if not hunks and move_to is None:
        raise PatchError(f"{path}: the update has no change in it.")
    return UpdateFile(path=path, hunks=tuple(hunks), move_to=move_to), i


def _read_hunk(lines: Sequence[str], i: int) -> tuple[Hunk, int]:
    first = i + 1
    anchors: list[str] = []
    old: list[str] = []
    new: list[str] = []
    is_at_end = False
    while i < len(lines) - 1 and lines[i].startswith("@@"):
        if anchor := lines[i][2:].removesuffix("@@").strip():
            anchors.append(anchor)
        i += 1
    while i < len(lines) - 1 and not _is_header(lines[i]) and not lines[i].startswith("@@"):
        line = lines[i]
        if line.strip() == _END_OF_FILE:
            is_at_end = True
            i += 1
            break
        mark, rest = line[:1], line[1:]
        if mark in ("", " "):  # models leave the blank of an empty context line away
            old.append(rest)
            new.append(rest)
        elif mark == "-":
            old.append(rest)
        elif mark == "+":
            new.append(rest)
        else:
            raise PatchError(f"Line {i + 1} of the patch is {line[:80]!r}; a changed line begins with ' ', '-' or '+'.")
        i += 1
    hunk = Hunk(anchors=tuple(anchors), old=tuple(old), new=tuple(new), is_at_end=is_at_end, line=first)
    return hunk, i


def _is_header(line: str) -> bool:
    return line.startswith((_ADD, _DELETE, _UPDATE))


def _path(line: str, header: str) -> str:
    path = line[len(header) :].strip()
    if not path:
        raise PatchError(f"A path is missing behind '{header.strip()}'.")
    return path


def _unwrap(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").strip("\n").split("\n")
    begin = next((i for i, line in enumerate(lines) if line.strip() == BEGIN), 0)
    end = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].strip() == END), len(lines) - 1)
    # Only what wraps a patch is dropped: a fence, `apply_patch <<'EOF'`, `EOF`, blank lines.
    around = [line.strip() for line in (*lines[:begin], *lines[end + 1 :])]
    if all(not line or line.startswith(("```", "apply_patch", "EOF", "PATCH")) for line in around):
        lines = lines[begin : end + 1]
    return lines
