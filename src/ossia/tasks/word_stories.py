"""The stories of word problems, read from data/word_problems.txt and data/word_families.txt.

A line of the first: the quantities with their ranges (`a:2-9`), or what they are made of (`c=axb+k`, read from the
left; what the text does not name is drawn but not told); the text; questions; steps (`axb; r1-c`: `r1` is the first
result); the answer.

A family of the second is one situation with three quantities, any of which is asked for: the same words then call for
another operation, so that it has to be read from the relation. A family is held out whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import NamedTuple

from ossia.core.paths import PACKAGE_ROOT
from ossia.tasks.pools import Pool

_FORMULA = re.compile(r"([a-w]\d?|\d+)([-+x/])([a-w]\d?|\d+)")
MAX_EXTRA = 40
"""A family's fourth quantity is at most so much."""


class Step(NamedTuple):
    """One equation over names of quantities and earlier results, or a written number."""

    left: str
    operator: str
    right: str


GENERAL = MappingProxyType(
    {
        "+": "{x} and {y} together -> add",
        "-": "{x} without {y} -> subtract",
        "x": "{x} times {y} -> multiply",
        "/": "{x} in {y} equal parts -> divide",
    }
)
"""What is said before an equation of a story that belongs to no family."""


class Asked(NamedTuple):
    """How one of a family's three quantities follows from the two others."""

    step: Step
    relation: str


_SUM = {"a": Step("c", "-", "b"), "b": Step("c", "-", "a"), "c": Step("a", "+", "b")}
_PRODUCT = {"a": Step("c", "/", "b"), "b": Step("c", "/", "a"), "c": Step("a", "x", "b")}
KINDS: Mapping[str, Mapping[str, Asked]] = MappingProxyType(
    {
        kind: {name: Asked(steps[name], relation) for name, relation in zip("abc", relations, strict=True)}
        for kind, steps, relations in (
            (
                "product",
                _PRODUCT,
                (
                    "all {x}, {y} each -> how many: divide",
                    "all {x} in {y} equal parts -> each: divide",
                    "{x} times {y} each -> all: multiply",
                ),
            ),
            (
                "times",
                _PRODUCT,
                (
                    "{x} is {y} times it -> divide",
                    "{x} is how many times {y} -> divide",
                    "{y} times {x} -> multiply",
                ),
            ),
            (
                "parts",
                _SUM,
                (
                    "all {x} without {y} -> the rest: subtract",
                    "all {x} without {y} -> the rest: subtract",
                    "{x} and {y} -> all: add",
                ),
            ),
            (
                "compare",
                _SUM,
                (
                    "{x} and {y} less -> the smaller: subtract",
                    "{x} against {y} -> the difference: subtract",
                    "{x} and {y} more -> the larger: add",
                ),
            ),
        )
    }
)
"""The kinds of families."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A situation with one thing asked.

    Attributes:
        family: what decides whether it is held out.
        ranges: of the quantities drawn.
        made: quantities that follow from others, as names with operators between.
        told: names of the quantities that the text gives.
        texts: ways to tell it; `(a|b)` within stands for a choice.
        questions: ways to ask.
        steps: the way to the answer.
        said: the answer as a sentence.
        relations: one a step, said before its equation; `{x}` and `{y}` are its numbers.
        labels: what each quantity told is, and under `asked` what is looked for; empty if the text shows it best.
        words: names of places in the text, with what may stand there.
    """

    family: str
    ranges: Mapping[str, tuple[int, int]]
    made: Mapping[str, tuple[str, ...]]
    told: tuple[str, ...]
    texts: tuple[str, ...]
    questions: tuple[str, ...]
    steps: tuple[Step, ...]
    said: str
    relations: tuple[str, ...]
    labels: Mapping[str, str]
    words: Mapping[str, tuple[str, ...]]


def read_story(line: str) -> Story:
    """Read one line of data/word_problems.txt."""
    quantities, text, questions, steps, said = (part.strip() for part in line.split(" | "))
    ranges: dict[str, tuple[int, int]] = {}
    made: dict[str, tuple[str, ...]] = {}
    for part in quantities.split():
        if "=" in part:
            name, _, formula = part.partition("=")
            made[name] = tuple(re.findall(r"[a-w]|[-+x/]|\d+", formula))
            ranges.pop(name, None)
        else:
            name, low, high = re.split("[:-]", part)
            ranges[name] = (int(low), int(high))
    found = [_FORMULA.fullmatch(step.strip()) for step in steps.split(";")]
    equations = tuple(Step(*match.groups()) for match in found if match is not None)
    return Story(
        family=text + "".join(map(str, equations)),
        ranges=ranges,
        made=made,
        told=tuple(name for name in sorted({*ranges, *made}) if f"{{{name}}}" in text + questions),
        texts=(text,),
        questions=_several(questions),
        steps=equations,
        said=said,
        relations=tuple(GENERAL[step.operator] for step in equations),
        labels={},
        words={},
    )


def _several(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";;"))


def read_families(text: str) -> list[Story]:
    """Read data/word_families.txt."""
    return [story for block in re.split(r"(?m)^= ", text)[1:] for story in _read_family(block)]


def _read_family(block: str) -> Iterator[Story]:
    head, *lines = block.strip().splitlines()
    kind, *quantities = head.split()
    ranges = {name: (int(low), int(high)) for name, low, high in (re.split("[:-]", part) for part in quantities)}
    parts = dict(line.split(" ", 1) for line in lines)
    words = dict(slot.split("=") for slot in _several(parts["~"])) if "~" in parts else {}
    labels = dict(zip("abc", _several(parts["l"]), strict=True))
    asked_label = {name: " ".join(re.sub(rf"\{{{name}\}}", "", label).split()) for name, label in labels.items()}

    def tell(
        asked: str, told: str, *, then: Sequence[Asked] = (), extra: Sequence[str] = ("",), ask: str = ""
    ) -> Story:
        first = KINDS[kind][asked]
        known = told + "de"[: sum(step.relation.startswith("{y} ") for step in then)]
        more = {name: (2, MAX_EXTRA) for name in known if name in "de"}
        question = ask or asked
        labelled = {name: labels[name] for name in told}
        for name, then_step in zip(known[2:], then, strict=False):
            labelled[name] = f"{{{name}}} {'more' if then_step.step.operator == '+' else 'less'}"
        return Story(
            family=f"family {block}",
            ranges={**ranges, **more},
            made={"c": ("a", "+" if kind in ("parts", "compare") else "x", "b")},
            told=tuple(known),
            texts=tuple(f"{one} {other}".strip() for one in _several(parts[told]) for other in extra),
            questions=_several(parts[f"?{question}"]),
            steps=(first.step, *(step for step, _ in then)),
            said=parts[f"!{question}"],
            relations=(first.relation, *(relation for _, relation in then)),
            labels={**labelled, "asked": {"e": "how many then", "t": "both together"}.get(ask) or asked_label[asked]},
            words={name: tuple(options.split("|")) for name, options in words.items()},
        )

    for asked, told in zip("cba", ("ab", "ac", "bc"), strict=True):
        yield tell(asked, told)
    gain, loss = (
        Asked(Step("r1", sign, "d"), f"{{y}} {word}")
        for sign, word in (("+", "more -> add"), ("-", "less -> subtract"))
    )
    if "+" in parts:
        yield tell("c", "ab", then=[gain], extra=_several(parts["+"]), ask="e")
    if "-" in parts:
        yield tell("c", "ab", then=[loss], extra=_several(parts["-"]), ask="e")
    if "+" in parts and "-" in parts:
        both = [
            f"{more} {less.replace('{d}', '{e}')}" for more in _several(parts["+"]) for less in _several(parts["-"])
        ]
        last = Asked(Step("r2", "-", "e"), loss.relation)
        yield tell("c", "ab", then=[gain, last], extra=both, ask="e")
    if "?t" in parts:
        together = "{x} and {y} together -> add"
        yield tell("c", "ab", then=[Asked(Step("r1", "+", "a"), together)], ask="t")
        yield tell("a", "bc", then=[Asked(Step("r1", "+", "c"), together)], ask="t")


@cache
def load_stories() -> Pool[Story]:
    """The packaged stories; whole families are held out."""
    folder = PACKAGE_ROOT / "tasks" / "data"
    lines = (folder / "word_problems.txt").read_text(encoding="utf-8").splitlines()
    stories = [read_story(line) for line in lines if line and not line.startswith("#")]
    stories += read_families((folder / "word_families.txt").read_text(encoding="utf-8"))
    return Pool("a story", stories, key=lambda story: story.family)
