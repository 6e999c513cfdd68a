"""Muon for matrices and AdamW for everything else, over float32 master weights.

On a GPU the model's many small tensors would cost a launch each and operation by operation, for which the host is too
slow. So all is done to lists of tensors at once, by the operations that torch.optim is made of.
"""

# pyright: reportPrivateImportUsage=false
# torch names its operations on lists with an underscore, and has no others.

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from ossia.core.errors import TensorMismatchError
from ossia.training.parallel import mesh_of, own_part, sum_over_processes
from ossia.training.trainer_config import OptimizerConfig

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, from Muon's write-up (Jordan et al., 2024)."""


def orthogonalize(matrix: Tensor, *, dtype: torch.dtype = torch.float32, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix to each of [..., M, N], by Newton-Schulz in this dtype, which it is returned in.

    Singular values end between about 0.7 and 1.2, which is near enough for an update direction.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrix.to(dtype)
    x = x.unsqueeze(0) if x.dim() == 2 else x.flatten(0, -3)
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).reshape(matrix.shape)


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
    is also what a checkpoint of a run holds. Parameters dealt over processes (DTensors) have masters and moments dealt
    alike.

    Cost of several processes: AdamW and Muon on experts need no exchange, since a process holds whole matrices of
    experts. The other matrices of Muon, those of attention, are dealt by rows: they are exchanged so that each process
    has some of the layers' matrices whole, and their updates go back, two all-to-all of that many numbers a step.

    Attributes:
        publish: what parameters become of their masters, given all names and masters; None for the masters rounded to
            the parameters' dtype.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Tensor]], *, config: OptimizerConfig) -> None:
        self.config = config
        self.split = split_parameters(named_parameters)
        self.publish: Callable[[Sequence[str], Sequence[Tensor]], list[Tensor]] | None = None
        self.state: dict[str, Tensor] = {}
        for name, parameter in (*self.split.muon, *self.split.adamw):
            self.state[f"master.{name}"] = parameter.detach().float().clone()
            self.state[f"first.{name}"] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        for name, parameter in self.split.adamw:
            self.state[f"second.{name}"] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        self.num_updates = 0
        self._mesh = next((mesh_of(p) for _, p in (*self.split.muon, *self.split.adamw)), None)

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
            if tensor is not state[name]:
                tensor.copy_(state[name])
        self.num_updates = num_updates
        self.put_masters()

    def masters(self) -> dict[str, Tensor]:
        """The float32 weights by parameter name, not copied."""
        prefix = "master."
        return {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Norm of all gradients together, over all processes, float32 scalar."""
        parameters = (*self.split.muon, *self.split.adamw)
        norm = torch.nn.utils.get_total_norm([own_part(p.grad) for _, p in parameters if p.grad is not None]).float()
        return norm if self._mesh is None else sum_over_processes(norm.square(), mesh=self._mesh).sqrt()

    @torch.no_grad()
    def step(self, *, scale: float, norm: Tensor | None = None, keep: Tensor | None = None) -> Tensor:
        """Update every parameter at `scale` times the peak rates.

        Args:
            scale: of the learning rates.
            norm: that of the gradients, if it was computed already.
            keep: bool scalar on the device; where it is false, all gradients count as zero: the moments decay, and the
                weights move on by what the moments hold. The host does not wait for it.

        Returns:
            The gradient norm before clipping.
        """
        if norm is None:
            norm = self.grad_norm()
        clip = (self.config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.num_updates += 1
        self._step_muon(scale * self.config.muon_lr, keep)
        self._step_adamw(scale * self.config.adamw_lr, clip, keep)
        self.put_masters()
        return norm

    def _parts(self, kind: str, names: Iterable[str]) -> list[Tensor]:
        """This process's parts of the state of one kind."""
        return [own_part(self.state[f"{kind}.{name}"]) for name in names]

    def _step_muon(self, lr: float, keep: Tensor | None) -> None:
        """Momentum, then its orthogonal factor, scaled by the matrix shape so that all updates have like size."""
        by_shape: dict[tuple[int, ...], list[str]] = {}
        gradients = {name: p.grad for name, p in self.split.muon if p.grad is not None}
        for name, gradient in gradients.items():
            by_shape.setdefault(tuple(gradient.shape), []).append(name)
        for shape, names in by_shape.items():
            stacked = torch.stack([own_part(gradients[name]) for name in names])
            dtype = stacked.dtype
            stacked = _kept(stacked.float(), keep)
            first = self._parts("first", names)
            torch._foreach_mul_(first, self.config.momentum)
            torch._foreach_add_(first, stacked.unbind(0))
            lookahead = stacked.add_(torch.stack(first), alpha=self.config.momentum).to(dtype)
            is_cut = self._mesh is not None and len(shape) == 2
            updates = self._orthogonalize_cut(lookahead, shape) if is_cut else orthogonalize(lookahead, dtype=dtype)
            factor = max(1.0, shape[-2] / shape[-1]) ** 0.5
            masters = self._parts("master", names)
            torch._foreach_mul_(masters, 1 - lr * self.config.weight_decay)
            torch._foreach_add_(masters, updates.float().contiguous().unbind(0), alpha=-lr * factor)

    def _orthogonalize_cut(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Orthogonalize matrices of which each process holds some rows: rows [N, own M, K] -> the same rows."""
        mesh = self._mesh
        assert mesh is not None
        size = torch.Size((rows.shape[0], *shape))
        stride = (shape[0] * shape[1], shape[1], 1)
        dealt = DTensor.from_local(rows, mesh, [Shard(1)], run_check=False, shape=size, stride=stride)
        mine = dealt.redistribute(placements=[Shard(0)]).to_local()
        done = orthogonalize(mine, dtype=rows.dtype)
        again = DTensor.from_local(done, mesh, [Shard(0)], run_check=False, shape=size, stride=stride)
        return again.redistribute(placements=[Shard(1)]).to_local()

    def _step_adamw(self, lr: float, clip: Tensor, keep: Tensor | None) -> None:
        """As torch.optim's: list operations, each a launch or a few for all parameters together."""
        beta1, beta2 = self.config.betas
        named = {name: own_part(p.grad) for name, p in self.split.adamw if p.grad is not None}
        named = {name: gradient for name, gradient in named.items() if gradient.numel()}  # a process may have no rows
        if not named:
            return
        masters, first, second = (self._parts(kind, named) for kind in ("master", "first", "second"))
        flat = _kept(torch.cat([gradient.flatten() for gradient in named.values()]).float() * clip, keep)
        parts = flat.split([gradient.numel() for gradient in named.values()])
        gradients = [part.view_as(master) for part, master in zip(parts, masters, strict=True)]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        flat.mul_(flat)  # of which `gradients` are views
        torch._foreach_lerp_(second, gradients, 1 - beta2)
        directions = torch._foreach_div(first, 1 - beta1**self.num_updates)
        denominators = torch._foreach_div(second, 1 - beta2**self.num_updates)
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, 1e-8)
        torch._foreach_addcdiv_(masters, directions, denominators, value=-lr)

    @torch.no_grad()
    def put_masters(self) -> None:
        """Make the parameters of the masters."""
        names = [name for name, _ in (*self.split.muon, *self.split.adamw)]
        parameters = [own_part(p.detach()) for _, p in (*self.split.muon, *self.split.adamw)]
        masters = self._parts("master", names)
        if self.publish is not None:
            masters = self.publish(names, masters)
        if parameters:
            torch._foreach_copy_(parameters, masters)


def _kept(gradients: Tensor, keep: Tensor | None) -> Tensor:
    """The gradients, or zeros where `keep` is false; whatever they are, infinities and NaN too."""
    return gradients if keep is None else torch.where(keep, gradients, 0.0)


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
