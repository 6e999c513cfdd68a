"""GRPO on Ossia's engine, readable from top to bottom: what `ossia train rl` does, without what it adds.

    python recipes/grpo.py --task add --effort low --steps 20

One process holds one set of weights. The engine samples a group of answers to each problem, a grader says which are
right, and the trainer makes the tokens of answers that did better than their group likelier. The full loop, in
src/ossia/training/rl/, adds tools and several turns, resuming, several updates a step, clipping, a length price,
packing, GPUs, held-out validation with the best weights kept, and packaging. docs/rl.md explains the choices.

Shapes: B answers of a step, S tokens of the longest with its prompt, T = B * S, L layers, E experts, A active ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ossia.engine.build import EngineConfig
from ossia.engine.completion import Answer as Sampled
from ossia.engine.llm import LLM
from ossia.engine.request import FinishReason, SamplingParams
from ossia.harmony.message import Channel, Conversation, Effort, Message, Role
from ossia.harmony.parse import parse
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import LoadedModel
from ossia.model.transformer import Transformer
from ossia.tasks.base import Answer, Problem, Task
from ossia.tasks.registry import TASKS
from ossia.training.attention import DenseRowAttention
from ossia.training.rl.loop import load_trainable

MAX_WEIGHT = 2.0
"""Truncation of the importance weights between engine and trainer."""
GATE = 1e-4
"""Nats by which trainer and engine, both in float32, may differ on average on the tokens just sampled."""


class Episode(NamedTuple):
    """One sampled answer: its ids as the engine had them, where the sampled part begins, and what it earned."""

    ids: tuple[int, ...]
    num_prompt: int
    logprobs: tuple[float, ...]
    routing: np.ndarray
    reward: float
    advantage: float = 0.0


# ---- 1. sample: a group of answers to each problem, by the engine ----


def sample(
    llm: LLM, problems: list[Problem], task: Task, args: argparse.Namespace, rng: random.Random
) -> list[list[Episode]]:
    """A group of `args.samples` episodes for each problem."""
    if any(problem.developer or problem.builtin_tools or problem.history for problem in problems):
        raise SystemExit(f"{task.name} needs tools or several turns; use: ossia train rl --tasks {task.name}")
    opening = llm.loaded.opening(effort=Effort.parse(args.effort), date="2026-01-01")
    tokenizer = llm.loaded.tokenizer
    chats = [Conversation((*opening, Message(Role.USER, content=problem.prompt))) for problem in problems]
    prompts = [render(chat, tokenizer=tokenizer, next_role="assistant") for chat in chats]
    # The model's own distribution: anything else (temperature, top_p) would be another policy than the one trained.
    own = SamplingParams(temperature=1.0, n=args.samples, max_tokens=args.max_tokens, logprobs=0)
    params = [dataclasses.replace(own, seed=rng.getrandbits(62)) for _ in problems]
    groups: list[list[Episode]] = []
    for problem, done in zip(problems, llm.generate(prompts, params, progress=False), strict=True):
        group: list[Episode] = []
        for answer in done.answers:
            assert answer.logprobs is not None
            assert answer.routing is not None
            group.append(
                Episode(
                    ids=(*done.prompt_ids, *answer.token_ids),
                    num_prompt=len(done.prompt_ids),
                    logprobs=tuple(entry.logprob for entry in answer.logprobs),
                    routing=answer.routing,
                    reward=float(is_right(answer, problem=problem, task=task, tokenizer=tokenizer)),
                )
            )
        groups.append(group)
    return groups


def is_right(answer: Sampled, *, problem: Problem, task: Task, tokenizer: Tokenizer) -> bool:
    """Whether the answer was ended by the model, parses without repair, and is what the grader wants."""
    read = parse(answer.token_ids, tokenizer=tokenizer, role="assistant")
    if answer.finish_reason is not FinishReason.STOP or read.repairs or not read.messages:
        return False
    last = read.messages[-1]
    return last.channel is Channel.FINAL and task.grade(problem, Answer(final=last.text))


# ---- 2. compare: each answer with its group ----


def advantages(groups: list[list[Episode]]) -> list[Episode]:
    """Episodes with A = r - mean(r of the group); groups that all agree teach nothing and are left out."""
    kept: list[Episode] = []
    for group in groups:
        rewards = [episode.reward for episode in group]
        mean = sum(rewards) / len(rewards)
        if max(rewards) > min(rewards):
            kept += [episode._replace(advantage=episode.reward - mean) for episode in group]
    return kept


# ---- 3. score: the same tokens by the trainer, through the same experts ----


class ReplayRouter:
    """Sends each token to the experts that the engine sent it to; only their weights are the trainer's own."""

    def __init__(self, choices: Tensor) -> None:
        self._choices = choices  # int64 [T, L, A]

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        """logits [T, E] -> indices and weights [T, A]."""
        indices = self._choices[:, layer]
        return indices, torch.softmax(logits.gather(-1, indices).float(), dim=-1)


class Tokens(NamedTuple):
    """All sampled tokens of a step, [N] each: by the trainer (with gradient), by the engine, and their advantages."""

    trainer: Tensor
    engine: Tensor
    advantage: Tensor


def score(model: Transformer, episodes: list[Episode]) -> Tokens:
    """Log-probabilities of the sampled tokens, one episode a row, in one pass."""
    config = model.config
    B, S = len(episodes), max(len(episode.ids) for episode in episodes) - 1
    ids = torch.zeros(B, S, dtype=torch.int64)
    targets = torch.zeros(B, S, dtype=torch.int64)
    is_sampled = torch.zeros(B, S, dtype=torch.bool)
    choices = torch.arange(config.num_experts_per_tok).expand(B, S, config.num_hidden_layers, -1).clone()
    for row, episode in enumerate(episodes):
        size = len(episode.ids) - 1
        ids[row, :size] = torch.tensor(episode.ids[:-1])
        targets[row, :size] = torch.tensor(episode.ids[1:])
        is_sampled[row, episode.num_prompt - 1 : size] = True
        choices[row, :size] = torch.from_numpy(episode.routing).long()
    attention = DenseRowAttention(torch.zeros(B, S, dtype=torch.int32), window=config.sliding_window)
    hidden = model(
        ids.flatten(),
        positions=torch.arange(S).repeat(B),
        attention=attention,
        router=ReplayRouter(choices.flatten(0, 1)),
    )
    learned = is_sampled.flatten()
    logprobs = torch.log_softmax(model.logits(hidden[learned]), dim=-1)
    return Tokens(
        trainer=logprobs.gather(-1, targets.flatten()[learned, None])[:, 0],
        engine=torch.tensor([logprob for episode in episodes for logprob in episode.logprobs]),
        advantage=torch.tensor([episode.advantage for episode in episodes for _ in episode.logprobs]),
    )


# ---- 4. learn: the gate, the loss, the update, and the engine again ----


def learn(llm: LLM, episodes: list[Episode], optimizer: torch.optim.Optimizer) -> float:
    """One update on the policy, and the engine's weights with it; the gate's mean difference.

    The loss is -w A log pi, a mean over tokens, with w = min(pi_trainer / pi_engine, MAX_WEIGHT) held constant.
    """
    model = llm.loaded.model
    tokens = score(model, episodes)
    old = tokens.trainer.detach()
    difference = float((old - tokens.engine).abs().mean())
    if not difference <= GATE:
        raise SystemExit(
            f"trainer and engine differ by {difference:.2e} nats on average, more than {GATE:.0e}: stopped"
        )
    weights = (old - tokens.engine).exp().clamp(max=MAX_WEIGHT)
    loss = -(weights * tokens.advantage * tokens.trainer).mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    # The parameters are the engine's own: nothing is copied. It must forget the old weights' keys and values.
    llm.engine.update_weights({name: parameter.detach() for name, parameter in model.named_parameters()})
    return difference


def train(loaded: LoadedModel, args: argparse.Namespace) -> list[float]:
    """All steps; the mean reward of each."""
    llm = LLM(loaded, config=EngineConfig(records_routing=True, kv_cache_bytes=256 << 20))
    trained: list[torch.nn.Parameter] = []
    for name, parameter in loaded.model.named_parameters():
        # The experts stay as they are, for they are shipped in 4 bits, which would round small updates away.
        parameter.requires_grad_(not name.endswith((".experts.gate_up", ".experts.down")))
        if parameter.requires_grad:
            trained.append(parameter)
    optimizer = torch.optim.AdamW(trained, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
    task, rng = TASKS[args.task], random.Random(args.seed)
    rewards: list[float] = []
    for step in range(1, args.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (1 - (step - 1) / args.steps)
        problems = [task.problem(rng, held_out=False) for _ in range(args.problems)]
        groups = sample(llm, problems, task, args, rng)
        rewards.append(sum(episode.reward for group in groups for episode in group) / (args.problems * args.samples))
        episodes = advantages(groups)
        difference = learn(llm, episodes, optimizer) if episodes else 0.0
        used = len(episodes) // args.samples
        print(f"step {step}  reward {rewards[-1]:.3f}  {used} of {len(groups)} groups differ  gate {difference:.1e}")
    return rewards


def main(argv: list[str] | None = None) -> list[float]:
    """Read the options, and train."""
    parser = argparse.ArgumentParser(description="GRPO in one file.")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--task", default="add", choices=sorted(TASKS))
    parser.add_argument("--effort", default="low", choices=[effort.value for effort in Effort])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--problems", type=int, default=12)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    return train(load_trainable(args.model), args)


if __name__ == "__main__":
    main()
