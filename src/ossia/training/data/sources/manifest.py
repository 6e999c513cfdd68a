"""The manifest: which texts, under which licences, through which filters. A TOML or JSON file.

    name = "stories"

    [filters]
    languages = ["en"]

    [[sources]]
    name = "stories"
    path = "corpora/stories-*.jsonl.xz"
    license = "CC-BY-4.0"
    origin = "https://www.africanstorybook.org"
    credit = "author"

Paths are relative to the manifest's folder.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError

FORMATS = ("auto", "jsonl", "parquet", "text", "html")
EXTRACTIONS = ("auto", "none", "prose", "html")
QUALITY_RULES = ("gopher", "gopher_repetition", "c4", "fineweb")
SCRUBS = ("email", "phone", "ip", "card", "iban", "national_id")


def _check_names(values: tuple[str, ...], allowed: tuple[str, ...], *, param: str) -> None:
    if unknown := [value for value in values if value not in allowed]:
        raise InvalidInputError(
            f"{param} may name {', '.join(allowed)}; got {', '.join(map(repr, unknown))}", param=param
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One source of text.

    Attributes:
        name: unique within the manifest.
        path: a file or a glob pattern.
        license: SPDX identifier, or words.
        origin: where it was taken from, an address.
        format: how files are read; "auto" asks their names. `.gz`, `.xz`, `.bz2` and `.zst` are unpacked.
        text: fields of a row that make its text, joined by newlines.
        credit: field of a row that says whom to name.
        extract: "none" takes the text as it is, "prose" keeps the prose paragraphs of plain text, Markdown and
            reStructuredText, "html" those of a page; "auto" is "html" and "prose" for such files, "none" for rows.
        quality: rules of `quality.py` for this source, instead of the manifest's.
        share: part of the tokens of one pass over the mix; for all sources or for none.
        epochs: how often a document may come in one pass.
        max_documents: read at most so many.
        note: anything a reader of the data card should know.
    """

    name: str
    path: str
    license: str
    origin: str
    format: str = "auto"
    text: tuple[str, ...] = ("text",)
    credit: str | None = None
    extract: str = "auto"
    quality: tuple[str, ...] | None = None
    share: float | None = None
    epochs: float = 1.0
    max_documents: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "path", "license", "origin"):
            if not getattr(self, field).strip():
                raise InvalidInputError(f"a source's {field} must not be empty", param=f"sources.{field}")
        if self.name != Path(self.name).name:
            raise InvalidInputError(f"a source's name is a plain word, got {self.name!r}", param="sources.name")
        _check_names((self.format,), FORMATS, param="sources.format")
        _check_names((self.extract,), EXTRACTIONS, param="sources.extract")
        _check_names(self.quality or (), QUALITY_RULES, param="sources.quality")
        if not self.text:
            raise InvalidInputError(f"source {self.name} names no text field", param="sources.text")
        if self.share is not None and not self.share > 0:
            raise InvalidInputError(f"the share of {self.name} must be above 0, got {self.share}", param="share")
        if not self.epochs > 0:
            raise InvalidInputError(f"the epochs of {self.name} must be above 0, got {self.epochs}", param="epochs")
        if self.max_documents is not None and self.max_documents < 1:
            raise InvalidInputError(f"max_documents of {self.name} must be at least 1", param="max_documents")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """What is dropped and what is replaced.

    Attributes:
        languages: ISO 639-1 codes to keep; empty keeps all.
        language_confidence: how probable the language must be. A text of fewer than 20 words is not judged.
        quality: rules of `quality.py`.
        scrub: kinds of personal data to replace by placeholders.
        phone_regions: countries whose national phone numbers are known, beside international ones.
        decontaminate: files (JSONL or text) of evaluation texts.
        held_out_problems: how many held-out problems a task of `ossia.tasks` to decontaminate against.
        ngram: words in a row that must not be shared with an evaluation text.
        hazard: whether the filter for chemical, biological, radiological and nuclear hazards runs.
        hazard_threshold: probability at which a passage is dropped; None for the classifier's own.
        hazard_terms: keywords of yours, which join those that make a passage be judged.
        near_duplicates: Jaccard similarity of word 5-grams above which the later document is dropped; 0 keeps them.
    """

    languages: tuple[str, ...] = ("en",)
    language_confidence: float = 0.5
    quality: tuple[str, ...] = ("gopher", "gopher_repetition", "c4")
    scrub: tuple[str, ...] = SCRUBS
    phone_regions: tuple[str, ...] = ("US", "GB")
    decontaminate: tuple[str, ...] = ()
    held_out_problems: int = 1000
    ngram: int = 13
    hazard: bool = True
    hazard_threshold: float | None = None
    hazard_terms: tuple[str, ...] = ()
    near_duplicates: float = 0.7

    def __post_init__(self) -> None:
        _check_names(self.quality, QUALITY_RULES, param="filters.quality")
        _check_names(self.scrub, SCRUBS, param="filters.scrub")
        for field in ("language_confidence", "near_duplicates"):
            if not 0 <= getattr(self, field) <= 1:
                raise InvalidInputError(
                    f"filters.{field} lies between 0 and 1, got {getattr(self, field)}", param=field
                )
        if self.hazard_threshold is not None and not 0 < self.hazard_threshold < 1:
            raise InvalidInputError("filters.hazard_threshold lies between 0 and 1", param="hazard_threshold")
        if self.ngram < 2 or self.held_out_problems < 0:
            raise InvalidInputError("filters.ngram is at least 2 and held_out_problems at least 0", param="ngram")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A whole manifest.

    Attributes:
        name: of the corpus, for its card.
        folder: what paths are relative to.
        description: first paragraph of the card.
        tokenizer: "o200k_harmony", "nano", or a folder with tokenizer.json; without one no shards are written.
    """

    name: str
    folder: Path
    sources: tuple[Source, ...]
    filters: FilterConfig = FilterConfig()
    description: str = ""
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        names = [source.name for source in self.sources]
        if not names:
            raise InvalidInputError("the manifest has no [[sources]]", param="sources")
        if doubled := {name for name in names if names.count(name) > 1}:
            raise InvalidInputError(f"two sources are named {', '.join(sorted(doubled))}", param="sources.name")
        shares = [source.share is not None for source in self.sources]
        if any(shares) and not all(shares):
            raise InvalidInputError("give every source a share, or none", param="share")

    def to_dict(self) -> dict[str, Any]:
        """As JSON types, without the folder, which is nobody's business."""
        record = dataclasses.asdict(self)
        del record["folder"]
        return record


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Raises:
        InvalidInputError: it is absent, is neither TOML nor JSON, or says something that cannot be.
    """
    if not path.is_file():
        raise InvalidInputError(f"there is no manifest {path}; docs/data.md shows one", param="manifest")
    try:
        text = path.read_text(encoding="utf-8")
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is no manifest: {error}", param="manifest") from error
    return parse_manifest(raw, folder=path.parent, default_name=path.stem)


def parse_manifest(raw: object, *, folder: Path, default_name: str = "corpus") -> Manifest:
    """A manifest from the tables of its file.

    Raises:
        InvalidInputError: a key is unknown or a value cannot be.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInputError("a manifest is a table with [[sources]]", param="manifest")
    known = {"name", "description", "tokenizer", "filters", "sources"}
    if unknown := set(raw) - known:
        raise InvalidInputError(
            f"unknown key in the manifest: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}",
            param="manifest",
        )
    sources = raw.get("sources", [])
    if not isinstance(sources, list | tuple):
        raise InvalidInputError("sources are a list of tables: [[sources]]", param="sources")
    texts = {key: raw.get(key, default) for key, default in (("name", default_name), ("description", ""))}
    tokenizer = raw.get("tokenizer")
    if not all(isinstance(value, str) for value in (*texts.values(), tokenizer or "")):
        raise InvalidInputError("name, description and tokenizer of a manifest are strings", param="manifest")
    return Manifest(
        **texts,
        tokenizer=tokenizer,
        folder=folder,
        filters=build_config(FilterConfig, raw.get("filters", {}), section="filters"),
        sources=tuple(build_config(Source, source, section="sources") for source in sources),
    )
