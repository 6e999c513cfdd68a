"""The sandbox's parts: filter, groups, watch, choice, and the command lines of runtimes that may not be here."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.tools.sandbox import pick
from ossia.tools.sandbox.base import BOOT_DIR, Launch, SandboxError, lay_boot_dir
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox
from ossia.tools.sandbox.cgroup import make_cgroup
from ossia.tools.sandbox.container import ContainerSandbox
from ossia.tools.sandbox.limits import MIB, SandboxLimits
from ossia.tools.sandbox.pick import pick_sandbox
from ossia.tools.sandbox.seccomp import build_filter
from ossia.tools.sandbox.watch import Watch, measure_folders, measure_processes, measure_shared

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def judge(program: bytes, arch: int, number: int, argument: int = 0) -> int:
    """Runs a filter as the kernel does, on one system call."""
    data = {0: number, 4: arch, 16: argument & 0xFFFFFFFF}
    code = [struct.unpack_from("=HBBI", program, i) for i in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        op, if_true, if_false, value = code[at]
        at += 1
        if op == 0x20:
            accumulator = data[value]
        elif op == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x45: bool(accumulator & value)}[op]
            at += if_true if holds else if_false


@pytest.mark.parametrize(("machine", "arch", "clone"), [("x86_64", X86_64, 56), ("aarch64", AARCH64, 220)])
def test_the_filter_answers_as_meant(machine: str, arch: int, clone: int) -> None:
    program = build_filter(machine)
    assert program is not None
    assert len(program) % 8 == 0
    ptrace, read = (101, 0) if machine == "x86_64" else (117, 63)
    assert judge(program, arch, read) == ALLOW
    assert judge(program, arch, ptrace) == EPERM
    assert judge(program, arch, 425) == EPERM, "io_uring"
    assert judge(program, arch, 435) == ENOSYS, "clone3 falls back on clone"
    assert judge(program, arch, clone, 0x3D0F00) == ALLOW, "a thread"
    assert judge(program, arch, clone, 17) == ALLOW, "a fork"
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert judge(program, arch, clone, flag | 17) == EPERM
    assert judge(program, 0x40000003, read) == KILL, "another architecture"
    assert judge(program, arch, 0x40000000 | read) == EPERM


@given(st.integers(0, 600), st.integers(0, 2**32 - 1))
def test_the_filter_always_answers(number: int, argument: int) -> None:
    program = build_filter("x86_64")
    assert program is not None
    assert judge(program, X86_64, number, argument) in (ALLOW, EPERM, ENOSYS)


def test_an_unknown_machine_has_no_filter() -> None:
    assert build_filter("riscv64") is None


def test_limits_must_be_above_nothing() -> None:
    with pytest.raises(InvalidInputError, match="memory_bytes"):
        SandboxLimits(memory_bytes=0)


# ---- which sandbox ----


def test_the_first_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    faults: dict[str, str | None] = {"bubblewrap": "no bwrap", "docker": "no docker", "podman": None}
    monkeypatch.setattr(pick.BubblewrapSandbox, "find_fault", lambda self: faults["bubblewrap"])
    monkeypatch.setattr(pick.ContainerSandbox, "find_fault", lambda self: faults[self.name])
    assert pick_sandbox().name == "podman"
    faults["podman"] = "no podman"
    with pytest.raises(SandboxError, match="no bwrap; no docker; no podman"):
        pick_sandbox()
    with pytest.raises(SandboxError, match="no docker"):
        pick_sandbox("docker", is_unsafe_allowed=True)
    assert pick_sandbox(is_unsafe_allowed=True).name == "none"
    assert not pick_sandbox("none", is_unsafe_allowed=True).is_isolated
    with pytest.raises(InvalidInputError):
        pick_sandbox("chroot")  # type: ignore[arg-type]  # what is tested


def test_a_missing_runtime_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "not installed" in str(BubblewrapSandbox().find_fault())
    assert "not installed" in str(ContainerSandbox().find_fault())


def test_a_runtime_without_the_image_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "docker"
    fake.write_text("#!/bin/sh\necho 'no such image' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "no such image" in str(ContainerSandbox(image="x").find_fault())
    fake.write_text("#!/bin/sh\nexit 0\n")
    assert ContainerSandbox(image="x").find_fault() is None


def test_the_container_is_closed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    launch = Launch(
        program=("python", "-c", "1"),
        boot_dir=tmp_path,
        writable={data: "/mnt/data"},
        workdir="/mnt/data",
        limits=SandboxLimits(),
        environment={"A": "b"},
    )
    command = ContainerSandbox(options=("--runtime", "runsc")).command(launch, container="c")
    text = " ".join(command)
    for part in (
        "--network none",
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--pids-limit 64",
        f"--memory {2048 * MIB} --memory-swap {2048 * MIB}",
        f"--volume {data}:/mnt/data:rw",
        f"--volume {tmp_path}:{BOOT_DIR}:ro",
        "--pull never",
        "--env A=b",
        "--runtime runsc ossia-sandbox python3 -I",
    ):
        assert part in text
    assert command[-3:] == ["python3", "-c", "1"]
    assert "privileged" not in text.replace("no-new-privileges", "")


# ---- limits from outside ----


def test_folders_are_measured_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "big").write_bytes(bytes(1 << 20))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "usr").symlink_to("/usr")
    use = measure_folders([tmp_path], 100)
    assert use.num_files == 4
    assert (1 << 20) <= use.num_bytes < (2 << 20)
    for i in range(50):
        (tmp_path / f"f{i}").touch()
    assert measure_folders([tmp_path], 10).num_files == 11
    assert measure_folders([tmp_path / "nothing"], 10) == (0, 0)


def test_processes_are_measured_with_their_children() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'b = bytearray(50 << 20); input()'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        end = time.monotonic() + 20
        while measure_processes(process.pid)[1] < 50 << 20 and time.monotonic() < end:
            time.sleep(0.05)
        pids, memory = measure_processes(process.pid)
        assert len(pids) == 2
        assert pids[0] == process.pid
        assert 50 << 20 <= memory < 200 << 20
        assert 50 << 20 <= measure_shared(pids) < 200 << 20
    finally:
        process.communicate(b"\n")
    assert measure_processes(process.pid) == ([process.pid], 0)
    assert measure_shared([process.pid]) == 0


@pytest.mark.parametrize(("is_growth", "allowed"), [(False, 300), (True, 600)])
def test_a_folder_over_its_limit_may_shrink_and_not_grow(tmp_path: Path, is_growth: bool, allowed: int) -> None:
    limits = SandboxLimits(num_files=300, disk_bytes=1 << 40)
    for i in range(300):
        (tmp_path / f"a{i}").touch()
    watch = Watch(pid=2**22 + 1, folders=[tmp_path], limits=limits, is_growth=is_growth)
    asyncio.run(watch.begin())
    assert watch.find_breach() is None
    for i in range(allowed - 300 + 1):
        (tmp_path / f"b{i}").touch()
    assert "files lie in" in str(watch.find_breach())
    (tmp_path / "a0").unlink()
    assert watch.find_breach() is None


def test_a_group_of_version_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a folder that looks like the hierarchy; a real one needs rights."""
    (tmp_path / "cgroup.controllers").touch()
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids")
    group = make_cgroup(SandboxLimits(memory_bytes=5, num_processes=7), root=tmp_path)
    assert group is not None
    (folder,) = group.folders
    assert (folder / "memory.max").read_text() == "5"
    assert (folder / "pids.max").read_text() == "15"
    (folder / "memory.events").write_text("low 0\noom_kill 3\n")
    assert group.count_oom_kills() == 3
    (tmp_path / "cgroup.subtree_control").write_text("cpu")
    assert make_cgroup(SandboxLimits(), root=tmp_path) is None
    assert make_cgroup(SandboxLimits(), root=tmp_path / "nothing") is None


# ---- a real sandbox ----


def start(sandbox: BubblewrapSandbox, tmp_path: Path, *program: str, **options: Any) -> tuple[int | None, str, str]:
    async def go() -> tuple[int | None, str, str]:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        lay_boot_dir(tmp_path / "boot")
        sandbox.prepare_folder(data)
        launch = Launch(
            program=program,
            boot_dir=tmp_path / "boot",
            writable={data: "/mnt/data"},
            workdir="/mnt/data",
            limits=options.get("limits", SandboxLimits()),
            has_output=True,
        )
        process = await sandbox.start(launch)
        process.keep_stderr()
        try:
            assert process.process.stdout is not None
            out = await asyncio.wait_for(process.process.stdout.read(-1), 30)
            code = await process.process.wait()
            await asyncio.sleep(0.05)
            return code, out.decode(), process.stderr
        finally:
            await process.kill()

    return asyncio.run(go())


def test_exit_status_streams_and_working_folder(bubblewrap: BubblewrapSandbox, tmp_path: Path) -> None:
    code, out, error = start(bubblewrap, tmp_path, "sh", "-c", "pwd; echo oops >&2; exit 7")
    assert (code, out, error) == (7, "/mnt/data\n", "oops\n")
    code, _, error = start(bubblewrap, tmp_path, "no-such-program")
    assert code == 127
    assert "no-such-program" in error


def test_limits_reach_the_program(bubblewrap: BubblewrapSandbox, tmp_path: Path) -> None:
    limits = SandboxLimits(memory_bytes=64 * MIB, num_processes=9, cpu_seconds=7, num_open_files=33, num_cpus=1)
    script = (
        "import json, os, resource as r\n"
        "print(json.dumps([r.getrlimit(x) for x in (r.RLIMIT_DATA, r.RLIMIT_NPROC, r.RLIMIT_CPU, r.RLIMIT_NOFILE,"
        " r.RLIMIT_CORE)] + [len(os.sched_getaffinity(0))]))"
    )
    _, out, error = start(bubblewrap, tmp_path, "python", "-c", script, limits=limits)
    assert out.strip() == "[[67108864, 67108864], [9, 9], [7, 7], [33, 33], [0, 0], 1]", error


def test_processor_time_is_limited(bubblewrap: BubblewrapSandbox, tmp_path: Path) -> None:
    code, _, _ = start(bubblewrap, tmp_path, "python", "-c", "while True: pass", limits=SandboxLimits(cpu_seconds=1))
    assert code not in (0, None)


def test_the_environment_is_ours_alone(
    bubblewrap: BubblewrapSandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OSSIA_API_KEY", "hunter2")
    _, out, _ = start(bubblewrap, tmp_path, "sh", "-c", "env; cat /proc/*/environ")
    assert "hunter2" not in out
    assert "HOME=/mnt/data" in out
