"""The filters as a Ray Data job: files are read and documents filtered wherever the cluster has room.

Every node must see the files under the same paths. Rows come back in the order of the manifest (preserve_order), and
duplicates are dropped where the job was started, by the same code as without Ray.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ossia.training.data.corpus.engines import BATCH, Result
from ossia.training.data.filters.pipeline import Dropped, Kept, TextFilters
from ossia.training.data.sources.document import Document, Unreadable
from ossia.training.data.sources.extras import need
from ossia.training.data.sources.files import empty_error, find_files, format_of, read_file, unreadable_error
from ossia.training.data.sources.manifest import Manifest, parse_manifest

ROW = ("source", "place", "text", "credit", "reason")
"""Fields of a row that was read; a reason says why it could not be."""


def run_ray(manifest: Manifest, *, workers: int, skip_bad: bool) -> Iterator[Result]:
    """Read and filter on the cluster that `ray.init` finds, or on this machine if there is none.

    Args:
        manifest: with paths that every node sees.
        workers: actors that filter.
        skip_bad: whether what cannot be read is skipped.

    Raises:
        InvalidInputError: as `read_sources`.
        MissingExtraError: ray is not installed; the extra is `ossia[ray]`.
    """
    ray, data = need("ray", extra="ray"), need("ray.data", package="ray[data]", extra="ray")
    files = [
        {"source": source.name, "path": str(path.absolute()), "kind": format_of(path, source)}
        for source in manifest.sources
        for path in find_files(source, folder=manifest.folder)
    ]
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    context = data.DataContext.get_current()
    options = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        rows = (
            data.from_items(files, override_num_blocks=len(files))
            .map_batches(_read, fn_args=(manifest,), batch_size=1, batch_format="numpy")
            .map_batches(
                _Filter,
                fn_constructor_args=(manifest.to_dict(), str(manifest.folder.resolve())),
                batch_size=BATCH,
                batch_format="numpy",
                compute=data.ActorPoolStrategy(size=max(1, workers)),
            )
            .iter_rows()
        )
        yield from _checked(manifest, rows, skip_bad=skip_bad)
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = options
        if started_here:
            ray.shutdown()


def _read(files: dict[str, Any], manifest: Manifest) -> Iterator[dict[str, list[str]]]:
    """Files to batches of their rows, as strings: a column a field."""
    sources = {source.name: source for source in manifest.sources}
    for name, path, kind in zip(*(files[key].tolist() for key in ("source", "path", "kind")), strict=True):
        batch: dict[str, list[str]] = {column: [] for column in ROW}
        for item in read_file(sources[name], Path(path), kind=kind):
            if isinstance(item, Document) and not item.text.strip():
                continue
            row = {"text": "", "credit": "", "reason": "", **item._asdict()}
            for column, values in batch.items():
                values.append(row[column])
            if len(batch["text"]) == BATCH:
                yield batch
                batch = {column: [] for column in ROW}
        yield batch


class _Filter:
    """Batches of rows to what became of them, as strings: a column a field."""

    def __init__(self, manifest: dict[str, Any], folder: str) -> None:
        self._filters = TextFilters(parse_manifest(manifest, folder=Path(folder)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        out: dict[str, list[str]] = {name: [] for name in (*ROW, "step", "scrubbed")}
        for values in zip(*(batch[name].tolist() for name in ROW), strict=True):
            row = {**dict(zip(ROW, values, strict=True)), "step": "", "scrubbed": "{}"}
            if not row["reason"]:
                document = Document(row["source"], row["place"], row["text"], row["credit"])
                result = self._filters.apply(document)
                if isinstance(result, Dropped):
                    row |= {"text": "", "step": result.step, "reason": result.reason}
                else:
                    row |= {"text": result.document.text, "scrubbed": json.dumps(result.scrubbed)}
            for name, column in out.items():
                column.append(row[name])
        return out


def _checked(manifest: Manifest, rows: Iterator[dict[str, Any]], *, skip_bad: bool) -> Iterator[Result]:
    """Rows as results, under the rules of `read_sources`: each source has a document, and no more than it may."""
    limits = {source.name: source.max_documents for source in manifest.sources}
    counts: Counter[str] = Counter()
    for row in rows:
        source = row["source"]
        limit = limits[source]
        if limit is not None and counts[source] >= limit:
            continue
        if row["reason"] and not row["step"]:
            item = Unreadable(source, row["place"], row["reason"])
            if not skip_bad:
                raise unreadable_error(item)
            yield item
            continue
        counts[source] += 1
        if row["step"]:
            yield Dropped(source, row["place"], row["step"], row["reason"])
        else:
            document = Document(source, row["place"], row["text"], row["credit"])
            yield Kept(document, Counter(json.loads(row["scrubbed"])))
    for source in limits:
        if not counts[source]:
            raise empty_error(source)
