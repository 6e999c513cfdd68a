from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.training.rl.helpers import make_trajectory

from ossia.training.rl.trajectory import UNKNOWN, Transition, make_data

Ids = st.lists(st.integers(0, 50), min_size=1, max_size=6).map(tuple)


def turn(prompt: tuple[int, ...], sampled: tuple[int, ...], *, known: int | None = None, mark: int = 0) -> Transition:
    routing = None if known is None else np.full((known, 2, 2), mark, dtype=np.int16)
    return Transition(
        prompt_ids=prompt,
        sampled_ids=sampled,
        logprobs=tuple(-0.1 * (i + 1) for i in range(len(sampled))),
        routing=routing,
    )


def test_turns_that_go_on_are_one_datum_with_tool_results_unlearned() -> None:
    first = turn((1, 2, 3), (4, 5), known=4, mark=1)
    second = turn((1, 2, 3, 4, 5, 6, 7), (8, 9), known=8, mark=2)
    (datum,) = make_data(make_trajectory([first, second]), advantage=0.5)
    assert datum.ids == (1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert [i for i, mark in zip(datum.ids, datum.is_sampled, strict=True) if mark] == [4, 5, 8, 9]
    assert datum.logprobs == (0, 0, 0, -0.1, -0.2, 0, 0, -0.1, -0.2)
    assert datum.advantage == 0.5
    assert datum.routing is not None
    # Of the tokens that both turns had, the first turn's choices count: with those the first turn was sampled.
    assert datum.routing[:, 0, 0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]


def test_a_history_that_was_rewritten_begins_a_new_datum() -> None:
    data = make_data(make_trajectory([turn((1, 2), (3,)), turn((1, 9), (4,))]), advantage=1.0)
    assert [datum.ids for datum in data] == [(1, 2, 3), (1, 9, 4)]
    assert all(datum.routing is None for datum in data)


def test_what_was_not_recorded_is_unknown() -> None:
    (datum,) = make_data(make_trajectory([turn((1, 2), (3, 4, 5), known=3)]), advantage=1.0)
    assert datum.routing is not None
    assert datum.routing[:, 1, 1].tolist() == [0, 0, 0, UNKNOWN]


def test_a_turn_of_nothing_teaches_nothing() -> None:
    assert make_data(make_trajectory([turn((1, 2), ())]), advantage=1.0) == []


@given(st.lists(st.tuples(Ids, Ids), min_size=1, max_size=4))
def test_sampled_ids_are_kept_in_order_whatever_the_turns(parts: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    turns: list[Transition] = []
    history: tuple[int, ...] = ()
    for new, sampled in parts:
        turns.append(turn(history + new, sampled))
        history += new + sampled
    (datum,) = make_data(make_trajectory(turns), advantage=1.0)
    assert datum.ids == history
    assert datum.num_sampled == sum(len(sampled) for _, sampled in parts)
    learned = [token for token, mark in zip(datum.ids, datum.is_sampled, strict=True) if mark]
    assert learned == [token for _, sampled in parts for token in sampled]
