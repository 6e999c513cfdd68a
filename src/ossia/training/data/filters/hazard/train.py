"""Training the classifier: the threshold is chosen on templates that the weights have not seen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ossia.core.errors import InvalidInputError
from ossia.training.data.filters.hazard.classifier import HazardClassifier, choose_threshold, fit
from ossia.training.data.filters.hazard.templates import Example, draw_many

NUM_TRAINING = 6000
NUM_VALIDATION = 3000
TARGET_RECALL = 0.98


def train_classifier(*, seed: int = 0, extra: Sequence[Example] = ()) -> HazardClassifier:
    """Fit on one third of the templates, choose the threshold on another, then fit on both.

    Args:
        seed: draws other sentences.
        extra: labelled texts of your own, which join the training examples.
    """
    trial = fit([*draw_many(NUM_TRAINING, parts=("fit",), seed=seed), *extra])
    threshold = choose_threshold(
        trial, draw_many(NUM_VALIDATION, parts=("validation",), seed=seed), recall=TARGET_RECALL
    )
    return fit([*draw_many(NUM_TRAINING, parts=("fit", "validation"), seed=seed), *extra], threshold=threshold)


def read_examples(path: Path) -> list[Example]:
    """Labelled texts from JSONL: `text`, and `hazard` (true or false).

    Raises:
        InvalidInputError: the file is absent, or a row is no such object (with its line number).
    """
    if not path.is_file():
        raise InvalidInputError(f"there is no file {path}", param="examples")
    examples: list[Example] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            text, is_hazard = row["text"], row["hazard"]
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"{path}, line {number}: needs text and hazard ({error!r})", param="examples"
            ) from None
        if not isinstance(text, str) or not isinstance(is_hazard, bool):
            raise InvalidInputError(f"{path}, line {number}: text is a string, hazard true or false", param="examples")
        examples.append(Example(text, is_hazard, "own"))
    return examples
