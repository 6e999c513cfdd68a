from __future__ import annotations

import re

import pytest

from ossia.core.errors import InvalidInputError
from ossia.evals.ordinary import OrdinaryAnswer, OrdinaryQuestion, grade, has_loop, load_ordinary, render_ordinary
from ossia.evals.ordinary import _Ordinary as Ordinary
from ossia.evals.outcome import Outcome, Question
from ossia.harmony.message import Effort
from ossia.tasks.base import Answer, Problem
from ossia.tasks.chat import load_chat


def test_there_are_fifty_questions_that_no_task_asks() -> None:
    questions = load_ordinary()
    assert len({one.question for one in questions}) == len(questions) == 50
    trained = {prompt.lower().rstrip("?!. ") for intent in load_chat().intents for prompt in intent.prompts}
    assert not {one.question.lower().rstrip("?!. ") for one in questions} & trained
    assert {one.kind for one in questions} == {"talk", "answer", "decline", "refuse"}
    assert all(re.compile(one.accept) for one in questions)


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("a b c " * 4, True),
        ("the same thing " * 3, False),
        ("-" * 20, True),
        ("I can't do that well.", False),
        ("", False),
    ],
)
def test_loops_are_found(text: str, loops: bool) -> None:
    assert has_loop(text) is loops


def graded(final: str | None, *, is_capped: bool = False) -> OrdinaryAnswer:
    asked = OrdinaryQuestion(question="How many?", kind="answer", accept=r"\b4\b")
    task = Ordinary()
    problem = Problem(task="ordinary", prompt=asked.question, answer="answer", facts={"accept": asked.accept})
    outcome = Outcome(
        question=Question(task=task, effort=Effort.LOW, problem=problem, prompt_ids=[]),
        answer=Answer(final=final),
        completion=final or "",
        num_tokens=3,
        repairs=(),
        is_correct=task.grade(problem, Answer(final=final)),
        is_capped=is_capped,
    )
    return grade(asked, outcome)


def test_babble_is_never_good() -> None:
    assert graded("There are 4.").is_good
    assert not graded("There are 5.").is_good
    assert not graded(None).is_good
    assert not graded("There are 4.", is_capped=True).is_good
    assert not graded("4 4 4 4 4 4 4 4").is_good
    assert not graded("4 " + " ".join(map(str, range(5, 200)))).is_good


def test_the_page_has_a_row_a_question_and_room_for_a_grade() -> None:
    page = render_ordinary("nano", [graded("There are 4."), graded(None)], command="ossia eval nano --suite ordinary")
    assert "1 of 2 replies are good; 1 babble" in page
    assert "| How many? | (no final message) |" in page
    assert "reader's grade" in page


def test_the_questions_are_not_drawn() -> None:
    with pytest.raises(InvalidInputError, match="list"):
        Ordinary().problem(None, held_out=True)
