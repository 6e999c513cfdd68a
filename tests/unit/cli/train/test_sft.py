"""`ossia train sft` and `ossia train check`: options in, what is shown out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.cli.train.check import paint, spans
from ossia.cli.train.sft_screen import skipped_lines
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.batches.conversations import Example
from ossia.training.data.chat.file import BadRow
from ossia.training.sft import SftData, SftProgress, SftResult
from ossia.training.sft_config import SftConfig

GOOD = json.dumps({"question": "Who?", "answer": "Ann."})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{GOOD}\n")
    return path


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Runs end at once; the recipe that was asked for is kept."""
    from ossia.training.trainer import StepReport

    seen = SimpleNamespace(config=None, folder=None, before=2.0)

    def finetune(config: SftConfig, folder: Path, *, on_data: Any, on_log: Any) -> SftResult:
        seen.config, seen.folder = config, folder
        skipped = tuple(BadRow(line, "no JSON: [bold]") for line in range(1, 8))
        data = SftData(
            batches=None,  # pyright: ignore[reportArgumentType]
            held_out=[],
            num_rows=20,
            num_held_out=2,
            skipped=skipped,
            steps=4,
        )
        on_data(data)
        values = dict.fromkeys(StepReport._fields, 1.0) | {"step": 2, "loss": 1.5}
        on_log(SftProgress(StepReport(**values), 1.25), 0.5)  # pyright: ignore[reportArgumentType]
        return SftResult(folder / "model", data, seen.before, 0.5)

    monkeypatch.setattr("ossia.training.sft.finetune", finetune)
    return seen


def test_options_become_the_recipe(run: Callable[..., Any], tuned: SimpleNamespace, file: Path) -> None:
    options = ["--model", "some/model", "--epochs", "20", "--lr", "0.01", "--keep-tasks", "0.3", "--val-share", "0.2"]
    options += ["--on-error", "skip", "--set", "name=x"]
    result = run("train", "sft", "--data", str(file), "--out", "there", *options)
    assert result.exit_code == 0, result.stderr
    config = tuned.config
    assert (config.init, config.name, tuned.folder) == ("some/model", "x", Path("there"))
    data = config.data
    assert (data.file, data.epochs, data.keep_tasks, data.val_share, data.on_error) == (str(file), 20, 0.3, 0.2, "skip")
    optimizer = config.trainer.optimizer
    assert (optimizer.muon_lr, optimizer.adamw_lr) == (0.01, pytest.approx(0.003))


def test_what_people_see(run: Callable[..., Any], tuned: SimpleNamespace, file: Path) -> None:
    result = run("train", "sft", "--data", str(file), "--out", "there")
    assert result.stdout == (
        "held-out loss 2.0000 before, 0.5000 after\n"
        "the model is in there/model; talk to it with: ossia chat there/model\n"
    )
    assert "20 conversations to learn, 2 held out, 4 steps" in result.stderr
    assert "7 rows left out:" in result.stderr
    assert "line 5: no JSON: [bold]" in result.stderr
    assert "and 2 more" in result.stderr
    assert "held-out loss 1.2500" in result.stderr
    tuned.before = math.nan
    assert "held-out" not in run("train", "sft", "--data", str(file), "--out", "there").stdout


def test_what_programs_see(run: Callable[..., Any], tuned: SimpleNamespace, file: Path) -> None:
    result = run("train", "sft", "--data", str(file), "--out", "there", "--json")
    data, progress, end = map(json.loads, result.stdout.splitlines())
    assert (data["kind"], data["rows"], len(data["skipped"])) == ("data", 20, 7)
    assert data["skipped"][0] == {"line": 1, "reason": "no JSON: [bold]"}
    assert [progress[key] for key in ("kind", "step", "held_out_loss", "done")] == ["progress", 2, 1.25, 0.5]
    assert end == {"kind": "result", "model": "there/model", "held_out_loss": {"before": 2.0, "after": 0.5}}
    tuned.before = math.nan
    *_, last = run("train", "sft", "--data", str(file), "--out", "there", "--json").stdout.splitlines()
    assert json.loads(last)["held_out_loss"]["before"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --data FILE.jsonl"),
        (["--data", "none.jsonl"], "none.jsonl is no file"),
        (["--data", "x", "--on-error", "ask"], "on_error is 'ask'; use 'stop' or 'skip'"),
        (["--data", "x", "--recipe", "nope"], "no recipe 'nope'"),
        (["--data", "x", "--model", "nobody/none"], "nobody/none"),
    ],
)
def test_what_cannot_be(run: Callable[..., Any], tmp_path: Path, options: list[str], message: str) -> None:
    result = run("train", "sft", "--out", str(tmp_path / "run"), *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_a_run_that_was_stopped_is_no_success(
    run: Callable[..., Any], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ossia.training.sft.finetune", stopped)
    result = run("train", "sft", "--data", str(file), "--out", str(tmp_path / "run"))
    assert result.exit_code == 130
    assert "stopped before its end; the same line again goes on" in result.stderr
    assert result.stdout == ""


def test_lines_of_rows_left_out() -> None:
    assert skipped_lines(()) == []
    assert skipped_lines((BadRow(3, "r"),)) == ["1 rows left out:", "  line 3: r"]


# ---- check ----

THINKS = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "thinking": "t"}] * 2}


def test_a_good_file(run: Callable[..., Any], file: Path) -> None:
    result = run("train", "check", str(file))
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{file}: 1 conversations can be learned, 0 rows cannot\n1 examples, ")
    assert "Who?<|end|><|start|>assistant[[<|channel|>final<|message|>Ann.<|return|>]]" in result.stdout


def test_a_file_with_bad_rows(run: Callable[..., Any], file: Path) -> None:
    long = json.dumps({"question": "q", "answer": "so long " * 400})
    file.write_text(f"3\n{GOOD}\n{json.dumps(THINKS)}\n{long}\n")
    result = run("train", "check", str(file), "--row", "3", "--effort", "high")
    assert result.exit_code == 1
    assert "2 conversations can be learned, 2 rows cannot\n3 examples" in result.stdout
    assert "  line 1: int in place of an object" in result.stdout
    assert "  line 4: " in result.stdout
    assert "line 3, example 2 of 2:" in result.stdout
    assert "Reasoning: high" in result.stdout
    record = json.loads(run("train", "check", str(file), "--json").stdout)
    assert (record["rows"], record["examples"], [bad["line"] for bad in record["bad"]]) == (2, 3, [1, 4])
    (example,) = record["row"]["examples"]
    assert record["row"]["line"] == 2
    assert record["learned"] > sum(example["is_learned"]) > 0
    assert "".join(span["text"] for span in example["spans"] if span["is_learned"]).endswith("Ann.<|return|>")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--row", "2"], "line 2 of"),
        (["--model", "nobody/none"], "nobody/none"),
        (["--effort", "huge"], "unknown reasoning effort"),
    ],
)
def test_what_cannot_be_checked(run: Callable[..., Any], file: Path, options: list[str], message: str) -> None:
    result = run("train", "check", str(file), *options)
    assert result.exit_code == 1
    assert message in result.stderr


def test_colours_and_control_characters() -> None:
    tokenizer = Tokenizer.o200k_harmony()
    ids = tokenizer.encode("a\x1b[2Jb")
    half = len(ids) // 2
    example = Example(ids, [False] * half + [True] * (len(ids) - half))
    coloured = paint(example, tokenizer, has_colours=True)
    assert "\x1b" not in coloured.plain
    assert {str(span.style) for span in coloured.spans} == {"dim", "bold green"}
    plain = paint(example, tokenizer, has_colours=False)
    assert not plain.spans
    assert plain.plain.count("[[") == 1
    ending = Example([1, tokenizer.end], [False, True], targets=[1, tokenizer.return_])
    assert spans(ending, tokenizer)[-1] == (True, "<|return|>")
