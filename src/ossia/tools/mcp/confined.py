"""The command of an MCP server under bubblewrap."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ossia.tools.mcp.config import McpSandbox
from ossia.tools.sandbox.base import Launch, SandboxError, lay_boot_dir
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox

_DATA = "/mnt/data"


def confine(
    command: tuple[str, ...], sandbox: McpSandbox, *, environment: Mapping[str, str], folder: Path
) -> tuple[str, ...]:
    """A command that runs the given one in a sandbox.

    Args:
        folder: empty, of our own; holds what the sandbox needs and must stay as long as it runs.

    Raises:
        SandboxError: bubblewrap does not work here, or a folder is not there or has no fit owner.
    """
    made = BubblewrapSandbox(read_only=sandbox.read_only)
    if (fault := made.find_fault()) is not None:
        raise SandboxError(f"the server's command cannot be confined: {fault}")
    for path in (*sandbox.read_only, *sandbox.writable):
        if not path.is_dir():
            raise SandboxError(f"the server's command is to see {path}, which is no folder")
    folder.chmod(0o711)
    lay_boot_dir(folder / "boot")
    writable = {path.resolve(): str(path.resolve()) for path in sandbox.writable}
    if not writable:
        data = folder / "data"
        data.mkdir()
        made.prepare_folder(data)
        writable = {data: _DATA}
    launch = Launch(
        program=command,
        boot_dir=folder / "boot",
        writable=writable,
        workdir=next(iter(writable.values())),
        limits=sandbox.limits,
        environment=environment,
    )
    return made.command_line(launch, filter_file=folder / "filter")
