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
_PLACE = re.compile(r"\{[abc]\}")
MAX_EXTRA = 40
"""A family's fourth quantity is at most so much."""


class Step(NamedTuple):
    """One equation over names of quantities and earlier results, or a written number."""

    left: str
    operator: str
    right: str


_SUM = {"a": Step("c", "-", "b"), "b": Step("c", "-", "a"), "c": Step("a", "+", "b")}
_PRODUCT = {"a": Step("c", "/", "b"), "b": Step("c", "/", "a"), "c": Step("a", "x", "b")}
KINDS: Mapping[str, Mapping[str, Step]] = MappingProxyType(
    {"product": _PRODUCT, "times": _PRODUCT, "parts": _SUM, "compare": _SUM}
)
"""The kinds of families: how each of the three quantities follows from the two others."""


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
        asked: what is looked for, in few words; empty if the question says it best.
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
    asked: str
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
        asked="",
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
    labels = dict(zip("abc", (" ".join(_PLACE.sub("", label).split()) for label in _several(parts["l"])), strict=True))

    def tell(asked: str, told: str, *, then: Sequence[Step] = (), extra: Sequence[str] = ("",), ask: str = "") -> Story:
        added = [step.right for step in then if step.right in ("d", "e")]
        question = ask or asked
        return Story(
            family=f"family {block}",
            ranges={**ranges, **dict.fromkeys(added, (2, MAX_EXTRA))},
            made={"c": ("a", "+" if kind in ("parts", "compare") else "x", "b")},
            told=(*told, *added),
            texts=tuple(f"{one} {other}".strip() for one in _several(parts[told]) for other in extra),
            questions=_several(parts[f"?{question}"]),
            steps=(KINDS[kind][asked], *then),
            said=parts[f"!{question}"],
            asked={"e": "how many then", "t": "both together"}.get(ask) or labels[asked],
            words={name: tuple(options.split("|")) for name, options in words.items()},
        )

    for asked, told in zip("cba", ("ab", "ac", "bc"), strict=True):
        yield tell(asked, told)
    gain, loss = Step("r1", "+", "d"), Step("r1", "-", "d")
    if "+" in parts:
        yield tell("c", "ab", then=[gain], extra=_several(parts["+"]), ask="e")
    if "-" in parts:
        yield tell("c", "ab", then=[loss], extra=_several(parts["-"]), ask="e")
    if "+" in parts and "-" in parts:
        both = [
            f"{more} {less.replace('{d}', '{e}')}" for more in _several(parts["+"]) for less in _several(parts["-"])
        ]
        yield tell("c", "ab", then=[gain, Step("r2", "-", "e")], extra=both, ask="e")
    if "?t" in parts:
        yield tell("c", "ab", then=[Step("r1", "+", "a")], ask="t")
        yield tell("a", "bc", then=[Step("r1", "+", "c")], ask="t")


@cache
def load_stories() -> Pool[Story]:
    """The packaged stories; whole families are held out."""
    folder = PACKAGE_ROOT / "tasks" / "data"
    lines = (folder / "word_problems.txt").read_text(encoding="utf-8").splitlines()
    stories = [read_story(line) for line in lines if line and not line.startswith("#")]
    stories += read_families((folder / "word_families.txt").read_text(encoding="utf-8"))
    return Pool("a story", stories, key=lambda story: story.family)
