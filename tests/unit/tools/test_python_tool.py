"""The python tool with a real kernel in a real sandbox: state, limits, and attacks on it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.tools.base import FailureKind, ToolProgress, ToolResult
from ossia.tools.python.tool import PythonTool
from ossia.tools.sandbox.base import SandboxError
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox
from ossia.tools.sandbox.limits import MIB, SandboxLimits

LIMITS = SandboxLimits(
    memory_bytes=512 * MIB, disk_bytes=32 * MIB, num_files=300, run_seconds=20, output_bytes=8 * MIB, num_processes=32
)
Script = Callable[..., list[ToolResult]]


@pytest.fixture
def script(bubblewrap: BubblewrapSandbox, tmp_path: Path, call: Any) -> Script:
    """Runs several pieces of code in one kernel."""

    def run_script(*codes: str, limits: SandboxLimits = LIMITS, prepare: Callable[[Path], None] | None = None) -> Any:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        if prepare is not None:
            prepare(data)

        async def go() -> list[ToolResult]:
            tool = PythonTool(data_dir=data, sandbox=bubblewrap, limits=limits)
            try:
                return [await call(tool, "python", code) for code in codes]
            finally:
                await tool.close()

        return asyncio.run(go())

    return run_script


def test_keeps_state_and_shows_the_last_value(script: Script) -> None:
    first, second, third = script("x = 40\nprint('hello')\nx + 1", "x + 2", "y = x")
    assert first.text == "hello\n41"
    assert second.text == "42"
    assert "no output" in third.text
    assert first.messages[0].name == "python"


def test_code_is_raw_even_if_it_looks_like_json(script: Script) -> None:
    assert script('{"code": "1 + 1"}')[0].text == "{'code': '1 + 1'}"


def test_an_exception_shows_its_own_frames_and_keeps_the_kernel(script: Script) -> None:
    broken, after = script("import json\nx = 5\njson.loads('{')", "x")
    assert "Cell In" in broken.text
    assert "JSONDecodeError" in broken.text
    assert "frames left out" in broken.text
    assert broken.failure is None
    assert after.text == "5"


def test_a_deep_recursion_is_cut(script: Script) -> None:
    (result,) = script("def f(n):\n    return f(n + 1)\nf(0)")
    assert "RecursionError" in result.text
    assert len(result.text) < 5000


def test_a_timeout_interrupts_and_says_so(script: Script) -> None:
    limits = SandboxLimits(run_seconds=1)
    slow, after = script("x = 7\nimport time\ntime.sleep(60)", "x", limits=limits)
    assert slow.failure is FailureKind.TIMEOUT
    assert "variables are kept" in slow.text
    assert after.text == "7"


@pytest.mark.slow
def test_a_run_that_ignores_the_interrupt_loses_its_kernel_and_says_so(script: Script) -> None:
    stubborn = (
        "x = 7\nimport time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass"
    )
    first, after = script(stubborn, "'x' in globals()", limits=SandboxLimits(run_seconds=1))
    assert "restarted" in first.text
    assert first.notes
    assert after.text == "False"


def test_a_killed_kernel_is_restarted_and_says_so(script: Script) -> None:
    dead, after = script("x = 1\nimport os\nos.kill(os.getpid(), 9)", "1 + 1")
    assert dead.failure is FailureKind.FAILED
    assert "kernel died" in dead.text
    assert after.text == "2"


def test_cancelling_interrupts_the_run(bubblewrap: BubblewrapSandbox, call: Any) -> None:
    async def go() -> ToolResult:
        tool = PythonTool(sandbox=bubblewrap, limits=LIMITS)
        try:
            await call(tool, "python", "x = 3")
            task = asyncio.create_task(call(tool, "python", "import time\ntime.sleep(60)"))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return await call(tool, "python", "x")
        finally:
            await tool.close()

    assert asyncio.run(go()).text == "3"


def test_progress_is_reported_while_it_runs(bubblewrap: BubblewrapSandbox, call: Any) -> None:
    seen: list[ToolProgress] = []

    async def go() -> None:
        tool = PythonTool(sandbox=bubblewrap, limits=LIMITS)
        try:
            await call(tool, "python", "print('a', flush=True)\nprint('b')", report=seen.append)
        finally:
            await tool.close()

    asyncio.run(go())
    assert "".join(item.text for item in seen) == "a\nb\n"


def test_images_and_changed_files_come_back(script: Script) -> None:
    png = (
        "import base64\nfrom IPython.display import Image, display\n"
        "open('/mnt/data/made.csv', 'w').write('a,b')\n"
        "display(Image(data=base64.b64decode('iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
        "awAAAABJRU5ErkJggg=='), format='png'))"
    )
    (result,) = script(png)
    image, made = result.files
    assert image.mime_type == "image/png"
    assert image.data is not None
    assert image.data.startswith(b"\x89PNG")
    assert "[image_1.png]" in result.text
    assert (made.path, made.size, made.data) == ("/mnt/data/made.csv", 3, None)


def test_uploads_are_read_and_the_program_can_replace_them(bubblewrap: BubblewrapSandbox, call: Any) -> None:
    async def go() -> tuple[str, bytes]:
        tool = PythonTool(sandbox=bubblewrap, limits=LIMITS)
        try:
            tool.data.put("in.txt", b"first")
            await call(tool, "python", "1")
            tool.data.put("later.txt", b"second")
            shown = await call(
                tool,
                "python",
                "print(open('in.txt').read(), open('later.txt').read())\nopen('later.txt', 'w').write('third')",
            )
            return shown.text, tool.data.read("/mnt/data/later.txt", max_bytes=100)
        finally:
            await tool.close()

    text, later = asyncio.run(go())
    assert text.startswith("first second")
    assert later == b"third"


def test_the_declaration_says_what_holds_here(bubblewrap: BubblewrapSandbox) -> None:
    tool = PythonTool(sandbox=bubblewrap, limits=SandboxLimits(run_seconds=30))
    text = tool.declaration().description or ""
    assert "time out after 30.0 seconds" in text
    assert "Internet access for this session is disabled." in text
    asyncio.run(tool.close())


def test_without_a_sandbox_it_refuses_unless_told(monkeypatch: pytest.MonkeyPatch, call: Any) -> None:
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SandboxError, match="unsafe-python"):
        PythonTool()
    with pytest.raises(InvalidInputError, match="unsafe-python"):
        PythonTool(sandbox="none")

    async def go() -> tuple[ToolResult, PythonTool]:
        tool = PythonTool(is_unsafe_allowed=True, limits=LIMITS)
        try:
            return await call(tool, "python", "import os\nos.getcwd()"), tool
        finally:
            await tool.close()

    result, tool = asyncio.run(go())
    assert tool.sandbox.name == "none"
    assert str(tool.data.path) in result.text


# ---- attacks: each must fail, and the next call must work ----


def test_there_is_no_network(script: Script) -> None:
    """A server on the host's loopback waits; the sandbox has a loopback of its own, where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        reached = threading.Event()

        def accept() -> None:
            try:
                server.accept()
                reached.set()
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        inside, outside, name = script(
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)",
            "import socket\nsocket.create_connection(('192.0.2.1', 80), 2)",
            "import socket\nsocket.getaddrinfo('example.com', 80)",
        )
        assert not reached.is_set()
        server.close()
    assert "ConnectionRefusedError" in inside.text
    assert "Network is unreachable" in outside.text
    assert "gaierror" in name.text


@pytest.mark.parametrize(
    "path",
    [
        "/etc/shadow",
        "/root/.bashrc",
        "/proc/1/environ",
        "/proc/1/root/etc/passwd",
        "/sys/kernel/notes",
        "/dev/vda",
        "/dev/mem",
    ],
)
def test_host_files_are_out_of_reach(script: Script, path: str) -> None:
    assert "Error" in script(f"print(len(open({path!r}, 'rb').read()), 'bytes')")[0].text.splitlines()[-1]


def test_the_host_is_not_seen(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_TEST_SECRET", "hunter2")
    (tmp_path / "secret.txt").write_text("hunter2")
    environment, files, processes, home = script(
        "import os\n'hunter2' in str(dict(os.environ))",
        f"import os\nos.path.exists({str(tmp_path / 'secret.txt')!r})",
        "import os\nlen([p for p in os.listdir('/proc') if p.isdigit()]) < 10",
        "import os\n[p for p in ('/home', '/srv', '/opt', '/var') if os.path.exists(p)]",
    )
    assert environment.text == "False"
    assert files.text == "False"
    assert processes.text == "True"
    assert home.text == "[]"


@pytest.mark.parametrize(
    "path", ["/x", "/usr/x", "/etc/x", "/dev/x", "/run/ossia/boot.py", "/proc/sys/kernel/hostname"]
)
def test_nothing_can_be_written_outside(script: Script, path: str) -> None:
    text = script(f"open({path!r}, 'w').write('x')")[0].text
    assert "OSError" in text or "PermissionError" in text


def test_links_in_the_data_folder_lead_nowhere_on_the_host(
    bubblewrap: BubblewrapSandbox, call: Any, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("hunter2")

    async def go() -> None:
        tool = PythonTool(data_dir=tmp_path / "data", sandbox=bubblewrap, limits=LIMITS)
        try:
            result = await call(
                tool,
                "python",
                f"import os\nos.symlink({str(secret)!r}, 'a.txt')\nos.symlink({str(tmp_path)!r}, 'd')\n"
                "os.mkfifo('pipe')\nos.link('/run/ossia/boot.py', 'hard') if False else None",
            )
            assert result.files == ()
            for name in ("a.txt", "d/secret.txt", "pipe", "../secret.txt", "/etc/passwd"):
                with pytest.raises(InvalidInputError):
                    tool.data.read(name, max_bytes=1000)
            tool.data.put("a.txt", b"upload")
        finally:
            await tool.close()

    asyncio.run(go())
    assert secret.read_text() == "hunter2"


@pytest.mark.slow
def test_a_fork_bomb_is_held(script: Script) -> None:
    bomb, after = script(
        "import os\nwhile True:\n    os.fork()", "6 * 7", limits=SandboxLimits(run_seconds=5, num_processes=32)
    )
    assert after.text == "42"
    assert len([p for p in os.listdir("/proc") if p.isdigit()]) < 2000
    assert bomb.notes or "BlockingIOError" in bomb.text


@pytest.mark.slow
def test_memory_is_limited_for_one_and_for_all_processes(script: Script) -> None:
    one, alive, many, *after = script(
        "x = 1\nb = bytearray(600 * 2**20)",
        "x",
        "import os, time\n"
        "for _ in range(6):\n"
        "    if os.fork() == 0:\n"
        "        b = bytearray(200 * 2**20)\n"
        "        for i in range(0, len(b), 4096): b[i] = 1\n"
        "        time.sleep(30)\n"
        "        os._exit(0)\n"
        "os.wait()",
        "1 + 1",
        "1 + 1",
    )
    assert "MemoryError" in one.text
    assert alive.text == "1"
    assert "emory" in many.text
    # Children that still run may be ended meanwhile, which is said below the result, or costs a first call its kernel.
    assert any(result.text.startswith("2") for result in after)


def test_temporary_files_have_a_size_limit(script: Script) -> None:
    limits = SandboxLimits(temporary_bytes=8 * MIB)
    for folder in ("/tmp", "/dev/shm"):
        (result,) = script(f"with open('{folder}/x', 'wb') as f:\n    f.write(bytes(16 * 2**20))", limits=limits)
        assert "No space left" in result.text


@pytest.mark.slow
def test_the_disk_is_limited(script: Script) -> None:
    one, many, count, clean, after = script(
        "with open('big', 'wb') as f:\n    for _ in range(100): f.write(bytes(2**20))",
        "import os\nfor i in range(200):\n    open(f'f{i}', 'wb').write(bytes(2**20))\nimport time\ntime.sleep(3)",
        "import os\nfor i in range(5000): open(f'n{i}', 'w').close()\nimport time\ntime.sleep(3)",
        "import os\nfor name in os.listdir('.'): os.remove(name)",
        "open('ok', 'w').write('x')",
    )
    assert "File too large" in one.text
    assert "disk:" in many.text
    assert "disk:" in count.text
    assert clean.failure is None
    assert after.text == "1"


@pytest.mark.slow
def test_a_zip_bomb_meets_the_limits_of_disk_and_memory(script: Script) -> None:
    """A megabyte that holds a gigabyte: unpacked as a file, as many, and in memory."""

    def lay(data: Path) -> None:
        with zipfile.ZipFile(data / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x", "w") as entry:
            for _ in range(1024):
                entry.write(bytes(MIB))
        with zipfile.ZipFile(data / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for i in range(128):
                archive.writestr(f"d/{i}", bytes(MIB))

    one, many, memory, alive = script(
        "import zipfile\nzipfile.ZipFile('one.zip').extractall('a')",
        "import shutil, time, zipfile\nshutil.rmtree('a', ignore_errors=True)\n"
        "zipfile.ZipFile('many.zip').extractall('b')\ntime.sleep(3)",
        "import shutil, zipfile\nshutil.rmtree('b')\nlen(zipfile.ZipFile('one.zip').read('x'))",
        "1 + 1",
        prepare=lay,
    )
    assert "File too large" in one.text or "disk:" in one.text
    assert "disk:" in many.text
    assert "emory" in memory.text
    assert alive.text.startswith("2")


def test_a_gigabyte_of_output_is_cut(script: Script) -> None:
    lines, block, low, state, after = script(
        "x = 1\nfor _ in range(1024): print('a' * 2**20)",
        "x = 2\n'b' * (100 * 2**20)",
        "import os\nfor _ in range(64): os.write(1, b'c' * 2**20)",
        "x",
        "1 + 1",
    )
    for result in (lines, block, low):
        assert len(result.text) < 25_000
    assert "characters left out" in lines.text
    assert "characters left out" in low.text
    # What was printed is not kept by the kernel either, so its variables outlive it.
    assert state.text == "2"
    assert after.text == "2"


def test_a_kernel_that_undoes_its_own_bound_is_stopped(script: Script) -> None:
    flood = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "app = IPKernelApp.instance()\n"
        "from jupyter_client.session import Session\n"
        "app.session.send = Session.send.__get__(app.session)\n"
        "for _ in range(64):\n    app.session.send(app.iopub_socket, 'stream', {'name': 'stdout', 'text': 'x' * 2**20},"
        " parent=app.kernel.get_parent('shell'))"
    )
    flooded, after = script(flood, "1 + 1")
    assert "output:" in flooded.text
    assert after.text == "2"


def test_forged_and_broken_messages_are_passed_over(script: Script) -> None:
    forge = (
        "from ipykernel.kernelapp import IPKernelApp\n"
        "app = IPKernelApp.instance()\nsocket = app.iopub_socket\n"
        "socket.send_multipart([b'junk'])\n"
        "socket.send_multipart([b'<IDS|MSG>', b'bad', b'{}', b'{}', b'{}', b'{}'])\n"
        "deep = b'[' * 100000\n"
        "parts = [b'{}', b'{}', b'{}', deep]\n"
        "socket.send_multipart([b'<IDS|MSG>', app.session.sign(parts), *parts])\n"
        "print('still here')"
    )
    forged, after = script(forge, "1 + 1")
    assert "still here" in forged.text
    assert after.text == "2"


def test_privileges_cannot_be_gained(script: Script) -> None:
    trace, namespace, mount, root, parent, status = script(
        "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())",
        "libc.unshare(0x10000000), ctypes.get_errno()",
        "libc.mount(b'none', b'/mnt', b'tmpfs', 0, None), ctypes.get_errno()",
        "os.setuid(0)",
        "os.kill(1, 9)\nimport time; time.sleep(0.5)\n'alive'",
        "[line for line in open('/proc/self/status') if line.startswith(('CapEff', 'NoNewPrivs', 'Seccomp:'))]",
    )
    assert "-1, 1" in trace.text
    assert "-1, 1" in namespace.text
    assert "-1, 1" in mount.text
    assert "PermissionError" in root.text
    assert parent.text.endswith("'alive'") or "PermissionError" in parent.text
    assert "NoNewPrivs:\\t1" in status.text
    assert "CapEff:\\t0000000000000000" in status.text
    assert "Seccomp:\\t2" in status.text


def test_closing_ends_every_process_and_folder(bubblewrap: BubblewrapSandbox, call: Any) -> None:
    marker = f"ossia-test-{time.monotonic_ns()}"

    async def go() -> Path:
        tool = PythonTool(sandbox=bubblewrap, limits=LIMITS)
        await call(
            tool,
            "python",
            "import subprocess, sys\n"
            f"subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])",
        )
        assert _is_running(marker)
        await tool.close()
        await tool.close()
        return tool.data.path

    assert not asyncio.run(go()).exists()
    assert not _is_running(marker)


def _is_running(marker: str) -> bool:
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if marker in Path("/proc", name, "cmdline").read_text():
                    return True
            except OSError:
                continue
    return False


def test_a_failing_start_is_told_to_the_model(
    bubblewrap: BubblewrapSandbox, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> Coroutine[Any, Any, Any]:
        raise SandboxError("out of luck")

    monkeypatch.setattr("ossia.tools.python.tool.start_kernel", refuse)

    async def go() -> ToolResult:
        tool = PythonTool(sandbox=bubblewrap, limits=LIMITS)
        try:
            return await call(tool, "python", "1")
        finally:
            await tool.close()

    result = asyncio.run(go())
    assert result.failure is FailureKind.FAILED
    assert "out of luck" in result.text
