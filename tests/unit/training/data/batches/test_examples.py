from __future__ import annotations

import lzma
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import SystemContent
from ossia.harmony.message import Channel, Conversation, Effort
from ossia.harmony.parse import parse
from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.base import Answer, Call, Problem, Solution, is_held_out
from ossia.tasks.conversation import problem_messages, solution_messages
from ossia.tasks.registry import TASKS
from ossia.training.config import DataConfig, Identity
from ossia.training.data.batches.conversations import Example, encode_conversation
from ossia.training.data.batches.examples import (
    ConversationMaker,
    ExampleSource,
    read_corpus,
    read_questions,
)

WITH_TOOLS = ("python_math", "function_calls", "hierarchy")
"""Tasks whose turns may hold calls."""
SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
IDENTITY = Identity(model_identity="You are a test.")
FULL = Tokenizer.o200k_harmony()


def learned_ids(problem: Problem, solution: Solution) -> list[int]:
    """What is learned of a conversation of one problem, as a maker lays it out."""
    before = problem_messages(problem, system=SystemContent())
    conversation = Conversation((*before, *solution_messages(solution)))
    (example,) = encode_conversation(conversation, tokenizer=FULL, learned=range(len(before), len(conversation)))
    return [token for token, learned in zip(example.ids, example.is_learned, strict=True) if learned]


@pytest.mark.parametrize("name", list(TASKS))
@settings(max_examples=15)
@given(seed=SEEDS, effort=st.sampled_from(list(Effort)))
def test_what_is_learned_parses_without_repair(name: str, seed: int, effort: Effort) -> None:
    rng = random.Random(seed)
    problem = TASKS[name].problem(rng, held_out=False)
    solution = TASKS[name].solve(problem, effort=effort, rng=rng)
    if solution.calls:
        return  # test_results_of_calls_are_not_learned
    result = parse(learned_ids(problem, solution), tokenizer=FULL)
    assert result.repairs == ()
    *thoughts, final = result.messages
    assert [thought.content for thought in thoughts] == ([solution.analysis] if solution.analysis else [])
    assert all(thought.channel == "analysis" for thought in thoughts)
    assert (final.channel, final.content) == ("final", solution.final_text)
    assert TASKS[name].grade(problem, solution.answer)


def test_pieces_of_a_final_are_tokenized_one_by_one() -> None:
    problem = Problem(task="spell", prompt="Spell it.", answer="h-e-l-l-o")
    ids = learned_ids(problem, Solution(analysis="", final=tuple("hello")))
    body = ids[ids.index(FULL.message) + 1 : -1]
    assert [FULL.decode([token]) for token in body] == list("hello")
    assert ids[-1] == FULL.return_


def test_results_of_calls_are_not_learned() -> None:
    """A turn with two calls: what the tools answer is read only, and the last call may end the turn."""

    class Calculate:
        name = "calculate"

        def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
            return Problem(task="calculate", prompt="12 * 12?", answer="144", builtin_tools=("python",))

        def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
            call = Call(recipient="python", content="print(12 * 12)", channel=Channel.ANALYSIS, content_type="code")
            first = replace(call, analysis="I compute.", result="144\n")
            if effort is Effort.LOW:
                return Solution(analysis="", final=(), calls=(call,))
            return Solution(analysis="So 144.", final=("144",), calls=(first,))

        def grade(self, problem: Problem, answer: Answer) -> bool:
            return answer.final == "144"

    maker = ConversationMaker({"calculate": Calculate()}, tokenizer=FULL, identity=IDENTITY, max_turns=3)
    seen: set[str] = set()
    for seed in range(40):
        example = maker.make("calculate", random.Random(seed))
        seen.add(FULL.decode([t for t, learned in zip(example.ids, example.is_learned, strict=True) if learned]))
    call = " to=python<|channel|>analysis code<|message|>print(12 * 12)<|call|>"
    assert seen == {
        call,
        f"<|channel|>analysis<|message|>I compute.<|end|><|start|>assistant{call}<|start|>python"
        "<|channel|>analysis<|message|>So 144.<|end|><|start|>assistant<|channel|>final<|message|>144<|return|>",
    }


@settings(max_examples=40)
@given(seed=SEEDS, name=st.sampled_from([name for name in TASKS if name not in WITH_TOOLS]))
def test_only_the_last_answer_is_learned(seed: int, name: str) -> None:
    maker = ConversationMaker(TASKS, tokenizer=FULL, identity=IDENTITY, max_turns=3)
    example = maker.make(name, random.Random(seed))
    assert len(example.ids) == len(example.is_learned)
    start = example.is_learned.index(True)
    assert all(example.is_learned[start:])
    assert FULL.decode(example.ids[:start]).endswith("<|start|>assistant")
    assert example.ids[-1] == FULL.return_
    assert parse(example.ids[start:], tokenizer=FULL).repairs == ()
    earlier = parse(example.ids[:start], tokenizer=FULL, role=None)
    assert not any(message.channel == "analysis" for message in earlier.messages)
    assert earlier.messages[0].role == "system"


def test_conversations_vary_in_turns_and_identity() -> None:
    maker = ConversationMaker(TASKS, tokenizer=FULL, identity=IDENTITY, max_turns=3)
    rng = random.Random(0)
    texts = [FULL.decode(maker.make("spell", rng).ids) for _ in range(200)]
    assert {text.count("<|start|>user") for text in texts} == {1, 2, 3}
    own = sum("You are a test." in text for text in texts)
    assert 120 < own < 180  # three in four of 200, give or take five standard deviations
    assert {effort for effort in Effort if any(f"Reasoning: {effort}" in text for text in texts)} == set(Effort)


WriteCorpus = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteCorpus:
    def write(content: str) -> Path:
        path = tmp_path / "corpus.jsonl"
        path.write_text(content, encoding="utf-8")
        return path

    return write


GOOD = '{"text": "One."}\n{"question": "How many?", "answer": "<<1+1=2>>2"}\n'


def test_corpora_plain_and_packed(write: WriteCorpus, tmp_path: Path) -> None:
    expected = ["One.", "How many?\n2"]
    assert read_corpus(write(GOOD)) == expected
    packed = tmp_path / "corpus.jsonl.xz"
    packed.write_bytes(lzma.compress(GOOD.encode()))
    assert read_corpus(packed) == expected
    assert read_questions(expected) == ["How many?"]


@pytest.mark.parametrize("line", ["{", "3", "[]", "null", '"text"', '{"question": "Who?"}', '{"body": "x"}', ""])
def test_a_bad_line_is_named(write: WriteCorpus, line: str) -> None:
    with pytest.raises(InvalidInputError, match=r"corpus\.jsonl, line 3: expected a JSON object"):
        read_corpus(write(f"{GOOD}{line}\n"))


def test_absent_and_empty_corpora(write: WriteCorpus, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        read_corpus(tmp_path / "none.jsonl")
    with pytest.raises(InvalidInputError, match="is empty"):
        read_corpus(write(""))


def test_documents_are_learned_whole(write: WriteCorpus) -> None:
    config = DataConfig(corpora={"book": str(write('{"text": "Once upon a time."}\n'))}, mix={"book": 1.0})
    example = ExampleSource(config, tokenizer=FULL, identity=IDENTITY).draw(random.Random(0))
    ids = [*FULL.encode("Once upon a time."), FULL.endoftext]
    assert example == Example(ids, [True] * len(ids))


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"no task and no corpus: songs; known are add, .*spell"):
        ExampleSource(DataConfig(mix={"add": 1.0, "songs": 1.0}), tokenizer=FULL, identity=IDENTITY)


def test_sources_are_drawn_by_weight(write: WriteCorpus) -> None:
    path = write('{"text": "Once."}\n')
    config = DataConfig(corpora={"book": str(path)}, mix={"book": 3.0, "greet": 1.0, "add": 0.0})
    source = ExampleSource(config, tokenizer=FULL, identity=IDENTITY)
    rng = random.Random(0)
    num_books = sum(source.draw(rng).ids[-1] == FULL.endoftext for _ in range(400))
    assert 255 < num_books < 345  # 300 expected, standard deviation 8.7


def test_held_out_questions_of_a_corpus_stay_out(write: WriteCorpus) -> None:
    questions = [f"Where is place {number}?" for number in range(60)]
    rows = "".join(f'{{"question": "{question}", "answer": "There."}}\n' for question in questions)
    config = DataConfig(corpora={"qa": str(write(rows))}, mix={"decline": 1.0}, declined=("qa",), max_turns=1)
    source = ExampleSource(config, tokenizer=FULL, identity=IDENTITY)
    rng = random.Random(1)
    text = "\n".join(FULL.decode(source.draw(rng).ids) for _ in range(400))
    asked = {question for question in questions if question in text}
    assert asked
    assert not any(is_held_out(question) for question in asked)


def test_questions_are_declined_only_where_the_recipe_says_so(write: WriteCorpus) -> None:
    path = write('{"question": "Where is the moon?", "answer": "Up."}\n')
    config = DataConfig(corpora={"qa": str(path)}, mix={"decline": 1.0}, max_turns=1)
    source = ExampleSource(config, tokenizer=FULL, identity=IDENTITY)
    rng = random.Random(1)
    assert not any("moon?" in FULL.decode(source.draw(rng).ids) for _ in range(200))
    with pytest.raises(InvalidInputError, match="allowed: names of"):
        DataConfig(corpora={"qa": str(path)}, mix={"qa": 1.0}, declined=("stories",))


def test_a_corpus_of_blank_texts_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "blank.jsonl"
    path.write_text('{"text": ""}\n{"text": " "}\n')
    with pytest.raises(InvalidInputError, match="is empty"):
        read_corpus(path)
