"""The trainer's side: the policy's parameters, what it makes of episodes' tokens, and their update."""

# N sampled tokens, T tokens of a pass, D model, V vocabulary

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ossia.core.errors import TrainingError
from ossia.model.transformer import AttentionBackend, Transformer
from ossia.training.attention import DocumentRowAttention, FlexRowAttention
from ossia.training.optimizer import MuonAdamW
from ossia.training.quantize import is_expert_matrix, round_experts
from ossia.training.rl.config import RLConfig, gate_bounds
from ossia.training.rl.gate import Difference, check_gate, compare
from ossia.training.rl.loss import TokenValues, importance_weights, policy_loss
from ossia.training.rl.pack import Rows, pack
from ossia.training.rl.replay import ReplayRouter
from ossia.training.rl.trajectory import Datum


class Scores(NamedTuple):
    """Of sampled tokens, [N] float32 each: log-probability, and entropy of the distribution it was drawn from."""

    logprobs: Tensor
    entropy: Tensor


class LearnReport(NamedTuple):
    """What an update was like.

    Attributes:
        difference: between trainer and engine before it.
        entropy: mean over tokens, in nats.
        importance: mean of the truncated weights.
        largest_importance: before truncation.
        truncated: share of tokens whose weight was cut off.
        clipped: share of tokens whose ratio was held back, over all updates.
        kl: mean estimate of the divergence from the reference; 0 without one.
        grad_norm: of the last update.
        num_tokens: sampled tokens learned from.
    """

    difference: Difference
    entropy: float
    importance: float
    largest_importance: float
    truncated: float
    clipped: float
    kl: float
    grad_norm: float
    num_tokens: int


class Learner:
    """Trains a dense model in place.

    Args:
        model: whose parameters may be shared with an engine.
        config: the run.
        padding: id that fills rows up.

    Attributes:
        optimizer: over float32 masters.
    """

    def __init__(self, model: Transformer, *, config: RLConfig, padding: int) -> None:
        self.model, self.config = model, config
        self._padding = padding
        self.device = model.norm.weight.device
        self._reference = copy.deepcopy(model).requires_grad_(False) if config.policy.kl else None
        trained = {name: parameter for name, parameter in model.named_parameters() if self._is_trained(name)}
        model.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.optimizer = MuonAdamW(trained.items(), config=config.optimizer)
        if config.policy.experts == "mxfp4":
            self.optimizer.publish = round_experts
            self.optimizer.put_masters()
        self._bounds = gate_bounds(config.gate, is_float32=model.norm.weight.dtype == torch.float32)
        self._attend: Callable[..., Any] = flex_attention
        if self.device.type == "cuda":
            self._attend = torch.compile(flex_attention)

    def weights(self) -> dict[str, Tensor]:
        """The parameters, not copied, by name."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    def master_weights(self) -> dict[str, Tensor]:
        """The float32 weights by parameter name, from which a model is exported."""
        masters = self.optimizer.masters()
        return {name: masters.get(name, value.float()) for name, value in self.weights().items()}

    def _is_trained(self, name: str) -> bool:
        return self.config.policy.experts != "frozen" or not is_expert_matrix(name)

    def learn(self, data: Sequence[Datum], *, lr_scale: float, step: int) -> LearnReport:
        """Compare with the engine, then update the parameters by `policy.updates` steps of the optimizer.

        Args:
            data: of episodes that were sampled with these very weights.
            lr_scale: times the peak rates.
            step: for messages, and it seeds how data are dealt to several updates.

        Raises:
            TrainingError: the gate is shut, or the loss is no number; the parameters are as they were before the update
                that failed.
        """
        parts = [self._pack(part) for part in self._deal(data, step=step)]
        scores = [[self.score(rows) for rows in part] for part in parts]
        everything = [rows for part in parts for rows in part]
        old = torch.cat([score.logprobs for part in scores for score in part])
        engine = torch.cat([rows.engine for rows in everything])
        difference = compare(old, engine)
        check_gate(difference, config=self._bounds, step=step)
        norm = old.new_zeros(())
        clipped, kl = old.new_zeros(()), old.new_zeros(())
        for part, part_scores in zip(parts, scores, strict=True):
            num_tokens = sum(len(rows.targets) for rows in part)
            for rows, score in zip(part, part_scores, strict=True):
                values = TokenValues(rows.engine, score.logprobs, rows.advantages, self._score_reference(rows))
                loss = policy_loss(pick(self._run(self.model, rows), rows), values, config=self.config.policy)
                (loss.total / num_tokens).backward()
                clipped, kl = clipped + loss.clipped, kl + loss.kl
            norm = self._step(lr_scale, step=step)
        raw = (old - engine).exp()
        bound = self.config.policy.max_importance
        weights = importance_weights(TokenValues(engine, old, old), config=self.config.policy)
        return LearnReport(
            difference=difference,
            entropy=float(torch.cat([score.entropy for part in scores for score in part]).mean()),
            importance=float(weights.mean()),
            largest_importance=float(raw.max()),
            truncated=float((raw > bound).float().mean()),
            clipped=float(clipped) / len(old),
            kl=float(kl) / len(old),
            grad_norm=float(norm),
            num_tokens=len(old),
        )

    @torch.no_grad()
    def score(self, rows: Rows) -> Scores:
        """Log-probabilities and entropies by the weights as they are."""
        everything = self._run(self.model, rows)
        return Scores(pick(everything, rows), -(everything.exp() * everything).sum(dim=-1))

    def _deal(self, data: Sequence[Datum], *, step: int) -> list[list[Datum]]:
        """Data for each update: each datum once, in an order that follows from the seed and the step."""
        number = min(self.config.policy.updates, len(data))
        order = list(range(len(data)))
        random.Random(f"{self.config.run.seed} {step} updates").shuffle(order)
        return [[data[index] for index in order[part::number]] for part in range(number)]

    def _pack(self, data: Sequence[Datum]) -> list[Rows]:
        passes = pack(
            data,
            max_tokens=self.config.run.tokens_per_forward,
            padding=self._padding,
            replay=self.config.rollout.replay_routing,
        )
        return [rows.to(self.device) for rows in passes]

    def _run(self, model: Transformer, rows: Rows) -> Tensor:
        """The pass itself: log-probabilities of the whole vocabulary, [N, V], at the places that count."""
        router = None if rows.choices is None else ReplayRouter(rows.choices)
        hidden = model(
            rows.ids.flatten(), positions=rows.positions.flatten(), attention=self._attention(rows), router=router
        )
        return torch.log_softmax(model.logits(hidden.index_select(0, rows.places)), dim=-1)

    @torch.no_grad()
    def _score_reference(self, rows: Rows) -> Tensor | None:
        return None if self._reference is None else pick(self._run(self._reference, rows), rows)

    def _attention(self, rows: Rows) -> AttentionBackend:
        window = self.model.config.sliding_window
        if self.device.type == "cuda":
            return FlexRowAttention(rows.documents, window=window, attend=self._attend)
        return DocumentRowAttention(rows.documents, window=window)

    def _step(self, lr_scale: float, *, step: int) -> Tensor:
        norm = self.optimizer.grad_norm()
        if not norm.isfinite():
            raise TrainingError(
                f"step {step}: the gradient is not finite; lower optimizer.muon_lr or adamw_lr and run again: it "
                "resumes from the last checkpoint"
            )
        self.optimizer.step(scale=lr_scale, norm=norm)
        for parameter in self.model.parameters():
            parameter.grad = None
        return norm


def pick(logprobs: Tensor, rows: Rows) -> Tensor:
    """Of log-probabilities [N, V] those of the tokens that were sampled, [N]."""
    return logprobs.gather(-1, rows.targets[:, None])[:, 0]
