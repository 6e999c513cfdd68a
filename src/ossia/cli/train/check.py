"""`ossia train check`: look at a file of conversations before learning from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ossia.cli.options import examples
from ossia.cli.terminal import strip_controls
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.text import Text

    from ossia.harmony.tokenizer import Tokenizer
    from ossia.training.data.batches.conversations import Example
    from ossia.training.data.chat.batches import Encoder
    from ossia.training.data.chat.file import BadRow, GoodRow

EXAMPLES = examples(
    "ossia train check mine.jsonl",
    "ossia train check mine.jsonl --row 3",
    "ossia train check mine.jsonl --json",
)
_LEARNED, _READ = "bold green", "dim"


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON lines, a conversation each.")],
    model: Annotated[str, typer.Option(metavar="NAME|DIR", help="The model that is to learn it.")] = "nano",
    line: Annotated[
        int | None, typer.Option("--row", metavar="LINE", help="Show this one. Default: the first good one.")
    ] = None,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens that an example may have.")] = 512,
    effort: Annotated[str, typer.Option(metavar="low|medium|high", help="Of rows that say none.")] = "medium",
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object instead.")] = False,
) -> None:
    """Check a file of conversations: which rows are none, how long they are, and what of one is learned.

    What the model learns to write is green, and stands between marks where there are no colours; the rest it only
    reads. The exit status is 1 if a row is bad.
    """
    from ossia.harmony.content import Effort
    from ossia.training.data.chat.batches import fit_rows
    from ossia.training.data.chat.file import BadRowChoice, read_chat_file

    level = Effort.parse(effort)
    encoder = open_encoder(model)
    found = read_chat_file(file, on_error=BadRowChoice.SKIP)
    rows, too_long = fit_rows(found.rows, encoder=encoder, length=length)
    bad = sorted((*found.skipped, *too_long))
    shown = _choose(found.rows, line, file=file)
    encoded = encoder.encode(shown.row, effort=level, date="2026-01-01")
    counts = count_tokens([encoder.encode(row, effort=level, date="2026-01-01") for _, row in rows])
    if as_json:
        row = {"line": shown.line, "examples": [_to_dict(example, encoder.tokenizer) for example in encoded]}
        record = {"rows": len(rows), **counts._asdict(), "bad": [item._asdict() for item in bad], "row": row}
        typer.echo(json.dumps(record))
    else:
        _show(file, rows=rows, bad=bad, counts=counts)
        _show_row(shown.line, encoded, encoder.tokenizer)
    if bad:
        raise typer.Exit(1)


class Counts(NamedTuple):
    """Tokens of the rows that can be learned.

    Attributes:
        examples: a conversation becomes several where it thinks in several turns.
        tokens: of all examples.
        learned: those of them that are learned.
        longest: of one example.
    """

    examples: int
    tokens: int
    learned: int
    longest: int


def count_tokens(rows: Sequence[Sequence[Example]]) -> Counts:
    """Count over the examples of all rows."""
    examples = [example for row in rows for example in row]
    sizes = [len(example.ids) for example in examples]
    return Counts(
        len(examples), sum(sizes), sum(sum(example.is_learned) for example in examples), max(sizes, default=0)
    )


def open_encoder(model: str) -> Encoder:
    """How a model's conversations become examples; its weights are not read.

    Raises:
        ModelNotFoundError, CheckpointError: it is not here, or cannot be read.
    """
    from ossia.harmony.content import Effort
    from ossia.model.checkpoint.load import read_config, resolve_model
    from ossia.model.loading import find_tokenizer, read_identity, read_json_if_any
    from ossia.training.data.batches.conversations import EVEN
    from ossia.training.data.chat.batches import Encoder

    folder = resolve_model(model)
    tokenizer = find_tokenizer(folder, vocab_size=read_config(folder).vocab_size)
    return Encoder(tokenizer, read_identity(read_json_if_any(folder / "config.json")), EVEN, tuple(Effort))


def _choose(rows: Sequence[GoodRow], line: int | None, *, file: Path) -> GoodRow:
    if line is None:
        return rows[0]
    for row in rows:
        if row.line == line:
            return row
    raise InvalidInputError(f"line {line} of {file} holds no conversation that can be shown", param="row")


# ---- for people ----


def _show(file: Path, *, rows: Sequence[GoodRow], bad: Sequence[BadRow], counts: Counts) -> None:
    typer.echo(
        f"{file}: {len(rows)} conversations can be learned, {len(bad)} rows cannot\n"
        f"{counts.examples} examples, {counts.tokens:,} tokens, {counts.learned:,} of them learned; the longest "
        f"has {counts.longest:,}"
    )
    for line, reason in bad:
        typer.echo(f"  line {line}: {strip_controls(reason)}")


def _show_row(line: int, encoded: Sequence[Example], tokenizer: Tokenizer) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    has_colours = console.is_terminal and not console.no_color
    for number, example in enumerate(encoded, start=1):
        which = f", example {number} of {len(encoded)}" if len(encoded) > 1 else ""
        typer.echo(f"\nline {line}{which}:")
        console.print(paint(example, tokenizer, has_colours=has_colours))


def paint(example: Example, tokenizer: Tokenizer, *, has_colours: bool) -> Text:
    """An example as text: what is learned in colour, or between marks."""
    from rich.text import Text

    text = Text()
    for is_learned, piece in spans(example, tokenizer):
        clean = strip_controls(piece)
        if has_colours:
            text.append(clean, style=_LEARNED if is_learned else _READ)
        else:
            text.append(f"[[{clean}]]" if is_learned else clean)
    return text


def spans(example: Example, tokenizer: Tokenizer) -> list[tuple[bool, str]]:
    """Runs of tokens of one kind, learned or only read, as text. What is learned stands as it is learned."""
    runs: list[tuple[bool, list[int]]] = []
    targets = example.targets or example.ids
    for token, target, is_learned in zip(example.ids, targets, example.is_learned, strict=True):
        if not runs or runs[-1][0] != is_learned:
            runs.append((is_learned, []))
        runs[-1][1].append(target if is_learned else token)
    return [(is_learned, tokenizer.decode(ids)) for is_learned, ids in runs]


def _to_dict(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "ids": example.ids,
        "is_learned": example.is_learned,
        "spans": [{"is_learned": is_learned, "text": text} for is_learned, text in spans(example, tokenizer)],
    }
