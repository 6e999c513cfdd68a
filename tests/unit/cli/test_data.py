from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    "The children walked along the river until they came to an old bridge. There they sat down and ate their bread.",
    "A farmer had seven goats and one dog. Each morning the dog led the goats up the hill and home again at night.",
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ROWS))
    path = tmp_path / "m.toml"
    path.write_text(
        'name = "rows"\ntokenizer = "nano"\n[filters]\nquality = []\nheld_out_problems = 10\n'
        '[[sources]]\nname = "rows"\npath = "rows.jsonl"\nlicense = "MIT"\norigin = "here"\n'
    )
    return path


def test_build_inspect_card_shard(manifest: Path, tmp_path: Path, run: Any) -> None:
    out = str(tmp_path / "out")
    result = run("data", "build", str(manifest), "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "its card is" in result.stdout
    assert "duplicates" in result.stdout

    record = json.loads(run("data", "inspect", out, "--verify", "--json").stdout)
    assert (record["documents"], record["vocab_size"], record["tokenizer"]) == (2, 8192, "nano")
    shown = run("data", "inspect", out, "--show", "2", "--tokenizer", "nano").stdout
    assert all(text in shown for text in ROWS)
    assert "documents: 2" in shown
    assert "--- document" in run("data", "inspect", out, "--show", "1").stdout

    assert run("data", "card", out).stdout == (tmp_path / "out" / "README.md").read_text()

    result = run("data", "shard", out, "--tokenizer", "o200k_harmony")
    assert result.exit_code == 0, result.stderr
    record = json.loads(run("data", "inspect", out, "--json").stdout)
    assert record["dtype"] == "uint32"
    result = run("data", "inspect", out, "--tokenizer", "nano")
    assert result.exit_code == 1
    assert "another tokenizer" in result.stderr


def test_build_prints_json_and_takes_a_tokenizer(manifest: Path, tmp_path: Path, run: Any) -> None:
    out = tmp_path / "out"
    result = run("data", "build", str(manifest), "--out", str(out), "--tokenizer", "o200k_harmony", "--json")
    assert json.loads(result.stdout)["sources"]["rows"]["kept"] == 2
    assert json.loads((out / "tokens" / "index.json").read_text())["tokenizer"]["name"] == "o200k_harmony"


def test_bad_rows(manifest: Path, tmp_path: Path, run: Any) -> None:
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write("no json\n")
    arguments = ("data", "build", str(manifest), "--out", str(tmp_path / "out"))
    result = run(*arguments)
    assert result.exit_code == 1
    assert "line 3: is no JSON" in result.stderr
    result = run(*arguments, "--on-error", "skip")
    assert result.exit_code == 0
    assert "1 rows could not be read and were skipped" in result.stdout
    result = run(*arguments, "--on-error", "ignore")
    assert result.exit_code == 1
    assert "stop or skip" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "none.toml", "--out", "x"), "there is no manifest"),
        (("inspect", "none"), "no token shards"),
        (("card", "none"), "is no corpus"),
        (("shard", "none", "--tokenizer", "nano"), "is no corpus"),
        (("shard", "none", "--tokenizer", "no-such"), "no-such"),
        (("hazard-report", "--weights", "none"), "hazard-train"),
    ],
)
def test_what_is_not_there(arguments: tuple[str, ...], message: str, run: Any) -> None:
    result = run("data", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


def test_hazard_report(tmp_path: Path, run: Any) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text(json.dumps({"text": ROWS[0]}))
    result = run("data", "hazard-report", "--limit", "200", "--json", "--corpus", str(corpus), "--out", str(tmp_path))
    record = json.loads(result.stdout)
    assert record["examples"] == 200
    assert record["corpora"]["c.jsonl"]["documents"] == 1
    assert "keywords and classifier" in (tmp_path / "hazard-filter.md").read_text()
    assert "| threshold |" in run("data", "hazard-report", "--limit", "100").stdout


@pytest.mark.slow
def test_hazard_train(tmp_path: Path, run: Any) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "A sentence of mine.", "hazard": false}\n')
    weights = str(tmp_path / "w.safetensors")
    result = run("data", "hazard-train", "--out", weights, "--examples", str(own))
    assert result.exit_code == 0, result.stderr
    record = json.loads(run("data", "hazard-report", "--weights", weights, "--limit", "500", "--json").stdout)
    assert record["filter"]["recall"] > 0.9
