"""What a build did: documents in and out of each step, with reasons. Kept as `report.json` beside the corpus."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ossia import __version__
from ossia.core.errors import DatasetError
from ossia.core.files import write_text
from ossia.training.data.filters.pipeline import STEPS, Dropped, Kept
from ossia.training.data.sources.document import Unreadable
from ossia.training.data.sources.manifest import Manifest, parse_manifest

REPORT_FILE = "report.json"
VERSION = 1


class BuildReport:
    """Counts as a build goes on.

    Attributes:
        read, unreadable, kept, characters: by source.
        dropped: by step, then by reason.
        dropped_by_source: by source, then by step.
        scrubbed: by kind of personal data.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self.read: Counter[str] = Counter()
        self.unreadable: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {step: Counter() for step in STEPS}
        self.dropped_by_source: dict[str, Counter[str]] = {source.name: Counter() for source in manifest.sources}
        self.scrubbed: Counter[str] = Counter()

    def add(self, result: Kept | Dropped | Unreadable) -> None:
        """Count a document."""
        if isinstance(result, Unreadable):
            self.unreadable[result.source] += 1
            return
        if isinstance(result, Dropped):
            self.read[result.source] += 1
            self.dropped[result.step][result.reason] += 1
            self.dropped_by_source[result.source][result.step] += 1
            return
        document = result.document
        self.read[document.source] += 1
        self.kept[document.source] += 1
        self.characters[document.source] += len(document.text)
        self.scrubbed += result.scrubbed

    def to_dict(self, **more: Any) -> dict[str, Any]:
        """As JSON types; `more` joins the top level."""
        steps: list[dict[str, Any]] = []
        left = self.read.total()
        for step in STEPS:
            count = self.dropped[step].total()
            reasons = dict(sorted(self.dropped[step].items(), key=lambda item: (-item[1], item[0])))
            steps.append({"step": step, "in": left, "out": left - count, "reasons": reasons})
            left -= count
        return {
            "version": VERSION,
            "ossia": __version__,
            "sources": {
                source.name: {
                    "read": self.read[source.name],
                    "unreadable": self.unreadable[source.name],
                    "kept": self.kept[source.name],
                    "characters": self.characters[source.name],
                    "dropped": dict(self.dropped_by_source[source.name]),
                }
                for source in self._manifest.sources
            },
            "steps": steps,
            "personal_data": dict(sorted(self.scrubbed.items())),
            **more,
            "manifest": self._manifest.to_dict(),
        }


def write_report(folder: Path, record: dict[str, Any]) -> None:
    """Write `report.json`.

    Raises:
        StorageError: it cannot be written.
    """
    write_text(folder / REPORT_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a corpus.

    Raises:
        DatasetError: it is absent, damaged or of another version.
    """
    path = folder / REPORT_FILE
    if not path.is_file():
        raise DatasetError(f"{folder} is no corpus: there is no {REPORT_FILE}; make one with `ossia data build`")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] != VERSION:
            raise ValueError(f"it is of version {record['version']!r}, this ossia reads {VERSION}")
        for key in ("sources", "steps", "personal_data", "manifest"):
            record[key]
        parse_manifest(record["manifest"], folder=folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} cannot be read ({error!r}); build the corpus anew") from error
    return record
