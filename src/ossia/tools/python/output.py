"""A kernel's messages of one call, gathered into text and images within bounds."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from ossia.tools.base import ToolFile

MAX_TEXT_CHARS = 20_000
"""What the model is shown of one call: the first and the last part, with a note between."""
MAX_IMAGES = 20
MAX_IMAGE_BYTES = 8 << 20
MAX_FRAMES = 4
MAX_TRACEBACK_CHARS = 4_000

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_IMAGES: Mapping[str, str] = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg", "image/gif": "gif"}


@dataclass(slots=True)
class Output:
    """What a call has printed, shown and raised so far."""

    images: list[ToolFile] = field(default_factory=list[ToolFile])
    has_error: bool = False
    num_dropped: int = 0
    _head: list[str] = field(default_factory=list[str])
    _num_head: int = 0
    _tail: str = ""
    _num_cut: int = 0

    def add(self, kind: str, content: Mapping[str, Any]) -> str:
        """Takes one message of the kernel; gives the text that it adds."""
        if kind == "stream":
            return self._add_text(_clean(content.get("text")))
        if kind in ("execute_result", "display_data"):
            return self._add_data(cast("Mapping[str, Any]", content.get("data") or {}))
        if kind == "error":
            self.has_error = True
            return self._add_text(self._line_start() + cut_traceback(content) + "\n")
        return ""

    @property
    def text(self) -> str:
        """The text so far, cut in its middle."""
        head = "".join(self._head)
        if not self._num_cut:
            return head + self._tail
        return f"{head}\n[... {self._num_cut} characters left out ...]\n{self._tail}"

    def _add_data(self, data: Mapping[str, Any]) -> str:
        for mime, suffix in _IMAGES.items():
            if mime in data:
                note = self._add_image(mime, suffix, data[mime])
                return self._add_text(self._line_start() + note + "\n")
        text = _clean(data.get("text/plain"))
        return self._add_text(self._line_start() + text + "\n") if text else ""

    def _add_image(self, mime: str, suffix: str, value: object) -> str:
        text = "".join(map(str, cast("list[object]", value))) if isinstance(value, list) else str(value)
        try:
            data = text.encode() if suffix == "svg" else base64.b64decode(text, validate=False)
        except (binascii.Error, ValueError):
            return "[image that cannot be decoded]"
        if len(data) > MAX_IMAGE_BYTES or len(self.images) >= MAX_IMAGES:
            self.num_dropped += 1
            return f"[image left out: more than {MAX_IMAGES} images, or {len(data)} bytes]"
        name = f"image_{len(self.images) + 1}.{suffix}"
        self.images.append(ToolFile(name=name, mime_type=mime, size=len(data), data=data))
        return f"[{name}]"

    def _line_start(self) -> str:
        last = self._tail or (self._head[-1] if self._head else "")
        return "" if not last or last.endswith("\n") else "\n"

    def _add_text(self, text: str) -> str:
        half = MAX_TEXT_CHARS // 2
        taken = text[: half - self._num_head]
        if taken:
            self._head.append(taken)
            self._num_head += len(taken)
        self._tail += text[len(taken) :]
        if len(self._tail) > half:
            self._num_cut += len(self._tail) - half
            self._tail = self._tail[-half:]
        return text


def cut_traceback(content: Mapping[str, Any]) -> str:
    """The frames of the program's own cells and the last one, then the error; library frames between are counted."""
    parts = [_clean(part) for part in cast("list[object]", content.get("traceback") or ())]
    error = f"{_clean(content.get('ename'))}: {_clean(content.get('evalue'))}".rstrip(": ")
    if len(parts) < 3:
        return _cut_middle("\n".join(parts).strip() or error, MAX_TRACEBACK_CHARS)
    frames = [part.rstrip() for part in parts[:-1] if part.strip(" -\n") and "Traceback (most recent" not in part]
    is_kept = [frame.startswith(("Cell In", "File /mnt/data/")) or frame is frames[-1] for frame in frames]
    # A recursion has thousands of frames of its own; its ends say enough.
    own = [i for i, keep in enumerate(is_kept) if keep]
    for i in own[MAX_FRAMES // 2 : -MAX_FRAMES // 2] if len(own) > MAX_FRAMES else []:
        is_kept[i] = False
    lines: list[str] = []
    num_skipped = 0
    for frame, keep in zip(frames, is_kept, strict=True):
        if not keep:
            num_skipped += 1
            continue
        if num_skipped:
            lines.append(f"[... {num_skipped} frames left out ...]")
            num_skipped = 0
        lines.append(frame if frame.startswith("Cell In") else _shorten_frame(frame))
    return _cut_middle("\n\n".join((*lines, parts[-1].strip() or error)), MAX_TRACEBACK_CHARS)


def _shorten_frame(frame: str) -> str:
    """A library's frame: where it is, and the line that raised."""
    head, *rest = frame.split("\n")
    return "\n".join([head, *(line for line in rest if line.lstrip().startswith("-"))])


def _cut_middle(text: str, size: int) -> str:
    if len(text) <= size:
        return text
    return f"{text[: size // 2]}\n[...]\n{text[-size // 2 :]}"


def _clean(value: object) -> str:
    """Text without terminal colours, and with what a carriage return overwrote (progress bars) gone."""
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = _ANSI.sub("", value).replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    # Lone surrogates cannot be encoded further on.
    return text.encode("utf-8", "replace").decode("utf-8")
