from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ossia.training.loss import IGNORED, RecordingRouter, next_token_loss, top_of_few


def route(*layers: torch.Tensor, num_active: int) -> RecordingRouter:
    router = RecordingRouter()
    for number, logits in enumerate(layers):
        router.select(number, logits, num_active)
    return router


def test_balance_is_one_for_an_even_load() -> None:
    # Token t prefers experts t and t + 1 (mod 4): every expert is chosen equally often, and is as probable as any.
    logits = torch.stack([torch.roll(torch.tensor([3.0, 2.0, 0.0, 0.0]), t) for t in range(8)])
    losses = route(logits, num_active=2).losses()
    assert float(losses.balance) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(losses.loads, torch.full((1, 4), 0.5))


def test_balance_of_a_collapsed_router_is_experts_over_active() -> None:
    logits = torch.zeros(8, 4)
    logits[:, 0] = 50.0
    assert float(route(logits, num_active=1).losses().balance) == pytest.approx(4.0, abs=1e-4)


def test_side_losses_against_plain_loops() -> None:
    torch.manual_seed(0)
    layers = [torch.randn(13, 5, dtype=torch.float64) * 2 for _ in range(3)]
    losses = route(*layers, num_active=2).losses()
    balances: list[float] = []
    zs: list[float] = []
    for number, logits in enumerate(layers):
        rows: list[list[float]] = logits.tolist()
        counts, mass, z = [0.0] * 5, [0.0] * 5, 0.0
        for row in rows:
            total = sum(math.exp(value) for value in row)
            z += math.log(total) ** 2
            for expert in range(5):
                mass[expert] += math.exp(row[expert]) / total
            for expert in sorted(range(5), key=lambda e: -row[e])[:2]:
                counts[expert] += 1
        balances.append(5 / 2 * sum(c / 13 * m / 13 for c, m in zip(counts, mass, strict=True)))
        zs.append(z / 13)
        assert losses.loads[number].tolist() == pytest.approx([count / 13 for count in counts])
    assert float(losses.balance) == pytest.approx(sum(balances) / 3, rel=1e-5)
    assert float(losses.z) == pytest.approx(sum(zs) / 3, rel=1e-5)


def test_gradient_of_balance_takes_load_off_the_full_expert() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 1.0, 0.0], [2.0, 0.0, 1.0]], requires_grad=True)
    route(logits, num_active=1).losses().balance.backward()
    assert logits.grad is not None
    assert (logits.grad[:, 0] > 0).all()  # going downhill lowers the logits of the expert that has every token


def test_weights_are_the_softmax_over_the_chosen() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    indices, weights = RecordingRouter().select(0, logits, 2)
    assert indices.tolist() == [[1, 2]]
    assert weights[0].tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


@given(data=st.data(), num_experts=st.integers(1, 20), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_top_of_few_is_that_of_topk(data: st.DataObject, num_experts: int, dtype: torch.dtype) -> None:
    """Values are few, so that many are equal; of those the first come first."""
    num_active = data.draw(st.integers(1, num_experts))
    row = st.lists(st.integers(-4, 4).map(lambda n: n / 3), min_size=num_experts, max_size=num_experts)
    logits = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=5)), dtype=dtype, requires_grad=True)
    values, indices = top_of_few(logits, num_active)
    in_order = torch.sort(logits, dim=-1, descending=True, stable=True)
    assert torch.equal(values, in_order.values[:, :num_active])
    assert torch.equal(indices, in_order.indices[:, :num_active])
    weights = torch.arange(1, num_active + 1).to(dtype)
    (values * weights).sum().backward()
    expected = torch.zeros_like(logits).scatter(1, indices, weights.expand(len(logits), -1))
    assert torch.equal(logits.grad, expected)


def test_the_top_of_numbers_that_are_none_are_experts_that_exist() -> None:
    """So that a step that breaks is left out, and not ended by an index out of range."""
    logits = torch.tensor([[math.nan] * 3, [-math.inf] * 3, [math.inf, math.nan, 1.0]])
    values, indices = top_of_few(logits, 2)
    assert ((indices >= 0) & (indices < 3)).all()
    assert values[0].isnan().all()


def test_cross_entropy_skips_ignored_targets() -> None:
    torch.manual_seed(1)
    logits = torch.randn(4, 6)
    targets = torch.tensor([2, IGNORED, 5, IGNORED])
    expected = [
        math.log(sum(math.exp(x) for x in logits[row].tolist())) - float(logits[row, target])
        for row, target in ((0, 2), (2, 5))
    ]
    assert float(next_token_loss(logits, targets)) == pytest.approx(sum(expected) / 2, rel=1e-5)
    logits[1] += torch.tensor([9.0, 0, 0, 0, 0, 0])  # an ignored row does not matter
    assert float(next_token_loss(logits, targets)) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_weights_make_a_weighted_mean() -> None:
    torch.manual_seed(2)
    logits, targets = torch.randn(4, 6), torch.tensor([2, IGNORED, 5, 0])
    each = [float(next_token_loss(logits[i : i + 1], targets[i : i + 1])) for i in (0, 2, 3)]
    weights = torch.tensor([1.0, 9.0, 0.5, 0.0])  # that of an ignored target does not matter
    expected = (each[0] + 0.5 * each[1]) / 1.5
    assert float(next_token_loss(logits, targets, weights=weights)) == pytest.approx(expected, rel=1e-5)
    even = next_token_loss(logits, targets)
    assert float(next_token_loss(logits, targets, weights=torch.ones(4))) == pytest.approx(float(even), rel=1e-6)
    assert float(next_token_loss(logits, targets, weights=torch.zeros(4))) == 0
    ignored = torch.full((4,), IGNORED)
    assert (
        float(next_token_loss(logits, ignored)) == 0 == float(next_token_loss(logits, ignored, weights=torch.ones(4)))
    )


def test_loss_is_float32_for_bfloat16_logits() -> None:
    loss = next_token_loss(torch.randn(3, 5, dtype=torch.bfloat16), torch.tensor([0, 1, 2]))
    assert loss.dtype == torch.float32
