from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ossia.kernels import experts as module
from ossia.kernels.experts import ExpertWeights, expert_mlp, expert_mlp_torch, swiglu
from ossia.kernels.mxfp4 import Mxfp4, pack_mxfp4, unpack_mxfp4

ALPHA, LIMIT = 1.702, 1.5

# Relative to the largest output. Float32: sums of D and F products, each rounded at 2^-24. Bfloat16: gate_up, the
# activation, each expert's output and the result are rounded at 2^-8, and an error in gate_up goes through two sums.
BOUNDS = {torch.float32: 3e-6, torch.bfloat16: 2e-2}

SHAPES = [
    (1, 8, 8, 4, 2),
    (1, 33, 17, 5, 5),
    (2, 64, 32, 16, 4),
    (3, 20, 10, 3, 1),
    (40, 24, 56, 32, 4),
    (7, 9, 3, 6, 6),
    (9, 8, 8, 300, 3),
]
"""T, D, F, E, A"""

Arguments = dict[str, Tensor | ExpertWeights]


def make(T: int, D: int, F: int, E: int, A: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(T * D + F)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    return {
        "x": draw(T, D),
        "gate_up": draw(E, 2 * F, D, scale=1.5 * D**-0.5),  # beyond the clamp often enough
        "gate_up_bias": draw(E, 2 * F),
        "down": draw(E, D, F, scale=F**-0.5),
        "down_bias": draw(E, D),
        "indices": torch.rand(T, E, generator=generator).argsort(dim=-1)[:, :A],
        "weights": torch.rand(T, A, generator=generator).softmax(dim=-1),
    }


def in_float64(given: dict[str, Tensor]) -> Tensor:
    """Token by token, from the equations."""
    wide = {name: value.double() for name, value in given.items() if name != "indices"}
    out = torch.zeros_like(wide["x"])
    for t, chosen in enumerate(given["indices"].tolist()):
        for a, e in enumerate(chosen):
            h = wide["gate_up"][e] @ wide["x"][t] + wide["gate_up_bias"][e]
            gate, up = torch.minimum(h[::2], torch.tensor(LIMIT)), torch.clamp(h[1::2], -LIMIT, LIMIT)
            y = gate / (1 + torch.exp(-ALPHA * gate)) * (up + 1)
            out[t] += wide["weights"][t, a] * (wide["down"][e] @ y + wide["down_bias"][e])
    return out


def call(mlp: Callable[..., Tensor], given: dict[str, Tensor]) -> Tensor:
    experts = ExpertWeights(given["gate_up"], given["gate_up_bias"], given["down"], given["down_bias"])
    return mlp(
        given["x"],
        experts=experts,
        indices=given["indices"],
        weights=given["weights"],
        alpha=ALPHA,
        limit=LIMIT,
    )


def forced(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The public function, but always by one of its ways."""

    def mlp(
        x: Tensor, *, experts: ExpertWeights, indices: Tensor, weights: Tensor, alpha: float, limit: float
    ) -> Tensor:
        return run(x, experts, indices, weights, lambda h: swiglu(h, alpha=alpha, limit=limit))

    return mlp


def in_a_loop(rows: Tensor, weight: Tensor, *, offs: Tensor) -> Tensor:
    """What grouped_mm computes, for sizes that it does not take."""
    starts = [0, *offs.tolist()]
    return torch.cat([rows[a:b] @ weight[e] for e, (a, b) in enumerate(itertools.pairwise(starts))])


WAYS = {
    "picked": expert_mlp,
    "reference": expert_mlp_torch,
    "pairs": forced(module._run_pairs),
    "sorted": forced(module._run_sorted),
    "sorted, no gradients": torch.no_grad()(forced(module._run_sorted)),
    "grouped": forced(module._run_grouped),
}


def error(mlp: Callable[..., Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> float:
    given = make(*shape, dtype)
    got, wanted = call(mlp, given), in_float64(given)
    assert got.dtype == dtype
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def is_aligned(shape: tuple[int, ...]) -> bool:
    return shape[1] % 8 == 0 and shape[2] % 8 == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_way_equals_float64(
    way: str, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "grouped" and not is_aligned(shape):
        monkeypatch.setattr(torch.nn.functional, "grouped_mm", in_a_loop)
    assert error(WAYS[way], shape, dtype) <= BOUNDS[dtype]


@pytest.mark.parametrize("way", WAYS)
def test_no_tokens(way: str) -> None:
    given = make(0, 8, 8, 4, 2, torch.float32)
    if way not in ("pairs", "grouped"):  # never picked for no tokens
        assert call(WAYS[way], given).shape == (0, 8)


@pytest.mark.parametrize("way", ["pairs", "sorted", "grouped", "picked"])
def test_gradients_equal_the_references(way: str) -> None:
    names = ["x", "gate_up", "gate_up_bias", "down", "down_bias", "weights"]
    grads = []
    for mlp in (WAYS[way], expert_mlp_torch):
        given = make(40, 24, 56, 32, 4, torch.float32)
        for name in names:
            given[name].requires_grad_()
        out = call(mlp, given)
        grads.append(torch.autograd.grad((out * torch.arange(24)).sum(), [given[name] for name in names]))
    for name, got, wanted in zip(names, *grads, strict=True):
        assert float((got - wanted).abs().max() / wanted.abs().max()) < 1e-5, name


def test_the_way_for_training_is_picked_and_its_gradients_are_exact() -> None:
    """Against differences of outputs, in float64; the bound is gradcheck's own, made for errors of 1e-6 steps."""
    given = {
        name: value if name == "indices" else value.double()
        for name, value in make(9, 6, 5, 3, 2, torch.float32).items()
    }
    names = ["x", "gate_up", "gate_up_bias", "down", "down_bias", "weights"]

    def run(*values: Tensor) -> Tensor:
        return call(expert_mlp, given | dict(zip(names, values, strict=True)))

    out = run(*(given[name].requires_grad_() for name in names))
    assert "SortPairsBackward" in graph_of(out)
    # The final sum is float32, so steps are large and the bound is loose; the clamp's kinks are away from these values.
    assert torch.autograd.gradcheck(
        run, [given[name] for name in names], eps=1e-3, atol=2e-2, rtol=2e-2, nondet_tol=0.0
    )


def graph_of(tensor: Tensor) -> set[str]:
    """Names of all functions that a tensor came by."""
    names: set[str] = set()
    nodes = [tensor.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(node.name())
            nodes += [child for child, _ in node.next_functions]
    return names


def test_bfloat16_gradients_of_the_grouped_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over some 5 tokens an expert in bfloat16, against float64: a few roundings of 2^-8.

    Without the clamp: beside it, rounding decides whether a value has a gradient at all.
    """
    monkeypatch.setitem(globals(), "LIMIT", 1e3)
    names = ["x", "gate_up", "gate_up_bias", "down", "down_bias"]
    given = {
        name: value.requires_grad_(name in names) for name, value in make(40, 24, 56, 32, 4, torch.bfloat16).items()
    }
    got = torch.autograd.grad(call(WAYS["grouped"], given).float().sum(), [given[name] for name in names])
    wanted = torch.autograd.grad(in_float64(given).sum(), [given[name] for name in names])
    for a, b in zip(got, wanted, strict=True):
        assert float((a.double() - b.double()).abs().max() / b.double().abs().max()) < 3e-2


def test_experts_that_nobody_chose_get_no_gradient() -> None:
    given = make(16, 8, 8, 6, 2, torch.float32)
    given["indices"] = given["indices"] % 2 * 3 + torch.tensor([0, 1])  # experts 0, 3 and 1, 4
    for way in ("sorted", "grouped", "picked"):
        weight = given["gate_up"].clone().requires_grad_()
        call(WAYS[way], given | {"gate_up": weight}).sum().backward()
        assert weight.grad is not None
        assert not weight.grad[[2, 5]].any()
        assert weight.grad[[0, 1, 3, 4]].flatten(1).any(dim=1).all()


def unclamped(x: Tensor, *, limit: float, **rest: object) -> Tensor:
    return expert_mlp(x, limit=1e9, **rest)  # type: ignore[arg-type]


def gate_and_up_in_halves(x: Tensor, *, experts: ExpertWeights, **rest: object) -> Tensor:
    order = torch.arange(experts.gate_up_bias.shape[1]).view(2, -1).T.flatten()
    moved = experts._replace(gate_up=experts.gate_up[:, order], gate_up_bias=experts.gate_up_bias[:, order])  # type: ignore[index]
    return expert_mlp(x, experts=moved, **rest)  # type: ignore[arg-type]


def weights_mixed_up(x: Tensor, *, weights: Tensor, **rest: object) -> Tensor:
    return expert_mlp(x, weights=weights.flip(1), **rest)  # type: ignore[arg-type]


def one_missing(x: Tensor, *, experts: ExpertWeights, **rest: object) -> Tensor:
    """SwiGLU as usual, g * sigmoid(alpha g) * u: the same as up's bias lowered by one, but for the clamp."""
    bias = experts.gate_up_bias.clone()
    bias[:, 1::2] -= 1
    return expert_mlp(x, experts=experts._replace(gate_up_bias=bias), **rest)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [unclamped, gate_and_up_in_halves, weights_mixed_up, one_missing])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_broken_experts_are_noticed(broken: Callable[..., Tensor], dtype: torch.dtype) -> None:
    assert error(broken, (40, 24, 56, 32, 4), dtype) > BOUNDS[dtype]


@pytest.mark.parametrize("T", [1, 2, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_experts_are_the_unpacked_ones(T: int, dtype: torch.dtype) -> None:
    given = make(T, 64, 32, 8, 2, dtype)
    packed = {name: pack_mxfp4(given[name]) for name in ("gate_up", "down")}
    dense = {name: unpack_mxfp4(p.blocks, scales=p.scales, dtype=dtype) for name, p in packed.items()}
    assert torch.equal(call(expert_mlp, given | packed), call(expert_mlp, given | dense))


def test_only_active_experts_are_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    select = Mxfp4.select
    monkeypatch.setattr(Mxfp4, "select", lambda self, index: (seen.append(index), select(self, index))[1])
    given = make(6, 64, 32, 8, 2, torch.float32)
    given["indices"] = torch.tensor([[1, 6]] * 6)
    call(expert_mlp, given | {name: pack_mxfp4(given[name]) for name in ("gate_up", "down")})
    assert sorted(seen) == [1, 1, 6, 6]


def test_swiglu_by_hand() -> None:
    #                 gate 3 (clamped to 1.5), up -9 (to -1.5);  gate -2, up 0.5
    got = swiglu(torch.tensor([[3.0, -9.0, -2.0, 0.5]]), alpha=1.702, limit=1.5)
    wanted = [1.5 / (1 + 2.718281828459045 ** (-1.702 * 1.5)) * -0.5, -2 / (1 + 2.718281828459045 ** (1.702 * 2)) * 1.5]
    assert got[0].tolist() == pytest.approx(wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while tracing
def test_compiled_bfloat16_is_one_graph_and_the_same() -> None:
    names = ["x", "gate_up", "gate_up_bias", "down", "down_bias", "weights"]
    compiled = torch.compile(expert_mlp, fullgraph=True, backend="aot_eager")
    results = []
    for mlp in (compiled, forced(module._run_grouped)):
        given = make(40, 24, 56, 32, 4, torch.bfloat16)
        for name in names:
            given[name].requires_grad_()
        out = call(mlp, given)
        results.append([out, *torch.autograd.grad(out.float().sum(), [given[name] for name in names])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
