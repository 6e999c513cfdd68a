from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf


def test_gguf(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    result = run("convert", "nano", str(path), "--format", "gguf", "--dense", "q8_0")
    assert (result.exit_code, result.stdout) == (0, f"wrote {path} (gguf)\n")
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}
    assert kinds == {"F32", "Q8_0", "MXFP4"}


def test_dense_is_for_gguf_only(run: Any, tmp_path: Path) -> None:
    result = run("convert", "nano", str(tmp_path / "n"), "--format", "original", "--dense", "q8_0")
    assert result.exit_code == 2
    assert not (tmp_path / "n").exists()
