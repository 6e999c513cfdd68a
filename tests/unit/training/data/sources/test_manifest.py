from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ossia.core.errors import InvalidInputError
from ossia.training.data.sources.manifest import FilterConfig, load_manifest, parse_manifest

SOURCE = {"name": "a", "path": "a.jsonl", "license": "MIT", "origin": "https://example.org/a"}


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    raw = {"name": "both", "filters": {"languages": ["en", "de"]}, "sources": [SOURCE | {"text": ["q", "a"]}]}
    (tmp_path / "m.json").write_text(json.dumps(raw))
    (tmp_path / "m.toml").write_text(
        'name = "both"\n[filters]\nlanguages = ["en", "de"]\n[[sources]]\nname = "a"\npath = "a.jsonl"\n'
        'license = "MIT"\norigin = "https://example.org/a"\ntext = ["q", "a"]\n'
    )
    manifest = load_manifest(tmp_path / "m.json")
    assert manifest == load_manifest(tmp_path / "m.toml")
    assert manifest.sources[0].text == ("q", "a")
    assert "folder" not in manifest.to_dict()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "a table with"),
        ({}, "no .*sources"),
        ({"sources": 3}, "list of tables"),
        ({"sources": [SOURCE], "filter": {}}, "unknown key in the manifest: filter"),
        ({"sources": [SOURCE], "name": 3}, "strings"),
        ({"sources": [SOURCE, SOURCE]}, "two sources are named a"),
        ({"sources": [SOURCE | {"share": 0.5}, SOURCE | {"name": "b"}]}, "share, or none"),
        ({"sources": [SOURCE | {"licence": "MIT"}]}, "unknown key"),
        ({"sources": [SOURCE | {"license": " "}]}, "license must not be empty"),
        ({"sources": [SOURCE | {"format": "csv"}]}, "may name auto, jsonl"),
        ({"sources": [SOURCE | {"extract": "pdf"}]}, "may name auto, none"),
        ({"sources": [SOURCE | {"text": []}]}, "no text field"),
        ({"sources": [SOURCE | {"share": -1.0}]}, "share"),
        ({"sources": [SOURCE | {"epochs": 0.0}]}, "epochs"),
        ({"sources": [SOURCE | {"max_documents": 0}]}, "max_documents"),
        ({"sources": [SOURCE | {"name": "../x"}]}, "plain word"),
        ({"sources": [SOURCE], "filters": {"quality": ["goofer"]}}, "gopher"),
        ({"sources": [SOURCE], "filters": {"scrub": ["name"]}}, "email, phone"),
        ({"sources": [SOURCE], "filters": {"near_duplicates": 1.5}}, "between 0 and 1"),
        ({"sources": [SOURCE], "filters": {"hazard_threshold": 1.0}}, "between 0 and 1"),
        ({"sources": [SOURCE], "filters": {"ngram": 1}}, "at least 2"),
    ],
)
def test_what_cannot_be(raw: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        parse_manifest(raw, folder=Path())


def test_no_manifest_or_none_of_its_kind(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no manifest"):
        load_manifest(tmp_path / "m.toml")
    (tmp_path / "m.toml").write_text("[[")
    with pytest.raises(InvalidInputError, match="is no manifest"):
        load_manifest(tmp_path / "m.toml")


def test_the_manifest_of_the_docs_shows_the_defaults() -> None:
    page = (Path(__file__).parents[5] / "docs" / "data.md").read_text(encoding="utf-8")
    shown = re.search(r"```toml\n(.*?)```", page, re.DOTALL)
    assert shown is not None
    raw = tomllib.loads(shown[1])
    manifest = parse_manifest(raw, folder=Path())
    assert manifest.filters == FilterConfig()
    assert set(raw["filters"]) == {field.name for field in dataclasses.fields(FilterConfig)} - {"hazard_threshold"}
    assert [source.share for source in manifest.sources] == [0.6, 0.4]
