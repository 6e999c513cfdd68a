from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.evals.ordinary import load_ordinary
from ossia.tasks.base import is_held_out
from ossia.tasks.chat import Decline, SmallTalk, grade_by_pattern, is_held_out_prompt, load_chat

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)


def test_every_answer_is_accepted_and_every_pattern_refuses_something() -> None:
    texts = load_chat()
    for intent in (*texts.intents, texts.decline, *texts.declines):
        assert intent.prompts
        assert len(set(intent.prompts)) == len(intent.prompts)
        assert all(grade_by_pattern(intent.accept, answer) for answer in intent.answers)
        assert not grade_by_pattern(intent.accept, "The cat sat on the mat.")


def test_each_group_has_prompts_on_both_sides() -> None:
    texts = load_chat()
    for group in ("greet", "identity"):
        sides = {
            is_held_out_prompt(prompt) for intent in texts.intents if intent.group == group for prompt in intent.prompts
        }
        assert sides == {True, False}
    assert {is_held_out_prompt(template) for template in texts.decline.prompts} == {True, False}


@pytest.mark.parametrize("group", ["greet", "identity"])
@given(seed=SEEDS)
def test_variations_never_become_a_held_out_prompt(group: str, seed: int) -> None:
    """Lower case or a dropped mark must not turn a training prompt into one that the evaluation asks."""
    prompt = SmallTalk(group).problem(random.Random(seed), held_out=False).prompt
    assert not is_held_out_prompt(prompt)
    held_out = {p for intent in load_chat().intents for p in intent.prompts if is_held_out_prompt(p)}
    assert prompt not in held_out


@given(seed=SEEDS)
def test_held_out_prompts_are_asked_as_written(seed: int) -> None:
    prompt = SmallTalk("identity").problem(random.Random(seed), held_out=True).prompt
    assert is_held_out_prompt(prompt)
    assert any(prompt in intent.prompts for intent in load_chat().intents)


def test_questions_of_corpora_are_asked_in_training_only_if_not_held_out() -> None:
    questions = [f"How far is it to place {number}?" for number in range(200)]
    task = Decline(questions=questions)
    rng = random.Random(0)
    asked = {task.problem(rng, held_out=False).prompt for _ in range(600)} & set(questions)
    assert asked
    assert not any(is_held_out(question) for question in asked)
    assert not {task.problem(rng, held_out=True).prompt for _ in range(100)} & set(questions)


@given(seed=SEEDS)
def test_held_out_declines_are_asked_from_held_out_templates(seed: int) -> None:
    """Compare without the words in the places."""
    templates = [t for intent in (load_chat().decline, *load_chat().declines) for t in intent.prompts]

    def fits(template: str, prompt: str) -> bool:
        pattern = re.sub(r"\\\{\w+\\\}", ".+?", re.escape(template))
        return re.fullmatch(pattern, prompt) is not None

    held_out = [template for template in templates if is_held_out_prompt(template)]
    prompt = Decline().problem(random.Random(seed), held_out=True).prompt
    assert any(fits(template, prompt) for template in held_out)


def test_no_prompt_shares_five_words_in_a_row_with_the_ordinary_questions() -> None:
    texts = load_chat()
    intents = (*texts.intents, texts.decline, *texts.declines)
    asked = {row: prompt for one in intents for prompt in one.prompts for row in _rows(prompt)}
    assert not {row: asked[row] for one in load_ordinary() for row in _rows(one.question) if row in asked}


def _rows(text: str) -> list[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9{}']+", text.lower())
    rows = [tuple(words[i : i + 5]) for i in range(len(words) - 4)]
    return [row for row in rows if not any("{" in word for word in row)]
