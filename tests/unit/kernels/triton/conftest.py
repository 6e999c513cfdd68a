"""Where the CUDA kernels run in tests: on a GPU if there is one, and else compiled for the CPU by emulator.h."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.kernels._cuda import driver
from ossia.kernels._cuda.driver import Grid, pack_arguments, read_source


class EmulatedKernel:
    """The same face as `ossia.kernels._cuda.driver.Kernel`."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self._function, self._take_overruns = getattr(library, f"run_{name}"), library.take_overruns

    def launch(self, grid: Grid, *, threads: int, args: Sequence[Any], shared: int = 0, overlap: bool = True) -> None:
        pointers, _kept = pack_arguments(args)
        self._function((ctypes.c_int * 3)(*grid), threads, shared, pointers)
        assert self._take_overruns() == 0, "the kernel left its shared memory"


class Emulator:
    """Compiles each source once a test run; `read` gives a source's text."""

    def __init__(self, folder: Path, *, read: Callable[[str], str] = read_source) -> None:
        self.folder = folder
        self.read = read
        self.libraries: dict[str, ctypes.CDLL] = {}

    def kernel(self, source: str, name: str, device: torch.device) -> EmulatedKernel:
        del device
        if source not in self.libraries:
            self.libraries[source] = self._build(source)
        return EmulatedKernel(self.libraries[source], name)

    def _build(self, source: str) -> ctypes.CDLL:
        unit, library = self.folder / f"{source}.cpp", self.folder / f"{source}.so"
        header = Path(__file__).parent / "emulator.h"
        text = f'#include "{header}"\n{self.read(source)}\n'
        unit.write_text(text, encoding="utf-8")
        expanded = self._compile("-E", str(unit))
        names = re.findall(r'extern "C"\s+void\s+(\w+)\(', expanded)
        runners = "\n".join(
            f'extern "C" void run_{name}(const int* grid, int threads, int shared, void** args) '
            f"{{ emulator::launch({name}, grid, threads, shared, args); }}"
            for name in names
        )
        unit.write_text(text + runners, encoding="utf-8")
        self._compile("-shared", "-fPIC", "-o", str(library), str(unit))
        return ctypes.CDLL(str(library))

    def _compile(self, *arguments: str) -> str:
        command = ["g++", "-std=c++17", "-O1", "-w", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        return done.stdout


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to run the CUDA sources on the CPU")
    return Emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(params=["emulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Where the kernels run: the CPU, emulated, and a GPU."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU")
        return torch.device("cuda:0")
    monkeypatch.setattr(driver, "load_kernel", request.getfixturevalue("emulator").kernel)
    return torch.device("cpu")
