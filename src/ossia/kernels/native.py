"""The C++ kernels for the CPU: loading the library, which instructions it uses, and its plain functions on tensors.

`python -m ossia.kernels.native build` compiles them with the machine's C++ compiler, as installing the package does
where there is one; `... info` says what is in use. Without the library everything runs on torch. `OSSIA_NATIVE=0`
turns it off, `OSSIA_NATIVE=avx2` (or another level's name) forces a level.

Whole layers and steps are in `native_model`.
"""

# T tokens, D columns of x, R rows of a matrix, E experts

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError, OssiaError
from ossia.core.paths import native_cache, native_choice, native_folder, native_threads
from ossia.kernels._native.build import (
    LIBRARY_NAME,
    SOURCES,
    BuildResult,
    build,
    build_lock,
    find_compiler,
    source_hash,
)
from ossia.kernels.mxfp4 import BLOCK, Mxfp4

KIND_F32, KIND_BF16, KIND_MXFP4, KIND_Q8, KIND_FP8, KIND_BF12 = range(6)
BF12_GROUP = 64
_BF12_RECORD, _BF12_OTHER = 16, 8  # bytes, see _native/bf12.h
WAYS = ("many", "few", "fine")
_KINDS = {torch.float32: KIND_F32, torch.bfloat16: KIND_BF16}
_FAILURES = {
    1: "an argument is out of range",
    2: "there is not enough memory for the step; use fewer tokens a step",
    3: "a token id is outside the vocabulary",
    4: "a position lies beyond the rope tables or beyond the sequence's block table",
}


class NativeInfo(NamedTuple):
    """What is in use.

    Attributes:
        is_available: whether the C++ kernels run; if not, torch does.
        reason: why not, or where the library lies.
        level: the instructions in use, "" without the library.
        levels: those that this CPU can run.
        num_threads: of the pool; 0 without the library.
    """

    is_available: bool
    reason: str
    level: str
    levels: tuple[str, ...]
    num_threads: int


class Q8(NamedTuple):
    """A matrix in 8 bits: data int8 [..., R, D], and a bfloat16 scale for 32 neighbours, [..., R, D / 32]."""

    data: Tensor
    scales: Tensor


class Bf12(NamedTuple):
    """A bfloat16 matrix in 12 bits a weight, without loss (`_native/bf12.h`).

    Attributes:
        data: uint8 [R, D * 3 / 2].
        records: uint8, a record a row, then the few weights whose exponents are not among their row's common ones.
    """

    data: Tensor
    records: Tensor


Weight = Tensor | Mxfp4 | Q8 | Bf12
"""A matrix [R, D] or one an expert [E, R, D]: float32, bfloat16, MXFP4, 8 bits, or (no experts) bfloat16 in 12 bits."""


class CMatrix(ctypes.Structure):
    """OssiaMatrix."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("padding", ctypes.c_int32),
    )


class CLayer(ctypes.Structure):
    """OssiaLayer."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("attn_norm", "mlp_norm", "sinks")),
        *((name, CMatrix) for name in ("qkv", "out", "router", "gate_up", "down")),
        ("window", ctypes.c_int32),
        ("group", ctypes.c_int32),
    )


class CModel(ctypes.Structure):
    """OssiaModel."""

    _fields_ = (
        *(
            (name, ctypes.c_int32)
            for name in ("dim", "heads", "kv_heads", "head_dim", "experts", "active", "hidden", "vocab", "num_layers")
        ),
        ("exact", ctypes.c_int32),
        *((name, ctypes.c_float) for name in ("eps", "alpha", "limit")),
        ("padding", ctypes.c_int32),
        ("embed", CMatrix),
        ("lm_head", CMatrix),
        *((name, ctypes.c_void_p) for name in ("final_norm", "rope_cos", "rope_sin")),
        ("num_positions", ctypes.c_int64),
        ("layers", ctypes.POINTER(CLayer)),
    )


class CStep(ctypes.Structure):
    """OssiaStep."""

    _fields_ = (
        ("num_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("ids", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("cu_seqlens", ctypes.c_void_p),
        ("block_table", ctypes.c_void_p * 2),
        ("slot_mapping", ctypes.c_void_p * 2),
        ("num_blocks", ctypes.c_int32 * 2),
        ("page_size", ctypes.c_int32),
        ("cache_kind", ctypes.c_int32),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("x", ctypes.c_void_p),
        ("first_layer", ctypes.c_int32),
        ("last_layer", ctypes.c_int32),
        ("out_rows", ctypes.c_void_p),
        ("num_out", ctypes.c_int32),
        ("padding", ctypes.c_int32),
        ("hidden", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
        ("chosen", ctypes.c_void_p),
    )


_I32, _I64, _PTR = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ossia_source_hash": (ctypes.c_char_p, ()),
    "ossia_abi_sizes": (None, (_PTR,)),
    "ossia_num_levels": (_I32, ()),
    "ossia_level_name": (ctypes.c_char_p, (_I32,)),
    "ossia_level_is_supported": (_I32, (_I32,)),
    "ossia_level": (_I32, ()),
    "ossia_set_level": (_I32, (_I32,)),
    "ossia_num_threads": (_I32, ()),
    "ossia_set_num_threads": (_I32, (_I32,)),
    "ossia_forward": (_I32, (ctypes.POINTER(CModel), ctypes.POINTER(CStep))),
    "ossia_matmul": (_I32, (ctypes.POINTER(CMatrix), _PTR, _I32, _I32, _PTR)),
    "ossia_rms_norm": (None, (_PTR, _PTR, _I32, _I32, ctypes.c_float, _PTR)),
    "ossia_attention": (
        _I32,
        (ctypes.POINTER(CModel), ctypes.POINTER(CStep), _PTR, _PTR, _I32, _I32, _PTR),
    ),
    "ossia_quantize_q8": (_I32, (_PTR, _I32, _I64, _I32, _PTR, _PTR)),
    "ossia_bf12_count": (_I64, (_PTR, _I64, _I32, _PTR)),
    "ossia_bf12_pack": (_I32, (_PTR, _I64, _I32, _PTR, _PTR)),
    "ossia_read_bandwidth": (ctypes.c_double, (_PTR, _I64, _I32)),
}


class LoadResult(NamedTuple):
    """The library, or None and why there is none."""

    library: ctypes.CDLL | None
    reason: str


@lru_cache(maxsize=1)
def load() -> LoadResult:
    """Load the library, once a process: from the package, or from where `build` put it for this user.

    A library that was built from other sources is not used.
    """
    if native_choice() == "0":
        return LoadResult(None, "turned off by OSSIA_NATIVE=0")
    reason = "not built; build it with: python -m ossia.kernels.native build"
    only = native_folder()
    for folder in (SOURCES, native_cache()) if only is None else (only,):
        path = folder / LIBRARY_NAME
        if not path.is_file():
            continue
        result = _open(path)
        if result.library is not None:
            return result
        reason = result.reason
    return LoadResult(None, reason)


def _open(path: Path) -> LoadResult:
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        return LoadResult(None, f"{path} cannot be loaded ({error}); build it again")
    sizes = (_I32 * 4)()
    library.ossia_abi_sizes(sizes)
    is_same = list(sizes) == [ctypes.sizeof(kind) for kind in (CMatrix, CLayer, CModel, CStep)]
    if not is_same or library.ossia_source_hash().decode() != source_hash():
        return LoadResult(
            None, f"{path} was built from other sources; build it again with: python -m ossia.kernels.native build"
        )
    if (threads := native_threads()) is not None:
        library.ossia_set_num_threads(threads)
    choice = native_choice()
    if choice and _set_level(library, choice) is not None:
        return LoadResult(None, f"OSSIA_NATIVE is {choice!r}; allowed: 0, {', '.join(_levels(library))}")
    return LoadResult(library, str(path))


def info() -> NativeInfo:
    """What is in use, and why. Never fails."""
    library, reason = load()
    if library is None:
        return NativeInfo(False, reason, "", (), 0)
    level = library.ossia_level_name(library.ossia_level()).decode()
    return NativeInfo(True, reason, level, _levels(library), library.ossia_num_threads())


def is_available() -> bool:
    """Whether the C++ kernels can be used."""
    return load().library is not None


def require() -> ctypes.CDLL:
    """The library.

    Raises:
        OssiaError: there is none; the message says why.
    """
    library, reason = load()
    if library is None:
        raise OssiaError(f"the C++ kernels are not in use: {reason}")
    return library


def set_level(name: str) -> None:
    """Use another level of instructions, for all that follows in this process.

    Raises:
        InvalidInputError: this CPU or this build does not have it.
    """
    library = require()
    if (message := _set_level(library, name)) is not None:
        raise InvalidInputError(message, param="level")


def set_num_threads(count: int | None) -> int:
    """Use so many threads, or as many as there are cores; returns how many there are."""
    if count is not None and count < 1:
        raise InvalidInputError(f"the number of threads is {count}; allowed: at least 1, or None", param="count")
    return require().ossia_set_num_threads(count or 0)


def _set_level(library: ctypes.CDLL, name: str) -> str | None:
    for level in range(library.ossia_num_levels()):
        if library.ossia_level_name(level).decode() == name and library.ossia_set_level(level) == 0:
            return None
    return f"the level is {name!r}; allowed on this CPU: {', '.join(_levels(library))}"


def _levels(library: ctypes.CDLL) -> tuple[str, ...]:
    numbers = range(library.ossia_num_levels())
    return tuple(library.ossia_level_name(n).decode() for n in numbers if library.ossia_level_is_supported(n))


def check_status(status: int) -> None:
    """Raise what a C function reports.

    Raises:
        InvalidInputError: the input was refused; nothing was computed.
        OssiaError: memory ran out.
    """
    if status == 2:
        raise OssiaError(f"the C++ kernels failed: {_FAILURES[2]}")
    if status:
        raise InvalidInputError(f"the C++ kernels refused the input: {_FAILURES.get(status, f'status {status}')}")


def c_matrix(weight: Weight, bias: Tensor | None = None, *, name: str = "weight") -> CMatrix:
    """Describe a matrix for C. The caller keeps the tensors alive.

    Args:
        weight: [R, D] or [E, R, D], contiguous, on the CPU.
        bias: float32 [R] or [E, R].
        name: for messages.

    Raises:
        InvalidInputError: a dtype, device or layout that the kernels do not take.
    """
    if isinstance(weight, Tensor):
        if weight.dtype not in _KINDS:
            raise InvalidInputError(f"{name} is {weight.dtype}; the CPU kernels take float32 and bfloat16", param=name)
        tensors, kind, (rows, cols), scales = (weight,), _KINDS[weight.dtype], weight.shape[-2:], None
    elif isinstance(weight, Mxfp4):
        tensors, kind, scales = tuple(weight), KIND_MXFP4, weight.scales.data_ptr()
        rows, cols = weight.scales.shape[-2], weight.scales.shape[-1] * BLOCK
    elif isinstance(weight, Bf12):
        tensors, kind, scales = tuple(weight), KIND_BF12, weight.records.data_ptr()
        rows, cols = weight.data.shape[0], weight.data.shape[1] * 2 // 3
    else:
        tensors, kind, scales = tuple(weight), KIND_Q8, weight.scales.data_ptr()
        rows, cols = weight.data.shape[-2:]
    for tensor in (*tensors, *(() if bias is None else (bias,))):
        if tensor.device.type != "cpu" or not tensor.is_contiguous():
            raise InvalidInputError(
                f"{name} is on {tensor.device} with strides {tensor.stride()}; the CPU kernels take contiguous tensors "
                "on the CPU",
                param=name,
            )
    if bias is not None and bias.dtype != torch.float32:
        raise InvalidInputError(f"{name}'s bias is {bias.dtype}; the CPU kernels take float32", param=name)
    pointer = None if bias is None else bias.data_ptr()
    return CMatrix(tensors[0].data_ptr(), scales, pointer, kind, rows, cols, 0)


def matmul(x: Tensor, *, weight: Weight, bias: Tensor | None = None, way: str = "few") -> Tensor:
    """x [T, D] times weight [R, D] transposed, plus bias: float32 [T, R].

    Args:
        x: any float dtype; used as float32.
        weight: float32, bfloat16, MXFP4 or 8 bits.
        bias: [R].
        way: which kernels: those for "few" tokens; those for "many", which on the level amx round x to bfloat16 (not
            for float32 weights); or "fine", those for many with what the rounding took as a second product.
    """
    if way not in WAYS:
        raise InvalidInputError(f"way is {way!r}; allowed: {', '.join(WAYS)}", param="way")
    x = x.detach().float().contiguous()
    bias = None if bias is None else bias.detach().float().contiguous()
    matrix = c_matrix(weight, bias)
    if x.dim() != 2 or x.shape[1] != matrix.cols:
        raise InvalidInputError(f"x has shape {list(x.shape)}; allowed: [T, {matrix.cols}]", param="x")
    out = torch.empty(x.shape[0], matrix.rows)
    status = require().ossia_matmul(ctypes.byref(matrix), x.data_ptr(), x.shape[0], WAYS.index(way), out.data_ptr())
    check_status(status)
    return out


def rms_norm(x: Tensor, *, weight: Tensor, eps: float) -> Tensor:
    """float32 [T, D] -> float32 [T, D]; see `kernels.rms_norm`."""
    x, weight = x.detach().float().contiguous(), weight.detach().float().contiguous()
    out = torch.empty_like(x)
    require().ossia_rms_norm(x.data_ptr(), weight.data_ptr(), x.shape[0], x.shape[1], eps, out.data_ptr())
    return out


def quantize_q8(weight: Tensor) -> Q8:
    """Round a float32 or bfloat16 matrix [..., D] to 8 bits, 32 neighbours sharing a scale.

    The scale is the largest size over 127, rounded up to bfloat16; the error of a weight is at most half a scale.

    Raises:
        InvalidInputError: D is not a multiple of 32, or another dtype.
    """
    weight = weight.detach().contiguous()
    if weight.dtype not in _KINDS or weight.shape[-1] % BLOCK:
        raise InvalidInputError(
            f"the matrix is {weight.dtype} {list(weight.shape)}; allowed: float32 or bfloat16 with a last dimension "
            f"that is a multiple of {BLOCK}"
        )
    data = torch.empty(weight.shape, dtype=torch.int8)
    scales = torch.empty(*weight.shape[:-1], weight.shape[-1] // BLOCK, dtype=torch.bfloat16)
    rows = weight.numel() // weight.shape[-1]
    status = require().ossia_quantize_q8(
        weight.data_ptr(), _KINDS[weight.dtype], rows, weight.shape[-1], data.data_ptr(), scales.data_ptr()
    )
    check_status(status)
    return Q8(data, scales)


def pack_bf12(weight: Tensor) -> Bf12:
    """Pack a bfloat16 matrix [R, D] into 12 bits a weight. Every product is what it was, but for the order of sums.

    A row's numbers that have one of its fifteen largest exponents, nearly all, take 12 bits, others 64 more.

    Raises:
        InvalidInputError: D is not a multiple of 64, or another dtype.
    """
    weight = weight.detach().contiguous()
    if weight.dtype != torch.bfloat16 or weight.dim() != 2 or weight.shape[1] % BF12_GROUP or not weight.numel():
        raise InvalidInputError(
            f"the matrix is {weight.dtype} {list(weight.shape)}; allowed: bfloat16 [R, D] with D a multiple of "
            f"{BF12_GROUP}"
        )
    (R, D), library = weight.shape, require()
    counted = torch.empty(R * _BF12_RECORD, dtype=torch.uint8)
    num_others = library.ossia_bf12_count(weight.data_ptr(), R, D, counted.data_ptr())
    records = torch.cat((counted, torch.empty(num_others * _BF12_OTHER, dtype=torch.uint8)))
    data = torch.empty(R, D * 3 // 2, dtype=torch.uint8)
    check_status(library.ossia_bf12_pack(weight.data_ptr(), R, D, records.data_ptr(), data.data_ptr()))
    return Bf12(data, records)


def read_bandwidth(memory: Tensor, *, rounds: int = 5) -> float:
    """Bytes a second at which all threads together read a tensor, the best of some rounds."""
    num_bytes = memory.numel() * memory.element_size()
    return require().ossia_read_bandwidth(memory.data_ptr(), num_bytes, rounds)


def build_library() -> BuildResult:
    """Compile into the package's folder, or where that cannot be written, into the user's."""
    result = build(SOURCES)
    return result if result.library is not None else build(native_cache())


def ensure() -> bool:
    """Build the library if there is none of these sources and a compiler is there; returns whether it can be used.

    Takes some ten seconds when it builds. One process builds at a time, others wait for it.
    """
    if is_available() or native_choice() == "0" or find_compiler() is None:
        return is_available()
    with build_lock(native_cache()):
        load.cache_clear()
        if not is_available():  # not built by the one that we waited for
            build_library()
            load.cache_clear()
    return is_available()


def main(arguments: list[str], write: Callable[[str], object]) -> int:
    """`build` or `info`; returns the exit code."""
    if arguments == ["build"]:
        result = build_library()
        load.cache_clear()
        write(f"{result.reason}: {result.library}" if result.library else f"not built: {result.reason}")
        if result.library is None:
            return 1
    elif arguments not in ([], ["info"]):
        write(f"got {' '.join(arguments)}; allowed: build, info")
        return 2
    found = info()
    if not found.is_available:
        write(f"the CPU runs on torch: {found.reason}")
        return 0
    write(f"the CPU runs on {found.reason}: {found.level} of {', '.join(found.levels)}, {found.num_threads} threads")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], print))
