"""Runs inside a sandbox, first: binds the process to its limits, then becomes the program.

Standard library only, and no other file of Ossia: the sandbox sees a copy of this file alone.
Usage: python -I boot.py SETTINGS_JSON PROGRAM [ARGUMENT ...]
"""

import contextlib
import json
import os
import resource
import sys


def main() -> None:
    """Applies the settings and executes the program in this process."""
    settings = json.loads(sys.argv[1])
    program = sys.argv[2:]
    _limit("RLIMIT_CPU", settings["cpu_seconds"])
    _limit("RLIMIT_FSIZE", settings["disk_bytes"])
    _limit("RLIMIT_NOFILE", settings["num_open_files"])
    _limit("RLIMIT_CORE", 0)
    # Data counts what is private and written to; the address space also counts what is shared, and is often reserved
    # without being used, so it gets more room.
    _limit("RLIMIT_DATA", settings["memory_bytes"])
    _limit("RLIMIT_AS", 4 * settings["memory_bytes"])
    with contextlib.suppress(OSError):
        cpus = sorted(os.sched_getaffinity(0))
        start = os.getpid() % len(cpus)
        os.sched_setaffinity(0, (cpus[start:] + cpus[:start])[: settings["num_cpus"]])
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # the first to go when the machine runs out of memory
    with contextlib.suppress(OSError):
        os.nice(5)
    os.umask(0o022)
    if settings.get("uid") is not None:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    # After the change of user: the count is the user's, and root's is not limited.
    _limit("RLIMIT_NPROC", settings["num_processes"])
    if settings.get("workdir"):
        os.chdir(settings["workdir"])
    try:
        os.execvp(program[0], program)  # noqa: S606  its whole purpose
    except OSError as error:
        sys.stderr.write(f"cannot run {program[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _limit(name: str, value: int) -> None:
    kind = getattr(resource, name, None)
    if kind is None:
        return
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


main()
