"""Typed fields with values, as parameters of functions and entries of records, and ways to say them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ossia.tasks.values import Draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """A field with the value that somebody gave it.

    Attributes:
        kind: which entry of KINDS drew it.
        name: as in the schema, in snake_case.
        schema: its JSON Schema.
        value: what the text says, as JSON.
        said: how a sentence says it: "in Oslo".
        shown: the value as text, for lists like "city: Oslo".
    """

    kind: str
    name: str
    schema: Mapping[str, Any]
    value: Any
    said: str
    shown: str

    @property
    def label(self) -> str:
        """The name as words."""
        return self.name.replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How fields of a kind are drawn.

    Attributes:
        names: with their descriptions.
        ways: to say it, with a place `{v}`.
        draw: the value, its JSON Schema without a description, and its text.
    """

    names: tuple[tuple[str, str], ...]
    ways: tuple[str, ...]
    draw: Draw
