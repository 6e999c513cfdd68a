"""The table of the ablations: what the runs left, gathered as one record, and that record as a Markdown page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes.ablations.measure import DEAD, read_loads
from recipes.ablations.stages import DENSE, HERE, PACKED, REFERENCE, REINFORCED, Model, Options, list_models

from ossia.cli.train.options import parse_overrides
from ossia.evals.ablation import format_compared, render_comparison
from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.evals.results import EvalResults, PartCount, read_results
from ossia.harmony.message import Effort
from ossia.training.config import load_recipe
from ossia.training.rl.recipe import load_rl_recipe

Record = dict[str, Any]
"""Of JSON types."""


def collect(options: Options, *, command: str) -> Record:
    """Gather what there is so far: models that were not measured yet are left out."""
    recipe = load_recipe(str(HERE / "pretrain.toml"), overrides=parse_overrides(list(options.settings)))
    rl = load_rl_recipe(str(HERE / "rl.toml"), overrides=parse_overrides(list(options.rl_settings)))
    models = [model for seed in options.seeds for model in list_models(options, seed=seed)]
    return {
        "command": command,
        "environment": describe(),
        "pretraining": {
            "steps": recipe.trainer.run.steps,
            "tokens_per_step": recipe.data.rows * recipe.data.sequence_length,
            "mix": dict(recipe.data.mix),
            "vocab_size": recipe.model.vocab_size,
        },
        "rl": {
            "steps": rl.run.steps,
            "episodes_per_step": rl.rollout.problems * rl.rollout.samples,
            "tasks": list(rl.tasks),
        },
        "models": [_row(model) for model in models if model.results.is_file()],
    }


def _row(model: Model) -> Record:
    results = read_results(model.results)
    results = replace(results, model=title_of(model), cells=tuple(replace(cell, failures=()) for cell in results.cells))
    measures = json.loads(model.measures.read_text(encoding="utf-8")) if model.measures.is_file() else {}
    return {
        "seed": model.seed,
        "variant": model.variant.name,
        "title": title_of(model),
        "form": model.form,
        "settings": list(model.variant.settings),
        "vocabulary_by": model.variant.by,
        **measures,
        "loads": [load._asdict() for load in read_loads(model.run)] if model.form == PACKED else [],
        "steps_left_out": _read_last(model.run / "metrics.jsonl").get("skipped", 0),
        "rl_validation": _read_validation(model.run / "rl" / "metrics.jsonl") if model.form == REINFORCED else [],
        "results": results.to_dict(),
    }


def title_of(model: Model) -> str:
    """What a model is called in tables."""
    if model.form == REINFORCED:
        return "with RL"
    if model.variant.measures_dense:
        return f"{model.variant.title}, {'before packing' if model.form == DENSE else 'packed'}"
    return "reference (no RL)" if model.variant.name == REFERENCE else model.variant.title


def _read_last(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8").splitlines()[-1])


def _read_validation(path: Path) -> list[Record]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{"step": row["step"], "score": row["validation/score"]} for row in rows if "validation/score" in row]


def render(record: Record) -> str:
    """The record as a page."""
    pretraining, rl, models = record["pretraining"], record["rl"], record["models"]
    tokens = pretraining["steps"] * pretraining["tokens_per_step"]
    parameters = next((row["parameters"] for row in models if "parameters" in row), None)
    size = f"{parameters / 1e6:.1f} M parameters" if parameters else "A small model"
    seeds = list(dict.fromkeys(row["seed"] for row in models))
    intro = (
        f"{size} of nano's architecture, {pretraining['vocab_size']:,} tokens in the vocabulary, "
        f"{pretraining['steps']:,} steps of {pretraining['tokens_per_step']:,} tokens ({tokens / 1e6:.1f} M); "
        f"{_count(len(seeds), 'seed')}. Each variant differs from the reference in one thing. The reference is trained "
        f"with MXFP4 in the forward pass from half of the run on, balanced at 0.01, with the tokens that its mix uses "
        f"most, and without reinforcement learning; `with RL` is the same model after {rl['steps']} more steps of "
        f"{rl['episodes_per_step']} episodes on {', '.join(rl['tasks'])}. All but `before packing` are measured as "
        "shipped: experts in MXFP4. `+` and `-`: the 95 % Wilson interval lies wholly above or below the reference's "
        "of the same seed. The intervals say how well these problems stand for others, not how another seed would do."
    )
    sections = ["# Ablations", f"`{record['command']}`", intro, "## All answers", _render_summary(models)]
    sections += ["## Loads of the experts", *_render_loads(models)]
    for seed in seeds:
        own = {row["title"]: EvalResults.from_dict(row["results"]) for row in models if row["seed"] == seed}
        sections.append(f"## Every cell, seed {seed}")
        efforts = next(iter(own.values())).efforts
        sections += [render_comparison(own, effort=effort) for effort in efforts]
    environment = ", ".join(f"{name} {value}" for name, value in record["environment"].items() if name != "hardware")
    sections += [f"{record['environment'].get('hardware', 'unknown')}; {environment}"] if models else []
    return "\n\n".join(sections) + "\n"


def _render_summary(models: Sequence[Record]) -> str:
    """A row a model: right answers over all tasks by effort, tokens an answer, and what the vocabulary costs."""
    header = [
        "seed",
        "model",
        *(f"right, {effort.value} effort" for effort in Effort),
        "right, all",
        "tokens an answer",
    ]
    header += ["bytes a token, tasks", "bytes a token, text", "bits a byte, text"]
    rows: list[list[str]] = []
    for row in models:
        reference = next((r for r in models if r["seed"] == row["seed"] and _is_reference(r)), None)
        results = EvalResults.from_dict(row["results"])
        first = None if reference is None else EvalResults.from_dict(reference["results"])
        counts = [_marked(results, first, effort) for effort in (*Effort, None)]
        mean_tokens = sum(cell.mean_tokens for cell in results.cells) / len(results.cells)
        names = ("bytes_per_token_conversations", "bytes_per_token_text", "bits_per_byte_text")
        rows.append(
            [str(row["seed"]), row["title"], *counts, f"{mean_tokens:.1f}"]
            + [f"{row[name]:.3f}" if name in row else "" for name in names]
        )
    return markdown_table(header, rows)


def _is_reference(row: Mapping[str, Any]) -> bool:
    return row["variant"] == REFERENCE and row["form"] == PACKED


def count_right(results: EvalResults, effort: Effort | None) -> PartCount | None:
    """The answers of all tasks together, at one effort or at all; None where nothing was asked."""
    cells = [cell for cell in results.cells if effort is None or cell.effort == effort]
    if not cells:
        return None
    num_problems = sum(cell.num_problems for cell in cells)
    return PartCount(name="", num_problems=num_problems, num_correct=sum(cell.num_correct for cell in cells))


def _marked(results: EvalResults, reference: EvalResults | None, effort: Effort | None) -> str:
    return format_compared(count_right(results, effort), None if reference is None else count_right(reference, effort))


def _render_loads(models: Sequence[Record]) -> list[str]:
    """A row a training, a column a layer."""
    trained = [row for row in models if row["loads"]]
    if not trained:
        return []
    text = (
        "Least and most used expert of each layer, as shares of an even load, over the last reports of the run; in "
        f"brackets how many are dead, below {DEAD} of an even load. Left out: steps whose loss leapt, which the guard "
        "gave no say."
    )
    layers = range(1, len(trained[0]["loads"]) + 1)
    header = ["seed", "model", *(f"layer {number}" for number in layers), "left out"]
    rows = [
        [str(row["seed"]), row["title"].removesuffix(", packed")]
        + [f"{load['least']:.2f} to {load['greatest']:.2f} ({load['num_dead']})" for load in row["loads"]]
        + [str(row["steps_left_out"])]
        for row in trained
    ]
    return [text, markdown_table(header, rows)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
