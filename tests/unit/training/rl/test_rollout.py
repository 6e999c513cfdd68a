"""Episodes over an engine that follows a script, and over a real one."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from tests.unit.training.rl.helpers import EchoTask, has_sandbox, make_env

from ossia.core.errors import OssiaError
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.engine import Engine
from ossia.harmony.content import DeveloperContent, Effort, FunctionTool, ToolNamespace
from ossia.model.loading import LoadedModel
from ossia.tasks.base import Answer, CallMade, Problem
from ossia.training.rl.config import RewardConfig, RolloutConfig
from ossia.training.rl.env import Env, draw_envs, draw_held_out, find_tasks
from ossia.training.rl.rollout import Rollout
from ossia.training.rl.trajectory import make_data

CONFIG = RolloutConfig(samples=3, max_tokens=60, max_turns=3)
Scripted = Callable[[Callable[[str], str]], Engine]
WEATHER = DeveloperContent(
    tools=(ToolNamespace("functions", tools=(FunctionTool("weather", parameters={"type": "object"}),)),)
)


def play(engine: Engine, loaded: LoadedModel, env: Env, *, reward: RewardConfig | None = None):
    rollout = Rollout(engine, loaded=loaded, config=CONFIG, reward=reward or RewardConfig())
    return rollout.sample([env], seed=1)[0].trajectories


@pytest.mark.parametrize(
    ("said", "is_clean", "is_right"),
    [
        ("<|channel|>final<|message|>two<|return|>", True, True),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>two<|return|>",
            True,
            True,
        ),
        ("<|channel|>final<|message|>three<|return|>", True, False),
        ("<|message|>two<|return|>", False, False),  # no channel: read as final, by a repair
        ("<|channel|>final<|message|>two" + " two" * 70, False, False),  # cut off
        ("<|channel|>final<|message|>two<|end|><|start|>user<|message|>one<|end|>", False, False),  # speaks for others
        ("<|channel|>analysis<|message|>two<|return|>", True, False),  # no answer
    ],
)
def test_only_a_clean_right_answer_earns(
    scripted: Scripted, loaded: LoadedModel, said: str, is_clean: bool, is_right: bool
) -> None:
    for trajectory in play(scripted(lambda _: said), loaded, make_env()):
        assert (trajectory.is_clean, trajectory.is_right, trajectory.reward) == (is_clean, is_right, float(is_right))


def test_what_is_trained_on_is_what_was_sampled(scripted: Scripted, loaded: LoadedModel) -> None:
    """Also where the same text has other ids: ` t`, `wo` are not what a tokenizer makes of it."""
    tokenizer = loaded.tokenizer
    engine = scripted(lambda _: "<|channel|>final<|message|>two<|return|>")
    odd = [
        *tokenizer.encode_with_specials("<|channel|>final<|message|>"),
        *tokenizer.encode("t"),
        *tokenizer.encode("w"),
    ]
    odd += [*tokenizer.encode("o"), tokenizer.return_]
    assert len(odd) > len(tokenizer.encode_with_specials("<|channel|>final<|message|>two<|return|>"))
    engine.runner._tokenizer = _Odd(tokenizer, odd)  # type: ignore[attr-defined]
    (trajectory, *_) = play(engine, loaded, make_env())
    assert trajectory.answer == Answer(final="two")
    (transition,) = trajectory.transitions
    assert transition.sampled_ids == tuple(odd)
    (datum,) = make_data(trajectory, advantage=1.0)
    assert datum.ids[-len(odd) :] == tuple(odd)


class _Odd:
    def __init__(self, tokenizer, ids: list[int]) -> None:
        self.vocab_size, self.decode, self._ids = tokenizer.vocab_size, tokenizer.decode, ids

    def encode_with_specials(self, text: str) -> list[int]:
        return self._ids


def test_the_price_of_length_is_on_right_answers_alone(scripted: Scripted, loaded: LoadedModel) -> None:
    price = RewardConfig(length_price={"low": 0.6})
    engine = scripted(lambda _: "<|channel|>final<|message|>two<|return|>")
    (right, *_) = play(engine, loaded, make_env(), reward=price)
    assert right.reward == pytest.approx(1 - 0.6 * right.num_tokens / CONFIG.max_tokens)
    (high, *_) = play(engine, loaded, make_env(effort=Effort.HIGH), reward=price)
    assert high.reward == 1.0
    wrong = scripted(lambda _: "<|channel|>final<|message|>three<|return|>")
    assert {trajectory.reward for trajectory in play(wrong, loaded, make_env(), reward=price)} == {0.0}


class CallTask(EchoTask):
    """Right if a call was made with these arguments."""

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return answer.calls[-1:] == (CallMade("functions.weather", problem.answer),) and answer.final is None


def test_a_call_of_the_developers_function_ends_the_episode(scripted: Scripted, loaded: LoadedModel) -> None:
    problem = Problem(task="call", prompt="Weather in Oslo?", answer='{"city":"Oslo"}', developer=WEATHER)
    env = Env(task=CallTask(), problem=problem, effort=Effort.MEDIUM, date="2026-01-01")
    said = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>" + '{"city":"Oslo"}' + "<|call|>"
    engine = scripted(lambda _: said)
    for trajectory in play(engine, loaded, env):
        assert (trajectory.ending, trajectory.is_clean, trajectory.reward) == ("calls_pending", True, 1.0)
    prompt = loaded.tokenizer.decode(trajectory.transitions[0].prompt_ids)
    assert "type weather" in prompt


class PythonTask(EchoTask):
    """Right if python was asked and its result was said."""

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return answer.final == problem.answer and [call.recipient for call in answer.calls] == ["python"]


@pytest.mark.skipif(not has_sandbox(), reason="no sandbox works here")
def test_python_runs_and_its_result_is_not_learned(scripted: Scripted, loaded: LoadedModel) -> None:
    problem = Problem(task="python", prompt="6 * 7?", answer="42", builtin_tools=("python",))
    env = Env(task=PythonTask(), problem=problem, effort=Effort.LOW, date="2026-01-01")
    call = "<|channel|>analysis to=python code<|message|>print(6 * 7)<|call|>"

    def script(prompt: str) -> str:
        has_result = "python to=assistant" in prompt
        return "<|channel|>final<|message|>42<|return|>" if has_result else call

    tokenizer = loaded.tokenizer
    for trajectory in play(scripted(script), loaded, env):
        assert trajectory.is_right, trajectory
        assert len(trajectory.transitions) == 2
        (datum,) = make_data(trajectory, advantage=1.0)
        learned = [token for token, mark in zip(datum.ids, datum.is_sampled, strict=True) if mark]
        unlearned = [token for token, mark in zip(datum.ids, datum.is_sampled, strict=True) if not mark]
        assert tokenizer.decode(learned) == call + "<|channel|>final<|message|>42<|return|>"
        assert "python to=assistant" in tokenizer.decode(unlearned)
        assert "42" in tokenizer.decode(unlearned)


def test_an_engine_that_fails_ends_the_rollout(scripted: Scripted, loaded: LoadedModel) -> None:
    def script(prompt: str) -> str:
        raise OssiaError("the script is lost")

    with pytest.raises(OssiaError, match="the script is lost"):
        play(scripted(script), loaded, make_env())


def test_the_same_seed_gives_the_same_episodes(loaded: LoadedModel) -> None:
    def sample(seed: int) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        engine = build_engine(loaded, config=EngineConfig(num_pages=512, max_num_seqs=4, records_routing=True))
        rollout = Rollout(engine, loaded=loaded, config=CONFIG, reward=RewardConfig())
        groups = rollout.sample([make_env(), make_env(effort=Effort.HIGH)], seed=seed)
        turns = [turn for group in groups for t in group.trajectories for turn in t.transitions]
        assert len({turn.sampled_ids for turn in turns}) == len(turns)  # no two samples are alike
        assert all(turn.routing is not None and len(turn.routing) == len(turn.ids) - 1 for turn in turns)
        return [(turn.sampled_ids, turn.logprobs) for turn in turns]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_held_out_problems_are_others_and_the_same_each_time() -> None:
    tasks = find_tasks({"add": 1.0, "reverse": 2.0})
    held_out = draw_held_out(tasks, efforts=("low", "high"), number=20, seed=3)
    assert held_out == draw_held_out(tasks, efforts=("low", "high"), number=20, seed=3)
    assert len(held_out) == 2 * 2 * 20
    trained = draw_envs(tasks, weights={"add": 1.0, "reverse": 2.0}, efforts=("low",), number=300, rng=random.Random(1))
    asked = {(env.problem.prompt, env.problem.history) for env in held_out}  # second turns may say the same words
    assert not asked & {(env.problem.prompt, env.problem.history) for env in trained}


def test_a_task_of_few_problems_gives_what_it_has() -> None:
    envs = draw_held_out({"echo": EchoTask()}, efforts=("low",), number=50, seed=1)
    assert sorted(env.problem.answer for env in envs) == ["four", "one", "three", "two"]


def test_efforts_take_turns() -> None:
    envs = draw_envs(
        {"echo": EchoTask()}, weights={"echo": 1.0}, efforts=("low", "high"), number=4, rng=random.Random(0)
    )
    assert sorted(env.effort.value for env in envs) == ["high", "high", "low", "low"]


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(OssiaError, match="no task dance"):
        find_tasks({"dance": 1.0})
