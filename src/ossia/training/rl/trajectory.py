"""What an episode leaves behind, in Tinker's words: transitions, trajectories, groups, and the data to train on.

Ids are those that the engine was given and that it sampled; nothing is ever tokenised again.
"""

# n ids of a datum, T = n - 1 of them are inputs, L layers, A active experts

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ossia.engine.output_event import Choices
from ossia.harmony.content import Effort
from ossia.tasks.base import Answer, Problem

UNKNOWN = -1
"""Stands for an expert that was not recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One turn of the model: what it saw and what it did.

    Attributes:
        prompt_ids: the observation.
        sampled_ids: the action, stop token included.
        logprobs: of each sampled id, by the engine, at temperature 1.
        routing: experts of the first ids of prompt and action, int16 [up to n - 1, L, A]; None if not recorded.
    """

    prompt_ids: tuple[int, ...]
    sampled_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    routing: Choices | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """All of it, in order."""
        return (*self.prompt_ids, *self.sampled_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One episode.

    Attributes:
        problem, effort: what was asked.
        transitions: the turns, in order.
        answer: what it came to, as graders read it.
        is_clean: the engine ended every turn by itself, and the parser had nothing to mend.
        is_right: clean, and the grader says so.
        reward: what it earned.
        ending: why it ended, for the log.
    """

    problem: Problem
    effort: Effort
    transitions: tuple[Transition, ...]
    answer: Answer
    is_clean: bool
    is_right: bool
    reward: float
    ending: str

    @property
    def num_tokens(self) -> int:
        """Tokens that the model wrote."""
        return sum(len(transition.sampled_ids) for transition in self.transitions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Several episodes of one problem at one effort, which are compared with each other."""

    trajectories: tuple[Trajectory, ...]

    @property
    def rewards(self) -> tuple[float, ...]:
        """What each earned."""
        return tuple(trajectory.reward for trajectory in self.trajectories)

    @property
    def pass_rate(self) -> float:
        """Share of right answers."""
        return sum(trajectory.is_right for trajectory in self.trajectories) / len(self.trajectories)


@dataclass(frozen=True, kw_only=True, slots=True)
class Datum:
    """A row of ids to learn from.

    Attributes:
        ids: n of them.
        is_sampled: for each id, whether the model sampled it here. Others (prompt, tool results) carry no loss.
        logprobs: of each id by the engine; 0 where it was not sampled.
        advantage: of the whole episode.
        routing: int16 [n - 1, L, A], UNKNOWN where it was not recorded; None if nothing was.
    """

    ids: tuple[int, ...]
    is_sampled: tuple[bool, ...]
    logprobs: tuple[float, ...]
    advantage: float
    routing: Choices | None = None

    @property
    def num_sampled(self) -> int:
        """Ids that carry loss."""
        return sum(self.is_sampled)


def make_data(trajectory: Trajectory, *, advantage: float) -> list[Datum]:
    """The data of an episode: one for its turns as long as each prompt goes on from the turn before, as it does while
    tools are called; another one from where the history was rewritten."""
    data: list[Datum] = []
    run: list[Transition] = []
    for transition in trajectory.transitions:
        if not transition.sampled_ids:
            continue
        if run and transition.prompt_ids[: len(run[-1].ids)] != run[-1].ids:
            data.append(_join(run, advantage=advantage))
            run = []
        run.append(transition)
    if run:
        data.append(_join(run, advantage=advantage))
    return data


def _join(run: Sequence[Transition], *, advantage: float) -> Datum:
    """Turns, of which each one's prompt begins with all of the one before."""
    ids: list[int] = []
    is_sampled: list[bool] = []
    logprobs: list[float] = []
    for turn in run:
        new = turn.prompt_ids[len(ids) :]
        ids += (*new, *turn.sampled_ids)
        is_sampled += [False] * len(new) + [True] * len(turn.sampled_ids)
        logprobs += (*(0.0 for _ in new), *turn.logprobs)
    return Datum(
        ids=tuple(ids),
        is_sampled=tuple(is_sampled),
        logprobs=tuple(logprobs),
        advantage=advantage,
        routing=_join_routing(run, num_inputs=len(ids) - 1),
    )


def _join_routing(run: Sequence[Transition], *, num_inputs: int) -> Choices | None:
    """Each token's experts as they were when it first went through the engine."""
    known = [turn.routing for turn in run if turn.routing is not None]
    if not known:
        return None
    joined = np.full((num_inputs, *known[0].shape[1:]), UNKNOWN, dtype=np.int16)
    end = 0
    for routing in known:
        joined[end : len(routing)] = routing[end:]
        end = max(end, len(routing))
    return joined
