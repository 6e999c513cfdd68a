"""The ablations' own logic: what is run in which order, what is skipped, and how the table is made of what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from recipes.ablations import run as ablations
from recipes.ablations.measure import bits_per_byte, bytes_per_token, read_loads, sample_conversations
from recipes.ablations.page import collect, render
from recipes.ablations.stages import (
    DENSE,
    HERE,
    PACKED,
    REFERENCE,
    REINFORCED,
    VARIANTS,
    Model,
    Options,
    Stage,
    list_models,
    plan,
)

from ossia.cli.train.options import parse_overrides
from ossia.evals.results import Cell, EvalResults
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.message import Effort
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint.resolve import resolve_model
from ossia.tasks.registry import TASKS
from ossia.training.config import load_recipe
from ossia.training.rl.recipe import load_rl_recipe

TINY = (
    *("model.vocab_size=1800", "model.hidden_size=32", "model.intermediate_size=32", "model.num_hidden_layers=2"),
    *("data.rows=2", "data.corpora={}", "data.mix={spell=1.0,compare=1.0}", "run.steps=2", "run.log_every=1"),
)
TINY_RL = (
    *("run.steps=1", "validation.problems=1", "rollout.problems=1", "rollout.samples=2", "rollout.max_tokens=8"),
    *("tasks={compare=1.0}",),
)


def test_every_variant_changes_one_thing_of_a_recipe_that_can_be_read() -> None:
    path = str(HERE / "pretrain.toml")
    reference = load_recipe(path)
    assert set(reference.data.mix) <= {*TASKS, *reference.data.corpora}
    changed: dict[str, list[str]] = {}
    for variant in VARIANTS:
        config = load_recipe(path, overrides=parse_overrides(list(variant.settings)))
        parts = ("optimizer", "loss", "run", "guard", "average", "quantize")
        changed[variant.name] = [p for p in parts if getattr(config.trainer, p) != getattr(reference.trainer, p)]
        changed[variant.name] += ["by"] if variant.by != "frequency" else []
        assert (config.model, config.data) == (reference.model, reference.data)
    assert changed == {REFERENCE: [], "no-qat": ["quantize"], "no-balance": ["loss"], "first-n": ["by"]}
    assert reference.trainer.quantize.experts == "mxfp4"
    assert load_recipe(path, overrides={"loss.balance": 0}).trainer.loss.balance == 0
    assert set(load_rl_recipe(str(HERE / "rl.toml")).tasks) <= set(reference.data.mix)


def test_a_model_is_made_before_it_is_measured(tmp_path: Path) -> None:
    options = Options(out=tmp_path, seeds=(1, 2))
    stages = plan(options)
    made = {stage.leaves: place for place, stage in enumerate(stages)}
    assert len(made) == len(stages), "no two stages leave the same file"
    models = [model for seed in options.seeds for model in list_models(options, seed=seed)]
    assert [(model.variant.name, model.form) for model in models[:6]] == [
        (REFERENCE, PACKED),
        (REFERENCE, REINFORCED),
        ("no-qat", PACKED),
        ("no-qat", DENSE),
        ("no-balance", PACKED),
        ("first-n", PACKED),
    ]
    for model in models:
        assert made[model.folder / "config.json"] < made[model.results]
        assert made[model.folder / "config.json"] < made[model.measures]
    for stage in stages:
        if stage.tokenizer is not None:
            assert made[stage.tokenizer / "tokenizer.json"] < made[stage.leaves]


def test_only_some_variants_are_trained(tmp_path: Path) -> None:
    stages = plan(Options(out=tmp_path, variants=("first-n",)))
    assert [stage.title for stage in stages] == [
        "vocabulary by rank",
        "seed 1, first-N vocabulary: pre-training",
        "seed 1, first-N vocabulary, packed: accuracy",
        "seed 1, first-N vocabulary, packed: text",
    ]


def test_a_stage_that_is_done_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(ablations.subprocess, "run", lambda command, check: commands.append(command))
    tokenizer = tmp_path / "vocabulary"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    stage = Stage(
        title="one",
        command=("eval", "model"),
        leaves=tmp_path / "run" / "done.json",
        run=tmp_path / "run",
        tokenizer=tokenizer,
    )
    assert ablations.run_stage(stage)
    assert (tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text() == "{}"
    assert [command[-2:] for command in commands] == [["eval", "model"]]
    stage.leaves.write_text("")
    assert not ablations.run_stage(stage)
    assert len(commands) == 1


def test_a_stage_that_fails_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ablations, "OSSIA", ("false",))
    assert ablations.main(["--out", str(tmp_path)]) == 1
    assert "run the same line again" in capsys.readouterr().err
    for option, value in (("--seeds", "one"), ("--variants", "reference,no-data")):
        with pytest.raises(SystemExit):
            ablations.main(["--out", str(tmp_path), option, value])
        assert value.split(",")[-1] in capsys.readouterr().err


def write_model(model: Model, *, correct: int) -> None:
    """Leave what a trained and measured model leaves."""
    cells = tuple(
        Cell(
            task="add", effort=effort, num_problems=200, num_correct=correct, num_clean=200, num_capped=0,
            mean_tokens=10.0,
        )
        for effort in Effort
    )  # fmt: skip
    results = EvalResults(
        model=str(model.folder), weights_sha256="", seed=0, max_tokens=512, dtype="bfloat16", seconds=1.0,
        environment={}, cells=cells,
    )  # fmt: skip
    model.results.parent.mkdir(parents=True, exist_ok=True)
    model.results.write_text(json.dumps(results.to_dict()))
    rows = [{"loads": [[8.0, 0.0], [1.0, 1.0]]}] + 5 * [{"loads": [[1.96, 0.04], [1.5, 0.5]]}]
    (model.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if model.form == REINFORCED:
        (model.run / "rl").mkdir()
        rows = [{"step": 0, "validation/score": 0.5}, {"step": 1, "reward": 0.5}]
        (model.run / "rl" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_table_is_of_what_there_is_and_marks_what_is_apart(tmp_path: Path) -> None:
    options = Options(out=tmp_path, seeds=(1, 2))
    for model in list_models(options, seed=1):
        write_model(model, correct={"no-balance": 20, "first-n": 100}.get(model.variant.name, 110))
    record = json.loads(json.dumps(collect(options, command="the command")))
    assert [row["title"] for row in record["models"]] == [
        "reference (no RL)", "with RL", "no QAT, packed", "no QAT, before packing", "no balancing",
        "first-N vocabulary",
    ]  # fmt: skip
    assert all(str(tmp_path) not in json.dumps(row) for row in record["models"])
    assert record["models"][1]["rl_validation"] == [{"step": 0, "score": 0.5}]
    page = render(record)
    rows = page.split("## All answers")[1].split("##")[0].splitlines()
    marks = {row.split(" | ")[1]: row.count(" - |") for row in rows if row.startswith("| 1 ")}
    assert marks == {
        "reference (no RL)": 0, "with RL": 0, "no QAT, packed": 0, "no QAT, before packing": 0, "no balancing": 4,
        "first-N vocabulary": 0,
    }  # fmt: skip
    assert "0.04 to 1.96 (1) | 0.50 to 1.50 (0)" in page
    assert "## Every cell, seed 1" in page
    assert "seed 2" not in page
    assert "1 seed." in page


def test_a_table_of_nothing(tmp_path: Path) -> None:
    assert ablations.main(["--out", str(tmp_path), "--table"]) == 0
    assert json.loads((tmp_path / "ablations.json").read_text())["models"] == []


def test_only_the_last_loads_count(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"loads": [[load, 2 - load]]}) + "\n" for load in (2.0, 1.0, 1.0, 1.0, 1.0, 1.25))
    )
    assert read_loads(tmp_path) == [pytest.approx((0.95, 1.05, 0))]


def test_bytes_of_a_token() -> None:
    full = Tokenizer.o200k_harmony()
    assert bytes_per_token(["hello world", "é"], full) == pytest.approx(13 / 3)
    recipe = load_recipe(str(HERE / "pretrain.toml"))
    texts = sample_conversations(recipe.data, identity=recipe.identity)
    assert texts == sample_conversations(recipe.data, identity=recipe.identity)
    assert 2 < bytes_per_token(texts, full) < 5


def test_text_is_better_predicted_than_the_same_words_in_disorder() -> None:
    nano = resolve_model("nano")
    texts = ["How many letters are in the word banana?", "What is the sum of the two numbers?"]
    shuffled = [" ".join(sorted(text.split())) for text in texts]
    assert 0 < bits_per_byte(nano, texts) < bits_per_byte(nano, shuffled)
    tokenizer = load_tokenizer(nano)
    assert bytes_per_token(texts, tokenizer) > 1


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path) -> None:
    options = [part for setting in TINY for part in ("--set", setting)]
    options += [part for setting in TINY_RL for part in ("--set-rl", setting)]
    options += ["--out", str(tmp_path), "--limit", "2", "--examples", "50", "--tasks", "compare"]
    assert ablations.main(options) == 0
    record = json.loads((tmp_path / "ablations.json").read_text())
    assert len(record["models"]) == 6
    by_title = {row["title"]: row for row in record["models"]}
    assert by_title["first-N vocabulary"]["vocabulary_by"] == "rank"
    spans = {title: row["bytes_per_token_conversations"] for title, row in by_title.items()}
    assert spans["first-N vocabulary"] < spans["reference (no RL)"]
    before = (tmp_path / "seed-1" / REFERENCE / "model" / "config.json").stat().st_mtime_ns
    shutil.rmtree(tmp_path / "seed-1" / "first-n" / "eval-packed")
    assert ablations.main(options) == 0
    assert (tmp_path / "seed-1" / REFERENCE / "model" / "config.json").stat().st_mtime_ns == before
    assert len(json.loads((tmp_path / "ablations.json").read_text())["models"]) == 6
