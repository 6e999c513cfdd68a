"""Muon for matrices and AdamW for everything else, over float32 master weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import TensorMismatchError
from ossia.training.config import OptimizerConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from Muon's write-up (Jordan et al., 2024)."""


def orthogonalize(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix to each of [..., M, N], by Newton-Schulz in bfloat16 (float32 on the CPU).

    Singular values end between about 0.7 and 1.2, which is near enough for an update direction.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x


class Split(NamedTuple):
    """Parameters by the rule that updates them."""

    muon: list[tuple[str, Tensor]]
    adamw: list[tuple[str, Tensor]]


def split_parameters(named: Iterable[tuple[str, Tensor]]) -> Split:
    """Matrices inside layers go to Muon (experts are stacks of them); all else goes to AdamW."""
    muon: list[tuple[str, Tensor]] = []
    adamw: list[tuple[str, Tensor]] = []
    for name, parameter in named:
        is_matrix = name.startswith("layers.") and (
            name.endswith((".qkv.weight", ".out.weight", ".experts.gate_up", ".experts.down"))
        )
        (muon if is_matrix else adamw).append((name, parameter))
    return Split(muon, adamw)


class MuonAdamW:
    """Updates a model's parameters in place from their gradients.

    The parameters may be bfloat16: float32 masters and the moments live here (`state`, by "kind.parameter name"), which
    is also what a checkpoint of a run holds.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], *, config: OptimizerConfig) -> None:
        self.config = config
        self.split = split_parameters(named_parameters)
        self.state: dict[str, Tensor] = {}
        for name, parameter in (*self.split.muon, *self.split.adamw):
            self.state[f"master.{name}"] = parameter.detach().float().clone()
            self.state[f"first.{name}"] = torch.zeros_like(parameter, dtype=torch.float32)
        for name, parameter in self.split.adamw:
            self.state[f"second.{name}"] = torch.zeros_like(parameter, dtype=torch.float32)
        self.num_updates = 0

    def load_state(self, state: dict[str, Tensor], *, num_updates: int) -> None:
        """Take over the state of a checkpoint, and put its masters into the parameters.

        Raises:
            TensorMismatchError: the checkpoint is of a model of another shape; nothing was taken over.
        """
        for name, tensor in self.state.items():
            got = tuple(state[name].shape) if name in state else "no such tensor"
            if got != tuple(tensor.shape):
                raise TensorMismatchError(
                    f"the run's checkpoint has {got} for {name}, the recipe's model wants {tuple(tensor.shape)}; "
                    "use the recipe that the run was begun with, or another folder"
                )
        for name, tensor in self.state.items():
            tensor.copy_(state[name])
        self.num_updates = num_updates
        self._publish()

    @torch.no_grad()
    def step(self, *, scale: float) -> Tensor:
        """Update every parameter at `scale` times the peak rates; returns the gradient norm before clipping."""
        everything = [parameter for _, parameter in (*self.split.muon, *self.split.adamw)]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in everything]
        norm = torch.nn.utils.get_total_norm(gradients).float()
        clip = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.num_updates += 1
        self._step_muon(scale * self.config.muon_lr)
        self._step_adamw(scale * self.config.adamw_lr, clip)
        self._publish()
        return norm

    def _step_muon(self, lr: float) -> None:
        """Momentum, then its orthogonal factor, scaled by the matrix shape so that all updates have like size."""
        by_shape: dict[tuple[int, ...], list[str]] = {}
        gradients = {name: p.grad for name, p in self.split.muon if p.grad is not None}
        for name, gradient in gradients.items():
            self.state[f"first.{name}"].mul_(self.config.momentum).add_(gradient.float())
            by_shape.setdefault(tuple(gradient.shape), []).append(name)
        for shape, names in by_shape.items():
            lookahead = [
                gradients[name].float().add(self.state[f"first.{name}"], alpha=self.config.momentum) for name in names
            ]
            updates = orthogonalize(torch.stack(lookahead))
            factor = max(1.0, shape[-2] / shape[-1]) ** 0.5
            for name, update in zip(names, updates, strict=True):
                master = self.state[f"master.{name}"]
                master.mul_(1 - lr * self.config.weight_decay).add_(update.float(), alpha=-lr * factor)

    def _step_adamw(self, lr: float, clip: Tensor) -> None:
        beta1, beta2 = self.config.betas
        names = [name for name, p in self.split.adamw if p.grad is not None]
        gradients = [p.grad.float() * clip for _, p in self.split.adamw if p.grad is not None]
        masters = [self.state[f"master.{name}"] for name in names]
        first = [self.state[f"first.{name}"] for name in names]
        second = [self.state[f"second.{name}"] for name in names]
        corrected1 = 1 - beta1**self.num_updates
        corrected2 = 1 - beta2**self.num_updates
        for master, m, v, gradient in zip(masters, first, second, gradients, strict=True):
            m.lerp_(gradient, 1 - beta1)
            v.lerp_(gradient * gradient, 1 - beta2)
            master.addcdiv_(m / corrected1, (v / corrected2).sqrt_().add_(1e-8), value=-lr)

    @torch.no_grad()
    def _publish(self) -> None:
        """Copy the masters into the parameters, rounding to their dtype."""
        for name, parameter in (*self.split.muon, *self.split.adamw):
            parameter.copy_(self.state[f"master.{name}"])


def schedule(progress: float, *, config: OptimizerConfig) -> float:
    """Learning-rate factor at `progress` (0 at the start, 1 at the end): warm-up, plateau, linear decay to zero."""
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    if progress > 1 - config.decay:
        return max((1 - progress) / config.decay, 0.0)
    return 1.0


def max_load_ratio(loads: Sequence[Tensor]) -> float:
    """The most loaded expert's share over the even share, the worst layer counting; 1.0 is perfect balance."""
    return max(float(load.max() / load.mean()) for load in loads)
