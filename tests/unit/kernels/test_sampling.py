from __future__ import annotations

import math
import random
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.kernels import sampling as module
from ossia.kernels.sampling import (
    choose,
    mix_seed,
    plan_sampling,
    rank_tokens,
    sample,
    token_uniform,
    token_uniforms,
)


def uniforms(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def chosen_in_python(
    logits: list[float], *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> int:
    """One row, by lists."""
    ids = range(len(logits))
    if temperature == 0:
        return max(ids, key=lambda i: (logits[i], -i))
    weights = [math.exp((x - max(logits)) / temperature) for x in logits]
    total = math.fsum(weights)
    share = [weight / total for weight in weights]
    ranked = sorted(ids, key=lambda i: (-share[i], i))
    ranked = ranked[: top_k or None]
    kept, so_far, all_kept = [], 0.0, math.fsum(share[i] for i in ranked)
    for i in ranked:
        if top_p < 1 and kept and so_far >= top_p * all_kept:
            break
        kept.append(i)
        so_far += share[i]
    kept = sorted(i for i in kept if share[i] >= min_p * max(share))
    target, so_far = uniform * math.fsum(share[i] for i in kept), 0.0
    for i in kept:
        so_far += share[i]
        if so_far > target:
            return i
    return kept[-1]


options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.1, 0.7, 1.0, 2.5]),
        "top_k": st.sampled_from([0, 1, 2, 5, 50]),
        "top_p": st.sampled_from([0.05, 0.33, 0.8, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.03, 0.3, 1.0]),
    }
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(options, min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_each_row_is_as_if_alone_and_as_in_python(rows: list[dict[str, float]], seed: int) -> None:
    draw = random.Random(seed)
    logits = torch.tensor([[draw.gauss(0, 3) for _ in range(23)] for _ in rows])
    u = uniforms(*(draw.random() for _ in rows))
    columns = {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}
    batch = sample(logits, uniforms=u, **columns)
    for row, given_options in enumerate(rows):
        alone = sample(logits[row : row + 1], uniforms=u[row : row + 1], **given_options)
        assert int(batch[row]) == int(alone)
        wanted = chosen_in_python(logits[row].double().tolist(), uniform=float(u[row]), **given_options)
        assert int(batch[row]) == wanted


def test_frequencies_are_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    n = 20000
    u = torch.tensor([token_uniform(7, index) for index in range(n)], dtype=torch.float64)
    counts = Counter(sample(logits.expand(n, 4), temperature=1.0, uniforms=u).tolist())
    for token, p in enumerate(logits[0].softmax(-1).tolist()):
        # Five standard deviations of a binomial share; the seed is fixed.
        assert abs(counts[token] / n - p) < 5 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize("temperature", [0.0, 1e-6, 1e-30])
def test_no_temperature_means_the_largest_logit(temperature: float) -> None:
    logits = torch.tensor([[1e4, 3e4, 2.9e4], [-5.0, -7.0, -6.0]])
    assert sample(logits, temperature=temperature, uniforms=uniforms(0.99, 0.0)).tolist() == [1, 0]


def test_the_first_of_equal_logits_wins() -> None:
    assert sample(torch.zeros(1, 5), temperature=0.0, uniforms=uniforms(0.9)).tolist() == [0]
    assert sample(torch.zeros(1, 5), temperature=1.0, top_k=1, uniforms=uniforms(0.9)).tolist() == [0]


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_masked_tokens_are_never_chosen(u: float) -> None:
    logits = torch.full((1, 64), -math.inf)
    logits[0, 40] = 0.0
    assert sample(logits, temperature=1.0, uniforms=uniforms(u)).tolist() == [40]
    assert sample(logits, temperature=1.0, top_p=0.5, uniforms=uniforms(u)).tolist() == [40]


def test_float_noise_at_the_end_of_the_scale() -> None:
    logits = torch.randn(1, 50000, generator=torch.Generator().manual_seed(0))
    last = sample(logits, temperature=1.0, uniforms=uniforms(1 - 2**-53))
    assert int(last) == 49999


def test_uniforms_are_pure_and_differ() -> None:
    drawn = [token_uniform(seed, index) for seed in range(40) for index in range(50)]
    assert drawn == [token_uniform(seed, index) for seed in range(40) for index in range(50)]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= u < 1 for u in drawn)
    # Mean and variance of 2000 uniforms, within five standard errors.
    mean = sum(drawn) / len(drawn)
    assert abs(mean - 0.5) < 5 * math.sqrt(1 / 12 / len(drawn))
    assert abs(sum((u - mean) ** 2 for u in drawn) / len(drawn) - 1 / 12) < 0.01


def test_uniforms_are_these_for_ever() -> None:
    """A seed that someone noted down must give the same tokens in later versions."""
    assert token_uniform(0, 0) == token_uniform(2**64, 0)
    assert module._mix(0) == 0xE220A8397B1DCDAF  # the first output of SplitMix64 with seed 0, as published
    drawn = [token_uniform(1, 0), token_uniform(1, 1), token_uniform(-1, 5)]
    assert drawn == [0.36818951565166946, 0.5267179955718279, 0.20852775745463303]


@given(pairs=st.lists(st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**31)), min_size=1, max_size=9))
def test_uniforms_in_bulk_are_those_one_by_one(pairs: list[tuple[int, int]]) -> None:
    seeds = np.array([mix_seed(seed) for seed, _ in pairs], dtype=np.uint64)
    indices = np.array([index for _, index in pairs], dtype=np.uint64)
    assert token_uniforms(seeds, indices).tolist() == [token_uniform(*pair) for pair in pairs]


def by_sorting(
    logits: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float, uniform: float
) -> tuple[int, float]:
    """One row [V], all of it sorted; and how near any cut or the draw itself came to another outcome."""
    weights = (logits.double() - logits.double().max()).div(temperature).exp()
    ranked, order = weights.sort(descending=True, stable=True)
    ranked[top_k or len(ranked) :] = 0
    before = ranked.cumsum(0) - ranked
    goal = top_p * ranked.sum()
    distance = 1.0
    if top_p < 1:
        distance = float((before - goal).abs().min() / ranked.sum())
        ranked[1:].masked_fill_(before[1:] >= goal, 0)
    ranked[ranked < min_p] = 0
    running = torch.zeros_like(weights).scatter(0, order, ranked).cumsum(0)
    target = uniform * running[-1]
    distance = min(distance, float((running - target).abs().min() / running[-1]))
    return int((running > target).nonzero()[0]), distance


# Wide enough that top_p has to leave its shortcuts behind, with the ties that bfloat16 makes.
wide_options = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.2, 1.0, 3.0, 50.0]),
        "top_k": st.sampled_from([0, 0, 0, 3, 200, 1024, 1500, 4000]),
        "top_p": st.sampled_from([0.1, 0.9, 0.99, 1.0]),
        "min_p": st.sampled_from([0.0, 0.0, 0.02]),
    }
)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(wide_options, min_size=1, max_size=4), seed=st.integers(0, 10**6), is_coarse=st.booleans())
def test_shortcuts_change_nothing(rows: list[dict[str, float]], seed: int, is_coarse: bool) -> None:
    V = 3001
    logits = 3 * torch.randn(len(rows), V, generator=torch.Generator().manual_seed(seed))
    logits = logits.bfloat16().float() if is_coarse else logits
    u = uniforms(*(token_uniform(seed, index) for index in range(len(rows))))
    columns = {name: torch.tensor([row[name] for row in rows]).double() for name in rows[0]}
    batch = sample(logits, uniforms=u, **columns)
    for row, given_options in enumerate(rows):
        alone = sample(logits[row : row + 1], uniforms=u[row : row + 1], **given_options)
        assert int(alone) == int(batch[row])
        wanted, distance = by_sorting(logits[row], uniform=float(u[row]), **given_options)
        assert int(batch[row]) == wanted or distance < 1e-12  # the sums are taken in another order


@given(
    rows=st.lists(
        st.lists(st.sampled_from([-math.inf, -3.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.0, 2e30]), min_size=7, max_size=7),
        min_size=1,
        max_size=4,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_ranking_is_a_stable_sort(rows: list[list[float]], dtype: torch.dtype) -> None:
    logits = torch.tensor(rows, dtype=dtype)
    wanted = [sorted(range(7), key=lambda i, row=row: (-row[i], i)) for row in logits.tolist()]
    for count in (1, 3, 7):
        assert rank_tokens(logits, num_tokens=count).tolist() == [row[:count] for row in wanted]


def test_rows_without_meaning_stay_in_the_vocabulary_and_harm_no_other() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    logits[1] = math.nan
    logits[2] = -math.inf
    logits[3, 7] = math.inf
    u = uniforms(0.3, 0.3, 0.3, 0.3, 0.3)
    for changes in ({}, {"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.1}, {"temperature": 0.0}):
        given_options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | changes
        plan = plan_sampling(
            **{name: [value] * 5 for name, value in given_options.items()}, vocab_size=40, device=logits.device
        )
        ids, largest = choose(logits, plan=plan, uniforms=u)
        assert largest.isfinite().tolist() == [True, False, False, False, True]
        assert bool(((ids >= 0) & (ids < 40)).all())
        healthy = sample(logits[[0, 4]], uniforms=u[:2], **given_options)
        assert ids[[0, 4]].tolist() == healthy.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("changes", [{}, {"top_p": 0.9}, {"top_k": 40}, {"top_k": 1500, "top_p": 0.8}, {"min_p": 0.05}])
def test_a_gpu_chooses_the_same_and_the_host_does_not_wait(changes: dict[str, float]) -> None:
    logits = 3 * torch.randn(6, 5000, generator=torch.Generator().manual_seed(9))
    u = uniforms(*(token_uniform(4, index) for index in range(6)))
    given_options = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | changes
    columns = {name: [value] * 5 + [0.0 if name == "temperature" else value] for name, value in given_options.items()}
    wanted = choose(logits, plan=plan_sampling(**columns, vocab_size=5000, device=logits.device), uniforms=u).ids
    device = torch.device("cuda")
    plan = plan_sampling(**columns, vocab_size=5000, device=device)
    there, u_there = logits.to(device), u.to(device)
    choose(there, plan=plan, uniforms=u_there)  # kernels are loaded now
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of being a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        got = choose(there, plan=plan, uniforms=u_there).ids
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got.tolist() == wanted.tolist()
