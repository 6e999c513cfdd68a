from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest

from ossia.core.config import build_config
from ossia.core.errors import InvalidInputError


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    number: float
    names: tuple[str, ...] = ()
    pair: tuple[int, int] = (0, 0)
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict[str, float])
    note: str | None = None


def test_a_table_becomes_a_dataclass() -> None:
    raw = {"number": 3, "names": ["a", "b", "c"], "pair": [1, 2], "weights": {"x": 1}, "note": "n"}
    assert build_config(Sample, raw, section="s") == Sample(
        number=3, names=("a", "b", "c"), pair=(1, 2), weights={"x": 1}, note="n"
    )


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "must be a table"),
        ({}, "number"),
        ({"number": True}, "s.number must be of type float"),
        ({"number": 1, "names": "abc"}, "s.names"),
        ({"number": 1, "names": ["a", 2]}, "s.names"),
        ({"number": 1, "pair": [1]}, "s.pair"),
        ({"number": 1, "pair": [1, 2, 3]}, "s.pair"),
        ({"number": 1, "weights": {"x": "y"}}, "s.weights"),
        ({"number": 1, "note": 4}, "s.note"),
        ({"number": 1, "nunber": 4}, r"unknown key in \[s\]: nunber; known are .*number"),
    ],
)
def test_what_does_not_fit(raw: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build_config(Sample, raw, section="s")
