"""One Jupyter kernel in a sandbox: start, run code, interrupt, end.

The kernel is reached through Unix sockets in a folder that the sandbox shares with the host, since the sandbox has no
network. What comes from the kernel is not trusted: messages have a size limit, a broken connection is not made again,
and only answers to the request in progress are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, cast

from ossia.tools.extras import need
from ossia.tools.python.output import MAX_TEXT_CHARS, Output
from ossia.tools.sandbox.base import BOOT_DIR, Launch, Sandbox, SandboxError, SandboxProcess, lay_boot_dir
from ossia.tools.sandbox.limits import SandboxLimits
from ossia.tools.sandbox.watch import Watch

_IPC_DIR = "/run/kernel"
_CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_START_SECONDS = 60.0
_INTERRUPT_SECONDS = 5.0
_MAX_MESSAGE_BYTES = 32 << 20
_SHORT_OF_MEMORY = "Memory ran out, and a process that the code had started was ended."
_COURTESY_CHARS = 50 * MAX_TEXT_CHARS


class Ending(StrEnum):
    """How a run ended."""

    DONE = "done"
    TIMEOUT = "timeout"
    DIED = "died"
    OVER_LIMIT = "over_limit"


class Run(NamedTuple):
    """One run.

    Attributes:
        reason: what happened; empty for a run like any other.
        is_kernel_alive: whether the kernel and its variables are still there.
    """

    output: Output
    ending: Ending
    reason: str
    is_kernel_alive: bool


class Kernel:
    """A running kernel. Make one with `start_kernel`.

    Args:
        folder: the session's folder on the host, removed at the end.
        watched: folders that count as disk use.
    """

    def __init__(
        self,
        process: SandboxProcess,
        client: Any,
        context: Any,
        *,
        folder: Path,
        watched: tuple[Path, ...],
        limits: SandboxLimits,
    ) -> None:
        self._process = process
        self._client = client
        self._context = context
        self._folder = folder
        self._limits = limits
        self._watch = Watch(pid=process.process.pid, folders=watched, limits=limits)

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive

    async def run(self, code: str, *, on_text: Callable[[str], None] | None = None) -> Run:
        """Runs code and gathers what it prints until it is done or stopped.

        At the time limit it is interrupted; if it does not heed that, the kernel is ended, as it is when it breaks
        another limit. A cancelled run is interrupted too, and the kernel ended if need be.
        """
        output = Output()
        await self._watch.begin()
        num_oom_kills = self._count_oom_kills()
        request = self._client.execute(code, store_history=True, allow_stdin=False, stop_on_error=True)
        gather = asyncio.create_task(self._gather(request, output, on_text))
        died = asyncio.create_task(self._process.process.wait())
        breach = asyncio.create_task(self._watch.wait_for_breach())
        tasks = (gather, died, breach)
        try:
            await asyncio.wait(tasks, timeout=self._limits.run_seconds, return_when=asyncio.FIRST_COMPLETED)
            if gather.done() and not gather.cancelled():
                run = await self._after_gather(gather.result(), output)
                was_short = run.ending is Ending.DONE and self._count_oom_kills() > num_oom_kills
                return run._replace(reason=_SHORT_OF_MEMORY) if was_short else run
            if died.done():
                return Run(output, Ending.DIED, self._say_death(), False)
            if breach.done():
                await self.end()
                return Run(output, Ending.OVER_LIMIT, breach.result(), False)
            alive = await self._interrupt(gather)
            return Run(output, Ending.TIMEOUT, f"{self._limits.run_seconds:g} seconds", alive)
        except asyncio.CancelledError:
            await asyncio.shield(self._interrupt(gather))
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _after_gather(self, fault: str | None, output: Output) -> Run:
        if fault is None:
            # Memory that the kernel's own group refused ends a process at once: the death is seen a moment later.
            breach = await asyncio.to_thread(self._watch.find_breach)
            if breach is None:
                return Run(output, Ending.DONE, "", True)
            fault = breach
        await self.end()
        return Run(output, Ending.OVER_LIMIT, fault, False)

    async def _gather(self, request: str, output: Output, on_text: Callable[[str], None] | None) -> str | None:
        """Reads the kernel's messages until this request is done; gives the fault of a program that floods us."""
        num_bytes = 0
        while True:
            try:
                message = await self._client.get_iopub_msg(timeout=None)
            except (ValueError, TypeError, KeyError, RecursionError):
                continue  # forged or broken: not signed, not JSON, or not a message
            num_bytes += _size(message)
            if num_bytes > self._limits.output_bytes:
                return f"output: more than {self._limits.output_bytes} bytes"
            if _field(message, "parent_header", "msg_id") != request:
                continue
            kind = str(message.get("msg_type"))
            content = message.get("content")
            if not isinstance(content, Mapping):
                continue
            content = cast("Mapping[str, Any]", content)
            if kind == "status" and content.get("execution_state") == "idle":
                return None
            text = output.add(kind, content)
            if text and on_text is not None:
                on_text(text)

    async def _interrupt(self, gather: asyncio.Task[str | None]) -> bool:
        """Asks the kernel to stop its run; ends it if it has not done so in time. Whether it lives."""
        if self.is_alive:
            message = self._client.session.msg("interrupt_request", {})
            self._client.control_channel.send(message)
            with contextlib.suppress(TimeoutError):
                # The program may catch the interrupt, so a second one follows.
                await asyncio.wait_for(asyncio.shield(gather), _INTERRUPT_SECONDS / 2)
                return True
            self._client.control_channel.send(self._client.session.msg("interrupt_request", {}))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(gather), _INTERRUPT_SECONDS / 2)
                return True
        await self.end()
        return False

    def _say_death(self) -> str:
        if self._count_oom_kills():
            return "it was out of memory"
        return f"exit status {self._process.process.returncode}"

    def _count_oom_kills(self) -> int:
        return self._process.cgroup.count_oom_kills() if self._process.cgroup is not None else 0

    async def end(self) -> None:
        """Ends every process of the kernel and removes its folder. Doing so twice does nothing."""
        self._client.stop_channels()
        self._context.destroy(linger=0)
        await self._process.kill()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)


async def start_kernel(sandbox: Sandbox, data: Path, *, at: str, limits: SandboxLimits) -> Kernel:
    """Starts a kernel whose working folder is `data`, shown at `at`.

    Raises:
        SandboxError: it does not start; holds what it said.
        MissingExtraError: jupyter_client or ipykernel is not installed.
    """
    need("ipykernel")
    asyncio_client = need("jupyter_client.asynchronous", package="jupyter_client")
    zmq = need("zmq.asyncio", package="pyzmq")
    folder = Path(tempfile.mkdtemp(prefix="ossia-"))
    folder.chmod(0o711)
    boot, ipc = folder / "boot", folder / "ipc"
    lay_boot_dir(boot)
    shutil.copyfile(Path(__file__).with_name("kernel_main.py"), boot / "kernel_main.py")
    ipc.mkdir(mode=0o700)
    await asyncio.to_thread(sandbox.prepare_folder, data)
    _give_to_owner_of(data, ipc)
    key = secrets.token_hex(32)
    (boot / "connection.json").write_text(_connection(f"{sandbox.inside(ipc, at=_IPC_DIR)}/socket", key=key))
    launch = Launch(
        program=(
            *("python", "-I", f"{BOOT_DIR}/kernel_main.py", f"{BOOT_DIR}/connection.json"),
            str(_COURTESY_CHARS),
        ),
        boot_dir=boot,
        writable={data: at, ipc: _IPC_DIR},
        workdir=at,
        limits=limits,
    )
    process: SandboxProcess | None = None
    context = zmq.Context()
    context.setsockopt(zmq_option("MAXMSGSIZE"), _MAX_MESSAGE_BYTES)
    context.setsockopt(zmq_option("RECONNECT_IVL"), -1)
    client = asyncio_client.AsyncKernelClient(context=context)
    try:
        process = await sandbox.start(launch)
        process.keep_stderr()
        await _wait_for_sockets(process, ipc)
        client.load_connection_info(json.loads(_connection(f"{ipc}/socket", key=key)))
        client.start_channels(stdin=False, hb=False)
        await client.wait_for_ready(timeout=_START_SECONDS)
    except BaseException as error:
        client.stop_channels()
        context.destroy(linger=0)
        said = process.stderr.strip() if process is not None else ""
        if process is not None:
            await asyncio.shield(process.kill())
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RuntimeError | TimeoutError):
            raise SandboxError(f"the Python kernel did not start: {said or error}") from error
        raise
    return Kernel(process, client, context, folder=folder, watched=(data, ipc), limits=limits)


def zmq_option(name: str) -> int:
    """The number of a socket option."""
    return int(getattr(need("zmq", package="pyzmq"), name))


def _connection(prefix: str, *, key: str) -> str:
    ports = {channel: i + 1 for i, channel in enumerate(_CHANNELS)}
    return json.dumps(
        {"transport": "ipc", "ip": prefix, "key": key, "signature_scheme": "hmac-sha256", "kernel_name": "", **ports}
    )


async def _wait_for_sockets(process: SandboxProcess, ipc: Path) -> None:
    """Sockets are connected to once they are there: a connection that fails is not tried again."""
    async with asyncio.timeout(_START_SECONDS):
        while len(list(ipc.iterdir())) < len(_CHANNELS):
            if not process.is_alive:
                await asyncio.sleep(0.05)  # for the last of stderr
                raise SandboxError(f"the Python kernel did not start: {process.stderr.strip()}")
            await asyncio.sleep(0.02)


def _give_to_owner_of(data: Path, folder: Path) -> None:

    if os.geteuid() == 0:
        owner = data.lstat()
        os.chown(folder, owner.st_uid, owner.st_gid)


def _field(message: Mapping[str, Any], *keys: str) -> object:
    value: object = message
    for key in keys:
        value = cast("Mapping[str, object]", value).get(key) if isinstance(value, Mapping) else None
    return value


def _size(message: Mapping[str, Any]) -> int:
    """The characters of a message's texts, near enough; whatever a kernel sends is a small tree."""
    total, waiting = 0, [message.get("content")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, Mapping):
            waiting += cast("Mapping[str, object]", value).values()
        elif isinstance(value, list):
            waiting += cast("list[object]", value)
        total += 8
    return total
