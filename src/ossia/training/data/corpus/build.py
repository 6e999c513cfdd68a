"""A manifest to a corpus: read, filter, drop duplicates, write text and tokens, and say what was done.

    DIR/README.md          the data card
    DIR/report.json        documents in and out of each step, with reasons, and the manifest
    DIR/ATTRIBUTION.tsv    whom the licences want named, if the sources say
    DIR/text/              cleaned documents, JSONL
    DIR/tokens/            token shards, if there is a tokenizer

Everything is written aside and put in its place at the end: a run that stops leaves what was there before.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from ossia.core.errors import InvalidInputError, StorageError
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.corpus.card import CARD_FILE, to_card
from ossia.training.data.corpus.engines import Result, run_local
from ossia.training.data.corpus.report import REPORT_FILE, BuildReport, read_report, write_report
from ossia.training.data.corpus.text_files import TEXT_FOLDER, TextWriter, read_documents
from ossia.training.data.filters.dedup import Deduplicator
from ossia.training.data.filters.pipeline import Dropped, Kept
from ossia.training.data.shards.index import TOKENS_FOLDER
from ossia.training.data.shards.writer import ShardWriter, check_replaceable, replace_folder
from ossia.training.data.sources.files import find_files
from ossia.training.data.sources.manifest import Manifest, parse_manifest
from ossia.training.data.sources.mixture import plan_mixture

ATTRIBUTION_FILE = "ATTRIBUTION.tsv"
ENGINES = ("local", "ray")


class Progress(NamedTuple):
    """How far a build is.

    Attributes:
        read, kept, tokens: documents read and kept, tokens written.
        source: the one at hand.
        done: the share of the bytes that is behind, file by file.
    """

    read: int
    kept: int
    tokens: int
    source: str
    done: float


OnProgress = Callable[[Progress], None]


def load_named_tokenizer(name: str, *, folder: Path | None = None) -> Tokenizer:
    """A tokenizer by what a manifest calls it.

    Args:
        name: "o200k_harmony", the name of a model (such as "nano"), or a folder with tokenizer.json.
        folder: what a relative folder is looked for in first.

    Raises:
        ModelNotFoundError, CheckpointError, VocabularyError: there is none, or it cannot be read.
    """
    from ossia.harmony.hf_tokenizer import TOKENIZER_FILE, load_tokenizer
    from ossia.model.checkpoint.load import resolve_model

    if name == "o200k_harmony":
        return Tokenizer.o200k_harmony()
    for place in (folder / name if folder is not None else Path(name), Path(name)):
        if (place / TOKENIZER_FILE).is_file():
            return load_tokenizer(place)
    return load_tokenizer(resolve_model(name))


def build(
    manifest: Manifest,
    out: Path,
    *,
    tokenizer: Tokenizer | None = None,
    engine: str = "local",
    workers: int = 1,
    skip_bad: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Build a corpus and return its report.

    Args:
        manifest: what goes in.
        out: the folder; a corpus that is there is replaced once the new one is whole.
        tokenizer: for token shards, which are left out without one.
        engine: one of ENGINES.
        workers: processes (or Ray actors) that filter.
        skip_bad: skip what cannot be read, and count it, instead of stopping.
        on_progress: called after every document.

    Raises:
        InvalidInputError: a source cannot be read or is empty, nothing is left, or `out` holds something else.
        StorageError: no room or no right to write; what was in `out` is untouched.
        MissingExtraError: a package of `ossia[data]` or `ossia[ray]` is not installed.
    """
    if engine not in ENGINES:
        raise InvalidInputError(f"there is no engine {engine!r}; choose {' or '.join(ENGINES)}", param="engine")
    out = out.absolute()
    check_replaceable(out, marker=REPORT_FILE)
    if engine == "ray":
        from ossia.training.data.corpus.ray_engine import run_ray

        results = run_ray(manifest, workers=workers, skip_bad=skip_bad)
    else:
        results = run_local(manifest, workers=workers, skip_bad=skip_bad)
    aside = out.with_name(f"{out.name}.new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        record = _write(manifest, aside, results, tokenizer=tokenizer, on_progress=on_progress)
        replace_folder(aside, out)
    except OSError as error:
        raise StorageError(f"cannot write the corpus to {out}: {error}; what was there is untouched") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return record


def _write(
    manifest: Manifest,
    folder: Path,
    results: Iterator[Result],
    *,
    tokenizer: Tokenizer | None,
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    report = BuildReport(manifest)
    deduplicator = Deduplicator(near=manifest.filters.near_duplicates)
    authors: Counter[tuple[str, str]] = Counter()
    done = _FilesDone(manifest)
    names = [source.name for source in manifest.sources]
    with ExitStack() as stack:
        text = stack.enter_context(TextWriter(folder / TEXT_FOLDER))
        shards = None
        if tokenizer is not None:
            shards = ShardWriter(
                folder / TOKENS_FOLDER, tokenizer=tokenizer, sources=names, tokenizer_name=manifest.tokenizer or ""
            )
            stack.enter_context(shards)
        num_tokens = 0
        for item in results:
            result = _deduplicated(item, deduplicator)
            report.add(result)
            if isinstance(result, Kept):
                document = result.document
                text.add(document)
                num_tokens += 0 if shards is None else shards.add(document.text, source=document.source)
                if document.credit:
                    authors[document.source, document.credit] += 1
            if on_progress is not None:
                at = result.document if isinstance(result, Kept) else result
                share = done.share(at.place)
                on_progress(Progress(report.read.total(), report.kept.total(), num_tokens, at.source, share))
        if not report.kept.total():
            raise InvalidInputError(
                "no document was left: "
                + "; ".join(f"{step} dropped {found.total()}" for step, found in report.dropped.items() if found),
                param="filters",
            )
        text.close()
        if shards is not None:
            mixture = plan_mixture(manifest.sources, tokens=shards.tokens_by_source())
            shards.finish(repeats=_for_all(names, mixture.repeats))
    if authors:
        _write_attribution(folder / ATTRIBUTION_FILE, authors)
    record = report.to_dict()
    write_report(folder, record)
    (folder / CARD_FILE).write_text(to_card(folder), encoding="utf-8")
    return record


class _FilesDone:
    """Which part of the bytes of a manifest's files is behind, told by the places that results come from."""

    def __init__(self, manifest: Manifest) -> None:
        files = {path for source in manifest.sources for path in find_files(source, folder=manifest.folder)}
        sizes = {path: path.stat().st_size for path in files}
        self._total = max(1, sum(sizes.values()))
        self._sizes = {str(name): size for path, size in sizes.items() for name in (path, path.absolute())}
        self._behind = 0
        self._current = ""

    def share(self, place: str) -> float:
        """The share of files that came before the one at this place ("FILE" or "FILE, line N")."""
        path = place if place in self._sizes else place.rpartition(", ")[0]
        if path != self._current:
            self._behind += self._sizes.get(self._current, 0)
            self._current = path
        return min(1.0, self._behind / self._total)


def _deduplicated(item: Result, deduplicator: Deduplicator) -> Result:
    if not isinstance(item, Kept):
        return item
    reason = deduplicator.reason_to_drop(item.document.text)
    return item if reason is None else Dropped(item.document.source, item.document.place, "duplicates", reason)


def _for_all(names: list[str], repeats: dict[str, float]) -> dict[str, float]:
    return {name: repeats.get(name, 0.0) for name in names}


def _write_attribution(path: Path, authors: Counter[tuple[str, str]]) -> None:
    """Whom to name: source, author, documents; sorted."""
    lines = ["source\tauthor\tdocuments"]
    for (source, credit), count in sorted(authors.items()):
        lines.append(f"{source}\t{' '.join(credit.split())}\t{count}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def shard(
    corpus: Path,
    out: Path | None = None,
    *,
    tokenizer: Tokenizer,
    tokenizer_name: str = "",
    on_progress: OnProgress | None = None,
) -> int:
    """Make token shards of a corpus that is built, for another tokenizer.

    Args:
        corpus: a folder of `build`.
        out: where they go; the corpus's own `tokens/` by default, and then its card is written anew.
        tokenizer: encodes the text.
        tokenizer_name: for people.
        on_progress: called after every document.

    Returns:
        How many tokens there are.

    Raises:
        DatasetError: the corpus is absent or damaged.
        StorageError: no room or no right to write; the shards that were there are untouched.
    """
    record = read_report(corpus)
    manifest = parse_manifest(record["manifest"], folder=corpus)
    total = max(1, sum(source["kept"] for source in record["sources"].values()))
    names = [source.name for source in manifest.sources]
    folder = corpus / TOKENS_FOLDER if out is None else out
    with ShardWriter(folder, tokenizer=tokenizer, sources=names, tokenizer_name=tokenizer_name) as writer:
        num_tokens = 0
        for count, document in enumerate(read_documents(corpus), start=1):
            num_tokens += writer.add(document.text, source=document.source)
            if on_progress is not None:
                on_progress(Progress(count, count, num_tokens, document.source, min(1.0, count / total)))
        mixture = plan_mixture(manifest.sources, tokens=writer.tokens_by_source())
        index = writer.finish(repeats=_for_all(names, mixture.repeats))
    if out is None:
        try:
            (corpus / CARD_FILE).write_text(to_card(corpus), encoding="utf-8")
        except OSError as error:
            raise StorageError(f"cannot write the card of {corpus}: {error}") from error
    return index.num_tokens
