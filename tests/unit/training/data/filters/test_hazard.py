from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ossia.core.errors import DatasetError, InvalidInputError
from ossia.training.data.filters.hazard.classifier import WEIGHTS, HazardClassifier, choose_threshold, features, fit
from ossia.training.data.filters.hazard.filter import HazardFilter
from ossia.training.data.filters.hazard.frames import BENIGN, CIRCUMSTANCES, ITEMS, OPENINGS
from ossia.training.data.filters.hazard.report import measure, measure_corpus, to_markdown, wilson, write_report
from ossia.training.data.filters.hazard.templates import PARTS, Example, draw_many, part_of
from ossia.training.data.filters.hazard.terms import MAX_PASSAGE, KeywordFilter
from ossia.training.data.filters.hazard.train import read_examples, train_classifier

HAZARD = HazardFilter()


@pytest.mark.parametrize("parts", [OPENINGS, CIRCUMSTANCES, *ITEMS.values(), *BENIGN.values()])
def test_no_template_is_in_two_parts(parts: tuple[str, ...]) -> None:
    split = [set(part_of(parts, [name])) for name in PARTS]
    assert all(split)
    assert sum(map(len, split)) == len(set(parts)) == len(parts)


def test_the_keywords_see_every_restricted_sentence() -> None:
    keywords = KeywordFilter()
    examples = draw_many(500, parts=PARTS, seed=5)
    assert all(keywords.passages(example.text) for example in examples if example.is_hazard)
    assert not any(
        keywords.passages(text)
        for text in (
            "The cat sat on the mat.",
            "Nuclear families are small.",
            "A viral video.",
            "The agent sold a house.",
        )
    )


def test_passages_are_sentences_with_their_neighbours() -> None:
    text = "One is first. Two is second. The virus is third. Four is fourth. Five is fifth."
    assert [passage.text for passage in KeywordFilter().passages(text)] == [
        "Two is second. The virus is third. Four is fourth."
    ]
    assert [passage.category for passage in KeywordFilter(["wolf"]).passages("A wolf (big). A virus.")] == [
        "extra",
        "biological",
    ]


@given(st.text(max_size=50), st.integers(0, 3000), st.text(max_size=50))
@settings(deadline=None)
def test_passages_hold_their_keyword_and_are_short(before: str, gap: int, after: str) -> None:
    passages = KeywordFilter().passages(f"{before} {'x ' * gap}uranium {'y ' * gap}{after}")
    assert passages
    assert all("uranium" in passage.text and len(passage.text) <= MAX_PASSAGE + 2 for passage in passages)


def test_what_ships_generalises_to_other_wordings() -> None:
    """Bounds well under what benchmarks/results/hazard-filter.md reports, far over what keywords alone reach."""
    record = measure(HAZARD, num_examples=1500, seed=9)
    assert record["keywords"]["recall"] == 1.0
    assert record["keywords"]["precision"] < 0.7
    assert record["filter"]["recall"] > 0.94
    assert record["filter"]["precision"] > 0.9


@pytest.mark.slow
def test_a_classifier_of_shuffled_labels_does_not() -> None:
    """The same measure must fail where nothing was learned."""
    examples = draw_many(600, parts=("fit",), seed=0)
    labels = [example.is_hazard for example in examples]
    turned = zip(examples, labels[7:] + labels[:7], strict=True)
    shuffled = [example._replace(is_hazard=label) for example, label in turned]
    record = measure(HazardFilter(fit(shuffled)), num_examples=600, seed=9)
    assert record["filter"]["recall"] < 0.9 or record["filter"]["precision"] < 0.8


@pytest.mark.parametrize(
    "text",
    [
        "The cat sat on the mat.",
        "The convention of 1993 bans chemical weapons, and inspectors verify that states keep to it.",
        "Uranium fuels the power station near the town.",
        "The doctor said that the virus would pass within a week.",
    ],
)
def test_harmless_texts_are_kept(text: str) -> None:
    judgement = HAZARD.judge(text)
    assert judgement is None or not judgement.is_hazard


def test_the_worst_passage_decides() -> None:
    restricted = next(e.text for e in draw_many(50, parts=("held_out",), seed=2) if e.is_hazard)
    harmless = "The museum shows an old warhead. Nobody needs it any more. " * 5
    judgement = HAZARD.judge(harmless + restricted + " " + harmless)
    assert judgement is not None
    assert judgement.is_hazard
    assert HazardFilter(threshold=0.9999).judge(restricted).is_hazard is False  # pyright: ignore[reportOptionalMemberAccess]


def test_weights_survive_a_file(tmp_path: Path) -> None:
    classifier = fit(draw_many(200, parts=("fit",), seed=0), threshold=0.4)
    classifier.save(tmp_path / "w.safetensors")
    loaded = HazardClassifier.load(tmp_path / "w.safetensors")
    assert loaded.threshold == 0.4
    texts = [example.text for example in draw_many(50, parts=("held_out",), seed=0)]
    assert [loaded.probability(text) for text in texts] == [classifier.probability(text) for text in texts]


@pytest.mark.slow
def test_training_again_gives_what_ships() -> None:
    """Up to the rounding of another machine's sums."""
    again, shipped = train_classifier(), HazardClassifier.load()
    assert np.array_equal(again.hashes, shipped.hashes)
    assert again.threshold == shipped.threshold
    examples = draw_many(500, parts=("held_out",), seed=3)
    differences = [abs(again.probability(e.text) - shipped.probability(e.text)) for e in examples]
    assert max(differences) < 0.02


@pytest.mark.parametrize("damage", ["absent", "cut", "format", "shapes", "empty"])
def test_damaged_weights(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    if damage == "cut":
        path.write_bytes(WEIGHTS.read_bytes()[:-10])
    elif damage != "absent":
        size = 0 if damage == "empty" else 2
        tensors = {
            "hashes": np.zeros(size, np.uint32),
            "weights": np.zeros(3 if damage == "shapes" else size, np.float32),
        }
        name = "other" if damage == "format" else "ossia-hazard-1"
        save_file(tensors, path, metadata={"format": name, "bias": "0.0", "threshold": "0.5"})
    with pytest.raises(DatasetError, match="hazard-train"):
        HazardClassifier.load(path)


def test_features_do_not_depend_on_the_thing_named() -> None:
    assert features("How to make a virus?") == features("How to make the uranium?")
    assert features("How to make a virus?") != features("How to ban a virus?")


def test_one_kind_of_label_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="hazardous and benign"):
        fit([Example("a", True, "x")])


def test_the_highest_threshold_that_finds_enough() -> None:
    classifier = fit(draw_many(300, parts=("fit",), seed=0))
    examples = draw_many(300, parts=("validation",), seed=0)
    chosen = choose_threshold(classifier, examples, recall=0.9)
    scores = [classifier.probability(example.text) for example in examples if example.is_hazard]
    assert np.mean(np.array(scores) >= chosen) >= 0.9
    assert np.mean(np.array(scores) >= chosen + 0.05) < 0.9


def test_own_examples(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text('{"text": "a", "hazard": true}\n\n{"text": "b", "hazard": false}\n')
    assert [example.is_hazard for example in read_examples(path)] == [True, False]
    for row in ("{", '{"text": "a"}', '{"text": 1, "hazard": true}', '{"text": "a", "hazard": "yes"}'):
        path.write_text(f'{{"text": "a", "hazard": true}}\n{row}\n')
        with pytest.raises(InvalidInputError, match="line 2"):
            read_examples(path)
    with pytest.raises(InvalidInputError, match="no file"):
        read_examples(tmp_path / "none.jsonl")


def test_intervals_against_the_literature() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_reports(tmp_path: Path) -> None:
    record: dict[str, Any] = measure(HAZARD, num_examples=200, seed=4)
    record["corpora"]["mine"] = measure_corpus(HAZARD, ["The cat sat.", "A virus of tomatoes is common."])
    assert record["corpora"]["mine"]["with_keywords"] == 1
    table = to_markdown(record, command="ossia data hazard-report")
    assert "(chosen)" in table
    assert "| mine | 2 | 1 |" in table
    paths = write_report(record, tmp_path, command="x")
    assert paths[0].read_text() == to_markdown(record, command="x")
    assert json.loads(paths[1].read_text())["examples"] == 200


def test_a_keyword_of_ones_own_is_judged_like_those_that_ship() -> None:
    restricted = next(e.text for e in draw_many(80, parts=("held_out",), seed=6) if e.is_hazard)
    text = KeywordFilter().pattern.sub("zorblax", restricted)
    assert HAZARD.judge(text) is None
    judgement = HazardFilter(terms=["zorblax"]).judge(text)
    assert judgement is not None
    assert judgement.probability == HAZARD.judge(restricted).probability  # pyright: ignore[reportOptionalMemberAccess]
