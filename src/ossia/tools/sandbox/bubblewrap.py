"""The sandbox by bubblewrap: namespaces for everything, no network, a file system of a few read-only folders.

A user other than root gets a user namespace. Root does not: its processes would still count as root's, whom no limit
on the number of processes binds, and who may write kernel settings below /proc/sys by mere ownership. Instead the
program becomes the user that owns the writable folder; `prepare_folder` gives a folder an owner whose number nobody
else has. Nothing runs as root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
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
from ossia.tools.sandbox.limits import MIB
from ossia.tools.sandbox.seccomp import build_filter

_FIRST_UID, _NUM_UIDS = 1_879_048_192, 65_536
"""User numbers for sandboxes: above what distributions and name services give out."""
_NAMESPACE_UID = 1000
_ETC = ("alternatives", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types")
_PROC_READ_ONLY = ("sys", "sysrq-trigger", "irq", "bus", "fs")
_PROC_HIDDEN = ("kcore", "keys", "timer_list", "latency_stats", "sched_debug", "kallsyms", "kmsg")
_PROBE_SECONDS = 10
# The shell joins the control groups before it becomes bubblewrap, so nothing ever runs outside of them.
_JOIN = 'n=$1; shift; while [ "$n" -gt 0 ]; do echo $$ > "$1" || exit 125; shift; n=$((n-1)); done; exec "$@"'

_OPEN_FILTER = 'exec 9<"$1"; shift; exec "$@"'


class BubblewrapSandbox:
    """Programs under `bwrap`.

    Args:
        python: the interpreter for programs in the sandbox; its prefixes are shown read-only. Default: this one.
        command: the bwrap executable.
        read_only: further folders to show, read-only, at their own paths.
    """

    name = "bubblewrap"
    is_isolated = True

    def __init__(
        self, *, python: Path | None = None, command: str | None = None, read_only: Iterable[Path] = ()
    ) -> None:
        self._python = Path(python or sys.executable)
        self._command = command or shutil.which("bwrap") or "bwrap"
        self._read_only = tuple(read_only)
        self._has_own_uid = os.geteuid() == 0
        self._filter = build_filter()
        self._can_disable_userns: bool | None = None

    def find_fault(self) -> str | None:
        """Runs a program in a sandbox; None if that works, else what stands in the way."""
        if shutil.which(self._command) is None:
            return "bubblewrap is not installed (the package 'bubblewrap' of your distribution)"
        try:
            arguments = [*self._namespaces(), *self._file_system(temporary_bytes=MIB), "--", "/bin/true"]
            done = subprocess.run(  # noqa: S603  our own arguments
                [self._command, *arguments], capture_output=True, timeout=_PROBE_SECONDS, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return f"bubblewrap cannot be run: {error}"
        if done.returncode:
            return f"bubblewrap does not work here: {done.stderr.decode('utf-8', 'replace').strip()}"
        return None

    def inside(self, path: Path, *, at: str) -> str:
        return at

    def prepare_folder(self, path: Path) -> None:
        if not self._has_own_uid:
            return
        uid = path.lstat().st_uid
        if not _FIRST_UID <= uid < _FIRST_UID + _NUM_UIDS:
            uid = _FIRST_UID + secrets.randbelow(_NUM_UIDS)
        for folder, names, files in os.walk(path):
            for name in (".", *names, *files):
                os.chown(Path(folder) / name, uid, uid, follow_symlinks=False)

    async def start(self, launch: Launch) -> SandboxProcess:
        arguments, program = self._arguments(launch)
        return await self._spawn(arguments, program, launch=launch)

    def command_line(self, launch: Launch, *, filter_file: Path) -> tuple[str, ...]:
        """The same as a command for others to start, with their stdin and stdout; no control group holds it.

        Args:
            filter_file: is written, and must stay while the command starts.

        Raises:
            SandboxError: no user can run it.
        """
        arguments, program = self._arguments(launch)
        command = [*_pin(launch.limits.num_cpus), self._command, *arguments]
        if self._filter is None:
            return (*command, "--", *program)
        filter_file.write_bytes(self._filter)
        return ("/bin/sh", "-c", _OPEN_FILTER, "sh", str(filter_file), *command, "--seccomp", "9", "--", *program)

    def _arguments(self, launch: Launch) -> tuple[list[str], list[str]]:
        """For bwrap, and the program that it runs."""
        uid = self._uid_of(launch)
        python = str(self._python)
        program = tuple(python if part == "python" and i == 0 else part for i, part in enumerate(launch.program))
        environment = {
            **base_environment(
                python_dir=str(self._python.parent), num_cpus=launch.limits.num_cpus, home=launch.workdir
            ),
            **launch.environment,
        }
        arguments = [
            *self._namespaces(),
            *self._file_system(temporary_bytes=launch.limits.temporary_bytes),
            *(*_parents(BOOT_DIR), "--ro-bind", str(launch.boot_dir), BOOT_DIR),
        ]
        for host, inside in launch.writable.items():
            arguments += [*_parents(inside), "--bind", str(host), inside]
        arguments += ["--remount-ro", "/", "--chdir", "/", "--clearenv"]
        for key, value in environment.items():
            arguments += ["--setenv", key, value]
        settings = boot_settings(launch, uid=uid, workdir=launch.workdir)
        return arguments, [python, "-I", f"{BOOT_DIR}/boot.py", settings, *program]

    async def _spawn(self, arguments: list[str], program: list[str], *, launch: Launch) -> SandboxProcess:
        cgroup = make_cgroup(launch.limits)
        procs = [str(path) for path in cgroup.procs_files] if cgroup else []
        filter_fd = _pipe_with(self._filter) if self._filter is not None else None
        passed = () if filter_fd is None else (filter_fd,)
        seccomp = [] if filter_fd is None else ["--seccomp", str(filter_fd)]
        command = [*_pin(launch.limits.num_cpus), self._command, *arguments, *seccomp, "--", *program]
        try:
            process = await spawn(
                ["/bin/sh", "-c", _JOIN, "sh", str(len(procs)), *procs, *command],
                launch,
                what="the sandbox",
                environment={},
                pass_fds=passed,
            )
        except SandboxError:
            if cgroup is not None:
                await cgroup.remove()
            raise
        finally:
            if filter_fd is not None:
                os.close(filter_fd)
        return SandboxProcess(process=process, cgroup=cgroup)

    def _namespaces(self) -> list[str]:
        options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        options += ["--hostname", "sandbox", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
        if self._has_own_uid:
            # Given up again when boot.py changes the user.
            return [*options, "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        options += ["--unshare-user", "--uid", str(_NAMESPACE_UID), "--gid", str(_NAMESPACE_UID)]
        return [*options, "--disable-userns"] if self._knows_disable_userns() else options

    def _knows_disable_userns(self) -> bool:
        if self._can_disable_userns is None:
            shown = subprocess.run([self._command, "--help"], capture_output=True, check=False)  # noqa: S603
            self._can_disable_userns = b"--disable-userns" in shown.stdout + shown.stderr
        return self._can_disable_userns

    def _file_system(self, *, temporary_bytes: int) -> list[str]:
        options = ["--ro-bind", "/usr", "/usr"]
        for hidden in ("/usr/local", "/usr/src"):
            if Path(hidden).is_dir():
                options += ["--tmpfs", hidden]  # what an administrator put there is the host's
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            path = Path("/", name)
            if path.is_symlink():
                options += ["--symlink", os.readlink(path), str(path)]
            elif path.is_dir():
                options += ["--ro-bind", str(path), str(path)]
        options += ["--perms", "0755", "--dir", "/etc"]
        for name in _ETC:
            options += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
        size = str(temporary_bytes)
        options += ["--proc", "/proc", "--dev", "/dev"]
        for path in ("/dev/shm", "/tmp"):  # noqa: S108  the sandbox's own
            options += ["--perms", "1777", "--size", size, "--tmpfs", path]
        options += ["--remount-ro", "/dev"]
        # bwrap leaves these as the kernel has them where the folder itself cannot be written to.
        for name in _PROC_READ_ONLY:
            options += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
        for name in _PROC_HIDDEN:
            if Path("/proc", name).exists():
                options += ["--ro-bind", "/dev/null", f"/proc/{name}"]
        # Last, since an interpreter may live below /tmp.
        for path in self._prefixes():
            options += [*_parents(str(path)), "--ro-bind", str(path), str(path)]
        return options

    def _prefixes(self) -> Iterator[Path]:
        """Folders of the interpreter outside of /usr, those of a virtual environment's parent too."""
        own = self._python == Path(sys.executable)
        found = [Path(sys.prefix), Path(sys.base_prefix)] if own else [self._python.parent.parent]
        if own and (library := sysconfig.get_config_var("LIBDIR")):
            found.append(Path(library))
        # The interpreter is often a chain of links; each end must exist inside.
        found.append(self._python.resolve().parent.parent)
        seen: list[Path] = []
        for path in sorted({path.absolute() for path in (*found, *self._read_only) if path.is_dir()}):
            is_shown = path.is_relative_to("/usr") and not path.is_relative_to("/usr/local")
            if not is_shown and path != Path("/") and not any(path.is_relative_to(other) for other in seen):
                seen.append(path)
                yield path

    def _uid_of(self, launch: Launch) -> int | None:
        """Whom the program becomes; None leaves it what it is, which is not root."""
        if not self._has_own_uid:
            return None
        uids = {path.lstat().st_uid for path in launch.writable}
        if len(uids) != 1:
            raise SandboxError(f"the writable folders of a sandbox belong to {len(uids)} users; give them one owner")
        uid = uids.pop()
        if uid == 0:
            folders = " ".join(str(path) for path in launch.writable)
            raise SandboxError(
                "the writable folder belongs to root, and nothing is run as root in a sandbox; "
                f"give it to another user, as by: chown -R 1000:1000 {folders}"
            )
        return uid


def _pin(num_cpus: int) -> list[str]:
    """Binds to some of our cores, from outside: the filter keeps the program from choosing others."""
    taskset = shutil.which("taskset")
    cpus = sorted(os.sched_getaffinity(0))
    if taskset is None or len(cpus) <= num_cpus:
        return []
    start = secrets.randbelow(len(cpus))
    return [taskset, "--cpu-list", ",".join(str(cpu) for cpu in (cpus[start:] + cpus[:start])[:num_cpus])]


def _parents(path: str) -> list[str]:
    """Makes the folders above a mount point open to every user; bwrap would keep them to itself."""
    folders = [str(folder) for folder in reversed(Path(path).parents) if folder not in (Path("/"), Path("/usr"))]
    return [part for folder in folders for part in ("--perms", "0755", "--dir", folder)]


def _pipe_with(data: bytes) -> int:
    """The reading end of a pipe that holds `data`; a filter is far smaller than a pipe's buffer."""
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader
