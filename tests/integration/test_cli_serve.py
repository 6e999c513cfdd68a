"""`ossia serve` as a process: its first line is the address, official clients talk to it, signals end it in order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest


def ossia(home: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ossia.cli.main", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OSSIA_HOME": str(home)},
    )


@contextmanager
def serving(home: Path, *args: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with ossia(home, "serve", "--port", "0", *args) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_nano_is_served_to_whoever_has_a_key(tmp_path: Path, ending: signal.Signals) -> None:
    with ossia(tmp_path, "keys", "add", "test") as adding:
        secret = adding.communicate(timeout=60)[0].strip()
    with serving(tmp_path, "--max-num-seqs", "4") as (process, url):
        with openai.OpenAI(base_url=url, api_key=secret, timeout=60, max_retries=0) as client:
            answer = client.responses.create(
                model="nano", input="What is 17 + 25?", temperature=0, reasoning={"effort": "low"}
            )
            assert "42" in answer.output_text
            with pytest.raises(openai.AuthenticationError):
                client.with_options(api_key="ossia_wrong").models.list()
        process.send_signal(ending)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert secret not in errors
    assert "17 + 25" not in errors


@pytest.mark.slow
def test_a_port_that_is_taken(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with ossia(tmp_path, "serve", "--port", port) as process:
            out, errors = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert errors.splitlines()[-1].startswith(f"ossia: cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in errors
