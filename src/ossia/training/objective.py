"""The forward pass of training: a batch in, the losses out."""

# Shapes: B rows, S tokens a row, T = B * S, L layers, E experts.

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint

from ossia.model.transformer import AttentionBackend, Transformer
from ossia.training.data.batches.packing import Batch
from ossia.training.loss import IGNORED, RecordingRouter, count_learned, next_token_loss
from ossia.training.parallel import sum_over_processes
from ossia.training.trainer_config import LossConfig


class StepLosses(NamedTuple):
    """What one forward pass gives: scalars, and the experts' loads [L, E], which sum to A.

    `total` is this process's share, to be differentiated: the mean of its gradient over processes is the gradient of
    the whole batch's loss. The other scalars are the whole batch's with one process, else terms of a mean.
    """

    total: Tensor
    cross_entropy: Tensor
    balance: Tensor
    router_z: Tensor
    loads: Tensor


class Objective(nn.Module):
    """Cross-entropy on the learned targets and the router's side losses.

    Args:
        model: what is trained.
        config: weights of the terms.
        mesh: the processes that share a batch; None if there is one.
        only_learned: compute logits of learned targets alone. It spares work where many are IGNORED, but shapes then
            depend on the data, which a compiled graph does not like.
    """

    def __init__(
        self, model: Transformer, *, config: LossConfig, mesh: DeviceMesh | None = None, only_learned: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.mesh = mesh
        self.only_learned = only_learned

    def forward(self, batch: Batch, attention: AttentionBackend) -> StepLosses:
        """Run this process's rows of a batch."""
        router = RecordingRouter()
        hidden = self.model(
            batch.ids.flatten(), positions=batch.positions.flatten(), attention=attention, router=router
        )
        targets = batch.targets.flatten()
        weights = None if batch.weights is None else batch.weights.flatten()
        num_learned, num_processes = None, 1
        if self.mesh is not None:
            num_processes = self.mesh.size()
            num_learned = sum_over_processes(count_learned(targets, weights), mesh=self.mesh)
        if self.only_learned:
            places = (targets != IGNORED).nonzero().squeeze(-1)
            hidden, targets = hidden[places], targets[places]
            weights = None if weights is None else weights[places]
        logits = self.model.logits(hidden)
        cross_entropy = num_processes * next_token_loss(logits, targets, weights=weights, num_learned=num_learned)
        side = router.losses(share_loads=None if self.mesh is None else self._mean)
        total = cross_entropy + self.config.balance * side.balance + self.config.router_z * side.z
        return StepLosses(total, cross_entropy.detach(), side.balance.detach(), side.z.detach(), side.loads)

    def _mean(self, value: Tensor) -> Tensor:
        assert self.mesh is not None
        return sum_over_processes(value, mesh=self.mesh) / self.mesh.size()

    def mean_over_processes(self, losses: StepLosses) -> StepLosses:
        """The losses of the whole batch, for guards and logs; every process must call this."""
        if self.mesh is None:
            return losses
        scalars = self._mean(torch.stack([losses.cross_entropy, losses.balance, losses.router_z]))
        return losses._replace(cross_entropy=scalars[0], balance=scalars[1], router_z=scalars[2])


def recompute_layers(model: Transformer) -> None:
    """Have each layer's activations computed again in the backward pass instead of kept (activation checkpointing).

    A step then keeps one [T, D] tensor a layer and the activations of a single layer, and costs one more forward pass:
    a third more arithmetic.
    """
    for layer in model.layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)


def compile_layers(model: Transformer) -> None:
    """Compile each layer by itself: where layers are dealt over processes or computed again, no graph spans them."""
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward)


@contextmanager
def uncompiled_layers(model: Transformer) -> Iterator[None]:
    """Within this, layers that were compiled or are computed again run as they were written."""
    changed = {layer: vars(layer)["forward"] for layer in model.layers if "forward" in vars(layer)}
    try:
        for layer in changed:
            layer.forward = type(layer).forward.__get__(layer)
        yield
    finally:
        for layer, forward in changed.items():
            layer.forward = forward
