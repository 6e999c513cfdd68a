"""The router's kernel against the reference, and the invariants of its list of work."""

from __future__ import annotations

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.kernels.gpu.experts import padded_columns, place_tokens_torch
from ossia.kernels.gpu.routing import RoutingBuffers, norm_and_route, norm_and_route_torch


@pytest.mark.parametrize(
    ("N", "E", "A", "D", "tile_size", "has_update", "is_placed"),
    [
        (1, 4, 4, 64, 8, False, True),
        (1, 32, 4, 96, 8, True, True),
        (5, 128, 4, 320, 8, True, True),
        (33, 9, 3, 96, 64, False, False),
        (3, 8, 2, 3104, 64, True, False),
    ],
)
def test_routing_matches_the_reference(
    device: torch.device, N: int, E: int, A: int, D: int, tile_size: int, has_update: bool, is_placed: bool
) -> None:
    generator = torch.Generator().manual_seed(N + E)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    stream, update, norm, weight, bias = draw(N, D), draw(N, D), draw(D), draw(E, D), draw(E)
    on = [tensor.to(device) for tensor in (stream, update, norm, weight, bias)]
    out = RoutingBuffers(num_tokens=N, num_experts=E, num_active=A, tile_size=tile_size, device=device)
    normed = torch.full((N, padded_columns(D) if is_placed else D), float("nan"), dtype=torch.bfloat16, device=device)
    total = torch.empty_like(on[0])
    for _ in range(2):  # the counters must be back at zero
        norm_and_route(
            on[0],
            norm=on[2],
            eps=1e-5,
            weight=on[3],
            bias=on[4],
            out=out,
            normed=normed,
            update=on[1] if has_update else None,
            total=total if has_update else None,
            is_placed=is_placed,
        )
    summed = stream + update if has_update else stream
    if has_update:
        assert torch.equal(total.cpu(), summed)
    expected, routing = norm_and_route_torch(summed, norm=norm, eps=1e-5, weight=weight, bias=bias, num_active=A)
    # The sum of squares has another order, so a value may round to the other neighbour.
    expected_order = place_tokens_torch(expected) if is_placed else expected
    torch.testing.assert_close(normed.cpu(), expected_order, rtol=2**-7, atol=0)
    torch.testing.assert_close(out.logits.cpu(), routing.logits, rtol=1e-2, atol=0.15)
    _check_choice(out, N=N, E=E, A=A)


def _check_choice(out: RoutingBuffers, *, N: int, E: int, A: int) -> None:
    """Choice and weights follow from the kernel's own logits, and the tiles hold every pair once."""
    logits, P = out.logits.cpu(), N * A
    top, indices = torch.topk(logits, A, dim=-1)
    assert torch.equal(out.pair_expert[:P].view(N, A).cpu().long(), indices)
    torch.testing.assert_close(out.pair_weight.view(N, A).cpu(), torch.softmax(top, dim=-1), rtol=1e-5, atol=1e-6)
    order, position = out.sorted_pair[:P].cpu().long(), out.pair_position[:P].cpu().long()
    assert torch.equal(order[position], torch.arange(P))
    seen = 0
    for tile in range(int(out.num_tiles)):
        begin, count = int(out.tile_begin[tile]), int(out.tile_count[tile])
        assert begin == seen
        assert 0 < count <= out.tile_size
        experts = out.pair_expert.cpu().long()[order[begin : begin + count]]
        assert bool((experts == int(out.tile_expert[tile])).all())
        seen += count
    assert seen == P


def test_equal_logits_go_to_the_first_experts(device: torch.device) -> None:
    out = RoutingBuffers(num_tokens=1, num_experts=40, num_active=4, tile_size=8, device=device)
    stream = torch.ones(1, 64, dtype=torch.bfloat16, device=device)
    weight, bias = torch.zeros(40, 64).to(stream), torch.zeros(40).to(stream)
    norm_and_route(stream, norm=stream[0], eps=1e-5, weight=weight, bias=bias, out=out, normed=torch.empty_like(stream))
    assert out.pair_expert[:4].tolist() == [0, 1, 2, 3]
    assert out.pair_weight.tolist() == [0.25] * 4


def test_too_many_experts_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="256"):
        RoutingBuffers(num_tokens=1, num_experts=300, num_active=4, tile_size=8, device=torch.device("cpu"))
