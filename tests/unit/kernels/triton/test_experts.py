"""The experts' kernels against float32 over the unpacked weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError, UnsupportedModelError
from ossia.kernels.experts import ExpertWeights, expert_mlp_torch
from ossia.kernels.gpu.experts import (
    MANY_TOKENS,
    NARROW_TOKENS,
    down_few,
    down_many,
    gate_up_few,
    gate_up_many,
    pack_experts,
    pack_experts_torch,
    padded_columns,
    place_tokens_torch,
)
from ossia.kernels.gpu.routing import RoutingBuffers, norm_and_route, route_many
from ossia.kernels.mxfp4 import Mxfp4, unpack_mxfp4

pytestmark = pytest.mark.slow  # emulated, where there is no GPU
ALPHA, LIMIT = 1.702, 7.0


def random_packed(*shape: int, seed: int) -> Mxfp4:
    """Bytes at random; scales that make weights of about 0.1, one block of them zero."""
    generator = torch.Generator().manual_seed(seed)
    E, R, columns = shape
    blocks = torch.randint(0, 256, (E, R, columns // 32, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(120, 124, (E, R, columns // 32), dtype=torch.uint8, generator=generator)
    scales[0, 0, 0] = 0
    return Mxfp4(blocks, scales)


@pytest.mark.parametrize(("E", "R", "columns"), [(1, 16, 32), (2, 32, 64), (3, 48, 96), (2, 16, 224)])
def test_packing_is_the_reference_layout(device: torch.device, E: int, R: int, columns: int) -> None:
    w = random_packed(E, R, columns, seed=1)
    packed = pack_experts(w.blocks.to(device), scales=w.scales.to(device))
    assert torch.equal(packed.cpu(), pack_experts_torch(w.blocks, scales=w.scales))


def test_packing_refuses_rows_and_scales_that_do_not_fit(device: torch.device) -> None:
    w = random_packed(1, 16, 32, seed=2)
    with pytest.raises(InvalidInputError, match="multiples of 16"):
        pack_experts(w.blocks[:, :8], scales=w.scales[:, :8])
    w.scales[0, 3, 0] = 255
    with pytest.raises(UnsupportedModelError, match="255"):
        pack_experts(w.blocks, scales=w.scales)


def routed(x: Tensor, *, E: int, A: int, tile_size: int, seed: int) -> RoutingBuffers:
    """Routing of x by random weights."""
    T, D = x.shape
    generator = torch.Generator().manual_seed(seed)
    out = RoutingBuffers(num_tokens=T, num_experts=E, num_active=A, tile_size=tile_size, device=x.device)
    weight = torch.randn(E, D, generator=generator).to(x)
    norm, bias = torch.ones(D).to(x), torch.zeros(E).to(x)
    norm_and_route(x, norm=norm, eps=1e-5, weight=weight, bias=bias, out=out, normed=x.new_empty(T, padded_columns(D)))
    return out


@pytest.mark.parametrize(
    ("T", "E", "A", "D", "F", "tile_size", "splits"),
    [
        (1, 4, 4, 64, 32, 8, 1),
        (1, 8, 2, 96, 64, 8, 2),
        (3, 5, 2, 224, 96, 8, 1),
        (8, 4, 3, 160, 64, 8, 2),
        (13, 4, 2, 96, 64, 8, 1),
        (40, 3, 2, 64, 32, 8, 2),
        (29, 2, 2, 64, 64, 8, 1),  # several tiles an expert
    ],
)
def test_experts_match_float32(
    device: torch.device, T: int, E: int, A: int, D: int, F: int, tile_size: int, splits: int
) -> None:
    generator = torch.Generator().manual_seed(T * 100 + D)
    x = torch.randn(T, D, generator=generator).bfloat16()
    gate_up, down = random_packed(E, 2 * F, D, seed=3), random_packed(E, D, F, seed=4)
    gate_up_bias = torch.randn(E, 2 * F, generator=generator).bfloat16()
    down_bias = torch.randn(E, D, generator=generator).bfloat16()

    on = x.to(device)
    routing = routed(on, E=E, A=A, tile_size=tile_size, seed=5)
    packed = [pack_experts(w.blocks.to(device), scales=w.scales.to(device)) for w in (gate_up, down)]
    hidden = torch.full((T * A, padded_columns(F)), float("nan"), dtype=torch.bfloat16, device=device)
    hidden[:, F:] = 0
    placed = place_tokens_torch(on)
    gate_up_few(
        placed, packed=packed[0], bias=gate_up_bias.to(device), routing=routing, alpha=ALPHA, limit=LIMIT, out=hidden
    )
    parts = torch.full((splits, T * A, D), float("nan"), device=device)
    down_few(hidden, packed=packed[1], bias=down_bias.to(device), routing=routing, out=parts)
    by_pair = parts.sum(dim=0)[routing.pair_position.long()[: T * A]].view(T, A, D).sum(dim=1).cpu()

    expected = reference(x, gate_up, gate_up_bias, down, down_bias, routing)
    # One rounding to bfloat16 (the hidden layer): 2^-9 at most for each value, far less for a sum's norm.
    error = (by_pair - expected).norm() / expected.norm()
    assert error < 2e-3, error
    assert (by_pair - expected).abs().max() < 2e-2 * expected.abs().max()


def reference(
    x: Tensor, gate_up: Mxfp4, gate_up_bias: Tensor, down: Mxfp4, down_bias: Tensor, routing: RoutingBuffers
) -> Tensor:
    """float32 [T, D], with the routing that the kernel chose."""
    T, A = x.shape[0], routing.num_active
    wide = ExpertWeights(
        unpack_mxfp4(gate_up.blocks, scales=gate_up.scales, dtype=torch.float32),
        gate_up_bias.float(),
        unpack_mxfp4(down.blocks, scales=down.scales, dtype=torch.float32),
        down_bias.float(),
    )
    indices = routing.pair_expert[: T * A].view(T, A).long().cpu()
    weights = routing.pair_weight.view(T, A).cpu()
    return expert_mlp_torch(x.float(), experts=wide, indices=indices, weights=weights, alpha=ALPHA, limit=LIMIT)


def check_routing(routing: RoutingBuffers, *, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    """The best experts, and each pair once in its expert's tiles."""
    T, A, P = x.shape[0], routing.num_active, routing.num_pairs
    logits = x.float() @ weight.float().T + bias.float()
    top, indices = torch.topk(logits, A, dim=-1)
    assert torch.equal(routing.pair_expert[:P].view(T, A).cpu().long(), indices)
    torch.testing.assert_close(routing.pair_weight.view(T, A).cpu(), torch.softmax(top, dim=-1), rtol=1e-3, atol=1e-4)
    order, position = routing.sorted_pair[:P].cpu().long(), routing.pair_position[:P].cpu().long()
    assert torch.equal(order[position], torch.arange(P))
    seen = 0
    for tile in range(int(routing.num_tiles)):
        begin, count = int(routing.tile_begin[tile]), int(routing.tile_count[tile])
        assert begin == seen
        experts = routing.pair_expert.cpu().long()[order[begin : begin + count]]
        assert bool((experts == int(routing.tile_expert[tile])).all())
        seen += count
    assert seen == P


@pytest.mark.parametrize(
    ("T", "E", "A", "D", "F", "favour", "tile_size"),
    [
        (5, 3, 2, 64, 32, 0.0, MANY_TOKENS),
        (40, 2, 2, 32, 160, 0.0, MANY_TOKENS),  # one half chunk of columns
        (60, 1, 1, 64, 32, 0.0, MANY_TOKENS),
        (90, 2, 1, 96, 64, 90.0, MANY_TOKENS),
        (150, 3, 1, 96, 64, 90.0, MANY_TOKENS),
        (110, 1, 1, 96, 160, 0.0, MANY_TOKENS),  # the last block of rows is half filled
        (70, 2, 2, 160, 32, 0.0, MANY_TOKENS),
        (300, 3, 2, 224, 64, 0.0, MANY_TOKENS),
        (2000, 4, 2, 320, 320, 1.0, MANY_TOKENS),
        (5, 3, 2, 64, 32, 0.0, NARROW_TOKENS),
        (70, 2, 1, 96, 160, 90.0, NARROW_TOKENS),  # tiles of 64 and of 6
        (2000, 4, 2, 320, 320, 1.0, NARROW_TOKENS),
    ],
)
def test_many_tokens_match_float32(
    device: torch.device, T: int, E: int, A: int, D: int, F: int, favour: float, tile_size: int
) -> None:
    if device.type == "cpu" and T * D > 15000:
        pytest.skip("too slow where it is emulated")
    assert_many_tokens_match_float32(device, T=T, E=E, A=A, D=D, F=F, favour=favour, tile_size=tile_size)


def assert_many_tokens_match_float32(
    device: torch.device, *, T: int, E: int, A: int, D: int, F: int, favour: float, tile_size: int
) -> None:
    """`favour`: by how much the first expert's logits are raised."""
    generator = torch.Generator().manual_seed(T * 100 + D)
    x = torch.randn(T, D, generator=generator).bfloat16()
    gate_up, down = random_packed(E, 2 * F, D, seed=3), random_packed(E, D, F, seed=4)
    gate_up_bias = torch.randn(E, 2 * F, generator=generator).bfloat16()
    down_bias = torch.randn(E, D, generator=generator).bfloat16()
    on = x.to(device)
    routing = RoutingBuffers(num_tokens=T, num_experts=E, num_active=A, tile_size=tile_size, device=device)
    weight, bias = torch.randn(E, D, generator=generator).to(on), torch.randn(E, generator=generator).to(on)
    bias[0] += favour
    for _ in range(2):  # the counter must be back at zero
        route_many(on, weight=weight, bias=bias, out=routing)
    check_routing(routing, x=x, weight=weight.cpu(), bias=bias.cpu())
    packed = [pack_experts(w.blocks.to(device), scales=w.scales.to(device)) for w in (gate_up, down)]
    hidden = torch.full((T * A, F), float("nan"), dtype=torch.bfloat16, device=device)
    gate_up_many(
        on, packed=packed[0], bias=gate_up_bias.to(device), routing=routing, alpha=ALPHA, limit=LIMIT, out=hidden
    )
    parts = torch.full((1, T * A, D), float("nan"), dtype=torch.bfloat16, device=device)
    down_many(hidden, packed=packed[1], bias=down_bias.to(device), routing=routing, out=parts)
    by_pair = parts[0].float()[routing.pair_position.long()[: T * A]].view(T, A, D).sum(dim=1).cpu()
    expected = reference(x, gate_up, gate_up_bias, down, down_bias, routing)
    # Two roundings to bfloat16, the hidden layer's and the outputs'.
    error = (by_pair - expected).norm() / expected.norm()
    assert error < 4e-3, error
    assert (by_pair - expected).abs().max() < 2e-2 * expected.abs().max()


def test_a_token_alone_gives_what_it_gives_in_a_batch(device: torch.device) -> None:
    T, E, A, D, F = 6, 4, 2, 96, 64
    x = torch.randn(T, D, generator=torch.Generator().manual_seed(6)).bfloat16().to(device)
    gate_up = random_packed(E, 2 * F, D, seed=7)
    packed = pack_experts(gate_up.blocks.to(device), scales=gate_up.scales.to(device))
    bias = torch.zeros(E, 2 * F, dtype=torch.bfloat16, device=device)

    def hidden_of(rows: Tensor) -> Tensor:
        routing = routed(rows, E=E, A=A, tile_size=8, seed=8)
        out = torch.zeros(rows.shape[0] * A, F, dtype=torch.bfloat16, device=device)
        gate_up_few(
            place_tokens_torch(rows), packed=packed, bias=bias, routing=routing, alpha=ALPHA, limit=LIMIT, out=out
        )
        return out[routing.pair_position[: rows.shape[0] * A].long()].view(-1, A, F)

    together = hidden_of(x)
    for token in range(T):  # a sum's order does not depend on the batch
        assert torch.equal(together[token], hidden_of(x[token : token + 1].contiguous())[0])
