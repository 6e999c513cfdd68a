"""Calling functions that a developer declared, and knowing when not to.

One function or a choice of several; two calls after each other; results to be told; a missing argument to be asked
for; requests that no function fits. Right is a call whose JSON equals the reference's.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence

from ossia.harmony.content import FUNCTIONS, Channel, DeveloperContent
from ossia.harmony.message import Effort
from ossia.tasks.arithmetic import Add
from ossia.tasks.base import Answer, Call, CallMade, Problem, Solution, Task
from ossia.tasks.function_tools import (
    Function,
    Request,
    draw_arguments,
    draw_function,
    redraw_values,
    word_request,
    wrap_request,
)
from ossia.tasks.json_values import INVALID, equal_json, read_json, write_json
from ossia.tasks.letters import CountLetters, SpellWord
from ossia.tasks.values import draw_code, draw_time

JSON_TYPE = "<|constrain|>json"
KINDS = {
    "single": 3, "choice": 4, "copy": 3, "result": 3, "two calls": 4, "missing": 2, "no tool": 2, "other": 1,
}  # fmt: skip
"""How often each kind comes."""
INSTRUCTIONS = (
    None, None, None, "Use the tools.", "You are a helpful assistant.", "Call a function when it helps.",
    "Ask when something is missing.",
)  # fmt: skip
NO_TOOL = re.compile(r"\b(none of|no (tool|function)|can't|cannot|not able)\b", re.IGNORECASE)
OTHER_TASKS: dict[str, Task] = {task.name: task for task in (Add(), CountLetters(), SpellWord())}


class FunctionCalls:
    """Requests beside declared functions."""

    name = "function_calls"

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "other":
            return self._other(rng, held_out=held_out)
        number = 1 if kind in ("single", "missing", "copy") else rng.randint(2, 4)
        functions: list[Function] = []
        for _ in range(number + (kind == "no tool")):
            taken = [function.action for function in functions]
            functions.append(
                draw_function(
                    rng,
                    held_out=held_out,
                    max_fields=4 if number < 3 else 3,
                    taken=taken,
                    is_drill=kind == "copy",
                )
            )
        wanted = functions[0]
        if kind == "no tool":
            functions = functions[1:]
        rng.shuffle(functions)
        developer = DeveloperContent.with_functions(
            [function.tool for function in functions], instructions=rng.choice(INSTRUCTIONS)
        )
        match kind:
            case "missing":
                return self._missing(wanted, rng, developer=developer)
            case "no tool":
                text = word_request(wanted, draw_arguments(wanted, rng), rng).text
                facts = {"calls": "[]", "results": "[]", "why": f"No function here can {wanted.action.text}."}
                facts |= {"said": f"I can't {wanted.action.text}: none of my functions does that."}
                return self._pose(wrap_request(text, rng), facts, developer=developer, kind=kind)
            case "two calls":
                return self._two(wanted, functions, rng, held_out=held_out, developer=developer)
            case _:
                request = word_request(wanted, draw_arguments(wanted, rng), rng)
                results = [draw_result(rng, held_out=held_out)] if kind == "result" else []
                facts = _facts([(wanted, request)], results)
                return self._pose(wrap_request(request.text, rng), facts, developer=developer, kind=kind)

    def _pose(self, prompt: str, facts: dict[str, str], *, developer: DeveloperContent, kind: str) -> Problem:
        return Problem(
            task=self.name,
            prompt=prompt,
            answer=facts["calls"] if facts["calls"] != "[]" else facts["said"],
            facts={"kind": kind, **facts},
            developer=developer,
            part=kind,
        )

    def _missing(self, function: Function, rng: random.Random, *, developer: DeveloperContent) -> Problem:
        missing = rng.choice(function.required)
        field = function.fields[function.names.index(missing)]
        text = word_request(function, draw_arguments(function, rng, without=missing), rng).text
        facts = {"calls": "[]", "results": "[]", "missing": field.label}
        facts |= {"said": f"What is the {field.label}? I need it to {function.action.text}."}
        facts |= {"why": f"{function.name} needs {missing}, which is not said. I ask."}
        return self._pose(wrap_request(text, rng), facts, developer=developer, kind="missing")

    def _two(
        self,
        first: Function,
        functions: Sequence[Function],
        rng: random.Random,
        *,
        held_out: bool,
        developer: DeveloperContent,
    ) -> Problem:
        one = word_request(first, draw_arguments(first, rng), rng)
        if rng.random() < 0.5 or len(functions) == 1:
            second = redraw_values(first, rng, held_out=held_out)
        else:
            second = next(function for function in functions if function is not first)
        two = word_request(second, draw_arguments(second, rng), rng)
        joint = rng.choice((", and then {}", ". Then {}", ", and also {}", "; after that {}"))
        results = [draw_result(rng, held_out=held_out) for _ in range(2)]
        facts = _facts([(first, one), (second, two)], results)
        prompt = wrap_request(one.text + joint.format(two.text), rng)
        return self._pose(prompt, facts, developer=developer, kind="two calls")

    def _other(self, rng: random.Random, *, held_out: bool) -> Problem:
        """A question of another task, which no function is needed for."""
        task = rng.choice(list(OTHER_TASKS.values()))
        inner = task.problem(rng, held_out=held_out)
        functions = [draw_function(rng, held_out=held_out, max_fields=3)]
        facts = {"kind": "other", "calls": "[]", "results": "[]", "task": task.name}
        return Problem(
            task=self.name,
            prompt=inner.prompt,
            answer=inner.answer,
            facts={**facts, **inner.facts},
            developer=DeveloperContent.with_functions([functions[0].tool]),
            part="other",
        )

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        facts = problem.facts
        if facts["kind"] == "other":
            return OTHER_TASKS[facts["task"]].solve(problem, effort=effort, rng=rng)
        why = "" if effort is Effort.LOW else facts["why"]
        expected: list[list[str]] = json.loads(facts["calls"])
        results: list[str] = json.loads(facts["results"])
        if not expected:
            return Solution(analysis=why, final=(facts["said"],))
        shown: list[str] = json.loads(facts["shown"])
        calls: list[Call] = []
        for number, (recipient, arguments) in enumerate(expected):
            thought = why if number == 0 or not why else f"Now {recipient.removeprefix(f'{FUNCTIONS}.')}."
            if effort is Effort.HIGH:
                thought = f"{thought}\n{name_arguments(arguments, shown=shown[number])}"
            calls.append(
                Call(
                    recipient=recipient,
                    content=arguments,
                    channel=Channel.COMMENTARY,
                    content_type=JSON_TYPE,
                    analysis=thought,
                    result=results[number] if results else None,
                )
            )
        return Solution(analysis="", final=(facts["said"],) if results else (), calls=tuple(calls))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        facts, final = problem.facts, answer.final or ""
        expected: list[list[str]] = json.loads(facts["calls"])
        if not same_calls([CallMade(*call) for call in expected], answer.calls):
            return False
        match facts["kind"]:
            case "other":
                return OTHER_TASKS[facts["task"]].grade(problem, answer)
            case "missing":
                return "?" in final and facts["missing"].lower() in final.lower().replace("_", " ")
            case "no tool":
                return NO_TOOL.search(final) is not None
            case _:
                # Whoever answers calls elsewhere sees no final message; who lets it be written wants the results in it.
                return answer.final is None or all(text in final for text in json.loads(facts.get("told", "[]")))


def same_calls(expected: Sequence[CallMade], made: Sequence[CallMade]) -> bool:
    """Whether calls go to the same functions with equal JSON; several may come in another order."""
    left = [(call.recipient, read_json(call.content)) for call in made]
    if len(left) != len(expected) or any(value is INVALID for _, value in left):
        return False
    for call in expected:
        value = read_json(call.content)
        found = next((other for other in left if other[0] == call.recipient and equal_json(other[1], value)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def name_arguments(arguments: str, *, shown: str) -> str:
    """One line an argument: as it stands in the text, and as JSON where that differs: ``city: Oslo -> "Oslo"``.

    A text begins with a space in a sentence and with a quotation mark in JSON, so that its tokens differ. Quoting it
    first makes two short steps of a long one.

    Args:
        arguments: a JSON object.
        shown: a JSON object with the texts of those that the text gives.
    """
    texts: dict[str, str] = json.loads(shown)
    lines: list[str] = []
    for name, value in json.loads(arguments).items():
        written, text = write_json(value), texts.get(name)
        is_quoted = text is not None and text != written and not isinstance(value, bool)
        lines.append(f"{name}: {text} -> {written}" if is_quoted else f"{name}: {written}")
    return "\n".join(lines) or "no arguments"


def draw_result(rng: random.Random, *, held_out: bool) -> tuple[str, str, str]:
    """What a function answers, as JSON, how it is told, and the part of it that must be told."""
    number = str(rng.randint(2, 9999))
    code, time = draw_code(rng, held_out), draw_time(rng, held_out)
    value: object
    key, value, text, said = rng.choice(
        (
            ("id", code, code, f"The id is {code}."),
            ("confirmation", code, code, f"It is confirmed with the code {code}."),
            ("number", int(number), number, f"The number is {number}."),
            ("price", int(number), number, f"The price is {number}."),
            ("count", int(number), number, f"The count is {number}."),
            ("time", time, time, f"The time is {time}."),
            ("error", "not found", "not found", "It failed: not found."),
        )
    )
    result: dict[str, object] = {key: value}
    if key != "error" and rng.random() < 0.4:
        result = {"status": "ok", **result} if rng.random() < 0.5 else {**result, "status": "ok"}
    return write_json(result), said, text


def _facts(calls: Sequence[tuple[Function, Request]], results: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """What solver and grader need; texts, since facts are."""
    written = [[f"{FUNCTIONS}.{function.name}", write_json(request.arguments)] for function, request in calls]
    actions = " and then ".join(function.action.text for function, _ in calls)
    names = ", then ".join(function.name for function, _ in calls)
    return {
        "calls": write_json(written),
        "shown": write_json([write_json(request.shown) for _, request in calls]),
        "results": write_json([result for result, _, _ in results]),
        "told": write_json([text for _, _, text in results]),
        "said": " ".join(said for _, said, _ in results),
        "why": f"The user wants to {actions}, so I call {names}.",
    }


def find_result(problem: Problem, made: CallMade, *, seen: Sequence[CallMade] = ()) -> str | None:
    """What the problem's functions answer to a call.

    Args:
        problem: of this task, or any other that keeps `calls` and `results` among its facts.
        made: the call.
        seen: the calls before it, each of which has used its result up.

    Returns:
        None if the problem expects no such call, or says nothing of results: the call then ends the turn.
    """
    expected = [CallMade(*call) for call in json.loads(problem.facts.get("calls", "[]"))]
    results: list[str] = json.loads(problem.facts.get("results", "[]"))
    open_calls = list(zip(expected, results, strict=False))
    for call in seen:
        hit = _find(open_calls, call)
        if hit is not None:
            open_calls.remove(hit)
    hit = _find(open_calls, made)
    return None if hit is None else hit[1]


def _find(pairs: Sequence[tuple[CallMade, str]], call: CallMade) -> tuple[CallMade, str] | None:
    return next((pair for pair in pairs if same_calls([pair[0]], [call])), None)
