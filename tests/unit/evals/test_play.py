from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ossia.agent.problem import RecordedFunctions, rules_of
from ossia.core.errors import OssiaError
from ossia.engine.scripted import ScriptedEngine
from ossia.evals.outcome import Outcome, Question, is_valid, judge, summarize
from ossia.evals.play import needs_tools, play_one
from ossia.harmony.content import Channel
from ossia.harmony.message import Effort, Message, Role
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults
from ossia.tasks.base import Answer, Problem, Solution, Task
from ossia.tasks.conversation import solution_messages
from ossia.tasks.registry import TASKS
from ossia.tools.base import ToolContext
from ossia.tools.sandbox.pick import pick_sandbox

TOKENIZER = Tokenizer.o200k_harmony()
LOADED = cast(
    "LoadedModel",
    SimpleNamespace(
        name="script",
        tokenizer=TOKENIZER,
        identity=Identity(model_identity="You are a test.", knowledge_cutoff=None),
        context_length=4096,
        sampling=SamplingDefaults(),
    ),
)


def has_sandbox() -> bool:
    try:
        pick_sandbox("auto")
    except OssiaError:
        return False
    return True


def turns_of(solution: Solution) -> list[str]:
    """What a model samples, a text a turn: up to a call, and to the end."""
    turns, text = [], ""
    for message in solution_messages(solution):
        if message.role is Role.TOOL:
            continue
        text += "<|start|>assistant" if text else ""
        text += f" to={message.recipient}" if message.recipient else ""
        kind = f" {message.content_type}" if message.content_type else ""
        text += f"<|channel|>{message.channel}{kind}<|message|>{message.text}"
        if message.is_call:
            turns.append(f"{text}<|call|>")
            text = ""
        else:
            text += "<|return|>" if message.channel == Channel.FINAL else "<|end|>"
    return [*turns, text] if text else turns


def play_script(
    task: Task, problem: Problem, turns: list[str], *, grammar: bool = True, max_tokens: int = 400
) -> Outcome:
    script = iter(turns)
    engine = ScriptedEngine(TOKENIZER, script=lambda _: next(script))
    question = Question(task=task, effort=Effort.MEDIUM, problem=problem, prompt_ids=[])
    return asyncio.run(play_one(question, loaded=LOADED, engine=engine, max_tokens=max_tokens, grammar=grammar))


def draw(name: str, part: str = "", *, seed: int = 0) -> Problem:
    rng = random.Random(seed)
    while True:
        problem = TASKS[name].problem(rng, held_out=True)
        if part in problem.part:
            return problem


@pytest.mark.parametrize("part", ["single", "choice", "result", "two calls", "missing", "no tool", "other"])
@pytest.mark.parametrize("grammar", [False, True])
def test_reference_turns_are_right_end_to_end(part: str, grammar: bool) -> None:
    task, problem = TASKS["function_calls"], draw("function_calls", part)
    solution = task.solve(problem, effort=Effort.MEDIUM, rng=random.Random(0))
    outcome = play_script(task, problem, turns_of(solution), grammar=grammar)
    assert outcome.is_correct
    assert outcome.answer == solution.answer
    assert not outcome.is_capped
    assert outcome.repairs == ()
    for call in solution.calls:
        assert call.content in outcome.completion


def test_a_wrong_call_is_told_so_and_is_wrong() -> None:
    task, problem = TASKS["function_calls"], draw("function_calls", "result")
    solution = task.solve(problem, effort=Effort.LOW, rng=random.Random(0))
    first, last = turns_of(solution)
    wrong = first.replace(solution.calls[0].content, '{"made_up":1}')
    outcome = play_script(task, problem, [wrong, last])
    assert "invalid arguments" in outcome.completion
    assert not outcome.is_correct


def test_a_call_that_never_ends_is_capped() -> None:
    task, problem = TASKS["function_calls"], draw("function_calls", "single")
    outcome = play_script(task, problem, ["<|channel|>analysis<|message|>" + "on and " * 50], max_tokens=20)
    assert outcome.is_capped
    assert not outcome.is_correct
    assert outcome.num_tokens == 20


@pytest.mark.slow
@pytest.mark.skipif(not has_sandbox(), reason="no sandbox works here")
def test_python_runs_for_real() -> None:
    """Each kind of computation: the code of the reference prints what the reference says."""
    task = TASKS["python_math"]
    seen: dict[str, Problem] = {}
    for seed in range(300):
        problem = task.problem(random.Random(seed), held_out=bool(seed % 2))
        seen.setdefault(problem.part, problem)
    assert len(seen) >= 14
    for problem in seen.values():
        solution = task.solve(problem, effort=Effort.HIGH, rng=random.Random(0))
        outcome = play_script(task, problem, turns_of(solution))
        assert outcome.is_correct, problem
        assert f"to=assistant<|channel|>analysis<|message|>{problem.answer}<|end|>" in outcome.completion


def test_recorded_functions_give_each_result_once() -> None:
    problem = draw("function_calls", "two calls")
    assert problem.developer is not None
    tool = RecordedFunctions(problem, problem.developer.tools[0])
    (recipient, arguments), _ = json.loads(problem.facts["calls"])
    call = Message(Role.ASSISTANT, content=arguments, recipient=recipient, channel="commentary")
    first = asyncio.run(tool.call(call, context=ToolContext()))
    assert first.text == json.loads(problem.facts["results"])[0]
    unknown = Message(Role.ASSISTANT, content="{}", recipient=recipient, channel="commentary")
    assert "error" in asyncio.run(tool.call(unknown, context=ToolContext())).text


def test_what_needs_tools() -> None:
    assert needs_tools(draw("python_math"))
    assert needs_tools(draw("function_calls"))
    assert not needs_tools(draw("structured_output"))
    assert not needs_tools(draw("add"))
    rules = rules_of(draw("structured_output"))
    assert rules.tools == ()
    assert "properties" in rules.response_format.text  # type: ignore[union-attr]


def structured(final: str) -> Outcome:
    task, problem = TASKS["structured_output"], draw("structured_output")
    question = Question(task=task, effort=Effort.LOW, problem=problem, prompt_ids=[])
    ids = TOKENIZER.encode_with_specials(f"<|channel|>final<|message|>{final}<|return|>")
    return judge(question, ids, tokenizer=TOKENIZER, max_tokens=1000)


def test_validity_is_counted_apart_from_rightness() -> None:
    problem = draw("structured_output")
    record: dict[str, Any] = json.loads(problem.answer)
    name = next(name for name, value in record.items() if isinstance(value, str | int))
    other = {**record, name: record[name] + ("x" if isinstance(record[name], str) else 1)}
    (cell,) = summarize([structured(problem.answer), structured(json.dumps(other)), structured("{"), structured("no")])
    assert (cell.num_correct, cell.num_problems) == (1, 4)
    assert cell.num_valid in (1, 2)  # an enum does not allow the other value
    assert is_valid(draw("add"), Answer(final="5")) is None


def test_parts_are_counted() -> None:
    task = TASKS["add"]
    rng = random.Random(0)
    outcomes = []
    for number in range(40):
        problem = task.problem(rng, held_out=True)
        final = problem.answer if number % 2 else "no"
        outcomes.append(
            Outcome(
                question=Question(task=task, effort=Effort.LOW, problem=problem, prompt_ids=[]),
                answer=Answer(final=final),
                completion=final,
                num_tokens=1,
                repairs=(),
                is_correct=task.grade(problem, Answer(final=final)),
                is_capped=False,
            )
        )
    (cell,) = summarize(outcomes)
    parts = {part.name: part for part in cell.parts}
    known, new = parts["known phrasing"], parts["new phrasing"]  # each problem is in one of them
    assert (known.num_problems + new.num_problems, known.num_correct + new.num_correct) == (40, 20)
    digits = [part for part in cell.parts if part.name.endswith("digits")]  # and in one of these, if it is known
    assert sum(part.num_problems for part in digits) == known.num_problems
    assert [part.name for part in digits] == sorted(part.name for part in digits)
