from __future__ import annotations

from pathlib import Path

import pytest

from ossia.core import memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system of which nothing is known yet: its /proc and its cgroups are folders here."""
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_this_system_tells() -> None:
    free, resident = memory.free_memory(), memory.resident_memory()
    assert free is None or 0 < free < 1 << 50
    assert resident is None or 0 < resident < 1 << 50


def test_a_system_that_does_not_tell(system: Path) -> None:
    assert memory.free_memory() is None
    assert memory.resident_memory() is None


def test_what_the_system_has(system: Path) -> None:
    write(system / "proc/meminfo", "MemTotal: 900 kB\nMemAvailable:     500 kB")
    assert memory.free_memory() == 500 << 10


def test_what_a_container_leaves(system: Path) -> None:
    """cgroup v2: the tightest of the folders above counts, and the cache of files is free."""
    write(system / "proc/meminfo", "MemAvailable: 500 kB")
    write(system / "proc/self/cgroup", "0::/a/b")
    write(system / "cgroup/a/b/memory.max", "max")
    write(system / "cgroup/a/b/memory.current", 100)
    assert memory.free_memory() == 500 << 10
    write(system / "cgroup/a/memory.max", 4096)
    write(system / "cgroup/a/memory.current", 1000)
    assert memory.free_memory() == 3096
    write(system / "cgroup/a/memory.stat", "anon 600\ninactive_file 250\nactive_file 150")
    assert memory.free_memory() == 3496
    write(system / "cgroup/a/memory.current", 9000)
    write(system / "cgroup/a/memory.stat", "anon 9000")
    assert memory.free_memory() == 0


def test_a_container_that_sees_itself_as_the_root(system: Path) -> None:
    write(system / "proc/self/cgroup", "0::/not/visible/here")
    write(system / "cgroup/memory.max", 4096)
    write(system / "cgroup/memory.current", 96)
    assert memory.free_memory() == 4000


def test_the_first_version_of_cgroups(system: Path) -> None:
    write(system / "proc/self/cgroup", "9:cpu,cpuacct:/a\n4:memory:/a")
    write(system / "cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    write(system / "cgroup/memory/memory.usage_in_bytes", 100)
    assert memory.free_memory() is None
    write(system / "cgroup/memory/a/memory.limit_in_bytes", 8192)
    write(system / "cgroup/memory/a/memory.usage_in_bytes", 1192)
    write(
        system / "cgroup/memory/a/memory.stat", "cache 7\ninactive_file 5\ntotal_inactive_file 500\ntotal_active_file 0"
    )
    assert memory.free_memory() == 7500


def test_resident_memory_has_two_parts(system: Path) -> None:
    assert memory.resident_parts() is None
    write(system / "proc/self/status", "VmRSS: 60 kB\nRssAnon: 10 kB\nRssFile: 45 kB\nRssShmem: 5 kB")
    assert memory.resident_parts() == (45 << 10, 15 << 10)
    assert sum(memory.resident_parts() or ()) == memory.resident_memory()
