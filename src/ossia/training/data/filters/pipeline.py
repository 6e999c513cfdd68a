"""What is done to a single document, whatever the others are: the part of the pipeline that runs anywhere.

    extract      prose out of pages and files
    language     the languages wanted
    quality      the rules of papers
    personal     data of persons becomes placeholders; drops nothing
    decontaminate  nothing that evaluation asks
    hazard       no CBRN hazards

Duplicates come after these and need to see all documents in order: `dedup.py`, called by `build.py`.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import NamedTuple

from ossia.training.data.filters.decontaminate import Decontaminator, held_out_prompts, read_evaluation_file
from ossia.training.data.filters.extract import extract
from ossia.training.data.filters.hazard.filter import HazardFilter
from ossia.training.data.filters.language import language_reason
from ossia.training.data.filters.personal import PersonalDataScrubber
from ossia.training.data.filters.quality import judge
from ossia.training.data.sources.document import Document
from ossia.training.data.sources.manifest import Manifest

STEPS = ("extract", "language", "quality", "decontaminate", "hazard", "duplicates")
"""Steps that drop documents, in their order."""


class Kept(NamedTuple):
    """A document that passed, its text cleaned, and how many personal data were replaced."""

    document: Document
    scrubbed: Counter[str]


class Dropped(NamedTuple):
    """A document that did not pass, the step that dropped it, and why."""

    source: str
    place: str
    step: str
    reason: str


class TextFilters:
    """The filters of a manifest. Built once a process; reads the evaluation texts.

    Raises:
        InvalidInputError: an evaluation file cannot be read.
        MissingExtraError: a package of `ossia[data]` is not installed.
        DatasetError: the hazard classifier cannot be read.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._config = config = manifest.filters
        self._sources = {source.name: source for source in manifest.sources}
        self._scrubber = PersonalDataScrubber(kinds=config.scrub, regions=config.phone_regions)
        files = (read_evaluation_file(manifest.folder / name) for name in config.decontaminate)
        prompts = held_out_prompts(per_task=config.held_out_problems)
        self.decontaminator = Decontaminator(chain(prompts, *files), size=config.ngram)
        self._hazard = (
            HazardFilter(threshold=config.hazard_threshold, terms=config.hazard_terms) if config.hazard else None
        )

    def apply(self, document: Document) -> Kept | Dropped:
        """Pass a document through all steps, up to the first that drops it."""
        source, config = self._sources[document.source], self._config

        def drop(step: str, reason: str) -> Dropped:
            return Dropped(document.source, document.place, step, reason)

        text = extract(document, source).strip()
        if not text:
            return drop("extract", "no prose")
        reason = language_reason(text, languages=config.languages, confidence=config.language_confidence)
        if reason is not None:
            return drop("language", reason)
        verdict = judge(text, rules=config.quality if source.quality is None else source.quality)
        if verdict.text is None:
            return drop("quality", verdict.reason)
        text, scrubbed = self._scrubber.scrub(verdict.text)
        if self.decontaminator.overlap(text) is not None:
            return drop("decontaminate", "shares words with an evaluation text")
        judgement = None if self._hazard is None else self._hazard.judge(text)
        if judgement is not None and judgement.is_hazard:
            return drop("hazard", judgement.passage.category)
        return Kept(document._replace(text=text), scrubbed)
