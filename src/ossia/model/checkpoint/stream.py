"""The one loop behind loading, saving and converting: weight by weight, from one layout to another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ossia.core.errors import TensorMismatchError
from ossia.model.checkpoint.layout import Layout, Weight

CHUNK_BYTES = 8 << 20
"""About how much of a weight, counted in float32, is in flight at once: small beside a model, large beside the cost of
a few calls."""

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
"""Dtypes that a file may have where a layout wants floats."""

Progress = Callable[[int, int], None]
"""Called with the number of weights' elements done, and of all."""


class Source(Protocol):
    """Where tensors come from."""

    def get(self, name: str) -> Tensor: ...

    def release(self) -> None:
        """Called when what was read so far is no longer needed."""
        ...


class Sink(Protocol):
    """Where tensors go. `dtype` is that of its floats."""

    @property
    def dtype(self) -> torch.dtype: ...

    def put(self, name: str, start: int, rows: Tensor) -> None:
        """Place `rows` at row `start` of the tensor `name`."""
        ...


@torch.no_grad()
def transfer(
    weights: Iterable[Weight],
    *,
    source: Source,
    source_layout: Layout,
    sink: Sink,
    sink_layout: Layout,
    progress: Progress | None = None,
) -> None:
    """Move all weights, in chunks of rows where both layouts allow it."""
    weights = list(weights)
    total, done = sum(weight.num_elements for weight in weights), 0
    for weight in weights:
        decoder, encoder = source_layout.codec(weight), sink_layout.codec(weight)
        parts = tuple(source.get(part.name) for part in source_layout.parts(weight))
        names = [part.name for part in sink_layout.parts(weight)]
        step = weight.shape[0]
        if decoder.is_rowwise and encoder.is_rowwise:
            step = min(step, max(1, CHUNK_BYTES * step // (4 * weight.num_elements)))
        for start in range(0, weight.shape[0], step):
            rows = parts if step == weight.shape[0] else tuple(part[start : start + step] for part in parts)
            encoded = encoder.encode(decoder.decode(rows), weight, sink.dtype)
            for name, tensor in zip(names, encoded, strict=True):
                sink.put(name, start, tensor)
            source.release()
        done += weight.num_elements
        if progress is not None:
            progress(done, total)


class Described(Protocol):
    """What the check below needs to know of a tensor."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_tensors(found: Mapping[str, Described], *, weights: Iterable[Weight], layout: Layout, where: object) -> None:
    """Compares what a checkpoint holds with what its config calls for.

    Raises:
        TensorMismatchError: a tensor is missing, unexpected, or of a wrong shape or dtype.
    """
    wanted = {part.name: part for weight in weights for part in layout.parts(weight)}
    for problem, names in (("missing", wanted.keys() - found.keys()), ("unexpected", found.keys() - wanted.keys())):
        if names:
            listed = ", ".join(f"'{name}'" for name in sorted(names)[:5])
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise TensorMismatchError(
                f"{where}: {problem} tensor(s) {listed}{more}; config.json describes a {layout.name} model of "
                f"{len(wanted)} tensors, the files hold {len(found)}. Fetch both again from one place"
            )
    for name, part in wanted.items():
        got = found[name]
        if tuple(got.shape) != part.shape:
            raise TensorMismatchError(
                f"{where}: tensor '{name}' has shape {list(got.shape)}, but config.json calls for {list(part.shape)}"
            )
        allowed = FLOATS if part.dtype is None else (part.dtype,)
        if got.dtype not in allowed:
            raise TensorMismatchError(
                f"{where}: tensor '{name}' has dtype {_short(got.dtype)}, but the format {layout.name} allows "
                f"{', '.join(map(_short, allowed))} there"
            )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
