"""The converters of recipes/corpora, on small files of our own in the formats of the packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from recipes.corpora.books import moby_dick, paragraphs_of_lines, plain_osis, speeches
from recipes.corpora.countries import countries, describe
from recipes.corpora.dialogues import dialogue, dialogues, is_personal, small_talk
from recipes.corpora.plain import facts, stories, word_problems
from recipes.corpora.wordnet import ask, definitions, glosses, parse_sense, plain_gloss

from ossia.core.errors import InvalidInputError

NOUN = (
    "02084071 05 n 02 dog 0 domestic_dog 0 001 @ 02083346 n 0000 | a member of the genus Canis that barks; "
    '"the dog barked all night"  '
)
LAMP = '03636248 06 n 01 lamp 0 001 @ 02083346 n 0000 | an artificial source of visible light; "he lit the lamp"  '
RIVER = "09411430 15 n 01 Rhine 0 001 @i 09411430 n 0000 | a major European river  "
PERSON = (
    "11099118 18 n 02 Lovelace 0 Ada_Lovelace 0 001 @i 10428004 n 0000 | English mathematician who wrote a program  "
)
VERB = "01904930 38 v 01 walk 0 001 @ 01835496 v 0000 01 + 02 00 | use one's feet to advance  "


def message(text: str, sender: str) -> dict[str, str]:
    return {"text": text, "sender": sender, "timestamp": "2018-10-15T07:22:37Z"}


def conversation(*texts: str, prompt: str | None = None) -> dict[str, Any]:
    turns = [[message(text, "first" if number % 2 == 0 else "second")] for number, text in enumerate(texts)]
    return {"messages": turns, "prompt": prompt}


def test_a_sense_of_wordnet() -> None:
    sense = parse_sense(NOUN)
    assert sense.words == ("dog", "domestic dog")
    assert sense.definition == "a member of the genus Canis that barks"
    assert sense.examples == ("the dog barked all night",)
    assert not sense.is_instance
    assert parse_sense(PERSON).is_person


def test_questions_about_words_have_their_answer() -> None:
    question, answer = ask("lamp", "noun", [parse_sense(LAMP)]).split("\n")
    assert "lamp" in question
    assert "an artificial source of visible light" in answer
    assert ask("lamp", "noun", [parse_sense(LAMP)]) == ask("lamp", "noun", [parse_sense(LAMP)])
    assert "To walk means to use one's feet to advance." in ask("walk", "verb", [parse_sense(VERB)])


def test_names_are_no_kinds_of_things() -> None:
    assert plain_gloss("noun", parse_sense(RIVER)) == "Rhine is a major European river."
    assert plain_gloss("noun", parse_sense(PERSON)) == (
        "Ada Lovelace was an English mathematician who wrote a program."
    )


def write_wordnet(folder: Path) -> Path:
    base = folder / "usr/share/wordnet"
    base.mkdir(parents=True)
    header = "  1 This software and database is provided  \n"
    lines = {"noun": [LAMP, RIVER], "verb": [VERB], "adj": [], "adv": []}
    index = {
        "noun": ["lamp n 1 1 @ 1 1 03636248  ", "rhine n 1 1 @ 1 0 09411430  "],
        "verb": ["walk v 1 1 @ 1 1 01904930  "],
        "adj": [],
        "adv": [],
    }
    for part, rows in lines.items():
        (base / f"data.{part}").write_text(header + "".join(f"{row}\n" for row in rows))
        (base / f"index.{part}").write_text(header + "".join(f"{row}\n" for row in index[part]))
    (base / "cntlist.rev").write_text("lamp%1:06:00:: 1 3\nwalk%2:38:00:: 1 9\n")
    return folder


def test_words_in_use_are_asked_about_and_the_others_told(tmp_path: Path) -> None:
    folder = write_wordnet(tmp_path)
    asked = "\n\n".join(row["text"] for row in definitions(folder)).split("\n\n")
    assert len(asked) == 2
    assert any("lamp" in entry for entry in asked)
    assert [row["text"] for row in glosses(folder)] == ["Rhine is a major European river."]


def test_a_conversation_becomes_lines_of_two_speakers() -> None:
    record = conversation("Hello?", "Hi there!", "How are you?", "Fine.", prompt="What do you like?")
    record["messages"][0].append(message("Anyone?", "first"))
    assert dialogue(record, public=set()) == (
        "What do you like?\nA: Hello? Anyone?\nB: Hi there!\nA: How are you?\nB: Fine."
    )


@pytest.mark.parametrize(
    "text",
    ["My name is Robin.", "write to robin@example.org", "I met Robin Hale there", "call 5551234567", "add me on insta"],
)
def test_what_points_to_a_person_is_left_out(text: str) -> None:
    assert is_personal(text, public={"New York"})
    kept = dialogue(conversation("Hello?", "Hi!", "So?", "Well.", "Yes.", text), public={"New York"})
    assert kept is not None
    assert text not in kept


def test_films_and_cities_are_no_persons() -> None:
    assert not is_personal("I went to New York once", public={"New York"})


def test_conversations_that_are_short_or_unfit_are_left_out() -> None:
    assert dialogue(conversation("Hello?", "Hi!"), public=set()) is None
    assert dialogue(conversation("Hello?", "Hi!", "oh shit", "What?", "No."), public=set()) is None
    assert dialogue(conversation("Hello?", "Are you a bot?", "No", "you are a robot"), public=set()) is None


def test_the_files_of_conversations(tmp_path: Path) -> None:
    package = tmp_path / "chitchat_dataset"
    package.mkdir()
    records = {str(number): conversation("Hello?", "I saw Red Barn", "Good?", "Yes!") for number in range(4)}
    (package / "dataset.json").write_text(json.dumps(records))
    texts = [row["text"] for row in dialogues(tmp_path)]
    assert texts == ["A: Hello?\nB: I saw Red Barn\nA: Good?\nB: Yes!"] * 4, "four of them make the pair public"


def test_small_talk_without_code(tmp_path: Path) -> None:
    folder = tmp_path / "chatterbot_corpus/data/english"
    folder.mkdir(parents=True)
    for name in ("conversations", "health", "history", "tech_support", "trivia"):
        (folder / f"{name}.yml").write_text(
            "categories: [a]\nconversations:\n- - how are you?\n  - I am well.\n- - code?\n  - '```x```'\n"
        )
    assert [row["text"] for row in small_talk(tmp_path)] == ["How are you?\nI am well."] * 5


COUNTRY = {
    "Introduction": {"Background": {"text": "It was settled by the  ALBANS in 1200."}},
    "Geography": {
        "Area": {"total": {"text": "1,200 sq km"}},
        "Land boundaries": {"border countries": {"text": "North Country 70 km, Southland 8 km (2011)"}},
        "Climate": {"text": "Mild; wet winters"},
    },
    "Government": {
        "Country name": {"conventional short form": {"text": "Middleland"}},
        "Capital": {"name": {"text": "Center"}},
    },
}


def test_a_country_in_sentences(tmp_path: Path) -> None:
    assert describe(COUNTRY) == (
        "It was settled by the Albans in 1200.\n\nThe capital of Middleland is Center. Its area is 1,200 sq km. "
        "Its neighbours are North Country and Southland. The climate of Middleland is mild; wet winters."
    )
    assert describe({"Geography": {}}) == ""
    (tmp_path / "package/europe").mkdir(parents=True)
    (tmp_path / "package/europe/mi.json").write_text(json.dumps(COUNTRY))
    (tmp_path / "package/europe/no.json").write_text("{}")
    assert len(list(countries(tmp_path))) == 1


def test_paragraphs_of_a_book_in_lines() -> None:
    lines = ["CHAPTER I", "", "It was a long", "day--very long.", "", "", "The _end_ came."]
    assert list(paragraphs_of_lines(lines)) == ["It was a long day - very long.", "The end came."]


def test_books_and_speeches_in_pieces(tmp_path: Path) -> None:
    novel, talks = tmp_path / "package/moby-dick/data", tmp_path / "package/sotu/data"
    novel.mkdir(parents=True)
    talks.mkdir(parents=True)
    (novel / "chapter_1.txt").write_text("\n\n".join(["word " * 300] * 4))
    assert [len(row["text"].split()) for row in moby_dick(tmp_path)] == [900, 300]
    (talks / "1890_a_b.txt").write_text("An old speech.")
    (talks / "1950_a_b.txt").write_text("A speech. It has two sentences.")
    assert [row["text"] for row in speeches(tmp_path)] == ["A speech. It has two sentences."]


def test_scripture_without_notes() -> None:
    markup = '<title type="psalm">A Psalm.</title> <w lemma="x">He</w> said<note>1:1 <b>or</b></note> , “Come.” <l/>'
    assert plain_osis(markup) == "He said, “Come.”"


def test_facts_are_sentences_fit_for_all(tmp_path: Path) -> None:
    (tmp_path / "randfacts").mkdir()
    (tmp_path / "randfacts/safe.txt").write_text("Oaks are old\nA murder of crows\nIs it so?\n")
    assert [row["text"] for row in facts(tmp_path)] == ["Oaks are old.\nIs it so?"]


def test_stories_and_word_problems_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text(json.dumps({"title": "Goat", "text": "A goat\nsat.\n\nIt ran.", "author": "A. Writer"}) + "\n")
    assert list(stories(path)) == [{"text": "Goat\n\nA goat sat.\n\nIt ran.", "credit": "A. Writer"}]
    path.write_text(json.dumps({"question": "How many?", "answer": "2*2=<<2*2=4>>4.\n#### 4"}) + "\n")
    assert list(word_problems(path)) == [{"text": "How many?\n2*2=4.\nThe answer is 4."}]


@pytest.mark.parametrize("line", ["{", "[]", '{"title": "no text"}'])
def test_rows_that_are_no_stories_are_named_by_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InvalidInputError, match="line 2"):
        list(stories(path))
