"""Every task can be played: an engine that says the reference solution earns the whole reward."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tests.unit.training.rl.helpers import has_sandbox

from ossia.engine.engine import Engine
from ossia.harmony.content import Effort
from ossia.model.loading import LoadedModel
from ossia.tasks.base import Problem, Solution
from ossia.tasks.registry import TASKS
from ossia.training.rl.config import RewardConfig, RolloutConfig
from ossia.training.rl.env import Env
from ossia.training.rl.rollout import Rollout


def write(solution: Solution, *, num_results: int) -> str:
    """What the assistant says next, once so many of its calls were answered."""
    if num_results < len(solution.calls):
        call = solution.calls[num_results]
        thought = f"<|channel|>analysis<|message|>{call.analysis}<|end|><|start|>assistant" if call.analysis else ""
        kind = f" {call.content_type}" if call.content_type else ""
        return f"{thought}<|channel|>{call.channel} to={call.recipient}{kind}<|message|>{call.content}<|call|>"
    thought = f"<|channel|>analysis<|message|>{solution.analysis}<|end|><|start|>assistant" if solution.analysis else ""
    return f"{thought}<|channel|>final<|message|>{solution.final_text}<|return|>"


@pytest.mark.parametrize("effort", list(Effort))
@pytest.mark.parametrize("name", sorted(TASKS))
def test_the_reference_solution_earns_the_whole_reward(
    scripted: Callable[[Callable[[str], str]], Engine], loaded: LoadedModel, name: str, effort: Effort
) -> None:
    rng = random.Random(f"{name} {effort}")
    problem = TASKS[name].problem(rng, held_out=False)
    if problem.builtin_tools and not has_sandbox():
        pytest.skip("no sandbox works here")
    assert play_reference(scripted, loaded, problem, effort=effort, rng=rng) == [1.0, 1.0]


def test_functions_with_results_answer_within_an_episode(
    scripted: Callable[[Callable[[str], str]], Engine], loaded: LoadedModel
) -> None:
    rng = random.Random(0)
    drawn = [TASKS["function_calls"].problem(rng, held_out=False) for _ in range(200)]
    found = {problem.part: problem for problem in drawn if problem.facts.get("results", "[]") != "[]"}
    assert found
    for problem in found.values():
        assert play_reference(scripted, loaded, problem, effort=Effort.LOW, rng=rng) == [1.0, 1.0]


def play_reference(
    scripted: Callable[[Callable[[str], str]], Engine],
    loaded: LoadedModel,
    problem: Problem,
    *,
    effort: Effort,
    rng: random.Random,
) -> list[float]:
    """The rewards of a group of two episodes that write the reference solution."""
    task = TASKS[problem.task]
    solution = task.solve(problem, effort=effort, rng=rng)

    def script(prompt: str) -> str:
        now = prompt.rsplit("<|start|>user<|message|>", 1)[-1]
        return write(solution, num_results=now.count(" to=assistant"))

    config = RolloutConfig(samples=2, max_tokens=900)
    rollout = Rollout(scripted(script), loaded=loaded, config=config, reward=RewardConfig())
    env = Env(task=task, problem=problem, effort=effort, date="2026-01-01")
    return [trajectory.reward for trajectory in rollout.sample([env], seed=1)[0].trajectories]
