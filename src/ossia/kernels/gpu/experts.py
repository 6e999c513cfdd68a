"""The experts on the GPU, packed in MXFP4: re-laid once, then multiplied by few or by many tokens."""

# T tokens, P pairs, E experts, D model, F expert hidden, R rows of a matrix, N blocks of 32 columns

from __future__ import annotations

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError, UnsupportedModelError
from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import SHARED_LIMIT, Grid
from ossia.kernels.gpu.routing import RoutedStruct, RoutingBuffers

TILE_ROWS, TILE_COLUMNS, TILE_BYTES = 16, 64, 544
MANY_TOKENS = 128
"""The most tokens of an expert that `gate_up_many` and `down_many` take together."""
NARROW_TOKENS = 64
"""Likewise where experts have few: four blocks of 64 rows on a multiprocessor then."""
_MANY_SHARED = {NARROW_TOKENS: 6 * 64 * 128 + 64 * 4, MANY_TOKENS: 4 * 128 * 128 + 128 * 4}
_NARROW_UP_TO = 20
"""Tokens an expert on average, up to which four of 64 rows are faster."""
_MAX_SCALE = 160
_RING_BYTES = 12 * 6 * 3 * 640
_THREADS = 384
_SEGMENT_BYTES = 4 * 16 * 4 + 2 * 128 * 4


def pack_experts(blocks: Tensor, *, scales: Tensor) -> Tensor:
    """Re-lay MXFP4 matrices for the kernels here.

    Args:
        blocks: uint8 [E, R, N, 16], R a multiple of 16.
        scales: uint8 [E, R, N].

    Returns:
        uint8 [E, R / 16, ceil(N / 2), 544]: tiles of 16 rows by 64 columns (see pack.cu).
    """
    E, R, N = scales.shape
    check_packable(R, scales)
    out = torch.empty(E, R // TILE_ROWS, -(-N // 2), TILE_BYTES, dtype=torch.uint8, device=blocks.device)
    kernel = driver.load_kernel("pack", "pack_experts", blocks.device)
    kernel.launch(Grid(E * R // TILE_ROWS, 4), threads=136, args=(blocks, scales, out, N), overlap=False)
    return out


def check_packable(num_rows: int, scales: Tensor) -> None:
    """Refuse what the kernels cannot hold. Reads the scales, so it waits for the device."""
    if num_rows % TILE_ROWS:
        raise InvalidInputError(f"the GPU experts need rows in multiples of {TILE_ROWS}, but got {num_rows}")
    largest = int(scales.max()) if scales.numel() else 0
    if largest > _MAX_SCALE:
        raise UnsupportedModelError(
            f"an expert's scale byte is {largest}; the GPU kernels take up to {_MAX_SCALE} (2^{_MAX_SCALE - 127}); "
            "255 would be a broken (NaN) weight"
        )


def pack_experts_torch(blocks: Tensor, *, scales: Tensor) -> Tensor:
    """The reference of the layout, by gathers."""
    E, R, N = scales.shape
    chunks = -(-N // 2)
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-3)  # [E, R, 32 N]
    codes = torch.nn.functional.pad(codes, (0, 64 * chunks - 32 * N)).int()
    exponents = torch.nn.functional.pad(scales, (0, 2 * chunks - N))
    tiles = codes.view(
        E, R // 16, 8, 2, chunks, 4, 2, 4, 2
    )  # E, i, g, row half, chunk, product, k half, t, low or high
    words = torch.zeros(E, R // 16, chunks, 8, 4, 4, dtype=torch.int64, device=blocks.device)  # ..., g, t, product
    for product in range(4):
        for pair in range(4):
            for half in range(2):
                source = tiles[:, :, :, pair % 2, :, product, pair // 2, :, half].permute(0, 1, 3, 2, 4).long()
                for bit, (word, place) in enumerate(_places(pair + product % 2 * 4)):
                    spot = words[..., product // 2 * 2 + word]
                    spot |= (source >> bit & 1) << (place + 16 * half) % 32
    code_bytes = torch.stack([(words >> (8 * byte)) & 255 for byte in range(4)], dim=-1).to(torch.uint8)
    scale_bytes = exponents.view(E, R // 16, 8, 2, chunks, 2).permute(0, 1, 4, 2, 3, 5)
    return torch.cat((code_bytes.flatten(3), scale_bytes.flatten(3)), dim=-1).contiguous()


def _places(pair: int) -> list[tuple[int, int]]:
    """Of a code's mantissa, exponent's two bits and sign: which of two words, and where; see pack.cu."""
    if pair % 4 < 3:
        return [(pair // 4, place) for place in ((6, 7, 8, 15), (0, 1, 2, 9), (12, 13, 14, 21))[pair % 4]]
    return [(0, 4), (1, 3), (1, 4), (1, 11)] if pair == 3 else [(0, 10), (0, 11), (1, 10), (0, 19)]


def padded_columns(num_columns: int) -> int:
    """Columns of a token as the kernels take it: whole tiles."""
    return -(-num_columns // TILE_COLUMNS) * TILE_COLUMNS


def place_tokens_torch(x: Tensor) -> Tensor:
    """The reference of how the experts' products want tokens: x bfloat16 [T, D] -> [T, padded].

    Scaled by 2^112, and in each block of 32 columns the 16 pairs as a 4 by 4 matrix transposed (see common.cuh).
    """
    T, D = x.shape
    wide = torch.nn.functional.pad(x, (0, padded_columns(D) - D)).view(T, -1, 4, 4, 2)
    return (wide.transpose(2, 3).reshape(T, -1).float() * 2.0**112).bfloat16()


def choose_many_tile_size(num_pairs: int, *, num_experts: int) -> int:
    """Of `gate_up_many` and `down_many`, as measured on an H100."""
    return NARROW_TOKENS if num_pairs <= _NARROW_UP_TO * num_experts else MANY_TOKENS


def gate_up_few(
    x: Tensor, *, packed: Tensor, bias: Tensor, routing: RoutingBuffers, alpha: float, limit: float, out: Tensor
) -> None:
    """SwiGLU of each pair's gate and up.

    Args:
        x: bfloat16 [T, padded D], below 2^15 before it was placed (see `place_tokens_torch`).
        packed: from `pack_experts`, of [E, 2 F, D].
        bias: bfloat16 [E, 2 F].
        routing: which pairs there are.
        alpha: slope of SwiGLU's sigmoid.
        limit: SwiGLU's clamp.
        out: bfloat16 [P, padded F], written in sorted order and placed likewise; columns past F must be zeros. Sums
            and activation are float32, rounded once.
    """
    kernel, launch = _prepare("gate_up", x.shape[1], routing, x.device)
    args = (x, packed, bias, RoutedStruct.of(routing), out, x.shape[1], bias.shape[1], routing.num_active)
    kernel.launch(args=(*args, launch.pop("max_rows"), alpha, limit), **launch)


def down_few(hidden: Tensor, *, packed: Tensor, bias: Tensor, routing: RoutingBuffers, out: Tensor) -> None:
    """Each pair's output times its weight.

    Args:
        hidden: bfloat16 [P, padded F], in sorted order, placed.
        packed: of [E, D, F].
        bias: bfloat16 [E, D].
        routing: which pairs there are.
        out: float32 [splits, P, D], written in sorted order: partial sums, to be added over splits.
    """
    kernel, launch = _prepare("down", hidden.shape[1], routing, hidden.device)
    args = (hidden, packed, bias, RoutedStruct.of(routing), out, hidden.shape[1], bias.shape[1], routing.num_active)
    kernel.launch(args=(*args, out.shape[0], launch.pop("max_rows"), out.shape[1]), **launch)


def gate_up_many(
    x: Tensor, *, packed: Tensor, bias: Tensor, routing: RoutingBuffers, alpha: float, limit: float, out: Tensor
) -> None:
    """As `gate_up_few`, for many tokens an expert.

    Args:
        x: bfloat16 [T, D], plain, D a multiple of 32.
        packed: from `pack_experts`, of [E, 2 F, D].
        bias: bfloat16 [E, 2 F].
        routing: with tiles of `choose_many_tile_size`.
        alpha: slope of SwiGLU's sigmoid.
        limit: SwiGLU's clamp.
        out: bfloat16 [P, F], written in sorted order.
    """
    M = bias.shape[1]
    kernel, launch = _prepare_many("gate_up_many", M, routing, x.device)
    args = (x, packed, bias, *_many_routing(routing), out, x.shape[1], M, routing.num_active, alpha, limit)
    kernel.launch(args=args, **launch)


def down_many(hidden: Tensor, *, packed: Tensor, bias: Tensor, routing: RoutingBuffers, out: Tensor) -> None:
    """As `down_few`, for many tokens an expert: hidden bfloat16 [P, F], plain; out bfloat16 [1, P, D]."""
    M = bias.shape[1]
    kernel, launch = _prepare_many("down_many", M, routing, hidden.device)
    args = (hidden, packed, bias, *_many_routing(routing), routing.pair_weight, out)
    kernel.launch(args=(*args, hidden.shape[1], M, routing.num_active), **launch)


def _prepare_many(name: str, num_rows: int, routing: RoutingBuffers, device: torch.device):
    groups = 1 if routing.tile_size == NARROW_TOKENS else 2
    most_tiles = min(routing.num_pairs, routing.num_experts + routing.num_pairs // routing.tile_size)
    kernel = driver.load_kernel("experts_many", f"{name}_{groups}", device)
    grid = Grid(-(-num_rows // (64 * groups)), most_tiles)
    return kernel, {"grid": grid, "threads": 128 * groups, "shared": _MANY_SHARED[routing.tile_size]}


def _many_routing(routing: RoutingBuffers) -> tuple[Tensor, ...]:
    return (routing.tile_expert, routing.tile_begin, routing.tile_count, routing.num_tiles, routing.sorted_pair)


def _prepare(name: str, num_columns: int, routing: RoutingBuffers, device: torch.device):
    tile_size = routing.tile_size
    row_bytes = -(-num_columns // TILE_COLUMNS) * 128 + 64
    max_rows = min((SHARED_LIMIT - _RING_BYTES - _SEGMENT_BYTES) // row_bytes, 4 * tile_size)
    if max_rows < tile_size:
        raise InvalidInputError(
            f"the GPU experts keep {tile_size} tokens of {num_columns} columns in shared memory, which has no room"
        )
    kernel = driver.load_kernel("experts", f"{name}_{tile_size // 8}", device)
    shared = _RING_BYTES + max_rows * row_bytes + _SEGMENT_BYTES
    grid = Grid(num_multiprocessors(device))
    return kernel, {"grid": grid, "threads": _THREADS, "shared": shared, "max_rows": max_rows}


def num_multiprocessors(device: torch.device) -> int:
    """Of the GPU; 3 where there is none and the kernels are emulated."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
