"""Several processes, a GPU each, that train one model: who is in it, how weights are dealt, and sums over all.

Started by torchrun, every process runs the same code on its own rows of each batch. Parameters, gradients and the
optimizer's state are dealt over the processes by their first dimension (FSDP2, `fully_shard`): they are DTensors, and
each process holds its part. A layer's parameters are gathered for the time that it computes, and its gradients are
summed and dealt again. With one process nothing is dealt and all tensors are plain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor


class World(NamedTuple):
    """The processes of a run.

    Attributes:
        rank: this one's number.
        size: how many there are.
        device: where this one computes.
        mesh: over which weights are dealt; None with one process.
    """

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once: metrics, the model."""
        return self.rank == 0

    def wait_for_all(self) -> None:
        """Return once every process has come here."""
        if self.mesh is not None:
            dist.barrier()


def is_first_process() -> bool:
    """Whether this process talks to the user: alone, or the first of those that torchrun started."""
    return not dist.is_torchelastic_launched() or os.environ.get("RANK", "0") == "0"


@contextmanager
def join_world(device: torch.device | None = None) -> Iterator[World]:
    """Meet the other processes that torchrun started, and part from them at the end; alone, there are none.

    Args:
        device: where to compute; None for this process's GPU if there is one.
    """
    if not dist.is_torchelastic_launched() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World(0, 1, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return
    if device is None:
        is_gpu = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if is_gpu else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        dist.init_process_group("gloo")
    try:
        mesh = init_device_mesh(device.type, (dist.get_world_size(),), mesh_dim_names=("shard",))
        yield World(dist.get_rank(), dist.get_world_size(), device, mesh)
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module, layers: nn.ModuleList, *, mesh: DeviceMesh) -> None:
    """Deal a module's parameters over the mesh, in place: each layer is gathered by itself, the rest as one group.

    Gradients are summed in float32 and divided by the number of processes.
    """
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a dealt tensor, in the same memory; a plain tensor is all its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A dealt tensor gathered from all processes; each of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sum_over_processes(tensor: Tensor, *, mesh: DeviceMesh | None) -> Tensor:
    """The sum of each process's tensor, a new one without gradient; with one process, the tensor itself."""
    if mesh is None:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total, group=mesh.get_group())
    return total


def mesh_of(tensor: Tensor) -> DeviceMesh | None:
    """The mesh over which a tensor is dealt."""
    return cast("DeviceMesh", tensor.device_mesh) if isinstance(tensor, DTensor) else None
