"""What a sandboxed program may use."""

from __future__ import annotations

from dataclasses import dataclass

from ossia.core.errors import InvalidInputError

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Limits of one sandbox; all processes in it count together unless said otherwise.

    Attributes:
        memory_bytes: resident memory. One process alone cannot allocate more either, and gets a MemoryError.
        num_processes: processes and threads.
        num_cpus: cores that may be busy at a time.
        cpu_seconds: processor time of one process over its whole life.
        disk_bytes: what may lie in the writable folders. A folder that is over it may shrink but not grow.
        num_files: files and folders that may lie there.
        temporary_bytes: size of /tmp and of /dev/shm, each; they live in memory.
        num_open_files: of one process.
        run_seconds: wall-clock time of one call.
        output_bytes: output of one call that is taken in at all; a program that sends more is stopped.
    """

    memory_bytes: int = 2048 * MIB
    num_processes: int = 64
    num_cpus: int = 2
    cpu_seconds: int = 3600
    disk_bytes: int = 512 * MIB
    num_files: int = 10_000
    temporary_bytes: int = 256 * MIB
    num_open_files: int = 512
    run_seconds: float = 120.0
    output_bytes: int = 32 * MIB

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be above 0", param=name)
