"""Reads safetensors files without holding them: headers are checked first, then tensors are views of the mapped file.

A safetensors file is an 8-byte little-endian header length, a JSON header (name -> dtype, shape, data_offsets) and the
tensors' bytes. What can be wrong with a file is found from its header and its size, before any tensor is read.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia.core.errors import CorruptFileError, MissingFileError, TensorMismatchError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names of the dtypes that may appear in a header; a layout then decides which it takes."""

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_MAX_HEADER_BYTES = 100 << 20  # the limit that the safetensors library itself sets


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """Where one tensor lies: `start` and `stop` are byte offsets from the beginning of the file at `path`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name.

    Raises:
        CorruptFileError: the file is truncated, or its header contradicts itself or the file's size.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > _MAX_HEADER_BYTES or 8 + length > size:
            raise CorruptFileError(
                f"{path} is not a whole safetensors file: it has {size} bytes, its header should end at byte "
                f"{8 + length}; fetch or copy it again"
            )
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CorruptFileError(f"{path} has an unreadable safetensors header ({error}); fetch it again") from error
    if not isinstance(header, dict):
        raise CorruptFileError(f"{path} has a safetensors header that is not a JSON object; fetch it again")
    header.pop("__metadata__", None)
    infos = {name: _parse_entry(path, name, entry, 8 + length) for name, entry in header.items()}
    _check_extents(path, infos, 8 + length, size)
    return infos


def _parse_entry(path: Path, name: str, entry: Any, base: int) -> TensorInfo:
    try:
        dtype_name, shape = entry["dtype"], tuple(entry["shape"])
        start, stop = entry["data_offsets"]
        valid = all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop))
    except (KeyError, TypeError, ValueError):
        valid, dtype_name, shape, start, stop = False, "", (), 0, 0
    if not valid:
        raise CorruptFileError(f"{path}: the header's entry of tensor '{name}' is malformed; fetch the file again")
    dtype = DTYPES.get(dtype_name)
    if dtype is None:
        raise TensorMismatchError(
            f"{path}: tensor '{name}' has dtype {dtype_name}, which is not read here; known are {', '.join(DTYPES)}"
        )
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise CorruptFileError(
            f"{path}: tensor '{name}' ({dtype_name} {list(shape)}) should take {math.prod(shape) * dtype.itemsize} "
            f"bytes, but its header gives it {stop - start}; fetch the file again"
        )
    return TensorInfo(name=name, dtype=dtype, shape=shape, path=path, start=base + start, stop=base + stop)


def _check_extents(path: Path, infos: Mapping[str, TensorInfo], base: int, size: int) -> None:
    """The tensors must tile the file from the header to its last byte: no gap, no overlap, nothing missing."""
    end = base
    for info in sorted(infos.values(), key=lambda info: (info.start, info.stop)):
        if info.start != end:
            raise CorruptFileError(f"{path}: tensor '{info.name}' begins at byte {info.start}, expected {end}")
        end = info.stop
    if end != size:
        kind = "truncated" if size < end else "longer than its header says"
        raise CorruptFileError(f"{path} is {kind}: it has {size} bytes, its header describes {end}; fetch it again")


class TensorFiles:
    """All tensors of one checkpoint folder, as lazy views of memory-mapped files.

    Attributes:
        infos: every tensor by its name in the files.
    """

    def __init__(self, folder: Path, infos: Mapping[str, TensorInfo]) -> None:
        self.folder = folder
        self.infos = dict(infos)
        self._maps: dict[Path, mmap.mmap] = {}

    @classmethod
    def open(cls, folder: Path) -> TensorFiles:
        """Reads the headers of the folder's safetensors files, as the index names them.

        Raises:
            MissingFileError: no safetensors file, or one that the index names is absent or half downloaded.
            CorruptFileError: an index or a file that is not whole.
            TensorMismatchError: a tensor that the index promises is in no file, or one that two files hold.
        """
        index = folder / INDEX_NAME
        if index.is_file():
            return cls(folder, _read_indexed(folder, index))
        paths = sorted(folder.glob("*.safetensors"))
        if not paths:
            raise MissingFileError(_explain_absence(folder))
        infos: dict[str, TensorInfo] = {}
        for path in paths:
            for name, info in read_header(path).items():
                if name in infos:
                    raise TensorMismatchError(f"tensor '{name}' is in both {infos[name].path} and {path}; keep one")
                infos[name] = info
        return cls(folder, infos)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors together."""
        return sum(info.num_bytes for info in self.infos.values())

    def get(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file: reading it pages it in, nothing is copied. Do not write to it."""
        info = self.infos[name]
        if not info.num_bytes:
            return torch.empty(info.shape, dtype=info.dtype)
        flat = torch.frombuffer(self._map(info.path), dtype=torch.uint8, offset=info.start, count=info.num_bytes)
        if info.start % info.dtype.itemsize:  # a writer need not align; torch must
            flat = flat.clone()
        return flat.view(info.dtype).view(info.shape)

    def release(self) -> None:
        """Gives the pages read so far back to the system, so that they do not count as this process's memory.

        Views stay valid: a page that is touched again is read again.
        """
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None:
            for mapped in self._maps.values():
                mapped.madvise(advice)

    def close(self) -> None:
        """Forgets the mappings; each goes away with the last view of it."""
        self._maps.clear()

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as file:
                # A private writable mapping: torch warns about buffers that it could not write to.
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._maps[path]


def _read_indexed(folder: Path, index: Path) -> dict[str, TensorInfo]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CorruptFileError(f"{index} has no 'weight_map' from tensor names to file names; fetch it again")
    headers: dict[str, dict[str, TensorInfo]] = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise CorruptFileError(f"{index} names the file '{shard}', which is not a plain file name")
        if not (folder / shard).is_file():
            raise MissingFileError(_explain_missing_shard(folder, shard))
        headers[shard] = read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise TensorMismatchError(f"tensor '{name}' is missing: {index} places it in {shard}, which lacks it")
    return {name: info for shard in headers for name, info in headers[shard].items() if weight_map.get(name) == shard}


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object from a file of a checkpoint.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: it does not hold a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} is missing; a model folder needs it") from error
    except ValueError as error:
        raise CorruptFileError(f"{path} is not JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} holds a JSON {type(value).__name__}, expected an object; fetch it again")
    return value


def find_incomplete(folder: Path) -> list[Path]:
    """Half-downloaded files: huggingface_hub leaves `*.incomplete` below the folder or in the cache's `blobs/`."""
    found = list(folder.rglob("*.incomplete"))
    if folder.parent.name == "snapshots":
        found += (folder.parent.parent / "blobs").glob("*.incomplete")
    return sorted(found)


def _explain_missing_shard(folder: Path, shard: str) -> str:
    if incomplete := find_incomplete(folder):
        return (
            f"{folder / shard} is missing: its download was interrupted ({len(incomplete)} half-downloaded "
            f"*.incomplete file(s)); run `ossia pull` again, it resumes where it stopped"
        )
    return f"{folder / shard} is missing, though {INDEX_NAME} names it; copy it there or run `ossia pull` again"


def _explain_absence(folder: Path) -> str:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has its weights in {', '.join(pickles[:3])} only, which are Python pickles and can run any "
            "code; Ossia never loads them. Save the model as safetensors (Transformers: save_pretrained) and load that"
        )
    if find_incomplete(folder):
        return f"{folder} holds only a half-finished download (*.incomplete); run `ossia pull` again, it resumes"
    return f"{folder} has no *.safetensors file; copy the model's weights there or fetch them with `ossia pull`"
