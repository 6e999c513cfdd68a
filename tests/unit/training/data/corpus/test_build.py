from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.training.data.conftest import bytes_tokenizer
from tests.unit.training.data.filters.test_language import TEXTS

from ossia.core.errors import DatasetError, InvalidInputError, ModelNotFoundError, StorageError
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.training.data.corpus import build as build_module
from ossia.training.data.corpus.build import Progress, build, load_named_tokenizer, shard
from ossia.training.data.corpus.card import to_card
from ossia.training.data.corpus.report import read_report
from ossia.training.data.corpus.text_files import TextWriter, is_corpus, read_documents
from ossia.training.data.filters.decontaminate import held_out_prompts
from ossia.training.data.filters.dedup import normalize
from ossia.training.data.filters.hazard.templates import draw_many
from ossia.training.data.filters.pipeline import STEPS
from ossia.training.data.shards.inspect import describe
from ossia.training.data.shards.reader import ShardedTokens
from ossia.training.data.sources.manifest import Manifest, load_manifest

MANIFEST = """
name = "small"
description = "A corpus of a few lines."
[filters]
quality = ["c4"]
held_out_problems = 20
[[sources]]
name = "rows"
path = "rows.jsonl"
license = "CC-BY-4.0"
origin = "https://example.org/rows"
credit = "by"
quality = []
share = 0.75
epochs = 2
[[sources]]
name = "pages"
path = "*.md"
license = "MIT"
origin = "https://example.org/pages"
note = "written for tests"
share = 0.25
"""
PROSE = "The first sentence is long enough. So is the second one of this page. The third ends it, with many words!"


def story(seed: int) -> str:
    rng = random.Random(seed)
    names, verbs = ("Ana", "Ben", "the old dog", "my aunt", "a boy"), ("saw", "found", "lost", "painted", "sold")
    things = ("a red boat", "the little house", "seven apples", "an empty box", "the long road", "a song")
    return " ".join(
        f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)} near {rng.choice(things)}." for _ in range(8)
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    question = next(prompt for prompt in held_out_prompts(per_task=20) if len(normalize(prompt)) >= 8)
    hazard = next(example.text for example in draw_many(20, parts=("fit",), seed=0) if example.is_hazard)
    rows = [
        {"text": story(1), "by": "An Author"},
        {"text": f"{story(2)} Mail me at ben@mail.org or +44 20 7946 0958.", "by": "Ben\tB."},
        {"text": story(1).upper(), "by": "A Copy"},
        {"text": story(2) + " The end.", "by": "Nearly A Copy"},
        {"text": TEXTS["de"], "by": "Eine Autorin"},
        {"text": f"{story(3)} {question}", "by": "Leaky"},
        {"text": f"{story(4)} {hazard}", "by": "Bad"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.md").write_text(f"# Title\n\n{PROSE}\n\n```\ncode {{}}\n```\n")
    (tmp_path / "b.md").write_text("# Only a title\n")
    (tmp_path / "c.md").write_text("Only one whole sentence is in this page here.\n")
    (tmp_path / "m.toml").write_text(MANIFEST)
    return load_manifest(tmp_path / "m.toml")


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_corpus(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    seen: list[Progress] = []
    record = build(manifest, tmp_path / "out", tokenizer=small_tokenizer, on_progress=seen.append)
    documents = list(read_documents(tmp_path / "out"))
    assert [(document.source, document.credit) for document in documents] == [
        ("rows", "An Author"),
        ("rows", "Ben\tB."),
        ("pages", ""),
    ]
    assert documents[1].text.endswith("Mail me at [email] or [phone].")
    assert documents[2].text == PROSE
    reasons = {found["step"]: found["reasons"] for found in record["steps"]}
    assert reasons == {
        "extract": {"no prose": 1},
        "language": {"in de": 1},
        "quality": {"c4: fewer than 3 sentences in whole lines": 1},
        "decontaminate": {"shares words with an evaluation text": 1},
        "hazard": {next(iter(reasons["hazard"])): 1},
        "duplicates": {"exact duplicate": 1, "near duplicate": 1},
    }
    assert [found["in"] for found in record["steps"]] == [10, 9, 8, 7, 6, 5]
    assert record["steps"][-1]["out"] == 3
    assert record["personal_data"] == {"email": 1, "phone": 1}
    assert seen[-1][:2] == (10, 3)
    assert [progress.read for progress in seen] == list(range(1, 11))
    size = {name: (tmp_path / name).stat().st_size for name in ("rows.jsonl", "a.md", "b.md", "c.md")}
    assert [progress.done * sum(size.values()) for progress in seen] == pytest.approx(
        [0] * 7 + [size["rows.jsonl"], size["rows.jsonl"] + size["a.md"], sum(size.values()) - size["c.md"]]
    )
    shards = ShardedTokens(tmp_path / "out", tokenizer=small_tokenizer, verify=True)
    assert [small_tokenizer.decode(ids[:-1].tolist()) for ids in shards.documents()] == [d.text for d in documents]
    assert shards.num_tokens == seen[-1].tokens
    assert (tmp_path / "out" / "ATTRIBUTION.tsv").read_text().splitlines() == [
        "source\tauthor\tdocuments",
        "rows\tAn Author\t1",
        "rows\tBen B.\t1",
    ]
    assert not list(tmp_path.glob("out.*"))


def test_shares_become_repeats(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    build(manifest, tmp_path / "out", tokenizer=small_tokenizer)
    rows, pages = ShardedTokens(tmp_path / "out").index.sources
    assert rows.repeats * rows.tokens == pytest.approx(3 * pages.repeats * pages.tokens)
    assert max(rows.repeats / 2, pages.repeats) == pytest.approx(1)


def test_the_card(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    build(manifest, tmp_path / "out", tokenizer=small_tokenizer)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card == to_card(tmp_path / "out")
    assert "# small\n\nA corpus of a few lines." in card
    assert "| rows | CC-BY-4.0 | https://example.org/rows | 2 of 7 |" in card
    assert "- pages: written for tests" in card
    assert "c4: fewer than 3 sentences in whole lines (1)" in card
    assert "Replaced by placeholders: email 1, phone 1." in card
    assert "`ATTRIBUTION.tsv`" in card
    assert str(tmp_path) not in card + (tmp_path / "out" / "report.json").read_text()


def test_the_same_manifest_gives_the_same_bytes(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    for name in ("one", "two"):
        build(manifest, tmp_path / name, tokenizer=small_tokenizer)
    assert files(tmp_path / "one") == files(tmp_path / "two")


@pytest.mark.slow
def test_many_processes_give_the_same_bytes(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    build(manifest, tmp_path / "one", tokenizer=small_tokenizer)
    build(manifest, tmp_path / "many", tokenizer=small_tokenizer, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "many")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ray_gives_the_same_bytes(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'ossia[ray]'")
    build(manifest, tmp_path / "one", tokenizer=small_tokenizer)
    build(manifest, tmp_path / "ray", tokenizer=small_tokenizer, engine="ray")
    assert files(tmp_path / "one") == files(tmp_path / "ray")
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write("{\n")
    with pytest.raises(InvalidInputError, match=r"line 8: is no JSON.*--on-error skip"):
        build(manifest, tmp_path / "ray", engine="ray")
    record = build(manifest, tmp_path / "ray", engine="ray", skip_bad=True)
    assert record["sources"]["rows"]["unreadable"] == 1


def test_shards_for_another_tokenizer(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    build(manifest, tmp_path / "out")
    assert not (tmp_path / "out" / "tokens").exists()
    assert "tokens of the tokenizer" not in (tmp_path / "out" / "README.md").read_text()
    count = shard(tmp_path / "out", tokenizer=small_tokenizer, tokenizer_name="bytes")
    assert ShardedTokens(tmp_path / "out", tokenizer=small_tokenizer).num_tokens == count
    assert "tokens of the tokenizer bytes" in (tmp_path / "out" / "README.md").read_text()
    wide = bytes_tokenizer(first_special=70_000)
    seen: list[Progress] = []
    shard(tmp_path / "out", tmp_path / "wide", tokenizer=wide, on_progress=seen.append)
    assert seen[-1].done == 1.0
    assert ShardedTokens(tmp_path / "wide", tokenizer=wide).num_tokens == count == seen[-1].tokens
    with pytest.raises(DatasetError, match="another tokenizer"):
        ShardedTokens(tmp_path / "out", tokenizer=wide)


def test_bad_rows_stop_or_are_skipped(manifest: Manifest, tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write("[]\n")
    with pytest.raises(InvalidInputError, match="line 8"):
        build(manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = build(manifest, tmp_path / "out", skip_bad=True)
    assert record["sources"]["rows"]["unreadable"] == 1
    assert "1 rows could not be read" in to_card(tmp_path / "out")


def test_a_corpus_is_replaced_only_when_the_new_one_is_whole(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(manifest, tmp_path / "out")
    before = files(tmp_path / "out")

    def full(self: object, document: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gzip.GzipFile, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            build(manifest, tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "replace_folder", full)
        with pytest.raises(StorageError, match="untouched"):
            build(manifest, tmp_path / "out")
    assert files(tmp_path / "out") == before
    assert not list(tmp_path.glob("out.*"))
    build(manifest, tmp_path / "out")
    assert files(tmp_path / "out") == before


def test_a_folder_of_something_else_is_never_replaced(
    manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(InvalidInputError, match="choose another place"):
        build(manifest, tmp_path / "home")
    build(manifest, tmp_path / "out")
    with pytest.raises(InvalidInputError, match="choose another place"):
        shard(tmp_path / "out", tmp_path / "home", tokenizer=small_tokenizer)
    assert files(tmp_path / "home") == {"letter.txt": b"dear"}


def test_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": TEXTS["de"]}))
    (tmp_path / "m.toml").write_text(
        '[filters]\nheld_out_problems = 0\n[[sources]]\nname = "a"\npath = "rows.jsonl"\nlicense = "x"\norigin = "y"\n'
    )
    with pytest.raises(InvalidInputError, match="language dropped 1"):
        build(load_manifest(tmp_path / "m.toml"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_engine(manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="local or ray"):
        build(manifest, tmp_path / "out", engine="spark")


def test_damaged_text_and_reports(manifest: Manifest, tmp_path: Path) -> None:
    build(manifest, tmp_path / "out")
    part = tmp_path / "out" / "text" / "part-00000.jsonl.gz"
    assert is_corpus(tmp_path / "out")
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DatasetError, match="damaged after line"):
        list(read_documents(tmp_path / "out"))
    part.unlink()
    with pytest.raises(DatasetError, match="holds no text"):
        list(read_documents(tmp_path / "out"))
    report = tmp_path / "out" / "report.json"
    for text in ("{", "[]", '{"version": 2}', '{"version": 1}'):
        report.write_text(text)
        with pytest.raises(DatasetError, match="cannot be read"):
            read_report(tmp_path / "out")
    report.unlink()
    with pytest.raises(DatasetError, match="no corpus"):
        to_card(tmp_path / "out")


def test_text_in_several_parts(tmp_path: Path, manifest: Manifest) -> None:
    build(manifest, tmp_path / "out")
    documents = list(read_documents(tmp_path / "out"))
    with TextWriter(tmp_path / "parts" / "text", part_characters=100) as writer:
        for document in documents:
            writer.add(document)
    assert len(list((tmp_path / "parts" / "text").iterdir())) == 3
    again = [document._replace(place="") for document in read_documents(tmp_path / "parts")]
    assert again == [document._replace(place="") for document in documents]


def test_tokenizers_by_name(tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    assert load_named_tokenizer("o200k_harmony").vocab_size == 201_088
    assert load_named_tokenizer("nano").vocab_size == 8192
    write_tokenizer_folder(small_tokenizer, tmp_path / "run" / "tokenizer")
    loaded = load_named_tokenizer("run/tokenizer", folder=tmp_path)
    assert loaded.encode("ab") == small_tokenizer.encode("ab")
    with pytest.raises(ModelNotFoundError):
        load_named_tokenizer("no-such-model")


def test_in_numbers(manifest: Manifest, tmp_path: Path, small_tokenizer: Tokenizer) -> None:
    build(manifest, tmp_path / "out", tokenizer=small_tokenizer)
    record: dict[str, Any] = describe(ShardedTokens(tmp_path / "out"))
    assert record["documents"] == 3
    assert record["shortest_document"] == len(PROSE) + 1
    assert record["tokens"] == sum(source["tokens"] for source in record["sources"])


def test_steps_are_those_of_the_report(manifest: Manifest, tmp_path: Path) -> None:
    def steps() -> Iterator[str]:
        yield from (found["step"] for found in build(manifest, tmp_path / "out")["steps"])

    assert tuple(steps()) == STEPS
