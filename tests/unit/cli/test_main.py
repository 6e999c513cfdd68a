from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from ossia import __version__
from ossia.cli import main
from ossia.core.errors import ModelNotFoundError

COMMANDS = ["chat", "generate", "serve", "mcp", "info", "pull", "convert", "eval", "train"]
GROUPS = {"harmony": ["encode", "decode", "render", "parse"], "keys": ["add", "list", "revoke"]}


def test_version(run: Any) -> None:
    result = run("--version")
    assert (result.exit_code, result.output) == (0, f"ossia {__version__}\n")


@pytest.mark.parametrize(
    "args", [[name] for name in COMMANDS] + [[group, name] for group, names in GROUPS.items() for name in names] + [[]]
)
def test_every_help_ends_in_examples(run: Any, args: list[str]) -> None:
    result = run(*args, "--help")
    assert result.exit_code == 0
    examples = result.stdout.split("Examples:\n")[1].strip().splitlines()
    assert examples
    assert all("ossia" in line for line in examples)
    assert max(map(len, result.stdout.splitlines())) <= 110


def test_help_imports_neither_torch_nor_the_tokenizer() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from ossia.cli.main import app\n"
        "for args in (['--help'], ['chat', '--help'], ['serve', '--help'], ['mcp', '--help'], ['train', '--help']):\n"
        "    assert CliRunner().invoke(app, args).exit_code == 0\n"
        "heavy = ('torch', 'tiktoken', 'transformers', 'numpy', 'rich', 'fastapi', 'sqlalchemy', 'mcp')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_wrong_usage_is_code_2(run: Any) -> None:
    assert run("chat", "--colour").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("convert", "a", "b", "--format", "pickle").exit_code == 2


def raise_in_pull(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def load(folder: Any) -> None:
        raise error

    monkeypatch.setattr("ossia.cli.harmony.load", load)


def test_an_ossia_error_is_one_line_and_code_1(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_pull(monkeypatch, ModelNotFoundError("no model 'x'; pull it first"))
    result = run("harmony", "encode")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == "ossia: no model 'x'; pull it first\n"


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_tracebacks(run: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    raise_in_pull(monkeypatch, ModelNotFoundError("no model 'x'"))
    if how == "environment":
        monkeypatch.setenv("OSSIA_DEBUG", "1")
    result = run(*(["--debug"] if how == "option" else []), "harmony", "encode")
    assert result.exit_code == 1
    assert isinstance(result.exception, ModelNotFoundError)


def test_a_bug_is_named_without_a_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_pull(monkeypatch, TypeError("oops"))
    result = run("harmony", "encode")
    assert result.exit_code == 1
    assert "internal error: TypeError: oops" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_operating_system_error_is_told_without_a_traceback(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_pull(monkeypatch, PermissionError(13, "Permission denied", "/x"))
    result = run("harmony", "encode")
    assert (result.exit_code, result.stderr) == (1, "ossia: [Errno 13] Permission denied: '/x'\n")


def test_ctrl_c_is_code_130(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raise_in_pull(monkeypatch, KeyboardInterrupt())
    assert run("harmony", "encode").exit_code == 130


def test_a_closed_pipe_is_quiet() -> None:
    code = "import sys; from ossia.cli.main import main; sys.argv = ['ossia', 'harmony', 'encode']; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b'{"text": "Hello"}\n')
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == main.BROKEN_PIPE


def test_the_app_is_what_the_script_runs() -> None:
    result = CliRunner().invoke(main.app, [])
    assert "Usage: ossia" in result.output or "Usage: root" in result.output


def test_a_terminal_without_a_character_is_no_error() -> None:
    code = "import sys; from ossia.cli.main import main; sys.argv = ['ossia', 'info', 'é漢']; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert result.returncode == 1
    assert b"Traceback" not in result.stderr
    assert b"UnicodeEncodeError" not in result.stderr
