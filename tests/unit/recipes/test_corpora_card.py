from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from recipes.corpora.card import MARK, main, with_card

from ossia.core.errors import InvalidInputError
from ossia.training.data.corpus.build import build
from ossia.training.data.sources.manifest import parse_manifest


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rows = [{"text": text} for text in ("Oaks are old.", "Oaks are old.", "Elms are tall.")]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    filters = {"quality": [], "languages": [], "hazard": False, "near_duplicates": 0.0, "held_out_problems": 0}
    sources = [{"name": "facts", "path": "facts.jsonl", "license": "MIT", "origin": "here"}]
    build(parse_manifest({"name": "trees", "filters": filters, "sources": sources}, folder=tmp_path), tmp_path / "out")
    return tmp_path / "out"


def test_the_card_replaces_what_is_behind_the_mark(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Ours\n\n{MARK}\n\nold\n")
    monkeypatch.setattr(sys, "argv", ["card", str(corpus), str(page)])
    main()
    text = page.read_text()
    assert text.startswith(f"# Ours\n\n{MARK}\n\n## trees\n")
    assert "old\n" not in text.split(MARK)[1]
    assert "| facts | 3 | 0 | 0 | 0 | 0 | 0 | 1 | 2 |" in text
    assert with_card(text, corpus=corpus) == text


def test_a_page_without_the_mark_is_refused(corpus: Path) -> None:
    with pytest.raises(InvalidInputError, match="has no line"):
        with_card("# Ours\n", corpus=corpus)
