from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ossia.cli import info
from ossia.model.config import PUBLISHED
from ossia.model.loading import FoundModel


def test_published_models_for_people(run: Any) -> None:
    result = run("info", "openai/gpt-oss-20b")
    assert result.exit_code == 0
    for part in ("20,914,757,184", "12.8 GiB", "131,072", "H100", "24,576 bytes a token", "window 128 in 12 layers"):
        assert part in result.stdout


def test_published_models_as_json(run: Any) -> None:
    record = json.loads(run("info", "openai/gpt-oss-120b", "--json").stdout)
    assert record["parameters"] == 116_829_156_672
    assert record["bytes"]["hf-mxfp4"] == record["bytes"]["original"] < record["bytes"]["hf-bf16"]
    assert record["shape"]["experts"] == 128
    assert {row["device"] for row in record["fits"]} >= {"80 GB GPU (H100)"}


def test_a_folder_says_its_bytes(tmp_path: Path) -> None:
    found = FoundModel(PUBLISHED["openai/gpt-oss-20b"], tmp_path, "hf-bf16", 3 << 20)
    record = info.describe("mine", found)
    assert record["files_bytes"] == 3 << 20
    assert "3.0 MiB of safetensors, hf-bf16" in info.as_text(record)
    assert str(tmp_path) in info.as_text(record)


def test_an_unknown_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def sysconf(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", sysconf)
    assert info.this_machine() == {}


def test_published_models_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from ossia.cli.main import main; sys.argv = ['ossia', 'info', 'openai/gpt-oss-20b']; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_it_says_how_this_cpu_would_run_it() -> None:
    cpu = {"path": "native", "reason": None, "level": "avx2", "levels": ["generic", "avx2"], "threads": 4}
    cpu |= {"context": 8192, "needed_bytes": 14 << 30, "free_bytes": 20 << 30}
    lines = info.cpu_lines(cpu)
    assert lines[0] == "on this CPU  C++ kernels, level avx2 (of generic, avx2), 4 threads"
    assert lines[1].strip() == "14.0 GiB of memory with a context of 8,192 tokens, 20.0 GiB free here"
    slow = info.cpu_lines(cpu | {"level": "generic", "levels": ["generic"], "free_bytes": None})
    assert "no AVX2" in slow[0]
    forced = info.cpu_lines(cpu | {"level": "generic"})
    assert "set by OSSIA_NATIVE, and slow" in forced[0]
    assert "no AVX2" not in forced[0]
    assert "free" not in slow[1]
    fallback = info.cpu_lines(cpu | {"path": "torch", "reason": "not built; build it with: x"})
    assert (
        fallback[0] == "on this CPU  torch, which is slow; the C++ kernels are not in use: not built; build it with: x"
    )


def test_the_need_on_this_machine(run: Any) -> None:
    cpu = json.loads(run("info", "openai/gpt-oss-120b", "--json").stdout)["cpu"]
    assert cpu["needed_bytes"] > 60 << 30
    assert cpu["path"] in ("native", "torch")
    assert "on this CPU" in run("info", "nano").stdout


def test_human() -> None:
    assert info.human(3 << 30) == "3.0 GiB"
    assert info.human(int(23.5 * (1 << 20))) == "23.5 MiB"
