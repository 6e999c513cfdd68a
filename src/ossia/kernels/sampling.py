"""From logits to token ids: greedy, or by inverse CDF with one uniform number a token.

A row's token depends on that row's logits, options and uniform only, and a token's uniform is a pure function of the
request's seed and the token's index. So a request gives the same tokens whatever else is in its batch.

`sample` is the whole of it. A caller that samples again and again with the same options makes a `SamplingPlan` once
and calls `choose`: it then neither reads options back from the device nor does what no row asks for.
"""

# N rows, G rows of a group, V vocabulary, R tokens ranked

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MAX_RANKED = 1024
"""Up to this top_k, a row's likeliest tokens are selected; beyond, all are sorted."""
_FIRST_RANKED = 256
"""On the CPU, top_p looks for its tokens among so many of the likeliest before it sorts them all."""
_MASK64 = (1 << 64) - 1
_LOW32 = (1 << 32) - 1
_LOW31 = (1 << 31) - 1


class SamplingGroup(NamedTuple):
    """Rows that are sampled by the same way.

    Attributes:
        rows: [G] int64, which; None for all rows in order.
        temperature: [G, 1] float64, above 0.
        min_p: [G, 1] float64, or None if no row has one.
        top_k: [G, 1] int64, or None if no row has one.
        top_p: [G, 1] float64, or None if no row has one.
        num_ranked: the likeliest tokens, so many of them, hold all that top_k leaves; 0 if that may be all tokens.
    """

    rows: Tensor | None
    temperature: Tensor
    min_p: Tensor | None
    top_k: Tensor | None
    top_p: Tensor | None
    num_ranked: int


class SamplingPlan(NamedTuple):
    """The options of N rows on the device, sorted by the work they make.

    Attributes:
        groups: the rows that are drawn; those in none are greedy.
    """

    groups: tuple[SamplingGroup, ...]

    @property
    def is_greedy(self) -> bool:
        """Whether no row needs a uniform."""
        return not self.groups


class Choice(NamedTuple):
    """What was chosen.

    Attributes:
        ids: [N] int64, always within the vocabulary.
        largest: [N], each row's largest logit. Where it is not finite the id means nothing: NaN or infinity among the
            logits, or minus infinity everywhere.
    """

    ids: Tensor
    largest: Tensor


def token_uniform(seed: int, index: int) -> float:
    """A number in [0, 1), a pure function of a request's seed and a token's index among those it samples.

    Counter-based: SplitMix64's output function (Steele, Lea and Flood 2014), once over the seed and once over the
    counter, so that neighbouring seeds give unrelated sequences.
    """
    return (_mix(mix_seed(seed) + index) >> 11) / (1 << 53)


def token_uniforms(mixed_seeds: npt.NDArray[np.uint64], indices: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """`token_uniform` of each pair [N]; the seeds have been through `mix_seed`."""
    z = mixed_seeds + indices + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * np.float64(2.0**-53)


def mix_seed(seed: int) -> int:
    """The part of `token_uniform` that depends on the seed alone; any whole number is taken modulo 2**64."""
    return _mix(seed & _MASK64)


def sample(
    logits: Tensor,
    *,
    temperature: Tensor | float,
    uniforms: Tensor,
    top_k: Tensor | int = 0,
    top_p: Tensor | float = 1.0,
    min_p: Tensor | float = 0.0,
) -> Tensor:
    """Choose one token a row.

    The order is: temperature, top_k, top_p (of what top_k left), min_p. At least the likeliest token always stays.
    Of equal logits the lower id counts as the likelier.

    Args:
        logits: [N, V].
        temperature: [N] or one for all; 0 takes the largest logit, the first of equals.
        uniforms: [N] float64 in [0, 1); ignored where greedy.
        top_k: keep so many of the likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens until their share reaches this; 1 keeps all.
        min_p: keep tokens at least this times as likely as the likeliest; 0 keeps all.

    Returns:
        [N] int64.
    """
    N, V = logits.shape
    plan = plan_sampling(
        temperature=_to_list(temperature, N),
        top_k=[int(k) for k in _to_list(top_k, N)],
        top_p=_to_list(top_p, N),
        min_p=_to_list(min_p, N),
        vocab_size=V,
        device=logits.device,
    )
    return choose(logits, plan=plan, uniforms=uniforms).ids


def plan_sampling(
    *,
    temperature: Sequence[float],
    top_k: Sequence[int],
    top_p: Sequence[float],
    min_p: Sequence[float],
    vocab_size: int,
    device: torch.device,
) -> SamplingPlan:
    """Sort N rows by the work that their options make: one of each sequence a row, meant as in `sample`."""
    plain, ranked, nucleus, sorted_ = [], [], [], []
    for row, heat in enumerate(temperature):
        if heat <= 0:
            continue
        if 0 < top_k[row] < vocab_size:
            (ranked if top_k[row] <= MAX_RANKED else sorted_).append(row)
        else:
            (nucleus if top_p[row] < 1.0 else plain).append(row)

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return to_device(torch.tensor(values, dtype=dtype).view(-1, 1), device)

    groups = []
    for rows, has_top_k in ((plain, False), (ranked, True), (nucleus, False), (sorted_, True)):
        if not rows:
            continue
        has_min_p = any(min_p[row] > 0 for row in rows)
        has_top_p = any(top_p[row] < 1.0 for row in rows)
        groups.append(
            SamplingGroup(
                rows=None if len(rows) == len(temperature) else to_device(torch.tensor(rows), device),
                temperature=column([temperature[row] for row in rows]),
                min_p=column([min(min_p[row], 1.0) for row in rows]) if has_min_p else None,
                top_k=column([top_k[row] for row in rows], torch.int64) if has_top_k else None,
                top_p=column([top_p[row] for row in rows]) if has_top_p else None,
                num_ranked=max(top_k[row] for row in rows) if rows is ranked else 0,
            )
        )
    return SamplingPlan(tuple(groups))


def choose(logits: Tensor, *, plan: SamplingPlan, uniforms: Tensor | None) -> Choice:
    """Choose one token a row, by a plan made for these rows. On a GPU the host waits for nothing.

    Args:
        logits: [N, V].
        plan: from `plan_sampling`.
        uniforms: [N] float64 in [0, 1); may be None if the plan is greedy.
    """
    ids, largest = _largest(logits)
    for group in plan.groups:
        assert uniforms is not None
        rows = group.rows
        if rows is None:
            drawn = _draw(logits, largest=largest.view(-1, 1), group=group, uniforms=uniforms)
            ids = drawn
        else:
            drawn = _draw(
                logits.index_select(0, rows),
                largest=largest.index_select(0, rows).view(-1, 1),
                group=group,
                uniforms=uniforms.index_select(0, rows),
            )
            ids = ids.index_copy(0, rows, drawn)
    return Choice(ids=ids, largest=largest)


def rank_tokens(logits: Tensor, *, num_tokens: int) -> Tensor:
    """The ids of each row's largest logits, largest first and of equals the lower id first: [N, V] -> [N, num_tokens].

    `Tensor.topk` leaves the order of equals open, and logits that were bfloat16 have many. So the logit's bits and the
    id are made one whole number, and no two are equal.
    """
    V = logits.shape[-1]
    if logits.dtype == torch.float64:
        return logits.sort(dim=-1, descending=True, stable=True).indices[:, :num_tokens]
    logits = logits.detach().float()
    if logits.device.type == "cpu":
        return torch.from_numpy(_rank_in_numpy(logits.numpy(), num_tokens))
    bits = (logits + 0.0).view(torch.int32)  # adding 0 makes one of the two zeros
    ordered = bits ^ ((bits >> 31) & _LOW31)  # negative floats: the larger the bits, the smaller the number
    keys = (ordered.long() << 32) | (_LOW32 - torch.arange(V, device=logits.device))
    best = keys.topk(num_tokens, dim=-1).values if num_tokens < V else keys.sort(dim=-1, descending=True).values
    return _LOW32 - (best & _LOW32)


def _rank_in_numpy(logits: npt.NDArray[np.float32], num_tokens: int) -> npt.NDArray[np.int64]:
    """`rank_tokens` on the CPU, where NumPy selects and sorts with vector instructions, many times as fast as torch."""
    N, V = logits.shape
    if num_tokens == V or N == 0:
        keys = _order_keys(logits, np.arange(V))
    else:
        # What is not below the last one wanted: that, its equals, and NaN.
        least = np.partition(logits, V - num_tokens, axis=-1)[:, V - num_tokens, None]
        places = np.flatnonzero(~(logits < least))
        rows = places // V
        starts = np.searchsorted(rows, np.arange(N + 1))
        keys = np.full((N, int(np.diff(starts).max())), np.iinfo(np.int64).min)
        keys[rows, np.arange(len(rows)) - starts[rows]] = _order_keys(logits.reshape(-1)[places], places - rows * V)
    keys.sort(axis=-1)
    return _LOW32 - (keys[:, : -num_tokens - 1 : -1] & _LOW32)


def _order_keys(logits: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Whole numbers in the order of logits, and of equals the lower id the larger; see `rank_tokens`."""
    bits = (logits + np.float32(0.0)).view(np.int32)
    bits ^= (bits >> 31) & np.int32(_LOW31)
    keys = np.left_shift(bits, 32, dtype=np.int64)
    keys |= _LOW32 - ids
    return keys


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a small host tensor to the device; the host does not wait for a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _draw(logits: Tensor, *, largest: Tensor, group: SamplingGroup, uniforms: Tensor) -> Tensor:
    """Draw a token for each row [G, V] of a group: [G]."""
    if group.top_k is None and group.top_p is None:
        if logits.is_cuda and logits.dtype == torch.float32 and _has_triton():
            from ossia.kernels.gpu.sampling import sample_gpu

            temperature = group.temperature[:, 0]
            min_p = torch.zeros_like(temperature) if group.min_p is None else group.min_p[:, 0]
            return sample_gpu(logits.contiguous(), temperature=temperature, uniforms=uniforms, min_p=min_p)
        weights = _weights(logits, largest=largest, temperature=group.temperature)
        if group.min_p is not None:
            weights.masked_fill_(weights < group.min_p, 0.0)
        return _invert(weights, uniforms=uniforms)
    if group.top_k is not None:
        num_ranked = group.num_ranked or logits.shape[-1]
        return _draw_ranked(logits, largest=largest, group=group, uniforms=uniforms, num_ranked=num_ranked).ids
    return _draw_nucleus(logits, largest=largest, group=group, uniforms=uniforms)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _draw_nucleus(logits: Tensor, *, largest: Tensor, group: SamplingGroup, uniforms: Tensor) -> Tensor:
    """Draw by top_p without top_k: [G].

    On the CPU, where looking at a result costs nothing, a few of the likeliest tokens are tried before all of them.
    """
    V = logits.shape[-1]
    total = _weights(logits, largest=largest, temperature=group.temperature).cumsum(dim=-1)[:, -1:]

    def draw(rows: Tensor | None, num_ranked: int) -> _Drawn:
        def pick(tensor: Tensor) -> Tensor:
            return tensor if rows is None else tensor[rows]

        part = group._replace(
            temperature=pick(group.temperature),
            min_p=None if group.min_p is None else pick(group.min_p),
            top_p=None if group.top_p is None else pick(group.top_p),
        )
        return _draw_ranked(
            pick(logits),
            largest=pick(largest),
            group=part,
            uniforms=pick(uniforms),
            num_ranked=num_ranked,
            total=pick(total),
        )

    if logits.device.type != "cpu" or V <= _FIRST_RANKED:
        return draw(None, V).ids
    ids, is_complete = draw(None, _FIRST_RANKED)
    if not bool(is_complete.all()):
        rest = (~is_complete).nonzero()[:, 0]
        ids = ids.index_copy(0, rest, draw(rest, V).ids)
    return ids


class _Drawn(NamedTuple):
    ids: Tensor
    is_complete: Tensor


def _draw_ranked(
    logits: Tensor,
    *,
    largest: Tensor,
    group: SamplingGroup,
    uniforms: Tensor,
    num_ranked: int,
    total: Tensor | None = None,
) -> _Drawn:
    """Draw among the `num_ranked` likeliest tokens of each row.

    Args:
        total: weight [G, 1] of which top_p is a share, if it is not that of the tokens ranked.

    Returns:
        ids [G], and [G] whether the tokens ranked were all that top_p may keep.
    """
    ids = rank_tokens(logits, num_tokens=num_ranked)
    weights = _weights(logits.gather(-1, ids), largest=largest, temperature=group.temperature)
    rank = torch.arange(num_ranked, device=logits.device)
    if group.top_k is not None:
        weights.masked_fill_(rank >= group.top_k, 0.0)
    is_complete = torch.ones((), dtype=torch.bool)
    if group.top_p is not None:
        running = weights.cumsum(dim=-1)
        goal = group.top_p * (running[:, -1:] if total is None else total)
        is_cut = (running[:, :-1] >= goal) & (group.top_p < 1.0)
        weights[:, 1:].masked_fill_(is_cut, 0.0)
        is_complete = (running[:, -1:] >= goal)[:, 0]
    if group.min_p is not None:
        weights.masked_fill_(weights < group.min_p, 0.0)
    # Back to the order of ids: with it a uniform means the same token whatever was ranked.
    if num_ranked == logits.shape[-1]:
        by_id = torch.empty_like(weights).scatter_(-1, ids, weights)
        return _Drawn(ids=_invert(by_id, uniforms=uniforms), is_complete=is_complete)
    order = torch.from_numpy(ids.numpy().argsort(axis=-1)) if ids.device.type == "cpu" else ids.argsort(dim=-1)
    place = _invert(weights.gather(-1, order), uniforms=uniforms).view(-1, 1)
    return _Drawn(ids=ids.gather(-1, order.gather(-1, place))[:, 0], is_complete=is_complete)


def _weights(logits: Tensor, *, largest: Tensor, temperature: Tensor) -> Tensor:
    """Each token's probability over that of the likeliest, in a new float64 tensor.

    The largest logit is taken away first: a tiny temperature must not turn two large logits into infinities.
    """
    return logits.to(torch.float64, copy=True).sub_(largest).div_(temperature).exp_()


def _invert(weights: Tensor, *, uniforms: Tensor) -> Tensor:
    """The first token at which the running sum of weights [N, V] exceeds the uniform's share of the total: [N]."""
    running = weights.cumsum(dim=-1)
    total = running[:, -1:]
    # Below the total even after rounding, so that some token exceeds it; one of weight 0 never is the first to.
    target = torch.minimum(uniforms.to(running).view(-1, 1) * total, torch.nextafter(total, torch.zeros_like(total)))
    # Weights that are not numbers may lead nowhere; the caller sees those by the largest logit.
    return torch.searchsorted(running, target, right=True).squeeze(-1).clamp_(max=weights.shape[-1] - 1)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's first largest logit: ids [N] and values [N]; NaN counts as the largest."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # NumPy's is vectorised, several times as fast as torch's.
        ids = torch.from_numpy(logits.detach().numpy().argmax(axis=-1))
        return ids, logits.gather(-1, ids.view(-1, 1))[:, 0]
    values, ids = logits.max(dim=-1)
    return ids, values


def _to_list(value: Tensor | float, length: int) -> list[float]:
    """An option for each row, from one for each or one for all."""
    values = torch.as_tensor(value, dtype=torch.float64).flatten().tolist()
    return values * length if len(values) == 1 else values


def _mix(z: int) -> int:
    z = (z + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)
