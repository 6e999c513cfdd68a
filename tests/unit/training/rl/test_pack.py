from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.training.rl.helpers import make_config
from torch import Tensor

from ossia.model.loading import LoadedModel
from ossia.training.rl.learner import Learner
from ossia.training.rl.pack import pack
from ossia.training.rl.replay import ReplayRouter
from ossia.training.rl.trajectory import UNKNOWN, Datum

PADDING = 99


def make_datum(seed: int, size: int, *, has_routing: bool = True) -> Datum:
    rng = np.random.default_rng(seed)
    is_sampled = (False, *(bool(mark) for mark in rng.random(size - 2) < 0.5), True)
    return Datum(
        ids=tuple(int(token) for token in rng.integers(0, 90, size)),
        is_sampled=is_sampled,
        logprobs=tuple(
            -float(value) if mark else 0.0 for value, mark in zip(rng.random(size), is_sampled, strict=True)
        ),
        advantage=float(rng.normal()),
        routing=rng.integers(0, 8, (size - 1, 2, 2)).astype(np.int16) if has_routing else None,
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 90), min_size=1, max_size=12), st.integers(1, 400), st.integers(0, 1000))
def test_every_token_is_once_in_the_rows_and_nothing_else_counts(sizes: list[int], max_tokens: int, seed: int) -> None:
    data = [make_datum(seed + i, size, has_routing=i % 3 != 1) for i, size in enumerate(sizes)]
    found: list[tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...], float]] = []
    for rows in pack(data, max_tokens=max_tokens, padding=PADDING, replay=True):
        B, S = rows.ids.shape
        assert B == 1 or max_tokens >= B * S
        choices = None if rows.choices is None else rows.choices.view(B, S, 2, 2)
        learned = {int(place): i for i, place in enumerate(rows.places)}
        for row in range(B):
            for number in range(int(rows.documents[row, -1]) + 1):
                places = (rows.documents[row] == number).nonzero()[:, 0]
                ids = rows.ids[row, places]
                assert rows.positions[row, places].tolist() == list(range(len(places)))
                own = [learned[row * S + int(place)] for place in places if row * S + int(place) in learned]
                if not own:  # padding
                    assert (ids == PADDING).all()
                    continue
                match = next(d for d in data if d.ids[:-1] == tuple(ids.tolist()))
                if choices is not None:
                    wanted = torch.full((len(ids), 2, 2), UNKNOWN) if match.routing is None else match.routing
                    assert torch.equal(choices[row, places].long(), torch.as_tensor(wanted).long())
                found.append(
                    (
                        tuple(ids.tolist()),
                        tuple(rows.targets[own].tolist()),
                        tuple(rows.engine[own].tolist()),
                        float(rows.advantages[own[0]]),
                    )
                )
    expected = [
        (
            datum.ids[:-1],
            tuple(token for token, mark in zip(datum.ids, datum.is_sampled, strict=True) if mark),
            tuple(float(np.float32(v)) for v, mark in zip(datum.logprobs, datum.is_sampled, strict=True) if mark),
            float(np.float32(datum.advantage)),
        )
        for datum in data
    ]
    assert sorted(found) == sorted(expected)


def test_packed_rows_score_like_single_ones(loaded: LoadedModel) -> None:
    learner = Learner(loaded.model, config=make_config(), padding=PADDING)
    data = [make_datum(i, size) for i, size in enumerate((40, 12, 25, 60, 8))]

    def score(part: list[Datum], *, max_tokens: int) -> dict[tuple[int, ...], Tensor]:
        scored: dict[tuple[int, ...], Tensor] = {}
        for rows in pack(part, max_tokens=max_tokens, padding=PADDING, replay=True):
            logprobs = learner.score(rows).logprobs
            documents = rows.documents.flatten()[rows.places] + 1000 * (rows.places // rows.ids.shape[1])
            for document in documents.unique():
                own = documents == document
                scored[tuple(rows.targets[own].tolist())] = logprobs[own]
        return scored

    together = score(data, max_tokens=1 << 14)
    alone: dict[tuple[int, ...], Tensor] = {}
    for datum in data:
        alone |= score([datum], max_tokens=1)
    assert together.keys() == alone.keys()
    for targets, logprobs in alone.items():
        torch.testing.assert_close(together[targets], logprobs, rtol=0, atol=1e-4)  # sums of ~50 terms in float32


def test_replay_goes_where_it_is_told_with_weights_of_its_own() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]], requires_grad=True)
    choices = torch.tensor([[[3, 1]], [[UNKNOWN, UNKNOWN]]], dtype=torch.int16)
    indices, weights = ReplayRouter(choices).select(0, logits, 2)
    assert indices.tolist() == [[3, 1], [3, 2]]
    torch.testing.assert_close(weights[0], torch.softmax(torch.tensor([0.0, 2.0]), dim=-1))
    torch.testing.assert_close(weights[1], torch.softmax(torch.tensor([3.0, 2.0]), dim=-1))
    weights[0, 0].backward()
    assert logits.grad is not None
    assert logits.grad[0, [1, 3]].abs().min() > 0
    assert logits.grad[0, [0, 2]].abs().max() == 0


def test_without_replay_the_routing_stays_behind() -> None:
    (rows,) = pack([dataclasses.replace(make_datum(1, 9))], max_tokens=64, padding=PADDING, replay=False)
    assert rows.choices is None
