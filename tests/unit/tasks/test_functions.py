from __future__ import annotations

import json
import random
from collections import Counter

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.engine.constraint import TurnConstraint
from ossia.engine.declared import declared_grammars
from ossia.engine.grammar.compiler import GrammarCompiler
from ossia.harmony.content import SystemContent
from ossia.harmony.message import Conversation, Effort
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.tasks.base import Answer, CallMade, Problem
from ossia.tasks.conversation import problem_messages, solution_messages
from ossia.tasks.field_kinds import CLASHES, CUSTOM, KINDS, draw_field, draw_fields, draw_kinds
from ossia.tasks.function_tools import draw_function
from ossia.tasks.functions import KINDS as CALL_KINDS
from ossia.tasks.functions import FunctionCalls, find_result, same_calls
from ossia.tasks.structured import StructuredOutput
from ossia.tasks.values import draw_phrase
from ossia.tasks.words import load_words

SEEDS = st.integers(min_value=0, max_value=2**64 - 1)
TASK = FunctionCalls()


def draw(kind: str, *, seed: int = 0) -> Problem:
    rng = random.Random(seed)
    while True:
        problem = TASK.problem(rng, held_out=True)
        if problem.facts["kind"] == kind:
            return problem


@given(seed=SEEDS, held_out=st.booleans())
def test_expected_arguments_follow_the_declared_schemas(seed: int, held_out: bool) -> None:
    problem = TASK.problem(random.Random(seed), held_out=held_out)
    assert problem.developer is not None
    tools = {f"functions.{tool.name}": tool for space in problem.developer.tools for tool in space.tools}
    for recipient, arguments in json.loads(problem.facts["calls"]):
        jsonschema.validate(json.loads(arguments), tools[recipient].parameters)


@given(seed=SEEDS)
def test_values_are_said_in_the_prompt(seed: int) -> None:
    problem = TASK.problem(random.Random(seed), held_out=False)
    for _, arguments in json.loads(problem.facts["calls"]):
        for value in json.loads(arguments).values():
            if isinstance(value, str):
                assert value in problem.prompt


@given(seed=SEEDS)
def test_a_changed_argument_or_another_function_is_wrong(seed: int) -> None:
    problem = TASK.problem(random.Random(seed), held_out=True)
    calls = [CallMade(*call) for call in json.loads(problem.facts["calls"])]
    if not calls:
        assert not TASK.grade(problem, Answer(final=None, calls=(CallMade("functions.f", "{}"),)))
        return
    first, *others = calls
    assert TASK.grade(problem, Answer(final=None, calls=tuple(calls)))
    changed = {**json.loads(first.content), "more": 1}
    for wrong in (
        CallMade(first.recipient, json.dumps(changed)),
        CallMade(first.recipient, first.content[:-1]),
        CallMade(f"{first.recipient}_2", first.content),
    ):
        assert not TASK.grade(problem, Answer(final=None, calls=(wrong, *others)))
    assert not TASK.grade(problem, Answer(final="done", calls=()))
    assert not TASK.grade(problem, Answer(final=None, calls=(*calls, first)))


def test_two_calls_come_in_any_order() -> None:
    problem = draw("two calls")
    calls = [CallMade(*call) for call in json.loads(problem.facts["calls"])]
    assert same_calls(calls, calls[::-1])
    assert not same_calls(calls, calls[:1])
    assert find_result(problem, calls[0]) == json.loads(problem.facts["results"])[0]
    assert find_result(problem, CallMade("functions.other", "{}")) is None
    if calls[0] != calls[1]:
        assert find_result(problem, calls[0], seen=(calls[0],)) is None


def test_results_must_be_told_by_whoever_writes_a_final() -> None:
    problem = draw("result")
    calls = tuple(CallMade(*call) for call in json.loads(problem.facts["calls"]))
    assert TASK.grade(problem, Answer(final=problem.facts["said"], calls=calls))
    assert not TASK.grade(problem, Answer(final="Done.", calls=calls))


def test_a_missing_argument_is_asked_for_and_not_made_up() -> None:
    problem = draw("missing")
    label = problem.facts["missing"]
    assert TASK.grade(problem, Answer(final=f"Which {label}?"))
    assert not TASK.grade(problem, Answer(final="Done."))
    tool = problem.developer.tools[0].tools[0]  # type: ignore[union-attr]
    assert not TASK.grade(problem, Answer(final=None, calls=(CallMade(f"functions.{tool.name}", "{}"),)))


def test_no_function_fits() -> None:
    problem = draw("no tool")
    assert TASK.grade(problem, Answer(final="I cannot do that: no function here does."))
    assert not TASK.grade(problem, Answer(final="Done!"))


@settings(max_examples=40)
@given(seed=SEEDS)
def test_functions_of_training_are_never_held_out(seed: int) -> None:
    rng = random.Random(seed)
    actions = {draw_function(rng, held_out=False).action for _ in range(20)}
    held_out = {draw_function(rng, held_out=True).action for _ in range(20)}
    assert not actions & held_out


@given(seed=SEEDS, number=st.integers(1, 6))
def test_fields_beside_one_another_differ(seed: int, number: int) -> None:
    rng = random.Random(seed)
    kinds = draw_kinds(rng, number)
    fields = draw_fields(kinds, rng, held_out=False)
    assert len({field.name for field in fields}) == number
    assert all(len(clash & set(kinds)) <= 1 for clash in CLASHES)
    for field in fields:
        jsonschema.validate(field.value, field.schema)


@pytest.mark.parametrize("kind", [*KINDS, CUSTOM])
def test_each_kind_says_its_value(kind: str) -> None:
    for seed in range(20):
        field = draw_field(kind, random.Random(seed), held_out=bool(seed % 2))
        assert field.said
        if isinstance(field.value, str):
            assert field.value in field.said
            assert field.value in field.shown


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(Tokenizer.o200k_harmony())


@pytest.mark.parametrize("effort", list(Effort))
@pytest.mark.parametrize("seed", range(8))
def test_reference_calls_are_what_the_grammar_allows(compiler: GrammarCompiler, effort: Effort, seed: int) -> None:
    """Else a constrained model could not say what it was taught."""
    tokenizer = Tokenizer.o200k_harmony()
    rng = random.Random(seed)
    problem = draw(rng.choice(("single", "choice")), seed=seed)
    assert problem.developer is not None
    solution = TASK.solve(problem, effort=effort, rng=rng)
    before = Conversation(problem_messages(problem, system=SystemContent(effort=effort)))
    whole = before.append(*solution_messages(solution))
    prompt = render(before, tokenizer=tokenizer)
    ids = render(whole, tokenizer=tokenizer, next_role=None)[len(prompt) :]
    matcher = compiler.compile(TurnConstraint(tools=tuple(declared_grammars(problem.developer.tools))))
    assert matcher.count_allowed(ids) == len(ids)


@given(seed=SEEDS, held_out=st.booleans())
def test_records_follow_their_schema_and_must_be_exact(seed: int, held_out: bool) -> None:
    task = StructuredOutput()
    problem = task.problem(random.Random(seed), held_out=held_out)
    assert problem.developer is not None
    schema = json.loads(problem.developer.response_formats[0].schema_json)
    record = json.loads(problem.answer)
    jsonschema.validate(record, schema)
    assert task.grade(problem, Answer(final=json.dumps(record, indent=2)))
    name = next(iter(record))
    for wrong in ({**record, name: "another"}, {key: value for key, value in record.items() if key != name}, [record]):
        assert not task.grade(problem, Answer(final=json.dumps(wrong)))
    assert not task.grade(problem, Answer(final=f"Here it is: {problem.answer}"))


def test_each_kind_of_request_comes_often_enough() -> None:
    rng = random.Random(0)
    kinds = Counter(TASK.problem(rng, held_out=False).part for _ in range(2000))
    assert set(kinds) == set(CALL_KINDS)
    assert all(count / 2000 > (0.02 if kind == "other" else 0.06) for kind, count in kinds.items())
    assert kinds["two calls"] / 2000 > 0.14
    assert kinds["copy"] / 2000 < 0.2


@settings(max_examples=50)
@given(seed=SEEDS)
def test_high_effort_quotes_each_text_before_its_call(seed: int) -> None:
    rng = random.Random(seed)
    problem = TASK.problem(rng, held_out=False)
    if problem.part == "other":
        return
    for call in TASK.solve(problem, effort=Effort.HIGH, rng=rng).calls:
        for name, value in json.loads(call.content).items():
            line = next(line for line in call.analysis.splitlines() if line.startswith(f"{name}: "))
            assert line.endswith(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
            if isinstance(value, str):
                assert line.removeprefix(f"{name}: ").split(" -> ")[0] in problem.prompt


def test_words_to_copy_come_from_the_whole_list_in_every_case() -> None:
    rng = random.Random(1)
    drawn = [draw_field(CUSTOM, rng, held_out=False).value for _ in range(4000)]
    texts = {value for value in drawn if isinstance(value, str)}
    assert len(texts) > 3000
    words = {word for text in texts for word in text.split()}
    assert len(words & set(load_words().train)) > 1500
    assert sum(word.isupper() for word in words) > 200
    assert sum(word.istitle() for word in words) > 200
    assert not {word.lower() for _ in range(1000) for word in draw_phrase(rng, False).split()} & {
        *load_words().held_out
    }
