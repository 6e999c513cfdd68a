"""What a sandbox is: a way to start a program that sees only what it is given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ossia.core.errors import OssiaError
from ossia.tools.sandbox.cgroup import Cgroup
from ossia.tools.sandbox.limits import SandboxLimits
from ossia.tools.sandbox.watch import measure_processes

BOOT_DIR = "/run/ossia"
"""Where the program finds boot.py and what else was laid there for it, read-only."""

_STDERR_KEPT = 16_384
_END_SECONDS = 10.0
_log = logging.getLogger(__name__)


class SandboxError(OssiaError):
    """No sandbox can be had here, or a program could not be started in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program to run in a sandbox.

    Attributes:
        program: the command, as the sandbox sees it. `"python"` in first place is the sandbox's Python.
        boot_dir: a folder on the host with a copy of boot.py, seen at BOOT_DIR.
        writable: folders on the host -> where the sandbox sees them.
        environment: the whole of it.
        workdir: as the sandbox sees it.
        has_output: stdout is a pipe, not the null device.
    """

    program: tuple[str, ...]
    boot_dir: Path
    writable: Mapping[Path, str]
    workdir: str
    limits: SandboxLimits
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    has_output: bool = False


@dataclass(slots=True, kw_only=True)
class SandboxProcess:
    """A running program and the end of it."""

    process: asyncio.subprocess.Process
    cgroup: Cgroup | None = None
    container: tuple[str, ...] = ()
    has_namespace: bool = True
    _stderr: bytearray = field(default_factory=bytearray)
    _reader: asyncio.Task[None] | None = None

    def keep_stderr(self) -> None:
        """Starts to read stderr, of which the last part is kept for error messages."""
        self._reader = asyncio.create_task(self._read_stderr())

    async def _read_stderr(self) -> None:
        stream = self.process.stderr
        assert stream is not None
        while chunk := await stream.read(65_536):
            self._stderr += chunk
            del self._stderr[:-_STDERR_KEPT]

    @property
    def stderr(self) -> str:
        return self._stderr.decode("utf-8", "replace")

    @property
    def is_alive(self) -> bool:
        return self.process.returncode is None

    async def kill(self) -> None:
        """Ends every process of the sandbox. With a PID namespace, the end of its first process is the end of all."""
        if self.is_alive:
            # Without one, a process may have left the group, but not its place below the first.
            strays = [] if self.has_namespace else measure_processes(self.process.pid)[0]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for pid in strays:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
        if self.container:
            remover = await asyncio.create_subprocess_exec(
                *self.container, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            await remover.wait()
        try:
            await asyncio.wait_for(self.process.wait(), _END_SECONDS)
        except TimeoutError:
            _log.error("a sandbox's process %d does not end", self.process.pid)
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        # The pipes close with the process; asyncio keeps the transport until told.
        transport = getattr(self.process, "_transport", None)
        if transport is not None:
            transport.close()
        if self.cgroup is not None:
            await self.cgroup.remove()


class Sandbox(Protocol):
    """A way to isolate a program.

    Attributes:
        name: `bubblewrap`, `docker`, `podman` or `none`.
        is_isolated: whether it keeps a program from the host; only `none` does not.
    """

    @property
    def name(self) -> str: ...

    @property
    def is_isolated(self) -> bool: ...

    def inside(self, path: Path, *, at: str) -> str:
        """The path that a program uses for a folder of the host that is shown at `at`."""
        ...

    def prepare_folder(self, path: Path) -> None:
        """Makes a folder of the host, and what lies in it, writable for programs in the sandbox."""
        ...

    async def start(self, launch: Launch) -> SandboxProcess:
        """Starts a program.

        Raises:
            SandboxError: it cannot be started.
        """
        ...


async def spawn(
    command: Sequence[str],
    launch: Launch,
    *,
    what: str,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    """Start a sandbox's first process, with a session of its own.

    Args:
        what: is started, for the error's message.
        environment: of the command itself; None for ours.

    Raises:
        SandboxError: it cannot be started.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if launch.has_output else asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=pass_fds,
            start_new_session=True,
            env=environment,
        )
    except OSError as error:
        raise SandboxError(f"{what} cannot be started: {error}") from error


def lay_boot_dir(folder: Path) -> None:
    """Copies what runs inside first into a folder that the sandbox will see at BOOT_DIR."""
    folder.mkdir(mode=0o755, exist_ok=True)
    shutil.copyfile(Path(__file__).with_name("boot.py"), folder / "boot.py")
    (folder / "boot.py").chmod(0o644)


def boot_settings(launch: Launch, *, uid: int | None, workdir: str) -> str:
    """The argument of boot.py."""
    limits = launch.limits
    return json.dumps(
        {
            "memory_bytes": limits.memory_bytes,
            "num_processes": limits.num_processes,
            "num_cpus": limits.num_cpus,
            "cpu_seconds": limits.cpu_seconds,
            "disk_bytes": limits.disk_bytes,
            "num_open_files": limits.num_open_files,
            "uid": uid,
            "workdir": workdir,
        }
    )


def base_environment(*, python_dir: str, num_cpus: int, home: str) -> dict[str, str]:
    """A small environment: nothing of the host's passes."""
    threads = str(num_cpus)
    return {
        "PATH": f"{python_dir}:/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": "/tmp",  # noqa: S108  the sandbox's own
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "MPLCONFIGDIR": "/tmp/matplotlib",  # noqa: S108
        "IPYTHONDIR": "/tmp/ipython",  # noqa: S108
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
