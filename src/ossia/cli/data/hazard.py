"""`ossia data hazard-train` and `hazard-report`: the filter for CBRN hazards."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ossia.cli.options import examples

TRAIN_EXAMPLES = examples(
    "ossia data hazard-train --out hazard.safetensors",
    "ossia data hazard-train --out hazard.safetensors --examples labelled.jsonl",
)
REPORT_EXAMPLES = examples(
    "ossia data hazard-report",
    "ossia data hazard-report --json",
    "ossia data hazard-report --weights hazard.safetensors --corpus stories.jsonl.xz --out benchmarks/results",
)


def train(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the weights go (safetensors).")],
    labelled: Annotated[
        list[Path] | None,
        typer.Option("--examples", metavar="FILE", help="JSONL of your own with text and hazard. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws other sentences.")] = 0,
) -> None:
    """Train the hazard classifier on the labelled templates. Takes seconds to a minute."""
    from ossia.training.data.filters.hazard.train import read_examples, train_classifier

    extra = [example for path in labelled or () for example in read_examples(path)]
    classifier = train_classifier(seed=seed, extra=extra)
    classifier.save(out)
    typer.echo(f"wrote {out}: {len(classifier.hashes):,} weights, threshold {classifier.threshold}")


def report(
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: the classifier that ships.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(metavar="P", help="Default: the classifier's own.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Sentences from held-out templates.")] = 3000,
    corpus: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Ordinary text (JSONL with text), of which little should go. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws other sentences.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of Markdown.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write hazard-filter.md and .json here.", show_default=False),
    ] = None,
) -> None:
    """Measure the hazard filter: precision and recall on held-out templates, and what it drops of ordinary text."""
    from ossia.training.data.batches.examples import read_corpus
    from ossia.training.data.filters.hazard.classifier import HazardClassifier
    from ossia.training.data.filters.hazard.filter import HazardFilter
    from ossia.training.data.filters.hazard.report import measure, measure_corpus, to_markdown, write_report

    classifier = HazardClassifier.load() if weights is None else HazardClassifier.load(weights)
    hazard = HazardFilter(classifier, threshold=threshold)
    record = measure(hazard, num_examples=limit, seed=seed)
    for path in corpus or ():
        record["corpora"][path.name] = measure_corpus(hazard, read_corpus(path))
    command = shlex.join(["ossia", *sys.argv[1:]])
    typer.echo(json.dumps(record) if as_json else to_markdown(record, command=command))
    if out is not None:
        for path in write_report(record, out, command=command):
            typer.echo(f"wrote {path}", err=True)
