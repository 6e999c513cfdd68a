from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.training.data.sources.manifest import Source
from ossia.training.data.sources.mixture import plan_mixture


def source(name: str, **changes: float) -> Source:
    return Source(name=name, path="*", license="MIT", origin="x", **changes)  # pyright: ignore[reportArgumentType]


sizes = st.lists(st.tuples(st.integers(1, 10**9), st.floats(0.01, 1), st.floats(0.1, 10)), min_size=1, max_size=6)


@given(sizes)
def test_shares_hold_and_no_cap_is_passed(parts: list[tuple[int, float, float]]) -> None:
    sources = [source(str(i), share=share, epochs=epochs) for i, (_, share, epochs) in enumerate(parts)]
    tokens = {str(i): count for i, (count, _, _) in enumerate(parts)}
    mixture = plan_mixture(sources, tokens=tokens)
    total = sum(share for _, share, _ in parts)
    drawn = {name: mixture.repeats[name] * tokens[name] for name in tokens}
    for item in sources:
        assert item.share is not None
        assert drawn[item.name] / sum(drawn.values()) == pytest.approx(item.share / total)
        assert mixture.repeats[item.name] <= item.epochs * (1 + 1e-9)
    assert mixture.limited_by is not None
    limit = next(item for item in sources if item.name == mixture.limited_by)
    assert mixture.repeats[limit.name] == pytest.approx(limit.epochs)
    assert mixture.tokens == pytest.approx(sum(drawn.values()), abs=1)


def test_without_shares_each_comes_as_often_as_it_may() -> None:
    mixture = plan_mixture([source("a"), source("b", epochs=2.5)], tokens={"a": 100, "b": 10})
    assert mixture == ({"a": 1.0, "b": 2.5}, 125, None)


def test_a_source_of_which_nothing_is_left() -> None:
    sources = [source("a", share=0.5), source("b", share=0.25), source("c", share=0.25)]
    mixture = plan_mixture(sources, tokens={"a": 200, "b": 200, "c": 0})
    assert mixture.repeats == pytest.approx({"a": 1.0, "b": 0.5})
    assert plan_mixture(sources, tokens={}) == ({}, 0, None)
