from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ossia.core.errors import TensorMismatchError
from ossia.training.config import OptimizerConfig
from ossia.training.optimizer import MuonAdamW, max_load_ratio, orthogonalize, schedule, split_parameters

# With Muon's coefficients five iterations leave every singular value that starts above about 0.01 of the norm here.
LOWEST, HIGHEST = 0.6, 1.3


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8), (3, 12, 10)])
def test_orthogonalized_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    singular = torch.linspace(0.1, 5.0, left.shape[-1], dtype=torch.float64)
    result = orthogonalize((left * singular) @ right).double()
    values = torch.linalg.svdvals(result)
    assert values.min() > LOWEST
    assert values.max() < HIGHEST
    # The singular vectors stay: in the basis of the input's, the result is diagonal.
    inner = left.mT @ result @ right.mT
    assert (inner - torch.diag_embed(inner.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-4


def test_orthogonalized_in_bfloat16_is_still_near() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(2, 3, 24, 16)
    exact, rough = orthogonalize(matrix, dtype=torch.float64), orthogonalize(matrix, dtype=torch.bfloat16)
    assert (exact.dtype, rough.dtype) == (torch.float64, torch.bfloat16)
    # Five iterations of products rounded at 2^-8.
    assert (rough.double() - exact).norm() / exact.norm() < 0.05
    values = torch.linalg.svdvals(rough.float())
    assert LOWEST - 0.1 < values.min() < values.max() < HIGHEST + 0.1


def test_no_matrices_are_orthogonal() -> None:
    assert orthogonalize(torch.zeros(0, 4, 3)).shape == (0, 4, 3)


def test_orthogonalized_zero_is_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_matrices_inside_layers_go_to_muon() -> None:
    names = [
        "embed_tokens.weight",
        "layers.0.attn.qkv.weight",
        "layers.0.attn.qkv.bias",
        "layers.0.attn.out.weight",
        "layers.0.attn.sinks",
        "layers.0.attn_norm.weight",
        "layers.0.mlp.router.weight",
        "layers.0.mlp.experts.gate_up",
        "layers.0.mlp.experts.gate_up_bias",
        "layers.0.mlp.experts.down",
        "lm_head.weight",
    ]
    split = split_parameters((name, torch.zeros(1)) for name in names)
    assert [name for name, _ in split.muon] == [names[1], names[3], names[7], names[9]]
    assert sorted(name for name, _ in (*split.muon, *split.adamw)) == sorted(names)


def test_adamw_equals_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.zeros(5, 3))
    with torch.no_grad():
        theirs.copy_(ours)
    config = OptimizerConfig(adamw_lr=0.05, max_grad_norm=1e9)
    optimizer = MuonAdamW([("lm_head.weight", ours)], config=config)
    reference = torch.optim.AdamW([theirs], lr=0.05, betas=config.betas, eps=1e-8, weight_decay=0.0)
    inputs, wanted = torch.randn(7, 5), torch.randn(7, 3)
    for _ in range(25):
        for parameter in (ours, theirs):
            parameter.grad = None
            (inputs @ parameter - wanted).square().mean().backward()
        optimizer.step(scale=1.0)
        reference.step()
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_of_adamw_are_clipped_to_the_norm() -> None:
    """AdamW's first update hides the size of a gradient, so look at the moment that it leaves."""
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([3.0, 4.0, 0.0, 0.0])
    optimizer = MuonAdamW([("norm.weight", parameter)], config=OptimizerConfig(max_grad_norm=1.0))
    assert float(optimizer.step(scale=1.0)) == pytest.approx(5.0)
    first = optimizer.state["first.norm.weight"]
    assert first.tolist() == pytest.approx([0.06, 0.08, 0.0, 0.0], rel=1e-4)


def tiny_model(dtype: torch.dtype) -> list[tuple[str, nn.Parameter]]:
    """Parameters of every kind, tall and wide and stacked, one with no rows, as a process may have of a dealt one."""
    torch.manual_seed(7)
    shapes = {
        "embed_tokens.weight": (7, 5),
        "layers.0.attn.qkv.weight": (9, 5),
        "layers.1.attn.qkv.weight": (9, 5),
        "layers.0.attn.out.weight": (5, 6),
        "layers.0.attn.sinks": (0,),
        "layers.0.mlp.experts.down": (2, 5, 4),
        "norm.weight": (5,),
    }
    return [(name, nn.Parameter(torch.randn(shape).to(dtype))) for name, shape in shapes.items()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_left_out_is_one_with_gradients_of_zero(dtype: torch.dtype) -> None:
    """To the bit, though the gradients be infinite or no numbers."""
    models = [tiny_model(dtype), tiny_model(dtype)]
    optimizers = [MuonAdamW(named, config=OptimizerConfig()) for named in models]
    for keep in (True, False, True):
        for (_, left_out), (_, zero) in zip(*models, strict=True):
            gradient = torch.randn(zero.shape).to(dtype)
            left_out.grad = gradient.clone() if keep else gradient / 0 - gradient.sign() * float("inf")
            zero.grad = gradient * keep
        optimizers[0].step(scale=1.0, keep=torch.tensor(keep))
        optimizers[1].step(scale=1.0)
    for name, tensor in optimizers[1].state.items():
        assert tensor.isfinite().all(), name
        assert torch.equal(optimizers[0].state[name], tensor), name
    for (name, one), (_, other) in zip(*models, strict=True):
        assert torch.equal(one, other), name
        assert torch.equal(one, optimizers[0].state[f"master.{name}"].to(dtype)), name


def test_parameters_without_a_gradient_stay() -> None:
    named = tiny_model(torch.float32)
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = MuonAdamW(named, config=OptimizerConfig())
    named[-1][1].grad = torch.ones(5)
    optimizer.step(scale=1.0)
    changed = [name for (name, one), other in zip(named, before, strict=True) if not torch.equal(one, other)]
    assert changed == ["norm.weight"]
    named[-1][1].grad = None
    optimizer.step(scale=1.0, norm=torch.ones(()))  # none at all


def muon_by_hand(weight: Tensor, gradients: list[Tensor], *, config: OptimizerConfig) -> Tensor:
    """Nesterov momentum and the orthogonal factor by Newton-Schulz, one matrix at a time in float64."""
    momentum = torch.zeros_like(weight)
    for gradient in gradients:
        momentum = config.momentum * momentum + gradient
        update = orthogonalize(gradient + config.momentum * momentum).to(weight.dtype)
        factor = max(1.0, weight.shape[-2] / weight.shape[-1]) ** 0.5
        weight = weight * (1 - config.muon_lr * config.weight_decay) - config.muon_lr * factor * update
    return weight


def test_muon_updates_stacks_and_single_matrices_alike() -> None:
    torch.manual_seed(2)
    config = OptimizerConfig(muon_lr=0.1, weight_decay=0.5)
    stack, single = nn.Parameter(torch.randn(3, 8, 4)), nn.Parameter(torch.randn(8, 4))
    named = [("layers.0.mlp.experts.down", stack), ("layers.0.attn.out.weight", single)]
    start = [parameter.detach().double().clone() for _, parameter in named]
    optimizer = MuonAdamW(named, config=config)
    gradients = [[torch.randn_like(parameter) for _, parameter in named] for _ in range(3)]
    for step in gradients:
        for (_, parameter), gradient in zip(named, step, strict=True):
            parameter.grad = gradient
        optimizer.step(scale=1.0)
    for expert in range(3):
        history = [step[0][expert].double() for step in gradients]
        expected = muon_by_hand(start[0][expert], history, config=config)
        torch.testing.assert_close(stack[expert].double(), expected, rtol=1e-4, atol=1e-4)
    expected = muon_by_hand(start[1], [step[1].double() for step in gradients], config=config)
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_masters_keep_what_bfloat16_would_lose() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = MuonAdamW([("norm.weight", parameter)], config=OptimizerConfig(adamw_lr=1e-4))
    for _ in range(30):
        parameter.grad = torch.ones(2, dtype=torch.bfloat16)
        optimizer.step(scale=1.0)
    # 30 steps of 1e-4: each is less than half a step of bfloat16 below one (2 ** -9), together they are more.
    assert optimizer.state["master.norm.weight"].tolist() == pytest.approx([1 - 3e-3] * 2, abs=1e-5)
    assert float(parameter.detach()[0]) < 1


def test_state_goes_on_where_it_was_saved() -> None:
    def make() -> tuple[list[tuple[str, nn.Parameter]], MuonAdamW]:
        torch.manual_seed(5)
        named = [
            ("layers.0.attn.out.weight", nn.Parameter(torch.randn(4, 6))),
            ("norm.weight", nn.Parameter(torch.randn(6))),
        ]
        return named, MuonAdamW(named, config=OptimizerConfig())

    def advance(named: list[tuple[str, nn.Parameter]], optimizer: MuonAdamW, steps: range) -> None:
        for step in steps:
            for number, (_, parameter) in enumerate(named):
                generator = torch.Generator().manual_seed(10 * step + number)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step(scale=0.5)

    named, optimizer = make()
    advance(named, optimizer, range(3))
    saved = {name: tensor.clone() for name, tensor in optimizer.state.items()}
    advance(named, optimizer, range(3, 6))
    resumed_named, resumed = make()
    resumed.load_state(saved, num_updates=3)
    advance(resumed_named, resumed, range(3, 6))
    for (_, one), (_, other) in zip(named, resumed_named, strict=True):
        assert torch.equal(one, other)


def test_schedule() -> None:
    config = OptimizerConfig(warmup=0.1, decay=0.4)
    values = [schedule(progress, config=config) for progress in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0, 1.1)]
    assert values == pytest.approx([1e-3, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0])
    assert schedule(0.0, config=OptimizerConfig(warmup=0.0, decay=0.0)) == 1.0
    assert schedule(1.0, config=OptimizerConfig(warmup=0.0, decay=0.0)) == 1.0


def test_max_load_ratio_is_of_the_worst_layer() -> None:
    assert max_load_ratio([torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])]) == pytest.approx(1.5)


def test_a_checkpoint_of_another_shape_is_refused_whole() -> None:
    optimizer = MuonAdamW([("norm.weight", torch.nn.Parameter(torch.ones(4)))], config=OptimizerConfig())
    other = MuonAdamW([("norm.weight", torch.nn.Parameter(torch.zeros(5)))], config=OptimizerConfig())
    with pytest.raises(TensorMismatchError, match=r"\(5,\) for master\.norm\.weight.*\(4,\)"):
        optimizer.load_state(other.state, num_updates=3)
    assert optimizer.state["master.norm.weight"].tolist() == [1.0] * 4
    assert optimizer.num_updates == 0
