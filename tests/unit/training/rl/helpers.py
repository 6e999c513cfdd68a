"""A small random model with nano's tokenizer, a task, and a runner that says what a script tells it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ossia.engine.batch import SampledStep
from ossia.engine.plan import StepPlan
from ossia.engine.runner import StepLogits
from ossia.harmony.message import Effort
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults
from ossia.model.transformer import Transformer
from ossia.tasks.base import Answer, Problem, Solution
from ossia.tools.sandbox.base import SandboxError
from ossia.tools.sandbox.pick import pick_sandbox
from ossia.training.rl.config import RLConfig
from ossia.training.rl.env import Env
from ossia.training.rl.trajectory import Trajectory, Transition


def make_loaded(tokenizer: Tokenizer, *, seed: int = 5, scale: float = 0.3) -> LoadedModel:
    """A random model whose predictions are far from even."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=16,
        max_position_embeddings=1024,
        rope=RopeConfig(theta=10000.0, factor=1.0),
        eos_token_ids=(tokenizer.return_,),
        pad_token_id=tokenizer.endoftext,
    )
    model = Transformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 1.0 if "norm" in name else scale
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * size + ("norm" in name))
    return LoadedModel(
        name="random",
        model=model,
        tokenizer=tokenizer,
        identity=Identity(model_identity="You are a random model.", knowledge_cutoff=None),
        sampling=SamplingDefaults(),
    )


class EchoTask:
    """To say a word that the prompt names."""

    name = "echo"
    words = ("one", "two", "three", "four")

    def problem(self, rng: random.Random, *, held_out: bool) -> Problem:
        word = rng.choice(self.words)
        mark = "!" if held_out else "."
        return Problem(task=self.name, prompt=f"Say {word}{mark}", answer=word)

    def solve(self, problem: Problem, *, effort: Effort, rng: random.Random) -> Solution:
        return Solution(analysis="", final=(problem.answer,))

    def grade(self, problem: Problem, answer: Answer) -> bool:
        return answer.final == problem.answer


class ScriptRunner:
    """A runner whose logits all but force the next token of a script: from the prompt as text to what is said."""

    def __init__(self, tokenizer: Tokenizer, *, script: Callable[[str], str]) -> None:
        self._tokenizer, self._script = tokenizer, script

    def forward(self, plan: StepPlan, *, last: SampledStep | None = None) -> StepLogits:
        rows = []
        for share in plan.scheduled:
            if share.num_samples:
                sequence = share.sequence
                prompt = sequence.token_ids[: sequence.num_prompt]
                said = self._tokenizer.encode_with_specials(self._script(self._tokenizer.decode(prompt)))
                row = torch.zeros(self._tokenizer.vocab_size)
                row[said[min(sequence.num_output, len(said) - 1)]] = 60.0
                rows.append(row)
        logits = torch.stack(rows) if rows else torch.empty(0, self._tokenizer.vocab_size)
        return StepLogits(logits, ())

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """It has none."""


def make_config(**fields: Any) -> RLConfig:
    return dataclasses.replace(RLConfig(name="test", init="nano", tasks={"echo": 1.0}), **fields)


def make_env(problem: Problem | None = None, *, effort: Effort = Effort.LOW) -> Env:
    task = EchoTask()
    own = problem or Problem(task="echo", prompt="Say two.", answer="two")
    return Env(task=task, problem=own, effort=effort, date="2026-01-01")


def make_trajectory(transitions: Sequence[Transition], *, reward: float = 1.0) -> Trajectory:
    return Trajectory(
        problem=Problem(task="echo", prompt="Say two.", answer="two"),
        effort=Effort.LOW,
        transitions=tuple(transitions),
        answer=Answer(final="two"),
        is_clean=True,
        is_right=reward > 0,
        reward=reward,
        ending="answered",
    )


def has_sandbox() -> bool:
    try:
        return pick_sandbox("auto").is_isolated
    except SandboxError:
        return False
