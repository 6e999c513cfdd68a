"""The sandbox by a container runtime: docker or podman, for machines without bubblewrap.

The image must have Python with ipykernel (and a shell for `container.exec`); nothing is pulled here. Build one with
`docker build -t ossia-sandbox - <<< $'FROM python:3.12-slim\\nRUN pip install ipykernel matplotlib-inline'`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from ossia.tools.sandbox.base import (
    BOOT_DIR,
    Launch,
    SandboxProcess,
    base_environment,
    boot_settings,
    spawn,
)

DEFAULT_IMAGE = "ossia-sandbox"
_PROBE_SECONDS = 20
_NOBODY = 65_534


class ContainerSandbox:
    """Programs in throw-away containers.

    Args:
        runtime: `docker` or `podman`.
        image: an image that is there already.
        python: the interpreter inside of it.
        options: further options of `run`, as `("--runtime", "runsc")`.
    """

    is_isolated = True

    def __init__(
        self,
        *,
        runtime: str = "docker",
        image: str = DEFAULT_IMAGE,
        python: str = "python3",
        options: tuple[str, ...] = (),
    ) -> None:
        self.name = runtime
        self._image = image
        self._python = python
        self._options = options

    def find_fault(self) -> str | None:
        """Asks the runtime for the image; None if it is there, else what stands in the way."""
        if shutil.which(self.name) is None:
            return f"{self.name} is not installed"
        try:
            done = subprocess.run(  # noqa: S603  our own arguments
                [self.name, "image", "inspect", self._image],
                capture_output=True,
                timeout=_PROBE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"{self.name} cannot be run: {error}"
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return f"{self.name} has no image {self._image!r}: {said[-1] if said else 'no reason given'}"
        return None

    def inside(self, path: Path, *, at: str) -> str:
        return at

    def prepare_folder(self, path: Path) -> None:
        if os.geteuid() != 0:
            return
        for folder, names, files in os.walk(path):
            for name in (".", *names, *files):
                os.chown(Path(folder) / name, _NOBODY, _NOBODY, follow_symlinks=False)

    def command(self, launch: Launch, *, container: str) -> list[str]:
        """The whole command line."""
        limits = launch.limits
        owner = next((path.lstat().st_uid for path in launch.writable), os.geteuid())
        program = [self._python if part == "python" and i == 0 else part for i, part in enumerate(launch.program)]
        mounts: list[str] = ["--volume", f"{launch.boot_dir}:{BOOT_DIR}:ro"]
        for host, inside in launch.writable.items():
            mounts += ["--volume", f"{host}:{inside}:rw"]
        environment = {
            **base_environment(python_dir="/usr/local/bin", num_cpus=limits.num_cpus, home=launch.workdir),
            **launch.environment,
        }
        return [
            *(self.name, "run", "--rm", "--name", container, "--network", "none", "--read-only", "--pull", "never"),
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--user", f"{owner}:{owner}"),
            *("--pids-limit", str(limits.num_processes), "--cpus", str(limits.num_cpus)),
            *("--memory", str(limits.memory_bytes), "--memory-swap", str(limits.memory_bytes)),
            *("--tmpfs", f"/tmp:rw,mode=1777,size={limits.temporary_bytes}"),  # noqa: S108
            *("--shm-size", str(limits.temporary_bytes), "--hostname", "sandbox", "--workdir", "/"),
            *mounts,
            *(part for key, value in environment.items() for part in ("--env", f"{key}={value}")),
            *self._options,
            self._image,
            *(self._python, "-I", f"{BOOT_DIR}/boot.py"),
            boot_settings(launch, uid=None, workdir=launch.workdir),
            *program,
        ]

    async def start(self, launch: Launch) -> SandboxProcess:
        container = f"ossia-{secrets.token_hex(8)}"
        process = await spawn(self.command(launch, container=container), launch, what=self.name)
        return SandboxProcess(process=process, container=(self.name, "rm", "--force", container))
