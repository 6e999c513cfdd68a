"""Episodes: the agent loop over the engine, from an environment to a trajectory with its reward."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from ossia.agent.events import StopReason
from ossia.agent.loop import AgentLoop, Limits
from ossia.agent.problem import make_tools, play_through, read_answer
from ossia.agent.turns import Sampling, ServedModel, Turns
from ossia.engine.engine import Engine
from ossia.engine.request import FinishReason as EngineFinish
from ossia.engine.turn import Turn
from ossia.harmony.events import FinishReason
from ossia.kernels.sampling import mix_seed
from ossia.model.loading import LoadedModel
from ossia.tools.registry import ToolSet
from ossia.training.rl.config import RewardConfig, RolloutConfig
from ossia.training.rl.engine_client import RecordingClient, StepClient
from ossia.training.rl.env import Env
from ossia.training.rl.trajectory import Group, Trajectory

ENDINGS = (StopReason.ANSWERED, StopReason.CALLS_PENDING)
"""How an episode ends that was not cut off."""


class Rollout:
    """Plays environments with one engine.

    Sampling is from the model's own distribution (temperature 1, no top_p, no constraint), for the gradient is that
    distribution's.

    Args:
        engine: whose weights are the policy; with `records_routing` for replay.
        loaded: the model's tokenizer, identity and context.
        config: sizes.
        reward: prices.
    """

    def __init__(self, engine: Engine, *, loaded: LoadedModel, config: RolloutConfig, reward: RewardConfig) -> None:
        self._client = StepClient(engine)
        self._served = ServedModel.of(loaded)
        self._config, self._reward = config, reward

    def sample(self, envs: Sequence[Env], *, seed: int) -> list[Group]:
        """`config.samples` episodes of each environment, sampled.

        Args:
            envs: what to play.
            seed: the same seed, weights and environments give the same episodes, as long as no tool runs.

        Raises:
            OssiaError: the engine failed, or a tool that an environment needs cannot be had.
        """
        number = self._config.samples
        seeds = [mix_seed(mix_seed(seed) + place) >> 1 for place in range(number * len(envs))]
        plays = [(env, seeds[place * number + i]) for place, env in enumerate(envs) for i in range(number)]
        played = asyncio.run(self._play_all(plays, temperature=1.0))
        return [Group(trajectories=tuple(played[start : start + number])) for start in range(0, len(played), number)]

    def answer(self, envs: Sequence[Env]) -> list[Trajectory]:
        """One greedy episode of each environment."""
        return asyncio.run(self._play_all([(env, 0) for env in envs], temperature=0.0))

    async def _play_all(self, plays: Sequence[tuple[Env, int]], *, temperature: float) -> list[Trajectory]:
        room = asyncio.Semaphore(self._config.max_tool_episodes)
        tasks: list[asyncio.Task[Trajectory]] = []
        try:
            async with asyncio.TaskGroup() as group:
                for env, seed in plays:
                    tasks.append(group.create_task(self._play(env, seed=seed, temperature=temperature, room=room)))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _play(self, env: Env, *, seed: int, temperature: float, room: asyncio.Semaphore) -> Trajectory:
        is_heavy = bool(env.problem.builtin_tools)
        async with room if is_heavy else contextlib.nullcontext(), ToolSet(make_tools(env.problem)) as tools:
            client = RecordingClient(self._client, seed=seed)
            loop = AgentLoop(
                Turns(client, model=self._served),
                tools=tools,
                rules=env.rules(tools),
                sampling=Sampling(temperature=temperature, top_p=1.0),
                limits=Limits(max_turns=self._config.max_turns, max_tokens=self._config.max_tokens),
                is_constrained=False,
            )
            opening = env.opening(self._served.identity, tools=tools)
            turns, end = await play_through(loop, opening)
            transitions = await client.transitions()
        is_clean = end.reason in ENDINGS and all(_is_clean(turn) for turn in turns)
        answer = read_answer(end.conversation, num_opening=len(opening.messages))
        num_tokens = sum(len(transition.sampled_ids) for transition in transitions)
        verdict = env.judge(
            answer,
            is_clean=is_clean,
            num_tokens=num_tokens,
            max_tokens=self._config.max_tokens,
            reward=self._reward,
        )
        return Trajectory(
            problem=env.problem,
            effort=env.effort,
            transitions=transitions,
            answer=answer,
            is_clean=is_clean,
            is_right=verdict.is_right,
            reward=verdict.reward,
            ending=end.reason.value,
        )


def _is_clean(turn: Turn) -> bool:
    """Whether a turn was ended by the model and needed no repair."""
    is_over = turn.engine_finish is EngineFinish.STOP and turn.finish_reason is not FinishReason.LENGTH
    return is_over and not turn.repairs
