"""Compiles the kernels into one shared library. Standard library only: the wheel's build hook loads this file alone.

A translation unit is compiled for each level of instructions, with that level's flags; which of them run is decided
when the library is loaded. Nothing here is fatal to a caller: a machine without a compiler gets None and a reason.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent
LIBRARY_NAME = "libossia_native.so"
COMMON_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-ignored-attributes",
)
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mavx512vbmi", "-mavx2", "-mfma")
LEVEL_FLAGS: dict[str, tuple[str, ...]] = {
    # Within a level's unit some helpers stay unused, and gcc 12 takes its own intrinsics' placeholders for
    # uninitialised variables.
    "level_generic.cpp": (),
    "level_avx2.cpp": ("-mavx2", "-mfma"),
    "level_avx512.cpp": _AVX512,
    "level_amx.cpp": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
    "level_neon.cpp": (),
}
LEVEL_WARNINGS = ("-Wno-unused-function", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
X86_ONLY = ("level_avx2.cpp", "level_avx512.cpp", "level_amx.cpp")
ARM_ONLY = ("level_neon.cpp",)
SANITIZE_FLAGS = (
    "-O1",
    "-fsanitize=address,undefined",
    "-fno-omit-frame-pointer",
    "-g",
    "-fno-sanitize-recover=undefined",
)


class BuildResult(NamedTuple):
    """The library, or None and why there is none."""

    library: Path | None
    reason: str


def source_hash() -> str:
    """Identifies the sources and flags: a library says which it was built from."""
    digest = hashlib.sha256()
    for path in sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    digest.update(repr((COMMON_FLAGS, LEVEL_FLAGS)).encode())
    return digest.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: CXX if it is set, else the first of c++, g++ and clang++ there is."""
    if given := os.environ.get("CXX"):
        return shlex.split(given)
    for name in ("c++", "g++", "clang++"):
        if found := shutil.which(name):
            return [found]
    return None


def build(
    folder: Path, *, sanitize: bool = False, only_generic: bool = False, compiler: Sequence[str] | None = None
) -> BuildResult:
    """Compile into `folder`, aside first, so that a library in use is replaced and never changed.

    Args:
        folder: where `LIBRARY_NAME` goes.
        sanitize: with AddressSanitizer and UBSan, for the tests.
        only_generic: without the levels of particular CPUs, for the tests.
        compiler: the command to use; None looks for one.
    """
    command = list(compiler) if compiler else find_compiler()
    if command is None:
        return BuildResult(None, "no C++ compiler was found (looked for CXX, c++, g++ and clang++)")
    if platform.system() not in ("Linux", "Darwin"):
        return BuildResult(None, f"the kernels are not written for {platform.system()}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as scratch:
            extra = (*(SANITIZE_FLAGS if sanitize else ()), *(("-DOSSIA_ONLY_GENERIC",) if only_generic else ()))
            made = _compile(command, Path(scratch), extra, _sources(only_generic=only_generic))
            os.replace(made, folder / LIBRARY_NAME)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines()
        return BuildResult(None, f"{command[0]} failed: {lines[0] if lines else error}")
    except OSError as error:
        return BuildResult(None, f"cannot build in {folder} ({error})")
    return BuildResult(folder / LIBRARY_NAME, "built")


@contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Held by the one process that builds for this user."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], scratch: Path, extra: tuple[str, ...], sources: Sequence[Path]) -> Path:
    def compile_one(source: Path) -> str:
        made = scratch / f"{source.stem}.o"
        flags = [*COMMON_FLAGS, *extra, f'-DOSSIA_SOURCE_HASH="{source_hash()}"']
        if source.name in LEVEL_FLAGS:  # no exceptions there: no code of the C++ library, see kernels.h
            flags += [*LEVEL_FLAGS[source.name], *LEVEL_WARNINGS, "-fno-exceptions"]
        _run([*command, *flags, "-c", str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        objects = list(pool.map(compile_one, sources))
    library = scratch / LIBRARY_NAME
    link = [*command, "-shared", "-pthread", *extra, *objects, "-o", str(library)]
    try:  # with its own C++ runtime the library runs beside any other
        _run([*link, "-static-libstdc++", "-static-libgcc"])
    except subprocess.CalledProcessError:
        _run(link)
    return library


def _sources(*, only_generic: bool) -> list[Path]:
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    left_out = (*X86_ONLY, *ARM_ONLY) if only_generic else ARM_ONLY if is_x86 else X86_ONLY
    return [path for path in sorted(SOURCES.glob("*.cpp")) if path.name not in left_out]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - a compiler, with our arguments
