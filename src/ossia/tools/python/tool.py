"""The python tool: a stateful kernel a conversation, in a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from ossia.harmony.builtin_tools import PYTHON
from ossia.harmony.content import ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.base import FailureKind, ToolContext, ToolProgress, ToolResult, failure, reply
from ossia.tools.python.files import INSIDE, DataFolder
from ossia.tools.python.kernel import Ending, Kernel, Run, start_kernel
from ossia.tools.sandbox.base import Sandbox, SandboxError
from ossia.tools.sandbox.limits import SandboxLimits
from ossia.tools.sandbox.pick import SandboxName, pick_sandbox

_MAX_CODE_CHARS = 1_000_000
_NO_OUTPUT = "[no output; print() what you want to see]"
_RESTARTED = "The kernel was restarted: variables and imports are gone; files in /mnt/data are kept."


class PythonTool:
    """Runs Python in a stateful kernel; the message's text is the code, raw.

    The kernel starts at the first call and ends with `close`. Calls wait for one another. The kernel outlives an
    exception and, if it heeds the interrupt, a timeout; otherwise it is restarted, and the answer says so.

    Args:
        data_dir: the folder behind /mnt/data. Without one, a temporary folder that goes at `close`.
        sandbox: which; see `pick_sandbox`.
        is_unsafe_allowed: leave to run without a sandbox (`--unsafe-python`).
        limits: what the kernel and all it starts may use.

    Raises:
        SandboxError: no sandbox works here.
        InvalidInputError: no sandbox was asked for without leave.
    """

    name = "python"
    is_builtin = True

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        sandbox: SandboxName | Sandbox = "auto",
        is_unsafe_allowed: bool = False,
        limits: SandboxLimits | None = None,
    ) -> None:
        self._sandbox = (
            pick_sandbox(sandbox, is_unsafe_allowed=is_unsafe_allowed) if isinstance(sandbox, str) else sandbox
        )
        self._limits = limits or SandboxLimits()
        self._temporary = Path(tempfile.mkdtemp(prefix="ossia-data-")) if data_dir is None else None
        self._data = DataFolder(data_dir or self._temporary_dir())
        self._kernel: Kernel | None = None
        self._lock = asyncio.Lock()

    def _temporary_dir(self) -> Path:
        assert self._temporary is not None
        return self._temporary

    @property
    def data(self) -> DataFolder:
        """The files of the conversation."""
        return self._data

    @property
    def sandbox(self) -> Sandbox:
        """What the programs run in."""
        return self._sandbox

    def declaration(self) -> ToolNamespace:
        seconds = f"{self._limits.run_seconds:.1f}"
        text = (PYTHON.description or "").replace("120.0", seconds)
        if self._sandbox.is_isolated:
            text = text.replace("is UNKNOWN. Depends on the cluster.", "is disabled.")
        else:
            text = text.replace(INSIDE, str(self._data.path))
        return replace(PYTHON, description=text)

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        code = message.text
        if len(code) > _MAX_CODE_CHARS:
            text = f"The code has {len(code)} characters; at most {_MAX_CODE_CHARS} are run."
            return failure(message, text, kind=FailureKind.INVALID_ARGUMENTS, name=self.name)

        def on_text(text: str) -> None:
            if context.report is not None:
                context.report(ToolProgress(tool=self.name, text=text))

        async with self._lock:
            notes: list[str] = []
            if self._kernel is not None and not self._kernel.is_alive:
                await self._drop_kernel()
                notes.append(f"The kernel had died since the last call. {_RESTARTED}")
            try:
                kernel = await self._need_kernel()
            except SandboxError as error:
                return failure(message, f"Python cannot be run here: {error}", kind=FailureKind.FAILED, name=self.name)
            before = await asyncio.to_thread(self._data.snapshot)
            try:
                run = await kernel.run(code, on_text=on_text)
            except asyncio.CancelledError:
                if not kernel.is_alive:
                    await asyncio.shield(self._drop_kernel())
                raise
            if not run.is_kernel_alive:
                await self._drop_kernel()
                with contextlib.suppress(SandboxError):
                    await self._need_kernel()
            changed = await asyncio.to_thread(self._data.changed_since, before)
        notes += _say_ending(run)
        text = "\n".join(part for part in (run.output.text.rstrip("\n"), *notes) if part)
        return ToolResult(
            messages=(reply(message, text or _NO_OUTPUT, name=self.name),),
            files=(*run.output.images, *changed),
            failure=_FAILURES.get(run.ending),
            notes=tuple(notes),
        )

    async def _need_kernel(self) -> Kernel:
        if self._kernel is None:
            self._kernel = await start_kernel(self._sandbox, self._data.path, at=INSIDE, limits=self._limits)
        return self._kernel

    async def _drop_kernel(self) -> None:
        kernel, self._kernel = self._kernel, None
        if kernel is not None:
            await kernel.end()

    async def close(self) -> None:
        async with self._lock:
            await self._drop_kernel()
            if self._temporary is not None:
                await asyncio.to_thread(shutil.rmtree, self._temporary, ignore_errors=True)


_FAILURES = {
    Ending.TIMEOUT: FailureKind.TIMEOUT,
    Ending.DIED: FailureKind.FAILED,
    Ending.OVER_LIMIT: FailureKind.FAILED,
}


def _say_ending(run: Run) -> list[str]:
    if run.ending is Ending.DONE:
        return [run.reason] if run.reason else []
    if run.ending is Ending.TIMEOUT:
        if run.is_kernel_alive:
            return [f"Timed out after {run.reason}: the run was interrupted; variables are kept."]
        return [f"Timed out after {run.reason}, and the interrupt was not heeded. {_RESTARTED}"]
    if run.ending is Ending.DIED:
        return [f"The kernel died ({run.reason}). {_RESTARTED}"]
    return [f"A limit was broken ({run.reason}). {_RESTARTED}"]
