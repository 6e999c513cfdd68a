"""Evaluation results for readers: a Markdown page, JSON, the README's table, and a table in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ossia.core.errors import InvalidInputError
from ossia.core.files import write_text
from ossia.evals.results import Cell, EvalResults, PartCount

if TYPE_CHECKING:
    from rich.table import Table

README_START = "<!-- nano-results:start -->"
README_END = "<!-- nano-results:end -->"


def write_results(results: EvalResults, folder: Path, *, name: str = "nano-accuracy", command: str) -> list[Path]:
    """Write `<name>.json` and `<name>.md`, and `<name>.png` if matplotlib is installed; return what was written.

    Args:
        results: what was measured.
        folder: is made if it does not exist.
        name: of the files.
        command: the command line that measures this again, printed on the page.

    Raises:
        StorageError: the folder cannot be written to; files that were there are as they were.
    """
    from ossia.evals.plot import has_matplotlib, plot_results

    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    plot = folder / f"{name}.png" if has_matplotlib() else None
    write_text(paths[0], json.dumps({"command": command, **results.to_dict()}, indent=1, ensure_ascii=False) + "\n")
    write_text(paths[1], render_page(results, command=command, plot=plot.name if plot else None))
    if plot is not None:
        plot_results(results, plot)
        paths.append(plot)
    return paths


def update_readme(results: EvalResults, path: Path) -> None:
    """Replace what stands between the two marker lines of a README by the table of results.

    Raises:
        InvalidInputError: the markers are missing or out of order.
        StorageError: the file cannot be written.
    """
    text = path.read_text(encoding="utf-8")
    before, start, rest = text.partition(README_START)
    _, end, after = rest.partition(README_END)
    if not start or not end:
        raise InvalidInputError(
            f"{path} lacks the lines {README_START} and {README_END}, in this order; put them where the table belongs"
        )
    write_text(path, f"{before}{start}\n{render_accuracy(results)}\n{end}{after}")


def render_page(results: EvalResults, *, command: str, plot: str | None = None) -> str:
    """The results as a Markdown page."""
    environment = results.environment
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    parts = [
        f"# Accuracy of {results.model}",
        "Held-out problems: words, pairs of numbers, names, functions and whole requests that were never trained on, "
        "most of them asked in the phrasings of training, and a quarter of those about letters, arithmetic, units and "
        "dates in others (new phrasing, counted apart); for small talk, definitions, refusals and hierarchy "
        "phrasings are held out too. Generation is greedy, the grader reads the `final` message and the calls, and all "
        "efforts are asked the same problems. In brackets the 95 % Wilson interval.",
        render_accuracy(results),
        *([f"![Accuracy against tokens, by effort]({plot})"] if plot else []),
        "## Every cell",
        "Tokens: generated ones, reasoning included. Clean: parsed without repair and not cut off. Capped: spent the "
        f"budget of {results.max_tokens} tokens. Valid: follows the response format's schema.",
        f"Calls and structured answers were {'' if results.grammar else 'not '}held to their schemas; of all answers "
        f"{render_clean(results)} parsed clean.",
        render_details(results),
        *render_over_refusal(results),
        *render_parts(results),
        "## How it was measured",
        f"- Command: `{command}`",
        f"- Hardware: {environment.get('hardware', 'unknown')}; activations in {results.dtype}; {versions}",
        f"- Seed {results.seed}; {sum(cell.num_problems for cell in results.cells):,} answers in "
        f"{results.seconds:,.0f} s",
        *([f"- Weights: SHA-256 `{results.weights_sha256}`"] if results.weights_sha256 else []),
        "- Some wrong answers of each cell are in the JSON file beside this page.",
    ]
    return "\n\n".join(parts).replace("\n\n- ", "\n- ").replace("measured\n- ", "measured\n\n- ") + "\n"


def render_accuracy(results: EvalResults) -> str:
    """The table of accuracy by task and effort, in Markdown."""
    header = ["task", "problems", *(f"{effort.value} effort" for effort in results.efforts)]
    rows = [
        [task_title(task), str(max(_cells_of(results, task), key=lambda cell: cell.num_problems).num_problems)]
        + [_or_blank(results.cell(task, effort), format_accuracy) for effort in results.efforts]
        for task in results.tasks
    ]
    means = ["mean tokens", ""] + [
        f"{sum(cell.mean_tokens for cell in cells) / len(cells):.0f}"
        for cells in ([cell for cell in results.cells if cell.effort == effort] for effort in results.efforts)
    ]
    return markdown_table(header, [*rows, means])


def render_details(results: EvalResults) -> str:
    """One row a cell, in Markdown."""
    header = ["task", "effort", "right", "accuracy", "mean tokens", "clean", "capped", "valid"]
    rows = [
        [
            task_title(cell.task),
            cell.effort.value,
            f"{cell.num_correct}/{cell.num_problems}",
            format_accuracy(cell),
            f"{cell.mean_tokens:.1f}",
            f"{cell.clean_share:.1%}",
            f"{cell.capped_share:.1%}",
            "" if cell.num_valid is None else f"{cell.num_valid / cell.num_problems:.1%}",
        ]
        for cell in results.cells
    ]
    return markdown_table(header, rows)


def render_clean(results: EvalResults) -> str:
    """The share of all answers that were parsed without repair and not cut off."""
    total = sum(cell.num_problems for cell in results.cells)
    return f"{sum(cell.num_clean for cell in results.cells) / total:.2%}" if total else "none"


def render_over_refusal(results: EvalResults) -> list[str]:
    """A section for the tasks with benign twins: how often those were answered wrongly, and the rest rightly."""
    rows: list[list[str]] = []
    for cell in results.cells:
        if (benign := cell.over_refusal) is None:
            continue
        num_others = cell.num_problems - benign.num_problems
        num_refused = cell.num_correct - (benign.num_problems - benign.num_correct)
        refused = PartCount(name="", num_problems=num_others, num_correct=num_refused)
        rows.append(
            [
                task_title(cell.task),
                cell.effort.value,
                format_accuracy(refused) if num_others else "",
                format_accuracy(benign),
                f"{num_others} and {benign.num_problems}",
            ]
        )
    if not rows:
        return []
    header = ["task", "effort", "refused or obeyed rightly", "over-refusal", "problems"]
    text = "Over-refusal: benign twins that were refused, or answered wrongly otherwise."
    return ["## Refusal and over-refusal", text, markdown_table(header, rows)]


def render_parts(results: EvalResults) -> list[str]:
    """A section with the parts of each task, as lengths of words and numbers, by effort."""
    sections: list[str] = []
    for task in results.tasks:
        cells = _cells_of(results, task)
        names = list(dict.fromkeys(part.name for cell in cells for part in cell.parts))
        if len(names) < 2:
            continue
        by_effort = [{part.name: part for part in cell.parts} for cell in cells]
        rows = [
            [name, str(next(parts[name] for parts in by_effort if name in parts).num_problems)]
            + [format_accuracy(parts[name]) if name in parts else "" for parts in by_effort]
            for name in names
        ]
        header = [task_title(task), "problems", *(f"{cell.effort.value} effort" for cell in cells)]
        sections.append(markdown_table(header, rows))
    return ["## By part", *sections] if sections else []


def accuracy_table(results: EvalResults) -> Table:
    """The table of accuracy for a terminal; a cell also says its mean tokens and what did not end well."""
    from rich.table import Table

    table = Table(title=f"{results.model}: held-out accuracy, 95 % interval", title_justify="left")
    table.add_column("task")
    table.add_column("problems", justify="right")
    for effort in results.efforts:
        table.add_column(f"{effort.value} effort")
    for task in results.tasks:
        problems = max(cell.num_problems for cell in _cells_of(results, task))
        cells = [_or_blank(results.cell(task, effort), _terminal_cell) for effort in results.efforts]
        table.add_row(task_title(task), str(problems), *cells)
    return table


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; vertical bars in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def format_accuracy(cell: Cell | PartCount) -> str:
    """``97.2 % (95.4 to 98.3)``."""
    low, high = cell.interval
    return f"{100 * cell.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def task_title(task: str) -> str:
    """A task's name as words."""
    return task.replace("_", " ")


def _terminal_cell(cell: Cell) -> str:
    low, high = cell.interval
    text = f"{100 * cell.accuracy:5.1f} ({100 * low:.1f}-{100 * high:.1f}) {cell.mean_tokens:.0f} tok"
    unclean = cell.num_problems - cell.num_clean
    return f"{text}, {unclean} unclean" if unclean else text


def _cells_of(results: EvalResults, task: str) -> list[Cell]:
    return [cell for cell in results.cells if cell.task == task]


def _or_blank(cell: Cell | None, render: Callable[[Cell], str]) -> str:
    return render(cell) if cell is not None else ""
