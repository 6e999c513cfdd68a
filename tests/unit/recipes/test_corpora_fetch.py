"""Fetching for recipes/corpora, with archives made here: no network, no package tool is called."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import pytest
from recipes.corpora import fetch as fetching
from recipes.corpora.converters import CONVERTERS
from recipes.corpora.fetch import fetch, main, write_manifest, write_rows
from recipes.corpora.packages import Package, check_license, copy_pages, download, load_packages, unpack

from ossia.core.errors import DatasetError, InvalidInputError
from ossia.training.data.sources.manifest import load_manifest

RECIPE = Path(fetching.__file__).parent
FACTS = Package(
    name="facts-of-ours",
    kind="npm",
    source="facts",
    license="MIT",
    proof="MIT License",
    license_file="package/LICENSE",
    converter="facts",
)
PAGES = Package(
    name="pages", kind="apt", source="docs", license="MIT", proof="MIT", pages=("usr/share/doc/**/*.html",),
    leave_out=("*/genindex.html",),
)  # fmt: skip


def write_archive(out: Path, *, name: str = "facts-of-ours-1.0.0.tgz", license_text: str = "The MIT License") -> None:
    content = out.parent / "content"
    (content / "package").mkdir(parents=True, exist_ok=True)
    (content / "package/LICENSE").write_text(license_text)
    (content / "randfacts").mkdir(exist_ok=True)
    (content / "randfacts/safe.txt").write_text("Oaks are old.\n")
    (out / "downloads").mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "downloads" / name, "w:gz") as archive:
        for child in content.iterdir():
            archive.add(child, arcname=child.name)


def test_the_lists_agree_with_each_other() -> None:
    packages = load_packages(RECIPE / "packages.toml")
    sources = {source.name: source for source in load_manifest(RECIPE / "nano.toml").sources}
    assert {package.source for package in packages} | {"stories", "word-problems"} == set(sources)
    for package in packages:
        assert package.converter is None or package.converter in CONVERTERS
        assert sources[package.source].path.startswith(f"raw/{package.source}/")
        assert package.source == "novels" or sources[package.source].license == package.license
    assert max(source.epochs for name, source in sources.items() if name.startswith("docs-")) == 1


def test_a_package_is_fetched_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_archive(out)
    assert fetch(FACTS, out=out) == "1 rows"
    assert json.loads((out / "raw/facts/facts.jsonl").read_text()) == {"text": "Oaks are old."}
    assert not (out / "unpacked/facts-of-ours").exists()
    (out / "downloads/facts-of-ours-1.0.0.tgz").unlink()
    assert fetch(FACTS, out=out) == "is there"


def test_parts_of_an_archive(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_archive(out)
    unpack(out / "downloads/facts-of-ours-1.0.0.tgz", folder=tmp_path / "there", parts=("package/*",))
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["package"]


def test_another_licence_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_archive(out, license_text="All rights reserved")
    with pytest.raises(DatasetError, match="no longer says 'MIT License'"):
        fetch(FACTS, out=out)
    assert not (out / "raw/facts").exists()
    with pytest.raises(DatasetError, match="no licence file"):
        check_license(FACTS, folder=tmp_path / "nowhere")


def test_a_damaged_archive_is_deleted(tmp_path: Path) -> None:
    archive = tmp_path / "a-1.0.0.tgz"
    archive.write_bytes(b"not an archive")
    with pytest.raises(DatasetError, match="damaged"):
        unpack(archive, folder=tmp_path / "there")
    assert not archive.exists()


def test_what_cannot_be_had_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DatasetError, match="npm is not installed"):
        download("some-package", "npm", folder=tmp_path / "downloads")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(DatasetError, match="failed: no message"):
        download("some-package", "pip", folder=tmp_path / "downloads")


def test_pages_are_taken_and_left(tmp_path: Path) -> None:
    base = tmp_path / "unpacked/usr/share/doc/pages"
    (base / "html").mkdir(parents=True)
    for name in ("html/a.html", "html/genindex.html", "copyright"):
        (base / name).write_text("x")
    assert copy_pages(PAGES, unpacked=tmp_path / "unpacked", folder=tmp_path / "raw") == 1
    assert (tmp_path / "raw/pages/html/a.html").is_file()
    with pytest.raises(DatasetError, match="has no page"):
        copy_pages(PAGES, unpacked=tmp_path / "raw", folder=tmp_path / "other")


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no text"):
        write_rows([], tmp_path / "a" / "rows.jsonl")
    assert list((tmp_path / "a").iterdir()) == []


def test_the_manifest_names_what_is_there(tmp_path: Path) -> None:
    write_rows([{"text": "Oaks are old."}], tmp_path / "raw/facts/facts.jsonl")
    absent = write_manifest(tmp_path)
    manifest = load_manifest(tmp_path / "manifest.json")
    assert [source.name for source in manifest.sources] == ["facts"]
    assert "stories" in absent
    assert "facts" not in absent


def test_the_command_goes_on_after_a_package_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    stories = tmp_path / "stories.jsonl"
    stories.write_text('{"text": "Once there was a goat."}\n')
    bad = Package(name="bad", kind="npm", source="bad", license="MIT", proof="x", license_file="x", converter="facts")
    write_archive(out)
    write_archive(out, name="bad-1.0.0.tgz")
    monkeypatch.setattr(fetching, "load_packages", lambda path: [bad, FACTS])
    monkeypatch.setattr(sys, "argv", ["fetch", "--out", str(out), "--stories", str(stories)])
    main()
    assert "skipped: has no licence file" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert list(report["skipped"]) == ["bad (bad)"]
    assert [record["name"] for record in report["fetched"]] == ["facts-of-ours"]
    assert {source.name for source in load_manifest(out / "manifest.json").sources} == {"stories", "facts"}


@pytest.mark.parametrize("change", [{"kind": "cargo"}, {"converter": None}, {"pages": ("x",)}, {"license_file": None}])
def test_packages_that_cannot_be(change: dict[str, object]) -> None:
    fields = {"name": "a", "kind": "npm", "source": "s", "license": "MIT", "proof": "p", "license_file": "f"}
    with pytest.raises(InvalidInputError):
        Package(**{**fields, "converter": "facts", **change})  # pyright: ignore[reportArgumentType]
