"""Writes the generated part of a data card: `python -m recipes.corpora.card corpora/built docs/nano-data.md`."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ossia.core.errors import InvalidInputError
from ossia.training.data.corpus.card import to_card
from ossia.training.data.corpus.report import read_report
from ossia.training.data.filters.pipeline import STEPS

MARK = "<!-- What follows is written by recipes/corpora/card.py. -->"


def main() -> None:
    """Put a corpus's card, and what each step took from each source, behind the mark of a page."""
    parser = argparse.ArgumentParser(description="Write a corpus's card into a page.")
    parser.add_argument("corpus", type=Path, help="what `ossia data build` made")
    parser.add_argument("page", type=Path, help="a Markdown file with the mark")
    arguments = parser.parse_args()
    page: Path = arguments.page
    page.write_text(with_card(page.read_text(encoding="utf-8"), corpus=arguments.corpus), encoding="utf-8")


def with_card(page: str, *, corpus: Path) -> str:
    """A page with the card behind its mark.

    Raises:
        InvalidInputError: the page has no mark.
        DatasetError: the folder is no corpus.
    """
    before, mark, _ = page.partition(MARK)
    if not mark:
        raise InvalidInputError(f"the page has no line {MARK!r} to put the card behind", param="page")
    card = re.sub(r"^#", "##", to_card(corpus), flags=re.MULTILINE).strip()
    table = "\n".join(dropped_table(read_report(corpus)))
    return f"{before}{MARK}\n\n{card}\n\n### Documents dropped, by source and step\n\n{table}\n"


def dropped_table(report: dict[str, Any]) -> list[str]:
    """Rows of a Markdown table: a source a row, a step a column."""
    lines = [f"| source | read | {' | '.join(STEPS)} | kept |", f"| --- |{' --- |' * (len(STEPS) + 2)}"]
    for name, found in report["sources"].items():
        dropped = " | ".join(f"{found['dropped'].get(step, 0):,}" for step in STEPS)
        lines.append(f"| {name} | {found['read']:,} | {dropped} | {found['kept']:,} |")
    return lines


if __name__ == "__main__":
    main()
