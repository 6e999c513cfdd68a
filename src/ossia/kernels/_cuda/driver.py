"""CUDA C++ at run time: compile with NVRTC, load and launch through the driver, with no build step.

Both libraries come with PyTorch's CUDA wheels; they are called through ctypes, so nothing further is installed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ossia.core.errors import MissingExtraError, UnsupportedModelError

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PROGRAMMATIC_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
SHARED_LIMIT = 232448
"""Bytes of shared memory that one block may have on compute capability 9.0."""


class Grid(NamedTuple):
    """Blocks of a launch."""

    x: int
    y: int = 1
    z: int = 1


class Kernel:
    """One loaded kernel.

    Args:
        name: for error messages.
        function: the driver's handle.
    """

    def __init__(self, name: str, function: ctypes.c_void_p) -> None:
        self.name, self._function, self._shared = name, function, 48 * 1024

    def launch(self, grid: Grid, *, threads: int, args: Sequence[Any], shared: int = 0, overlap: bool = True) -> None:
        """Put the kernel on PyTorch's current stream.

        Args:
            grid: blocks.
            threads: a block's.
            args: tensors go as their address, None as a null pointer, int and float as 32 bits, ctypes structures as
                they are.
            shared: bytes of dynamic shared memory.
            overlap: let it start while the kernel before it still runs (programmatic dependent launch); every kernel
                here waits for its input by itself.
        """
        if shared > self._shared:
            _check(_driver().cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED, shared), self.name)
            self._shared = shared
        pointers, kept = pack_arguments(args)
        config = _LaunchConfig(*grid, threads, 1, 1, shared, torch.cuda.current_stream().cuda_stream)
        if overlap:
            attribute = _LaunchAttribute(_PROGRAMMATIC_SERIALIZATION, 0)
            attribute.value[0] = 1
            config.attributes, config.num_attributes = ctypes.pointer(attribute), 1
        _check(_driver().cuLaunchKernelEx(ctypes.byref(config), self._function, pointers, None), self.name)
        del kept


class Module:
    """A compiled source. Keep it as long as its kernels are used (also by a captured graph)."""

    def __init__(self, source: str, *, name: str, device: torch.device) -> None:
        torch.cuda.current_stream(device)  # the context exists
        self._handle = ctypes.c_void_p()
        with torch.cuda.device(device):
            binary = _compile(source, name=name, device=device)
            _check(_driver().cuModuleLoadData(ctypes.byref(self._handle), binary), name)

    def kernel(self, name: str) -> Kernel:
        """The kernel of that name (`extern "C"` in the source)."""
        function = ctypes.c_void_p()
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), self._handle, name.encode()), name)
        return Kernel(name, function)


@functools.lru_cache(maxsize=64)
def load_kernel(source: str, name: str, device: torch.device) -> Kernel:
    """A kernel of one of this folder's sources ("linear" for linear.cu), compiled once a process and device."""
    return _load_module(source, device).kernel(name)


@functools.lru_cache(maxsize=16)
def _load_module(source: str, device: torch.device) -> Module:
    return Module(read_source(source), name=f"{source}.cu", device=device)


def read_source(source: str) -> str:
    """The text of a source of this folder behind the shared code, with its includes put in place."""
    folder = Path(__file__).parent
    text = (folder / f"{source}.cu").read_text(encoding="utf-8")
    text = re.sub(r'#include "(\w+\.cuh)"', lambda found: (folder / found[1]).read_text(encoding="utf-8"), text)
    return (folder / "common.cuh").read_text(encoding="utf-8") + text


def pack_arguments(args: Iterable[Any]) -> tuple[Any, list[Any]]:
    """The array of pointers that a launch takes, and what it points to (keep it until after the launch)."""
    kept = [_as_c(value) for value in args]
    pointers = (ctypes.c_void_p * len(kept))(*(ctypes.addressof(value) for value in kept))
    return pointers, kept


def _as_c(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return ctypes.c_int(value) if isinstance(value, int) else ctypes.c_float(value)


class _LaunchAttribute(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint), ("padding", ctypes.c_uint), ("value", ctypes.c_int * 16))


class _LaunchConfig(ctypes.Structure):
    _fields_ = (
        ("grid_x", ctypes.c_uint),
        ("grid_y", ctypes.c_uint),
        ("grid_z", ctypes.c_uint),
        ("block_x", ctypes.c_uint),
        ("block_y", ctypes.c_uint),
        ("block_z", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    )


def _compile(source: str, *, name: str, device: torch.device) -> bytes:
    """A binary for the device. Raises UnsupportedModelError where the GPU is too old."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 9:
        raise UnsupportedModelError(
            f"the CUDA kernels need compute capability 9.0 (H100, H200) or newer, but this GPU has {major}.{minor}; "
            "run the model with PyTorch's kernels instead"
        )
    nvrtc, program = _nvrtc(), ctypes.c_void_p()
    text = source.encode()
    _check_nvrtc(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name.encode(), 0, None, None), name, "")
    suffix = "a" if major == 9 else ""
    options = [f"--gpu-architecture=sm_{major}{minor}{suffix}".encode(), b"--std=c++17"]
    status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    size = ctypes.c_size_t()
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    _check_nvrtc(status, name, log.value.decode(errors="replace"))
    _check_nvrtc(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)), name, "")
    binary = ctypes.create_string_buffer(size.value)
    _check_nvrtc(nvrtc.nvrtcGetCUBIN(program, binary), name, "")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary.raw


@functools.lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    return _load_library(("libcuda.so.1", "libcuda.so", "nvcuda.dll"))


@functools.lru_cache(maxsize=1)
def _nvrtc() -> ctypes.CDLL:
    major = (torch.version.cuda or "13").split(".")[0]
    names = [f"libnvrtc.so.{major}", "libnvrtc.so"]
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    found = [str(path) for folder in folders for path in sorted(folder.glob(f"*/lib/libnvrtc.so.{major}*"))]
    return _load_library((*found, *names))


def _load_library(names: Iterable[str]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise MissingExtraError("a CUDA build of torch", extra="gpu")


def _check(status: int, what: str) -> None:
    if status != 0:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(status, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {status} in {what}: {(text.value or b'unknown').decode()}")


def _check_nvrtc(status: int, what: str, log: str) -> None:
    if status != 0:
        raise RuntimeError(f"NVRTC error {status} compiling {what}: {log}")
