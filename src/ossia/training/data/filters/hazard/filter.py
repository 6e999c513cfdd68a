"""The whole filter: passages with keywords, judged by the classifier."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from ossia.training.data.filters.hazard.classifier import HazardClassifier
from ossia.training.data.filters.hazard.terms import KeywordFilter, Passage


class Judgement(NamedTuple):
    """The passage of a text that scored highest."""

    passage: Passage
    probability: float
    is_hazard: bool


class HazardFilter:
    """Judges texts.

    Args:
        classifier: the one that ships, unless told otherwise.
        threshold: probability from which a passage is a hazard; the classifier's own by default.
        terms: more keywords.

    Raises:
        DatasetError: the classifier cannot be read.
    """

    def __init__(
        self,
        classifier: HazardClassifier | None = None,
        *,
        threshold: float | None = None,
        terms: Iterable[str] = (),
    ) -> None:
        self.classifier = classifier or HazardClassifier.load()
        self.threshold = self.classifier.threshold if threshold is None else threshold
        self.keywords = KeywordFilter(terms)

    def judge(self, text: str) -> Judgement | None:
        """The worst passage of a text, or None if it has no keyword."""
        worst: Judgement | None = None
        for passage in self.keywords.passages(text):
            probability = self.classifier.probability(passage.text, keywords=self.keywords)
            if worst is None or probability > worst.probability:
                worst = Judgement(passage, probability, probability >= self.threshold)
        return worst
