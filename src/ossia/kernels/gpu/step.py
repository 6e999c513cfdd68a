"""A whole decode step of one sequence in one kernel: all layers, without leaving the chip."""

# D model, F expert hidden, H heads, K KV heads, C head dim, E experts, A active experts, L layers

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import SHARED_LIMIT, Grid
from ossia.kernels.gpu.experts import num_multiprocessors, padded_columns
from ossia.kernels.gpu.weights import GpuLayer
from ossia.kernels.rope import RopeTables

_WARPS, _STAGES, _STAGE_BYTES, _MAX_TILES, _MAX_ACTIVE = 12, 7, 2048, 8, 32
_DEPTH = 3  # packed tiles a stage
_MAX_COLUMNS = 3072  # of the stream, that a block loads at once
_STREAMED = ("qkv", "out", "gate_up", "down")
_LAYER_FIELDS = (
    *_STREAMED,
    *("attn_norm", "qkv_bias", "out_bias", "sinks", "mlp_norm", "router", "router_bias", "gate_up_bias", "down_bias"),
)
_POINTERS = (
    *("layers", "embedding", "final_norm", "token_id", "position", "full_slot", "sliding_slot"),
    *("context_len", "full_table", "sliding_table", "cosines", "sines"),
    *("qkv_sums", "row_sums", "down_sums", "attended", "logits", "hidden", "shares", "arrived", "barrier", "normed"),
)
_INTEGERS = ("num_layers", "D", "F", "H", "KV", "C", "E", "A", "full_columns", "sliding_columns", "page_size")
_FLOATS = ("epsilon", "alpha", "limit")


class _LayerWeights(ctypes.Structure):
    """`LayerWeights` of step_feed.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_LAYER_FIELDS, "keys", "values")),
        ("window", ctypes.c_longlong),
    )


class _Line(ctypes.Structure):
    """`Line` of step_feed.cuh."""

    _fields_ = tuple((name, ctypes.c_int) for name in ("units", "unit_stages", "pieces", "tile_units", "row_tiles"))


class _StepArgs(ctypes.Structure):
    """`StepArgs` of step_feed.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("lines", _Line * len(_STREAMED)),
        *((name, ctypes.c_int) for name in _INTEGERS),
        *((name, ctypes.c_float) for name in _FLOATS),
    )


class _Sizes(NamedTuple):
    """A model's dimensions, by their letters; `rows` are those of q, k and v together."""

    D: int
    F: int
    H: int
    K: int
    C: int
    E: int
    A: int
    rows: int

    @classmethod
    def of(cls, config: Any) -> _Sizes:
        H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        E, A = config.num_local_experts, config.num_experts_per_tok
        return cls(config.hidden_size, config.intermediate_size, H, K, C, E, A, (H + 2 * K) * C)


class DecodeStep:
    """Runs the step; holds its buffers and the table of the layers' addresses.

    Args:
        config: the model's.
        layers: their weights, which must stay where they are.
        kv_layers: keys and values of each layer, likewise.
        embedding: bfloat16 [V, D].
        final_norm: [D].
        rope: the tables of all positions.
        device: the GPU.
    """

    def __init__(
        self,
        config: Any,
        *,
        layers: Sequence[GpuLayer],
        kv_layers: Sequence[tuple[Tensor, Tensor]],
        embedding: Tensor,
        final_norm: Tensor,
        rope: RopeTables,
        device: torch.device,
    ) -> None:
        self._kept = (tuple(layers), tuple(kv_layers), embedding, final_norm, rope)
        self.device = device
        sizes = _Sizes.of(config)
        # A block must have at least one whole row tile in each phase.
        self._blocks = min(num_multiprocessors(device), sizes.rows // 16, sizes.D // 16)
        self._buffers = _make_buffers(sizes, num_blocks=self._blocks, device=device)
        self.normed = self._buffers["normed"]
        self._table = _make_table(layers, kv_layers).to(device)
        self._args = _StepArgs(
            layers=self._table.data_ptr(),
            embedding=embedding.data_ptr(),
            final_norm=final_norm.data_ptr(),
            cosines=rope.cos.data_ptr(),
            sines=rope.sin.data_ptr(),
            lines=_make_lines(sizes),
            num_layers=len(layers),
            D=sizes.D,
            F=sizes.F,
            H=sizes.H,
            KV=sizes.K,
            C=sizes.C,
            E=sizes.E,
            A=sizes.A,
            page_size=kv_layers[0][0].shape[1],
            epsilon=config.rms_norm_eps,
            alpha=config.swiglu_alpha,
            limit=config.swiglu_limit,
            **{name: tensor.data_ptr() for name, tensor in self._buffers.items()},
        )
        self._shared = _count_shared_bytes(sizes)
        self.is_possible = _fits(sizes, num_blocks=self._blocks, num_shared=self._shared)
        """Whether this model's shapes fit the kernel."""

    def run(self, *, token_id: Tensor, position: Tensor, context_len: Tensor, full: Any, sliding: Any) -> Tensor:
        """One step; every argument lies on the GPU.

        Args:
            token_id: int64 [1].
            position: int64 [1].
            context_len: int32 [1].
            full: block_table int32 [1, columns] and slot_mapping int64 [1] of the layers without a window, or None.
            sliding: likewise, of those with one.

        Returns:
            bfloat16 [1, D], after the final norm; the next step overwrites it.
        """
        args = self._args
        args.token_id, args.position, args.context_len = (x.data_ptr() for x in (token_id, position, context_len))
        full, sliding = full or sliding, sliding or full
        args.full_table, args.full_slot = full.block_table.data_ptr(), full.slot_mapping.data_ptr()
        args.sliding_table, args.sliding_slot = sliding.block_table.data_ptr(), sliding.slot_mapping.data_ptr()
        args.full_columns, args.sliding_columns = full.block_table.shape[1], sliding.block_table.shape[1]
        kernel = driver.load_kernel("step", f"decode_step_{args.C}", self.device)
        kernel.launch(Grid(self._blocks), threads=_WARPS * 32, shared=self._shared, args=(args,))
        return self.normed


def _line(row_tiles: int, *, pieces: int, depth: int, num_experts: int = 1, tile_units: int = 1) -> _Line:
    """See step.cu."""
    return _Line(row_tiles * num_experts, -(-pieces // depth), pieces, tile_units, row_tiles)


def _make_buffers(sizes: _Sizes, *, num_blocks: int, device: torch.device) -> dict[str, Tensor]:
    """What the phases hand on, by the names of `StepArgs`."""
    D, F, H, K, C, E, A, rows = sizes

    def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return {
        "qkv_sums": zeros(2, rows),
        "row_sums": zeros(2, D),
        "down_sums": zeros(2, D),
        "attended": zeros(H * C, dtype=torch.bfloat16),
        "logits": zeros(E),
        "hidden": zeros(A, padded_columns(F), dtype=torch.bfloat16),
        "shares": zeros(K, max(1, num_blocks // K), 16 + 8 * C),
        "arrived": zeros(K, dtype=torch.int32),
        "barrier": zeros(2, dtype=torch.int32),
        "normed": zeros(1, D, dtype=torch.bfloat16),
    }


def _make_table(layers: Sequence[GpuLayer], kv_layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Where each layer's weights and pages lie: the bytes of one `LayerWeights` a layer."""
    entries = [
        _LayerWeights(
            *(getattr(layer, name).data_ptr() for name in _LAYER_FIELDS),
            keys.data_ptr(),
            values.data_ptr(),
            layer.window or 0,
        )
        for layer, (keys, values) in zip(layers, kv_layers, strict=True)
    ]
    return torch.frombuffer(bytearray((_LayerWeights * len(entries))(*entries)), dtype=torch.uint8)


def _make_lines(sizes: _Sizes) -> ctypes.Array[_Line]:
    """How each streamed matrix is dealt out, in the order of `_STREAMED`."""
    D, F, H, _, C, _, A, rows = sizes
    return (_Line * len(_STREAMED))(
        _line(rows // 16, pieces=D // 32, depth=2),
        _line(D // 16, pieces=H * C // 32, depth=2),
        _line(F // 8, pieces=-(-D // 64), depth=_DEPTH, num_experts=A),
        _line(D // 16, pieces=-(-F // 64), depth=_DEPTH, num_experts=A, tile_units=A),
    )


def _count_shared_bytes(sizes: _Sizes) -> int:
    """Shared memory of a block, piece by piece as step_feed.cuh lays it out."""
    D, F, H, _, C, _, A, _ = sizes
    token_bytes = -(-max(D, F) // 64) * 128 + 64
    return (
        _WARPS * _STAGES * _STAGE_BYTES
        + max(A * token_bytes, _WARPS * (16 + 8 * C) * 4)
        + max(D, H * C) * 2
        + D * 4
        + _WARPS * _MAX_TILES * 64
        + 2 * ctypes.sizeof(_LayerWeights)
        + _WARPS * 8
        + len(_STREAMED) * 8
        + 128
        + 2 * _MAX_ACTIVE * 4
        + 16
    )


def _fits(sizes: _Sizes, *, num_blocks: int, num_shared: int) -> bool:
    most = max(sizes.rows // 16, sizes.D // 16, sizes.A * sizes.F // 8)  # row tiles of a phase
    per_block = -(-most // num_blocks)
    return (
        num_shared <= SHARED_LIMIT
        and sizes.D <= _MAX_COLUMNS
        and sizes.A <= _MAX_ACTIVE
        and per_block <= 4 * _WARPS
        and -(-per_block // _WARPS) + 2 <= _MAX_TILES
    )
