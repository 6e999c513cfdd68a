"""Dense layers for few tokens against float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ossia.kernels.gpu.linear import linear_float, linear_qkv, linear_residual
from ossia.kernels.gpu.residual import ExpertOutputs, residual_norm, rope_and_store
from ossia.kernels.gpu.routing import RoutingBuffers
from ossia.kernels.rms_norm import rms_norm_torch
from ossia.kernels.rope import RopeTables, apply_rope_torch, rope_frequencies, rope_tables


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(("N", "num_in", "V"), [(1, 32, 16), (1, 864, 40), (5, 96, 200), (8, 256, 17), (2, 2080, 24)])
def test_logits_match_float32(device: torch.device, N: int, num_in: int, V: int) -> None:
    x, weight = draw(N, num_in, seed=1), draw(V, num_in, seed=2)
    out = torch.full((N, V), float("nan"), device=device)
    linear_float(x.to(device), weight=weight.to(device), out=out)
    # bfloat16 products are exact in float32; only the order of the sum differs.
    torch.testing.assert_close(out.cpu(), x.float() @ weight.float().T, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("N", "num_in", "D"), [(1, 64, 32), (3, 800, 48), (8, 128, 18)])
def test_the_residual_is_added_to(device: torch.device, N: int, num_in: int, D: int) -> None:
    x, weight, bias, stream = draw(N, num_in, seed=1), draw(D, num_in, seed=2), draw(D, seed=3), draw(N, D, seed=4)
    out = stream.clone().to(device)
    linear_residual(x.to(device), weight=weight.to(device), bias=bias.to(device), stream=out)
    expected = stream.float() + x.float() @ weight.float().T + bias.float()
    torch.testing.assert_close(out.cpu().float(), expected, rtol=2**-8, atol=2e-3)  # rounded once to bfloat16


@pytest.mark.parametrize(("N", "D", "H", "K", "C"), [(1, 64, 4, 1, 32), (4, 96, 8, 2, 64), (2, 128, 2, 2, 128)])
@pytest.mark.parametrize("is_split", [False, True])
def test_qkv_turns_and_stores(device: torch.device, N: int, D: int, H: int, K: int, C: int, is_split: bool) -> None:
    x, weight, bias = draw(N, D, seed=1), draw((H + 2 * K) * C, D, seed=2), draw((H + 2 * K) * C, seed=3)
    tables = rope_tables(rope_frequencies(C, theta=150000.0, factor=32.0), num_positions=300)
    positions, slots = torch.tensor([299, 0, 7, 130][:N]), torch.tensor([5, 17, 33, 18][:N])
    shape = (3, 16, K, C)
    keys, values = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in range(2))
    q = torch.zeros(N, H, C, dtype=torch.bfloat16, device=device)
    rope = RopeTables(*(table.to(device) for table in tables))
    places = {"positions": positions.to(device), "slot_mapping": slots.to(device), "keys": keys, "values": values}
    product = x.float() @ weight.float().T + bias.float()
    if is_split:  # the product made elsewhere, in bfloat16
        product = product.bfloat16().float()
        qkv = product.bfloat16().to(device)
        rope_and_store(qkv, rope=rope, H=H, **places)
        q = qkv[:, : H * C].view(N, H, C)
    else:
        linear_qkv(x.to(device), weight=weight.to(device), bias=bias.to(device), rope=rope, q=q, **places)

    heads = product.view(N, H + 2 * K, C)
    rows = RopeTables(tables.cos[positions].unsqueeze(1), tables.sin[positions].unsqueeze(1))
    turned = apply_rope_torch(heads[:, : H + K], tables=rows)
    close = {"rtol": 2**-8, "atol": 4e-3}  # rounded once to bfloat16
    torch.testing.assert_close(q.cpu().float(), turned[:, :H], **close)
    torch.testing.assert_close(keys.cpu().float().flatten(0, 1)[slots], turned[:, H:], **close)
    torch.testing.assert_close(values.cpu().float().flatten(0, 1)[slots], heads[:, H + K :], **close)
    untouched = torch.ones(48, dtype=torch.bool)
    untouched[slots] = False
    assert not keys.cpu().flatten(0, 1)[untouched].any()


@pytest.mark.parametrize(("N", "D", "A", "splits"), [(1, 64, 4, 2), (5, 132, 3, 1), (2, 2880, 4, 3)])
def test_the_stream_takes_the_experts_outputs(device: torch.device, N: int, D: int, A: int, splits: int) -> None:
    stream, norm, update = draw(N, D, seed=1), draw(D, seed=2), draw(N, D, seed=3)
    parts = draw(splits, N * A, D, seed=4).float()
    routing = RoutingBuffers(num_tokens=N, num_experts=8, num_active=A, tile_size=8, device=device)
    position = torch.randperm(N * A, generator=torch.Generator().manual_seed(5))
    routing.pair_position[: N * A] = position.to(device)
    base, normed = stream.clone().to(device), torch.empty(N, D, dtype=torch.bfloat16, device=device)
    residual_norm(
        base,
        num_tokens=N,
        norm=norm.to(device),
        eps=1e-5,
        update=update.to(device),
        experts=ExpertOutputs(parts.to(device), routing),
        stream=base,
        normed=normed,
    )
    outputs = parts.sum(dim=0)[position].view(N, A, D).sum(dim=1)
    expected = (stream.float() + update.float() + outputs).bfloat16()
    torch.testing.assert_close(base.cpu(), expected, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(normed.cpu(), rms_norm_torch(base.cpu(), weight=norm, eps=1e-5), rtol=2**-7, atol=0)


@pytest.mark.parametrize(("N", "D", "A"), [(256, 264, 5), (257, 8, 0), (300, 520, 4)])
def test_many_tokens_take_their_experts_outputs(device: torch.device, N: int, D: int, A: int) -> None:
    """With A = 0 there are none, nor an update, nor a norm."""
    stream, norm, update = draw(N, D, seed=1), draw(D, seed=2), draw(N, D, seed=3)
    total = torch.full((N, D), float("nan"), dtype=torch.bfloat16, device=device)
    if A == 0:
        residual_norm(stream.to(device), num_tokens=N, norm=norm.to(device), eps=1e-5, stream=total)
        assert torch.equal(total.cpu(), stream)
        return
    parts = draw(1, N * A, D, seed=4)
    routing = RoutingBuffers(num_tokens=N, num_experts=8, num_active=A, tile_size=8, device=device)
    position = torch.randperm(N * A, generator=torch.Generator().manual_seed(5))
    routing.pair_position[: N * A] = position.to(device)
    normed = torch.full_like(total, float("nan"))
    residual_norm(
        stream.to(device),
        num_tokens=N,
        norm=norm.to(device),
        eps=1e-5,
        update=update.to(device),
        experts=ExpertOutputs(parts.to(device), routing),
        stream=total,
        normed=normed,
    )
    outputs = parts[0].float()[position].view(N, A, D).sum(dim=1)
    expected = (stream.float() + update.float() + outputs).bfloat16()
    torch.testing.assert_close(total.cpu(), expected, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(normed.cpu(), rms_norm_torch(total.cpu(), weight=norm, eps=1e-5), rtol=2**-7, atol=0)


def test_rows_are_taken_by_index(device: torch.device) -> None:
    table, norm = draw(9, 64, seed=1), draw(64, seed=2)
    index = torch.tensor([8, 0, 8])
    normed, stream = (torch.empty(3, 64, dtype=torch.bfloat16, device=device) for _ in range(2))
    residual_norm(
        table.to(device),
        num_tokens=3,
        norm=norm.to(device),
        eps=1e-5,
        index=index.to(device),
        stream=stream,
        normed=normed,
    )
    assert torch.equal(stream.cpu(), table[index])
    expected = rms_norm_torch(table[index], weight=norm, eps=1e-5)
    torch.testing.assert_close(normed.cpu(), expected, rtol=2**-7, atol=0)
