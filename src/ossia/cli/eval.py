"""`ossia eval`: measure a model on held-out problems."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from ossia.cli import options
from ossia.cli.groups import grouped
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.evals.results import EvalResults
    from ossia.harmony.message import Effort
    from ossia.tasks.base import Task

_T = TypeVar("_T")
SUITES = ("tasks", "ordinary", "lengths", "generators")
EXAMPLES = examples(
    "ossia eval nano",
    "ossia eval nano --tasks count_letters --effort low,high --limit 50",
    "ossia eval nano --suite ordinary --out report",
    "ossia eval nano --out benchmarks/results --readme README.md",
    "ossia eval --table whole.json --table no-rl.json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is asked, and of what the answers may be made."""

    tasks: Annotated[
        str | None, typer.Option(metavar="A,B", help="Tasks to ask. Default: all.", show_default=False)
    ] = None
    suite: Annotated[str, typer.Option(metavar="NAME", help=f"{', '.join(SUITES)}.")] = "tasks"
    efforts: Annotated[
        str | None,
        typer.Option(
            "--effort", "--efforts", metavar="A,B", help="Reasoning efforts. Default: all.", show_default=False
        ),
    ] = None
    limit: Annotated[int, typer.Option(metavar="N", help="Problems a task.")] = 500
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens an answer may take.")] = 512
    batch_size: Annotated[int, typer.Option(metavar="N", help="Answers generated at once.")] = 128
    seed: Annotated[int, typer.Option(help="Draws other problems.")] = 0
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda or cuda:1.")] = "cpu"
    grammar: Annotated[
        bool, typer.Option("--grammar/--no-grammar", help="Hold calls and structured answers to their schemas.")
    ] = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """Where the results go."""

    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write NAME-accuracy.json and .md here (and .png, given matplotlib).",
            show_default=False,
        ),
    ] = None
    readme: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Put the table between the marker lines of this file.", show_default=False),
    ] = None


@grouped
def command(
    model: options.Model = "nano",
    *,
    asked: Asked,
    told: Told,
    table: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Only print results files side by side; repeat it.", show_default=False),
    ] = None,
) -> None:
    """Measure a model on held-out problems.

    The same problems are asked at each reasoning effort; the table says accuracy with 95 % intervals. Suites: tasks
    (what nano was taught), ordinary (fifty questions that it was not, for a reader to grade), lengths (past what was
    trained), generators (reasoning-gym and mathgenerator).
    """
    from ossia.harmony.message import Effort

    given = [Effort.parse(name) for name in options.split_names(asked.efforts)]
    levels = list(Effort) if asked.efforts is None else given
    if table:
        from ossia.evals.ablation import compare

        typer.echo(compare(table, effort=levels[-1]))
        return
    if asked.suite not in SUITES:
        raise InvalidInputError(f"there is no suite '{asked.suite}'; there are {', '.join(SUITES)}", param="suite")
    if asked.suite == "ordinary":
        _ask_ordinary(model, asked, told, levels=levels if asked.efforts else [Effort.MEDIUM])
        return
    _tell(_ask_tasks(model, asked, levels=levels), model, asked, told)


def _ask_tasks(model: str, asked: Asked, *, levels: list[Effort]) -> EvalResults:
    from ossia.evals.run import load_evaluated, run_eval

    known = _load_suite(asked.suite)
    names = list(known) if asked.tasks is None else options.split_names(asked.tasks)
    if unknown := [name for name in names if name not in known]:
        raise InvalidInputError(f"no task is named {', '.join(unknown)}; there are {', '.join(known)}", param="tasks")
    evaluated = load_evaluated(model, device=asked.device)
    return _with_progress(
        lambda progress: run_eval(
            evaluated,
            tasks={name: known[name] for name in names},
            efforts=levels,
            num_problems=asked.limit,
            seed=asked.seed,
            batch_size=asked.batch_size,
            max_tokens=asked.max_tokens,
            grammar=asked.grammar,
            progress=progress,
        )
    )


def _tell(results: EvalResults, model: str, asked: Asked, told: Told) -> None:
    """Print the results, and write what was asked for."""
    from rich.console import Console

    from ossia.evals.report import accuracy_table, update_readme, write_results

    if told.as_json:
        typer.echo(json.dumps(results.to_dict()))
    else:
        Console().print(accuracy_table(results))
    if told.out is not None:
        name = f"{Path(model).name}-{'accuracy' if asked.suite == 'tasks' else asked.suite}"
        for path in write_results(results, told.out, name=name, command=_command_line()):
            typer.echo(f"wrote {path}", err=True)
    if told.readme is not None:
        update_readme(results, told.readme)
        typer.echo(f"wrote the table into {told.readme}", err=True)


def _load_suite(suite: str) -> Mapping[str, Task]:
    """The tasks of a suite, by name."""
    if suite == "lengths":
        from ossia.evals.sweeps import SWEEPS

        return SWEEPS
    if suite == "generators":
        from ossia.evals.generators import load_generators

        return load_generators()
    from ossia.tasks.registry import TASKS

    return TASKS


def _ask_ordinary(model: str, asked: Asked, told: Told, *, levels: list[Effort]) -> None:
    from ossia.evals.ordinary import ask_ordinary, render_ordinary, to_record, write_ordinary
    from ossia.evals.run import load_evaluated

    evaluated = load_evaluated(model, device=asked.device)
    for effort in levels:
        answers = _with_progress(
            lambda progress, effort=effort: ask_ordinary(
                evaluated, effort=effort, batch_size=asked.batch_size, max_tokens=asked.max_tokens, progress=progress
            )
        )
        if told.as_json:
            typer.echo(json.dumps(to_record(evaluated, answers)))
        elif told.out is None:
            typer.echo(render_ordinary(evaluated.loaded.name, answers, command=_command_line()))
        if told.out is not None:
            name = f"{Path(model).name}-ordinary" + (f"-{effort.value}" if len(levels) > 1 else "")
            for path in write_ordinary(evaluated, answers, told.out, name=name, command=_command_line()):
                typer.echo(f"wrote {path}", err=True)


def _with_progress(run: Callable[[Callable[[int, int], None]], _T]) -> _T:
    """Run something under a bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("asking", total=None)
        return run(lambda done, total: bar.update(item, completed=done, total=total))


def _command_line() -> str:
    return shlex.join(["ossia", *sys.argv[1:]])
