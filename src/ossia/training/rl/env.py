"""What is played: a problem at an effort is an environment, which begins a conversation and judges what came of it."""

from __future__ import annotations

import datetime
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ossia.agent.problem import opening_of, rules_of
from ossia.core.errors import InvalidInputError
from ossia.engine.constraint import TurnConstraint
from ossia.harmony.content import Effort
from ossia.harmony.message import Conversation
from ossia.model.loading import Identity
from ossia.tasks.base import Answer, Problem, Task
from ossia.tasks.registry import TASKS
from ossia.tools.registry import ToolSet
from ossia.training.rl.config import RewardConfig

FIRST_DAY, NUM_DAYS = datetime.date(2024, 1, 1), 2000
"""Prompts are dated within so many days."""
MAX_REPEATS = 200
"""A task that draws known problems so often in a row has no more to give."""


class Verdict(NamedTuple):
    """What an episode is worth."""

    is_right: bool
    reward: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Env:
    """One problem at one effort. All episodes of a group begin alike.

    Attributes:
        task: grades the answer.
        problem: what is asked.
        effort: how long the model should think.
        date: in the system message.
    """

    task: Task
    problem: Problem
    effort: Effort
    date: str

    def opening(self, identity: Identity, *, tools: ToolSet) -> Conversation:
        """The first observation: system message, the problem's developer message and history, and its prompt.

        Args:
            identity: the model's.
            tools: the episode's own, from `make_tools`.
        """
        return opening_of(self.problem, identity=identity, effort=self.effort, date=self.date, tools=tools)

    def rules(self, tools: ToolSet) -> TurnConstraint:
        """All tools that the conversation declares; calls of functions without results end the episode."""
        return rules_of(self.problem, tools)

    def judge(
        self, answer: Answer, *, is_clean: bool, num_tokens: int, max_tokens: int, reward: RewardConfig
    ) -> Verdict:
        """Grade an episode: nothing for an answer that is wrong, was cut off, or had to be repaired.

        Args:
            answer: what the model did.
            is_clean: whether it was parsed without repair and not cut off.
            num_tokens: tokens that it wrote.
            max_tokens: at which the whole price of length is paid.
            reward: prices.
        """
        if not is_clean or not self.task.grade(self.problem, answer):
            return Verdict(is_right=False, reward=0.0)
        price = reward.length_price.get(self.effort.value, 0.0)
        return Verdict(is_right=True, reward=1.0 - price * min(1.0, num_tokens / max_tokens))


def find_tasks(weights: Mapping[str, float]) -> dict[str, Task]:
    """The tasks of these names.

    Raises:
        InvalidInputError: a name is unknown.
    """
    unknown = sorted(set(weights) - set(TASKS))
    if unknown:
        raise InvalidInputError(
            f"there is no task {', '.join(unknown)}; these exist: {', '.join(sorted(TASKS))}", param="tasks"
        )
    return {name: TASKS[name] for name, weight in weights.items() if weight > 0}


def draw_envs(
    tasks: Mapping[str, Task], *, weights: Mapping[str, float], efforts: Sequence[str], number: int, rng: random.Random
) -> list[Env]:
    """Draw a step's problems from those for training; efforts take turns, beginning with a random one."""
    names = list(tasks)
    first = rng.randrange(len(efforts))
    envs: list[Env] = []
    for place in range(number):
        task = tasks[rng.choices(names, [weights[name] for name in names])[0]]
        effort = Effort.parse(efforts[(first + place) % len(efforts)])
        envs.append(
            Env(task=task, problem=task.problem(rng, held_out=False), effort=effort, date=_draw_date(rng)),
        )
    return envs


def draw_held_out(tasks: Mapping[str, Task], *, efforts: Sequence[str], number: int, seed: int) -> list[Env]:
    """Distinct held-out problems of each task, each asked at every effort; the same ones for the same arguments."""
    envs: list[Env] = []
    for name, task in tasks.items():
        rng = random.Random(f"{name} {seed}")
        seen: dict[str, Env] = {}
        repeats = 0
        while len(seen) < number and repeats < MAX_REPEATS:
            problem = task.problem(rng, held_out=True)
            repeats = repeats + 1 if problem.opening in seen else 0
            env = Env(task=task, problem=problem, effort=Effort.parse(efforts[0]), date=_draw_date(rng))
            seen.setdefault(problem.opening, env)
        for effort in efforts:
            envs += [
                Env(task=env.task, problem=env.problem, effort=Effort.parse(effort), date=env.date)
                for env in seen.values()
            ]
    return envs


def _draw_date(rng: random.Random) -> str:
    return (FIRST_DAY + datetime.timedelta(days=rng.randrange(NUM_DAYS))).isoformat()
