"""`ossia train rl`: teach a model by rewards that a program can check."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ossia.cli.options import examples
from ossia.cli.train.options import Out, Overrides, parse_overrides
from ossia.cli.train.stopping import stop_told
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.training.rl.config import RLConfig
    from ossia.training.rl.loop import Progress
    from ossia.training.rl.report import StepReport, ValidationReport

EXAMPLES = examples(
    "ossia train rl --recipe nano-rl --out runs/rl",
    "ossia train rl --model nano --tasks count_letters,add --out runs/rl",
    "ossia train rl --model nano --tasks add --out runs/rl --set 'rollout.efforts=[\"low\"]' --set run.steps=50",
)


def command(
    out: Out,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="A recipe of recipes/, or a path to a TOML file.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|DIR", help="Begin with this model; with --tasks, no recipe is needed."),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Tasks whose graders give the rewards.", show_default=False)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu, cuda or cuda:1. Default: a GPU if there is one.", show_default=False),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Train a model by reinforcement learning: it answers problems, and what was right becomes likelier.

    A run that was stopped goes on from its last checkpoint. The weights that do best on held-out problems become the
    folder DIR/model.
    """
    config = read_config(recipe, model=model, tasks=tasks, overrides=overrides)

    from ossia.training.rl.loop import train_rl

    with stop_told(), rl_bar(config) as show:
        folder = train_rl(config, Path(out), device=device, on_log=show)
    typer.echo(f"the model is in {folder}; measure it with: ossia eval {folder}")


def read_config(recipe: str | None, *, model: str | None, tasks: str | None, overrides: list[str] | None) -> RLConfig:
    """The run that the options describe: a recipe, or a model with tasks, which replace those of a recipe.

    Raises:
        InvalidInputError: neither is given, or a value cannot be.
    """
    values = parse_overrides(overrides)
    names = [name.strip() for name in (tasks or "").split(",") if name.strip()]

    from ossia.training.rl.recipe import from_tasks, load_rl_recipe

    if recipe is not None:
        if model is not None:
            values["init"] = model
        if names:
            values["tasks"] = dict.fromkeys(names, 1.0)
        return load_rl_recipe(recipe, overrides=values)
    if model is None or not names:
        raise InvalidInputError(
            "there is nothing to train; give --recipe NAME, or --model nano with --tasks count_letters,add",
            param="recipe",
        )
    return from_tasks(model, names, overrides=values)


@contextmanager
def rl_bar(config: RLConfig) -> Iterator[Progress]:
    """Open a bar on stderr; gives what `train_rl` takes as `on_log`."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    from ossia.training.rl.report import StepReport

    with Bar(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("training", total=config.run.steps)

        def show(report: StepReport | ValidationReport) -> None:
            bar.update(item, completed=report.step)
            line = describe_step(report) if isinstance(report, StepReport) else describe_validation(report)
            bar.console.print(line, highlight=False, markup=False)

        yield show


def describe_step(report: StepReport) -> str:
    """A step as one line."""
    tokens = "/".join(f"{value:.0f}" for value in report.tokens_by_effort.values())
    line = (
        f"step {report.step:,}  reward {report.reward:.3f}  right {report.pass_rate:.0%}  {tokens} tokens  "
        f"{report.used_groups} of {report.groups} groups differ"
    )
    if report.learned is None:
        return line
    learned = report.learned
    return f"{line}  entropy {learned.entropy:.3f}  gate {learned.difference.mean:.1e}"


def describe_validation(report: ValidationReport) -> str:
    """A validation as one line."""
    cells = "  ".join(f"{cell} {rate:.0%}" for cell, rate in report.pass_rates.items())
    return f"held out after step {report.step:,}: {report.score:.1%}  ({cells})"
