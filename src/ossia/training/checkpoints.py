"""Checkpoints of a run, written while it goes on: each process its own part, the last good one kept.

`torch.distributed.checkpoint` writes and reads them, so a run may go on with another number of processes. Its own file
format keeps an index as a pickle; here it writes safetensors instead (`HuggingFaceStorageWriter`), whose headers say
which part of which tensor a file holds. Numbers that are no tensors lie beside them as JSON. So nothing that is read
back can run code.

In the run's folder a checkpoint is `checkpoints/step-N`. It is written as `checkpoints/step-N.new` and renamed once all
processes have written and flushed their files; only then is the one before removed. So at any moment, whatever fails,
there is a whole one.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from ossia.core.errors import CorruptFileError, OssiaError, StorageError, TensorMismatchError
from ossia.core.files import write_text

FACTS = "facts.json"
_NAME = re.compile(r"step-(\d+)")


class _Pending(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    aside: Path
    done: Future[Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.

    Attributes:
        folder: `folder / "checkpoints"`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkpoints"
        self._pending: _Pending | None = None
        self._group: dist.ProcessGroup | None = None

    def latest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = [(int(match[1]), path) for path in self._children() if (match := _NAME.fullmatch(path.name))]
        return max(found)[1] if found else None

    def latest_step(self) -> int | None:
        """The step of the checkpoint that was begun last or is the newest whole one."""
        if self._pending is not None:
            return self._pending.step
        path = self.latest()
        return None if path is None else int(path.name.removeprefix("step-"))

    def save(self, tensors: Mapping[str, Tensor], *, step: int, facts: Mapping[str, Any]) -> None:
        """Copy the state into memory and begin to write it; the run may go on and change it at once.

        Waits for the checkpoint before, if that is still being written. Every process of the run must call this.

        Args:
            tensors: the state, at least one dimension each; of dealt tensors each process writes its part.
            step: after which it was taken.
            facts: what JSON can hold.

        Raises:
            StorageError: the checkpoint before could not be written, or this one cannot be begun; the last whole one is
                untouched.
        """
        self.finish()
        aside = self.folder / f"step-{step}.new"
        try:
            if _is_first():
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                write_text(aside / FACTS, json.dumps({"step": step, **facts}))
            _wait_for_all()
            # The stager need not copy what lies in the CPU's memory already, and the run goes on changing it.
            still = {name: t.detach().clone() if t.device.type == "cpu" else t.detach() for name, t in tensors.items()}
            done = async_save(
                still,
                storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True),
                no_dist=_is_alone(),
                process_group=self._own_group(),
            )
        except (OSError, StorageError, CheckpointException) as error:
            raise self._failed(step, aside, error) from error
        self._pending = _Pending(step, aside, cast("Future[Any]", done))

    def _own_group(self) -> dist.ProcessGroup | None:
        """Processes talk about a checkpoint in a thread of their own, while the run's sums go over the main group.

        Over one group the two would meet in another order in each process, and wait for each other for ever.
        """
        if self._group is None and not _is_alone():
            self._group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        return self._group

    def poll(self) -> None:
        """Put a checkpoint in its place if it has been written meanwhile. Raises as `finish`."""
        if self._pending is not None and self._pending.done.done():
            self.finish()

    def finish(self) -> None:
        """Wait until the checkpoint that is being written, if any, is in its place.

        Raises:
            StorageError: it could not be written; the last whole one is untouched.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.done.result()
            if _is_first():
                target = pending.aside.with_suffix("")
                shutil.rmtree(target, ignore_errors=True)
                pending.aside.rename(target)
                for path in self._children():
                    if path != target:
                        shutil.rmtree(path, ignore_errors=True)
        except (OSError, CheckpointException, SafetensorError) as error:
            raise self._failed(pending.step, pending.aside, error) from error

    def load(self, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Read the newest whole checkpoint into these tensors, in place.

        Returns:
            The facts that were saved with it, its step among them; None if there is no checkpoint.

        Raises:
            TensorMismatchError: it is of a model or an optimizer of another shape; nothing was changed.
            CorruptFileError: it cannot be read.
        """
        path = self.latest()
        if path is None:
            return None
        try:
            facts = json.loads((path / FACTS).read_text(encoding="utf-8"))
            int(facts["step"])
            reader = HuggingFaceStorageReader(str(path))
            held = reader.read_metadata().state_dict_metadata
            _require_shapes(tensors, {name: tuple(cast("Any", value).size) for name, value in held.items()}, path)
            load(dict(tensors), storage_reader=reader, no_dist=_is_alone())
        except OssiaError:
            raise
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AssertionError,
            SafetensorError,
            CheckpointException,
        ) as error:
            raise CorruptFileError(
                f"the checkpoint {path} cannot be read ({error}); delete it to start anew"
            ) from error
        return facts

    def _children(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _failed(self, step: int, aside: Path, error: BaseException) -> StorageError:
        shutil.rmtree(aside, ignore_errors=True)
        causes = error.failures.values() if isinstance(error, CheckpointException) else ()
        cause = error.__cause__ if isinstance(error, StorageError) else error  # a StorageError brings advice of its own
        reason = "; ".join(str(cause[0]) for cause in causes) or str(cause)
        kept = self.latest()
        rest = "there is none yet" if kept is None else f"{kept.name} is kept"
        return StorageError(
            f"cannot write the checkpoint of step {step} to {self.folder} ({reason}); {rest}; free some "
            "space and resume"
        )


def _require_shapes(wanted: Mapping[str, Tensor], held: Mapping[str, tuple[int, ...]], path: Path) -> None:
    for name, tensor in wanted.items():
        got = held.get(name, "no such tensor")
        if got != tuple(tensor.shape):
            raise TensorMismatchError(
                f"the checkpoint {path} has {got} for {name}, but this run wants {tuple(tensor.shape)}; use the recipe "
                "that the run was begun with, or another folder"
            )


def _is_alone() -> bool:
    """Whether this process trains by itself. torch then warns at each checkpoint that it does, in another thread."""
    is_alone = not dist.is_initialized()
    if is_alone:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
    return is_alone


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
