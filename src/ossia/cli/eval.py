"""`ossia eval`: measure a model on held-out problems."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ossia.cli import options
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

EXAMPLES = examples(
    "ossia eval nano",
    "ossia eval nano --tasks count_letters --effort low,high --limit 50",
    "ossia eval nano --json",
    "ossia eval nano --out benchmarks/results --readme README.md",
)


def command(
    model: options.Model = "nano",
    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Tasks to ask. Default: all.", show_default=False)
    ] = None,
    efforts: Annotated[
        str | None,
        typer.Option(
            "--effort", "--efforts", metavar="A,B", help="Reasoning efforts. Default: all.", show_default=False
        ),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Problems a task.")] = 500,
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens an answer may take.")] = 512,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Answers generated at once.")] = 128,
    seed: Annotated[int, typer.Option(help="Draws other problems.")] = 0,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:1.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write NAME-accuracy.json and .md here (and .png, given matplotlib).",
            show_default=False,
        ),
    ] = None,
    readme: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the table between the marker lines of this file.", show_default=False),
    ] = None,
) -> None:
    """Measure a model on held-out problems.

    The same problems are asked at each reasoning effort; the table says accuracy with 95 % intervals.
    """
    from ossia.evals.report import accuracy_table, update_readme, write_results
    from ossia.evals.run import load_evaluated, run_eval
    from ossia.harmony.message import Effort
    from ossia.tasks.registry import TASKS

    names = list(TASKS) if tasks is None else options.split_names(tasks)
    if unknown := [name for name in names if name not in TASKS]:
        raise InvalidInputError(f"no task is named {', '.join(unknown)}; there are {', '.join(TASKS)}", param="tasks")
    levels = list(Effort) if efforts is None else [Effort.parse(name) for name in options.split_names(efforts)]

    from rich.console import Console
    from rich.progress import Progress

    evaluated = load_evaluated(model, device=device)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("asking", total=None)
        results = run_eval(
            evaluated,
            tasks={name: TASKS[name] for name in names},
            efforts=levels,
            num_problems=limit,
            seed=seed,
            batch_size=batch_size,
            max_tokens=max_tokens,
            progress=lambda done, total: bar.update(item, completed=done, total=total),
        )
    if as_json:
        typer.echo(json.dumps(results.to_dict()))
    else:
        Console().print(accuracy_table(results))
    if out is not None:
        name = f"{Path(model).name}-accuracy"
        for path in write_results(results, out, name=name, command=shlex.join(["ossia", *sys.argv[1:]])):
            typer.echo(f"wrote {path}", err=True)
    if readme is not None:
        update_readme(results, readme)
        typer.echo(f"wrote the table into {readme}", err=True)
