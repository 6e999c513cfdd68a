"""`container.exec`: a command in a sandbox that sees one working folder."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ossia.harmony.content import FunctionTool, ToolNamespace
from ossia.harmony.message import Message
from ossia.tools.arguments import read_arguments
from ossia.tools.base import FailureKind, ToolContext, ToolError, ToolResult, failure, reply
from ossia.tools.sandbox.base import Launch, Sandbox, SandboxError, SandboxProcess, lay_boot_dir
from ossia.tools.sandbox.limits import SandboxLimits
from ossia.tools.sandbox.pick import SandboxName, pick_sandbox
from ossia.tools.sandbox.watch import Watch
from ossia.tools.workspace.apply_patch import apply_patch
from ossia.tools.workspace.patch import BEGIN

INSIDE = "/workspace"
_MAX_TEXT_CHARS = 20_000

_EXEC = FunctionTool(
    "exec",
    description=f"Runs a command in a sandbox without network. The working folder is {INSIDE}.",
    parameters={
        "type": "object",
        "properties": {
            "cmd": {"type": "array", "items": {"type": "string"}},
            "workdir": {"type": "string", "default": INSIDE},
            "env": {"type": "object"},
            "timeout": {"type": "number", "description": "Milliseconds."},
            "user": {"type": "string"},
            "session_name": {"type": "string"},
        },
        "required": ["cmd"],
    },
)


class ContainerTool:
    """Runs commands. Each starts a sandbox of its own; what it leaves in the working folder stays.

    Args:
        root: the working folder on the host, shown at /workspace. Commands run as its owner, who must not be root,
            and can change all of it.
        sandbox: see `pick_sandbox`.
        is_unsafe_allowed: leave to run without a sandbox.
        limits: of each command.
    """

    name = "container"
    is_builtin = False

    def __init__(
        self,
        *,
        root: Path,
        sandbox: SandboxName | Sandbox = "auto",
        is_unsafe_allowed: bool = False,
        limits: SandboxLimits | None = None,
    ) -> None:
        self._root = root.resolve()
        self._sandbox = (
            pick_sandbox(sandbox, is_unsafe_allowed=is_unsafe_allowed) if isinstance(sandbox, str) else sandbox
        )
        self._limits = limits or SandboxLimits()

    def declaration(self) -> ToolNamespace:
        return ToolNamespace(self.name, tools=(_EXEC,))

    async def call(self, message: Message, *, context: ToolContext) -> ToolResult:
        name = (message.recipient or "").partition(".")[2]
        if name != "exec":
            text = f"There is no tool {message.recipient!r}; container.exec exists."
            return failure(message, text, kind=FailureKind.NO_SUCH_TOOL)
        try:
            assert isinstance(_EXEC.parameters, Mapping)
            arguments = read_arguments(message, _EXEC.parameters)
            command = [str(part) for part in arguments["cmd"]]
            if not command or any("\0" in part for part in command):
                raise ToolError("cmd is a list of words, as ['ls', '-l'].", kind=FailureKind.INVALID_ARGUMENTS)
            if command[0] == "apply_patch" or (len(command) == 3 and _is_patch_script(command[2])):
                text = await asyncio.to_thread(apply_patch, command[-1], self._root)
                return ToolResult(messages=(reply(message, text),))
            if len(command) == 1 and " " in command[0]:
                command = ["sh", "-c", command[0]]
            elif command[0] == "bash" and shutil.which("bash", path="/usr/bin:/bin") is None:
                command[0] = "sh"
            seconds = min(arguments.get("timeout", 1e9) / 1000, self._limits.run_seconds)
            environment = {str(key): str(value) for key, value in arguments.get("env", {}).items()}
            return await self._run(message, command, str(arguments["workdir"]), environment, seconds=max(seconds, 0.1))
        except ToolError as error:
            return failure(message, str(error), kind=error.kind)
        except SandboxError as error:
            return failure(message, f"The command cannot be run here: {error}", kind=FailureKind.FAILED)

    async def _run(
        self, message: Message, command: list[str], workdir: str, environment: dict[str, str], *, seconds: float
    ) -> ToolResult:
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="ossia-"))
        folder.chmod(0o711)
        try:
            lay_boot_dir(folder / "boot")
            launch = Launch(
                # The shell sends both streams into one pipe, in the order in which they were written.
                program=("sh", "-c", 'cd "$0" && exec "$@" 2>&1', self._workdir(workdir), *command),
                boot_dir=folder / "boot",
                writable={self._root: INSIDE},
                workdir=INSIDE,
                limits=self._limits,
                environment=environment,
                has_output=True,
            )
            process = await self._sandbox.start(launch)
            try:
                process.keep_stderr()
                text, ending = await self._wait(process, seconds=seconds)
            finally:
                await asyncio.shield(process.kill())
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        kind = FailureKind.TIMEOUT if ending.startswith("Timed out") else None
        body = "\n".join(part for part in (text.rstrip("\n"), process.stderr.strip(), ending) if part)
        return ToolResult(messages=(reply(message, body),), failure=kind)

    def _workdir(self, workdir: str) -> str:
        """As the sandbox sees it. It needs no check: the sandbox holds, whatever it is."""
        return workdir if workdir.startswith("/") else f"{self._sandbox.inside(self._root, at=INSIDE)}/{workdir}"

    async def _wait(self, process: SandboxProcess, *, seconds: float) -> tuple[str, str]:
        watch = Watch(pid=process.process.pid, folders=(self._root,), limits=self._limits, name=INSIDE, is_growth=True)
        await watch.begin()
        pieces: list[bytes] = []
        read = asyncio.create_task(self._read(process, pieces))
        breach = asyncio.create_task(watch.wait_for_breach())
        try:
            await asyncio.wait((read, breach), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if breach.done():
                ending = f"A limit was broken ({breach.result()}); the command was ended."
            elif not read.done():
                ending = f"Timed out after {seconds:g} s; the command was ended."
            elif read.result():
                ending = f"The command was ended: it printed more than {self._limits.output_bytes} bytes."
            else:
                ending = f"[exit status {await asyncio.wait_for(process.process.wait(), 10)}]"
        finally:
            for task in (read, breach):
                task.cancel()
            await asyncio.gather(read, breach, return_exceptions=True)
        text = b"".join(pieces).decode("utf-8", "replace")
        half = _MAX_TEXT_CHARS // 2
        if len(text) > _MAX_TEXT_CHARS:
            text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
        return text, ending

    async def _read(self, process: SandboxProcess, pieces: list[bytes]) -> bool:
        """Reads the output to its end; True if it is more than is taken in."""
        stream = process.process.stdout
        assert stream is not None
        num_bytes = 0
        while chunk := await stream.read(65_536):
            pieces.append(chunk)
            num_bytes += len(chunk)
            if num_bytes > self._limits.output_bytes:
                return True
        return False

    async def close(self) -> None:
        return


def _is_patch_script(script: str) -> bool:
    """`bash -lc "apply_patch <<'EOF' ..."`: how the models call it in a shell."""
    return script.lstrip().startswith("apply_patch") and BEGIN in script
