"""The data card of a corpus: what is in it, from where, under which licences, and what was taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ossia.training.data.corpus.report import read_report
from ossia.training.data.shards.index import INDEX_FILE, TOKENS_FOLDER, ShardIndex, read_index
from ossia.training.data.sources.manifest import Manifest, Source, parse_manifest
from ossia.training.data.sources.mixture import plan_mixture

CARD_FILE = "README.md"
STEP_TITLES = {
    "extract": "extraction: prose paragraphs; code, tables, headings and menus go",
    "language": "language",
    "quality": "quality",
    "decontaminate": "decontamination",
    "hazard": "CBRN hazards",
    "duplicates": "duplicates",
}
MAX_REASONS = 6


def to_card(corpus: Path) -> str:
    """The card of a corpus, from its report and the index of its shards.

    Raises:
        DatasetError: a file of the corpus is absent or damaged.
    """
    record = read_report(corpus)
    manifest = parse_manifest(record["manifest"], folder=corpus)
    index = read_index(corpus / TOKENS_FOLDER) if (corpus / TOKENS_FOLDER / INDEX_FILE).is_file() else None
    lines = [f"# {manifest.name}", ""]
    if manifest.description:
        lines += [" ".join(manifest.description.split()), ""]
    lines += _summary(record, index)
    lines += ["", "## Sources", "", *_sources(record, manifest, index), "", "## Filters", "", *_steps(record, manifest)]
    lines += ["", "## Personal data", "", *_personal(record, manifest)]
    lines += ["", "## Limits", "", *_limits(manifest), ""]
    return "\n".join(lines)


def _summary(record: dict[str, Any], index: ShardIndex | None) -> list[str]:
    found = record["sources"].values()
    kept, read = sum(source["kept"] for source in found), sum(source["read"] for source in found)
    characters = sum(source["characters"] for source in found)
    text = f"{kept:,} of {read:,} documents, {characters:,} characters"
    if index is not None:
        stamp = index.tokenizer
        text += (
            f", {index.num_tokens:,} tokens of the tokenizer {stamp.name or 'unnamed'} ({stamp.vocab_size:,} ids, "
            f"SHA-256 {stamp.sha256[:16]})"
        )
    bad = sum(source["unreadable"] for source in found)
    lines = [f"{text}. Built by ossia {record.get('ossia', '')} (`ossia data build`)."]
    return [*lines, f"{bad:,} rows could not be read and were skipped."] if bad else lines


def _sources(record: dict[str, Any], manifest: Manifest, index: ShardIndex | None) -> list[str]:
    tokens = {source.name: source.tokens for source in index.sources} if index is not None else {}
    mixture = plan_mixture(manifest.sources, tokens=tokens)
    lines = [
        "| source | licence | from | documents | characters | tokens | times a pass | share of a pass |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for source in manifest.sources:
        found = record["sources"][source.name]
        repeats = mixture.repeats.get(source.name, 0.0)
        share = repeats * tokens.get(source.name, 0) / mixture.tokens if mixture.tokens else 0.0
        lines.append(
            f"| {_cell(source.name)} | {_cell(source.license)} | {_cell(source.origin)} "
            f"| {found['kept']:,} of {found['read']:,} | {found['characters']:,} "
            f"{f'| {tokens[source.name]:,} | {repeats:.3g} | {100 * share:.1f} % |' if tokens else '| | | |'}"
        )
    notes = [f"- {source.name}: {' '.join(source.note.split())}" for source in manifest.sources if source.note]
    if notes:
        lines += ["", *notes]
    if any(source.credit for source in manifest.sources):
        lines += ["", "Authors whom the licences want named are in `ATTRIBUTION.tsv`."]
    if mixture.tokens:
        lines += ["", _pass_text(mixture.tokens, mixture.limited_by, manifest.sources)]
    return lines


def _pass_text(tokens: int, limited_by: str | None, sources: tuple[Source, ...]) -> str:
    text = f"A pass over the mix is {tokens:,} tokens"
    if limited_by is None:
        return f"{text}."
    cap = next(source.epochs for source in sources if source.name == limited_by)
    return f"{text}: at these shares, a longer one would repeat {limited_by} more than {cap:g} times."


def _steps(record: dict[str, Any], manifest: Manifest) -> list[str]:
    config = manifest.filters
    details = {
        "language": f" ({', '.join(config.languages) or 'all'}; py3langid, probability {config.language_confidence:g})",
        "quality": f" ({', '.join(config.quality) or 'none'}; some sources have rules of their own)",
        "decontaminate": f" ({config.ngram} words in a row; {config.held_out_problems:,} held-out problems a task, and "
        f"{len(config.decontaminate)} files)",
        "hazard": " (keywords and a classifier)" if config.hazard else " (off)",
        "duplicates": f" (exact; near ones from a Jaccard similarity of {config.near_duplicates:g} of word 5-grams)",
    }
    lines = ["| step | in | out | dropped because |", "| --- | --- | --- | --- |"]
    for found in record["steps"]:
        step = str(found["step"])
        reasons = list(found["reasons"].items())
        shown = [f"{reason} ({count:,})" for reason, count in reasons[:MAX_REASONS]]
        if len(reasons) > MAX_REASONS:
            shown.append(f"others ({sum(count for _, count in reasons[MAX_REASONS:]):,})")
        title = f"{STEP_TITLES.get(step, step)}{details.get(step, '')}"
        lines.append(f"| {_cell(title)} | {found['in']:,} | {found['out']:,} | {_cell('; '.join(shown))} |")
    return lines


def _personal(record: dict[str, Any], manifest: Manifest) -> list[str]:
    kinds = ", ".join(kind.replace("_", " ") for kind in manifest.filters.scrub) or "nothing"
    counts = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in record["personal_data"].items())
    return [f"Looked for: {kinds}. Replaced by placeholders: {counts or 'none found'}."]


def _limits(manifest: Manifest) -> list[str]:
    lines = [
        "Rules of quality are crude: they drop good text and keep bad. Names, streets and birthdays of people are not",
        "looked for. Decontamination finds what is quoted, not what is said in other words, and leaves out evaluation",
        "texts of fewer than 8 words.",
    ]
    if manifest.filters.hazard:
        lines.append("The hazard filter was trained on templates; docs/data.md says what it does not see.")
    return lines


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
