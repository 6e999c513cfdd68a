"""Measuring the hazard filter on templates that nothing of it has seen, and on ordinary text."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ossia.core.files import write_text
from ossia.training.data.filters.hazard.filter import HazardFilter
from ossia.training.data.filters.hazard.templates import Example, draw_many

NUM_EXAMPLES = 3000
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Counts of right and wrong decisions at a threshold."""

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @property
    def precision(self) -> float:
        """Of what was dropped, the share that should have been."""
        return self.true_positives / max(1, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Of what should have been dropped, the share that was."""
        return self.true_positives / max(1, self.true_positives + self.false_negatives)

    def to_dict(self) -> dict[str, Any]:
        """With 95 % intervals (Wilson)."""
        dropped = self.true_positives + self.false_positives
        hazards = self.true_positives + self.false_negatives
        return {
            **dataclasses.asdict(self),
            "precision": self.precision,
            "precision_95": wilson(self.true_positives, dropped),
            "recall": self.recall,
            "recall_95": wilson(self.true_positives, hazards),
        }


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927)."""
    if not trials:
        return 0.0, 1.0
    z, share = 1.96, successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def score(probabilities: Sequence[float], examples: Sequence[Example], *, threshold: float) -> Score:
    """Count decisions."""
    counts = Counter(
        (example.is_hazard, probability >= threshold)
        for example, probability in zip(examples, probabilities, strict=True)
    )
    return Score(
        threshold=threshold,
        true_positives=counts[True, True],
        false_positives=counts[False, True],
        false_negatives=counts[True, False],
        true_negatives=counts[False, False],
    )


def measure(hazard: HazardFilter, *, num_examples: int = NUM_EXAMPLES, seed: int = 0) -> dict[str, Any]:
    """Measure the keywords alone and the whole filter on held-out templates, as JSON types."""
    examples = draw_many(num_examples, parts=("held_out",), seed=seed)
    judgements = [hazard.judge(example.text) for example in examples]
    probabilities = [0.0 if judgement is None else judgement.probability for judgement in judgements]
    has_keywords = [judgement is not None for judgement in judgements]
    kinds: dict[str, Counter[str]] = {}
    for example, probability in zip(examples, probabilities, strict=True):
        group = kinds.setdefault(f"{'restricted' if example.is_hazard else 'benign'}: {example.kind}", Counter())
        group["examples"] += 1
        group["dropped"] += probability >= hazard.threshold
    thresholds = sorted({*THRESHOLDS, hazard.threshold})
    return {
        "examples": num_examples,
        "seed": seed,
        "threshold": hazard.threshold,
        "weights": len(hazard.classifier.hashes),
        "keywords": score([float(has) for has in has_keywords], examples, threshold=1.0).to_dict(),
        "filter": score(probabilities, examples, threshold=hazard.threshold).to_dict(),
        "thresholds": [score(probabilities, examples, threshold=threshold).to_dict() for threshold in thresholds],
        "kinds": {kind: dict(kinds[kind]) for kind in sorted(kinds)},
        "corpora": {},
    }


def measure_corpus(hazard: HazardFilter, texts: Sequence[str]) -> dict[str, Any]:
    """How many texts of an ordinary corpus have keywords, and how many the filter drops."""
    judgements = [hazard.judge(text) for text in texts]
    dropped = sum(judgement is not None and judgement.is_hazard for judgement in judgements)
    return {
        "documents": len(texts),
        "with_keywords": sum(judgement is not None for judgement in judgements),
        "dropped": dropped,
        "dropped_95": wilson(dropped, len(texts)),
    }


def _percent(value: float, interval: Sequence[float]) -> str:
    return f"{100 * value:.1f} % ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def to_markdown(record: dict[str, Any], *, command: str) -> str:
    """The results file."""
    restricted = record["filter"]["true_positives"] + record["filter"]["false_negatives"]
    lines = [
        "# The hazard filter on held-out templates",
        "",
        f"`{command}`",
        "",
        f"{record['examples']:,} sentences from held-out templates (openings, circumstances, classes of things and",
        f"benign sentences that neither the weights nor the threshold have seen), {restricted:,} of them restricted.",
        "Intervals are 95 %, Wilson. This says how the filter generalises to other wordings of such templates. It says",
        "little about real text that describes a method without naming the intent, which no template here does.",
        "",
        "| | precision | recall | wrongly dropped | missed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for key, name in (("keywords", "keywords alone"), ("filter", "keywords and classifier")):
        found = record[key]
        precision, recall = (_percent(found[what], found[f"{what}_95"]) for what in ("precision", "recall"))
        lines.append(f"| {name} | {precision} | {recall} | {found['false_positives']} | {found['false_negatives']} |")
    lines += ["", "| threshold | precision | recall |", "| --- | --- | --- |"]
    for found in record["thresholds"]:
        mark = " (chosen)" if found["threshold"] == record["threshold"] else ""
        lines.append(
            f"| {found['threshold']}{mark} | {100 * found['precision']:.1f} % | {100 * found['recall']:.1f} % |"
        )
    lines += ["", "| kind | sentences | dropped |", "| --- | --- | --- |"]
    for kind, found in record["kinds"].items():
        lines.append(f"| {kind} | {found['examples']} | {found['dropped']} |")
    if record["corpora"]:
        lines += ["", "Ordinary text, all of it harmless:", ""]
        lines += ["| corpus | documents | with keywords | dropped |", "| --- | --- | --- | --- |"]
        for name, found in record["corpora"].items():
            lines.append(f"| {name} | {found['documents']:,} | {found['with_keywords']} | {found['dropped']} |")
    return "\n".join([*lines, ""])


def write_report(record: dict[str, Any], folder: Path, *, command: str) -> list[Path]:
    """Write hazard-filter.md and hazard-filter.json.

    Raises:
        StorageError: they cannot be written.
    """
    paths = [folder / "hazard-filter.md", folder / "hazard-filter.json"]
    write_text(paths[0], to_markdown(record, command=command))
    write_text(paths[1], json.dumps({"command": command, **record}, indent=1) + "\n")
    return paths
