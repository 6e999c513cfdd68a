"""Texts that need little: lists of facts, and the stories and word problems that the user brings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from ossia.core.errors import InvalidInputError
from ossia.training.data.sources.files import open_unpacked

FACTS = 8
"""Facts a document."""

_NOT_FOR_ALL = re.compile(
    r"\bsex|\bsuicid|\bdeath|\bkill|\bmurder|\bpenis|\brape|\bporn|\bcondom|\bgenital", re.IGNORECASE
)


def facts(folder: Path) -> Iterator[dict[str, str]]:
    """The safe list of randfacts, eight facts a document, each a sentence with an end."""
    lines = (folder / "randfacts" / "safe.txt").read_text(encoding="utf-8").splitlines()
    kept = [" ".join(line.split()) for line in lines if line.strip() and not _NOT_FOR_ALL.search(line)]
    sentences = [line if line[-1] in '.!?"' else f"{line}." for line in kept]
    for start in range(0, len(sentences), FACTS):
        yield {"text": "\n".join(sentences[start : start + FACTS])}


def stories(path: Path) -> Iterator[dict[str, str]]:
    """JSONL of stories (`text`; `title`, `author` and `translation` if known): whole lines, the title above.

    Raises:
        InvalidInputError: a row has no text (with its line number).
    """
    for number, row in _rows(path):
        if not isinstance(row.get("text"), str):
            raise InvalidInputError(f"{path}, line {number}: a story has a text", param="stories")
        title = str(row.get("title") or "").strip()
        paragraphs = [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", str(row["text"]))]
        credit = " / ".join(str(row[name]) for name in ("author", "translation", "source") if row.get(name))
        text = "\n\n".join(paragraph for paragraph in [title, *paragraphs] if paragraph)
        yield {"text": text, "credit": credit}


def word_problems(path: Path) -> Iterator[dict[str, str]]:
    """JSONL of word problems (`question`, `answer`), without calculator marks `<<1+1=2>>` and with the answer said.

    Raises:
        InvalidInputError: a row has no question or no answer (with its line number).
    """
    for number, row in _rows(path):
        question, answer = row.get("question"), row.get("answer")
        if not (isinstance(question, str) and isinstance(answer, str)):
            raise InvalidInputError(f"{path}, line {number}: expected question and answer", param="word_problems")
        steps, _, result = re.sub(r"<<.*?>>", "", answer).partition("####")
        ending = f"\nThe answer is {result.strip()}." if result.strip() else ""
        yield {"text": f"{question.strip()}\n{steps.strip()}{ending}"}


def _rows(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    with open_unpacked(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InvalidInputError(f"{path}, line {number}: is no JSON ({error})", param="path") from error
                if not isinstance(row, dict):
                    raise InvalidInputError(f"{path}, line {number}: is no object", param="path")
                yield number, row
