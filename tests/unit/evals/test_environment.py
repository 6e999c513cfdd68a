from __future__ import annotations

import platform
from pathlib import Path

import pytest

from ossia.evals import environment


def test_describe_names_hardware_and_versions() -> None:
    described = environment.describe(packages=("torch", "no-such-package"))
    assert described["python"] == platform.python_version()
    assert described["torch"].startswith("2.")
    assert described["no-such-package"] == "not installed"
    assert described["hardware"].endswith(f"{environment.usable_cores()} cores")


def test_processor_name_falls_back_to_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert environment.processor_name() == (platform.processor() or platform.machine())
