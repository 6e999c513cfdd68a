"""A seccomp filter for the sandbox: system calls that no data analysis needs answer EPERM.

The kernel's classic BPF, assembled here. It is a second wall: namespaces, limits and the missing privileges hold
without it; it keeps rarely used parts of the kernel out of reach.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Mapping
from types import MappingProxyType

_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP_IF_EQUAL = 0x15
_JUMP_IF_ABOVE = 0x25
_JUMP_IF_ANY_BIT = 0x45
_RETURN = 0x06
_ALLOW = 0x7FFF0000
_ERROR = 0x00050000
_KILL = 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCH, _OFFSET_ARG0 = 0, 4, 16
_NAMESPACE_FLAGS = 0x7E020000 | 0x00000080  # CLONE_NEW*: ns, cgroup, uts, ipc, user, pid, net; and time
_X32_NUMBERS = 0x40000000

# name: (x86-64, AArch64)
_FORBIDDEN: Mapping[str, tuple[int | None, int]] = MappingProxyType(
    {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "unshare": (272, 97),
        "setns": (308, 268),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "mount_setattr": (442, 442),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "kexec_load": (246, 104),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "syslog": (103, 116),
        "acct": (163, 89),
        "quotactl": (179, 60),
        "name_to_handle_at": (303, 264),
        "open_by_handle_at": (304, 265),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "personality": (135, 92),
        "sched_setaffinity": (203, 122),
        "pidfd_getfd": (438, 438),
        "vhangup": (153, 58),
    }
)
_CLONE: Mapping[str, int] = MappingProxyType({"x86_64": 56, "aarch64": 220})
_CLONE3 = 435
_ARCHES: Mapping[str, tuple[int, int]] = MappingProxyType({"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)})


def build_filter(machine: str | None = None) -> bytes | None:
    """The program as `struct sock_filter[]`, or None for a machine that is not known here.

    A call made for another architecture kills the process. `clone` with a namespace flag answers EPERM, and `clone3`,
    whose flags a filter cannot see, ENOSYS: the C library then falls back on `clone`.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHES:
        return None
    arch, column = _ARCHES[machine]
    code = [
        _op(_LOAD, _OFFSET_ARCH),
        _op(_JUMP_IF_EQUAL, arch, 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _OFFSET_NUMBER),
        _op(_JUMP_IF_ABOVE, _X32_NUMBERS - 1, 0, 1),
        _op(_RETURN, _ERROR | errno.EPERM),
        _op(_JUMP_IF_EQUAL, _CLONE3, 0, 1),
        _op(_RETURN, _ERROR | errno.ENOSYS),
    ]
    for numbers in _FORBIDDEN.values():
        number = numbers[column]
        if number is not None:
            code += [_op(_JUMP_IF_EQUAL, number, 0, 1), _op(_RETURN, _ERROR | errno.EPERM)]
    code += [
        _op(_JUMP_IF_EQUAL, _CLONE[machine], 0, 3),
        _op(_LOAD, _OFFSET_ARG0),
        _op(_JUMP_IF_ANY_BIT, _NAMESPACE_FLAGS & ~0xFF, 0, 1),
        _op(_RETURN, _ERROR | errno.EPERM),
        _op(_RETURN, _ALLOW),
    ]
    return b"".join(code)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
