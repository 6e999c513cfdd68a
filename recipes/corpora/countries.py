"""The World Factbook as prose: what is a sentence there stays, and short entries become sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PASSAGES = (
    ("Introduction", "Background"),
    ("People and Society", "Demographic profile"),
    ("Economy", "Economy - overview"),
)
"""Entries that are written in sentences."""

SENTENCES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("Government", "Capital", "name"), "The capital of {country} is {value}."),
    (("Geography", "Location"), "{country} lies in {value}."),
    (("Geography", "Area", "total"), "Its area is {value}."),
    (("Geography", "Area - comparative"), "It is {value}."),
    (("Geography", "Land boundaries", "border countries"), "Its neighbours are {names}."),
    (("Geography", "Climate"), "The climate of {country} is {value}."),
    (("Geography", "Terrain"), "The land is {value}."),
    (("Geography", "Elevation extremes", "highest point"), "Its highest point is {value}."),
    (("Geography", "Natural resources"), "Its natural resources are {value}."),
    (("Geography", "Natural hazards"), "Its natural hazards are {value}."),
    (("People and Society", "Population"), "In 2015 the population of {country} was {value}."),
    (("People and Society", "Nationality", "adjective"), "What comes from {country} is called {value}."),
    (("People and Society", "Languages"), "The languages of {country} are {value}."),
    (("Government", "Independence"), "The date of its independence is {value}."),
    (("Government", "Flag description"), "Its flag has {value}."),
    (("Economy", "Agriculture - products"), "Its farms produce {value}."),
    (("Economy", "Industries"), "Its industries are {value}."),
    (("Economy", "Exports - commodities"), "It exports {value}."),
)


def countries(folder: Path) -> Iterator[dict[str, str]]:
    """A document a country: its passages, then its facts as sentences."""
    for path in sorted(folder.glob("package/*/*.json")):
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        text = describe(record)
        if text:
            yield {"text": text}


def describe(record: Mapping[str, Any]) -> str:
    """A country in prose; empty if the record has no name to call it by."""
    name = country_name(record)
    if name is None:
        return ""
    passages = [_tidy(value) for path in PASSAGES if (value := _value(record, path))]
    sentences: list[str] = []
    for path, pattern in SENTENCES:
        value = _value(record, path)
        if not value:
            continue
        value = re.sub(r"\s*\((?:\d{4}|(?:January |July )?\d{4} est\.)\)", "", _tidy(value.split(" ++ ")[0])).strip(
            " ;."
        )
        if not value:
            continue
        names = _listed(re.findall(r"[A-Z][A-Za-z'. -]*[A-Za-z]", re.sub(r"\([^)]*\)", "", value)))
        value = value if value[:2].isupper() or path[-1] in ("name", "Location") else value[0].lower() + value[1:]
        value = _keep_names(value, path)
        sentences.append(pattern.format(country=name, value=value, names=names))
    return "\n\n".join([*passages, " ".join(sentences)])


def country_name(record: Mapping[str, Any]) -> str | None:
    """The usual short name of a country."""
    for field in ("conventional short form", "conventional long form"):
        name = _value(record, ("Government", "Country name", field))
        if name and name.lower() != "none":
            return re.sub(r"\s*\(.*", "", name).split(";")[0].strip().removeprefix("the ").strip()
    return None


def _value(record: Mapping[str, Any], path: tuple[str, ...]) -> str | None:
    found: Any = record
    for key in path:
        if not isinstance(found, Mapping):
            return None
        found = found.get(key)
    text = found.get("text") if isinstance(found, Mapping) else None
    return str(text) if text and str(text).lower() not in ("none", "na") else None


def _tidy(text: str) -> str:
    """One line, and family names as they are written elsewhere: KENNEDY becomes Kennedy."""
    text = " ".join(text.replace(" ++ ", " ").split())
    return re.sub(r"\b([A-Z])([A-Z'-]{3,})\b", lambda found: found[1] + found[2].lower(), text)


def _keep_names(value: str, path: tuple[str, ...]) -> str:
    """A value that begins with a name keeps its capital."""
    return value[0].upper() + value[1:] if path[-1] in ("adjective", "Languages", "highest point") else value


def _listed(names: list[str]) -> str:
    names = [name.strip() for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "the sea only"
