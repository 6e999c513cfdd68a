"""No sandbox: programs run as this user, with this user's files and network. Only resource limits hold."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ossia.tools.sandbox.base import (
    BOOT_DIR,
    Launch,
    SandboxError,
    SandboxProcess,
    base_environment,
    boot_settings,
    spawn,
)
from ossia.tools.sandbox.cgroup import make_cgroup


class UnsafeSandbox:
    """What `--unsafe-python` asks for. A program can read and change whatever this user can."""

    name = "none"
    is_isolated = False

    def inside(self, path: Path, *, at: str) -> str:
        return str(path)

    def prepare_folder(self, path: Path) -> None:
        return

    async def start(self, launch: Launch) -> SandboxProcess:
        boot = str(launch.boot_dir)
        program = [part.replace(BOOT_DIR, boot) for part in launch.program]
        if program[0] == "python":
            program[0] = sys.executable
        workdir = next((str(host) for host, inside in launch.writable.items() if inside == launch.workdir), "/")
        python_dir = str(Path(sys.executable).parent)
        environment = base_environment(python_dir=python_dir, num_cpus=launch.limits.num_cpus, home=workdir)
        settings = boot_settings(launch, uid=None, workdir=workdir)
        cgroup = make_cgroup(launch.limits)
        try:
            process = await spawn(
                [sys.executable, "-I", f"{boot}/boot.py", settings, *program],
                launch,
                what="Python",
                environment={**environment, **launch.environment, "USER": os.environ.get("USER", "")},
            )
        except SandboxError:
            if cgroup is not None:
                await cgroup.remove()
            raise
        if cgroup is not None:
            for file in cgroup.procs_files:
                file.write_text(str(process.pid))
        return SandboxProcess(process=process, cgroup=cgroup, has_namespace=False)
