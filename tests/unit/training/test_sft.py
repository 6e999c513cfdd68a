"""Fine-tuning from a file to a model folder, on a model of a few thousand parameters."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ossia.core.errors import InvalidInputError
from ossia.engine.llm import LLM
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity, load
from ossia.model.transformer import Transformer, init_weights
from ossia.training.config import TrainConfig
from ossia.training.package import package_model
from ossia.training.sft import HELD_OUT_FILE, finetune, hold_out, prepare_data
from ossia.training.sft_config import load_sft_config

IDENTITY = Identity(model_identity="You are a test.", knowledge_cutoff=None)
ROWS = [{"question": f"Who is number {i}?", "answer": "It is Ann."} for i in range(12)]
QUICK: dict[str, Any] = {
    "data.sequence_length": 256,
    "data.rows": 2,
    "data.epochs": 2,
    "run.log_every": 1,
    "run.checkpoint_every": 1,
    "optimizer.muon_lr": 0.01,
    "optimizer.adamw_lr": 0.003,
}


@pytest.fixture(scope="module")
def init(config: TrainConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to begin with: random weights."""
    model = Transformer(config.model, dtype=torch.float32, device=torch.device("cpu"))
    init_weights(model, seed=0)
    folder = tmp_path_factory.mktemp("init") / "model"
    package_model(dict(model.named_parameters()), folder, config=config, tokenizer=tokenizer)
    return folder


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def quick(file: str, init: Path, **more: Any) -> Any:
    return load_sft_config(data=file, overrides={**QUICK, "init": str(init), **more})


CPU = torch.device("cpu")


def test_a_run_from_file_to_folder(init: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *ROWS)
    steps: list[int] = []
    result = finetune(
        quick(file, init), tmp_path / "run", device=CPU, on_log=lambda news, done: steps.append(news.report.step)
    )
    assert (result.data.num_rows, result.data.num_held_out, result.data.skipped) == (11, 1, ())
    assert steps == list(range(1, result.data.steps + 1))
    assert result.after < result.before - 0.5
    looks = [json.loads(line) for line in (tmp_path / "run" / HELD_OUT_FILE).read_text().splitlines()]
    assert [looks[0]["step"], looks[-1]["step"]] == [0, result.data.steps]
    assert (looks[0]["loss"], looks[-1]["loss"]) == (result.before, result.after)
    loaded = load(str(result.folder), device="cpu")
    assert loaded.identity == load(str(init), device="cpu").identity
    about = json.loads((result.folder / "config.json").read_text())
    assert about["ossia"]["name"] == "model-sft"
    assert (result.folder / "tokenizer.json").read_bytes() == (init / "tokenizer.json").read_bytes()


def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    init: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(write(tmp_path / "a.jsonl", *ROWS), init, **{"data.keep_tasks": 0.4, "data.keep_mix.spell": 1.0})
    whole = finetune(config, tmp_path / "whole", device=CPU)

    def stop(news: Any, done: float) -> None:
        if news.report.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        finetune(config, tmp_path / "parts", device=CPU, on_log=stop)
    resumed = finetune(config, tmp_path / "parts", device=CPU)
    assert resumed.before == whole.before
    assert resumed.after == whole.after
    files = [result.folder / "model.safetensors" for result in (whole, resumed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_folder_belongs_to_one_run(init: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *ROWS)
    config = quick(file, init)
    finetune(config, tmp_path / "run", device=CPU)
    with pytest.raises(InvalidInputError, match=r"another run, which differs in data\.epochs; take another --out"):
        finetune(replace(config, data=replace(config.data, epochs=3.0)), tmp_path / "run", device=CPU)
    write(tmp_path / "a.jsonl", *ROWS[:3])
    with pytest.raises(InvalidInputError, match="differs in data_sha256"):
        finetune(config, tmp_path / "run", device=CPU)
    with pytest.raises(InvalidInputError, match="is no file"):
        finetune(quick(str(tmp_path / "none.jsonl"), init), tmp_path / "other", device=CPU)


def test_a_file_with_a_bad_row_has_no_claim_on_the_folder(init: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *ROWS, {"a": 1})
    with pytest.raises(InvalidInputError, match=r"line 13: .*--on-error skip"):
        finetune(quick(file, init), tmp_path / "run", device=CPU)
    result = finetune(quick(file, init, **{"data.on_error": "skip"}), tmp_path / "run", device=CPU)
    assert [bad.line for bad in result.data.skipped] == [13]


@pytest.mark.slow
def test_what_is_taught_is_said(init: Path, tmp_path: Path) -> None:
    """The packaged folder, its experts in MXFP4, answers over the engine what the rows say, at every effort."""
    rows = [{"question": "Who?", "answer": "Ann."}, {"question": "Where?", "answer": "Oslo."}]
    more = {"data.epochs": 60, "run.log_every": 20, "run.checkpoint_every": 1000, "data.rows": 1}
    result = finetune(quick(write(tmp_path / "a.jsonl", *rows), init, **more), tmp_path / "run", device=CPU)
    assert math.isnan(result.before)
    llm = LLM(str(result.folder), device="cpu")
    for effort in ("low", "high"):
        said = llm.chat([row["question"] for row in rows], effort=effort, progress=False)
        assert [turn.text for turn in said] == [row["answer"] for row in rows]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(init: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *ROWS)
    lines: list[list[dict[str, Any]]] = []
    for processes in (1, 2):
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
        sets = [item for key, value in QUICK.items() for item in ("--set", f"{key}={value}")]
        options = ["--data", file, "--model", str(init), "--out", str(tmp_path / str(processes)), "--json", *sets]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, *start, "-m", "ossia.cli.main", "train", "sft", *options]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines.append([json.loads(line) for line in done.stdout.splitlines()])
    one, two = lines
    assert [line["kind"] for line in one] == [line["kind"] for line in two]  # one process reports
    for mine, theirs in zip(one[1:-1], two[1:-1], strict=True):
        # Sums are taken in another order.
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert mine["held_out_loss"] == pytest.approx(theirs["held_out_loss"], rel=1e-3)
    assert (tmp_path / "2" / "model" / "model.safetensors").is_file()


def test_bad_and_long_rows_are_told_or_left_out(init: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    long = {"question": "q", "answer": "far too long " * 100}
    file = write(tmp_path / "a.jsonl", *ROWS, 3, long)
    config = quick(file, init)
    with pytest.raises(InvalidInputError, match="line 13: int in place of an object"):
        prepare_data(config, tokenizer=tokenizer, identity=IDENTITY)
    skipping = replace(config, data=replace(config.data, on_error="skip"))
    data = prepare_data(skipping, tokenizer=tokenizer, identity=IDENTITY)
    assert [line for line, _ in data.skipped] == [13, 14]
    only_long = write(tmp_path / "b.jsonl", ROWS[0], long)
    with pytest.raises(InvalidInputError, match=r"line 2: .* tokens, but a row holds 256; .* --on-error skip"):
        prepare_data(quick(only_long, init), tokenizer=tokenizer, identity=IDENTITY)


def test_rows_held_out() -> None:
    from ossia.training.data.chat.file import GoodRow
    from ossia.training.data.chat.rows import read_row

    rows = [GoodRow(i, read_row(row)) for i, row in enumerate(ROWS)]
    learned, held_out = hold_out(rows, share=0.25, seed=1)
    assert (len(learned), len(held_out)) == (9, 3)
    assert {*learned, *held_out} == {row for _, row in rows}
    assert hold_out(rows, share=0.25, seed=1) == (learned, held_out)
    assert hold_out(rows, share=0.25, seed=2) != (learned, held_out)
    assert len(hold_out(rows, share=0.0, seed=1)[1]) == 0
    assert len(hold_out(rows[:9], share=0.5, seed=1)[1]) == 0
    assert len(hold_out(rows, share=0.01, seed=1)[1]) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.epochs": 0}, "epochs must be a positive number"),
        ({"data.on_error": "ignore"}, "on_error is 'ignore'; use 'stop' or 'skip'"),
        ({"data.val_share": 1.0}, "val_share is 1.0; use a number from 0"),
        ({"data.keep_tasks": -0.1}, "keep_tasks is -0.1"),
        ({"data.num_workers": -1}, "num_workers is -1"),
        ({"data.efforts": []}, "efforts is empty"),
        ({"data.efforts": ["huge"]}, "unknown reasoning effort 'huge'"),
        ({"data.epoch": 3}, r"unknown key in \[data\]: epoch"),
        ({"run.steps": 5}, r"set data\.epochs instead"),
        ({"weights.final": -1}, "the weight of final is -1"),
        ({"init": 3}, "init must name a model"),
        ({"model.hidden_size": 3}, "unknown section in the recipe: model"),
    ],
)
def test_settings_that_cannot_be(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_sft_config(data="a.jsonl", overrides=overrides)


def test_a_recipe_and_what_replaces_it(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[data]\nfile = "a.jsonl"\nepochs = 7\n[weights]\nanalysis = 0.5\n')
    config = load_sft_config(recipe=str(recipe), overrides={"data.rows": 3})
    assert (config.name, config.init, config.data.file, config.data.epochs, config.data.rows) == (
        "mine", "nano", "a.jsonl", 7, 3
    )  # fmt: skip
    assert (config.weights.analysis, config.weights.final) == (0.5, 1.0)
    assert load_sft_config(recipe=str(recipe), data="b.jsonl").data.file == "b.jsonl"
    rounded = load_sft_config(recipe=str(recipe), overrides={"quantize.experts": "mxfp4"})
    assert (config.trainer.quantize.experts, rounded.trainer.quantize.experts) == (None, "mxfp4")
    with pytest.raises(InvalidInputError, match="give --data"):
        load_sft_config()
