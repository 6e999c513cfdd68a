from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch

from ossia.core.errors import ContextLengthError, InvalidInputError
from ossia.kernels.sampling import sample, token_uniform
from ossia.model import generate as module
from ossia.model.attention import PackedAttention
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.generate import GenerationOptions, generate
from ossia.model.transformer import Transformer

VOCAB, CONTEXT = 53, 48
PROMPT = [7, 3, 50, 21, 8]


@pytest.fixture(scope="module")
def model() -> Transformer:
    config = ModelConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=6,
        max_position_embeddings=CONTEXT,
        rope=RopeConfig(factor=4.0, original_max_position_embeddings=12),
        eos_token_ids=(1,),
        pad_token_id=0,
    )
    model = Transformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.4 * noise)
    return model


def greedy(**changes: Any) -> GenerationOptions:
    return GenerationOptions(**({"temperature": 0.0} | changes))


@torch.inference_mode()
def uncached(model: Transformer, prompt: list[int], *, options: GenerationOptions, num_tokens: int) -> list[int]:
    """The whole text anew for every token, and the sampling kernel on its last row."""
    ids = list(prompt)
    for index in range(num_tokens):
        attention = PackedAttention([0, len(ids)])
        hidden = model(torch.tensor(ids), positions=torch.arange(len(ids)), attention=attention)
        token = sample(
            model.logits(hidden[-1:]),
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            uniforms=torch.tensor([token_uniform(options.seed or 0, index)], dtype=torch.float64),
        )
        ids.append(int(token))
    return ids[len(prompt) :]


@pytest.mark.parametrize(
    "options",
    [
        greedy(),
        GenerationOptions(seed=5),
        GenerationOptions(seed=6, temperature=0.6, top_p=0.8),
        GenerationOptions(seed=7, temperature=2.0, top_k=5, min_p=0.1),
    ],
)
def test_equals_generation_without_a_cache(model: Transformer, options: GenerationOptions) -> None:
    options = dataclasses.replace(options, max_tokens=25)
    got = list(generate(model, PROMPT, options=options))
    assert got == uncached(model, PROMPT, options=options, num_tokens=25)


@pytest.mark.parametrize("chunk", [1, 2, 5, 7])
def test_prefill_in_chunks_changes_nothing(model: Transformer, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = list(generate(model, PROMPT * 3, options=greedy(max_tokens=12)))
    monkeypatch.setattr(module, "PREFILL_CHUNK", chunk)
    assert list(generate(model, PROMPT * 3, options=greedy(max_tokens=12))) == wanted


def test_a_seed_repeats_and_seeds_differ(model: Transformer) -> None:
    runs = [list(generate(model, PROMPT, options=GenerationOptions(seed=s, max_tokens=20))) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_without_a_seed_answers_differ(model: Transformer) -> None:
    options = GenerationOptions(temperature=5.0, max_tokens=20)
    assert len({tuple(generate(model, PROMPT, options=options)) for _ in range(3)}) == 3


@torch.no_grad()
def test_sampling_follows_the_model(model: Transformer) -> None:
    hidden = model(torch.tensor(PROMPT), positions=torch.arange(5), attention=PackedAttention([0, 5]))
    p = (model.logits(hidden[-1:])[0] / 3.0).softmax(dim=-1)
    likeliest = int(p.argmax())
    options = [GenerationOptions(seed=seed, temperature=3.0, max_tokens=1) for seed in range(300)]
    counts = Counter(next(generate(model, PROMPT, options=option)) for option in options)
    share = float(p[likeliest])
    # Four standard deviations; the seeds are fixed.
    assert abs(counts[likeliest] / 300 - share) < 4 * (share * (1 - share) / 300) ** 0.5


def test_the_stop_token_comes_and_ends(model: Transformer) -> None:
    free = list(generate(model, PROMPT, options=greedy(max_tokens=20)))
    stop = free[6]
    stopped = list(generate(model, PROMPT, options=greedy(max_tokens=20, stop_ids=(stop, 0))))
    assert stopped == free[: free.index(stop) + 1]


def test_max_tokens_and_the_end_of_the_context(model: Transformer) -> None:
    assert len(list(generate(model, PROMPT, options=greedy(max_tokens=3)))) == 3
    assert len(list(generate(model, PROMPT, options=greedy()))) == CONTEXT - len(PROMPT)
    assert len(list(generate(model, PROMPT, options=greedy(max_tokens=1000)))) == CONTEXT - len(PROMPT)
    assert len(list(generate(model, [4] * (CONTEXT - 1), options=greedy()))) == 1


def test_no_gradients_and_no_inference_mode_left_behind(model: Transformer) -> None:
    stream = generate(model, PROMPT, options=greedy(max_tokens=3))
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    stream.close()  # type: ignore[attr-defined]


def test_errors_come_before_the_first_token(model: Transformer) -> None:
    with pytest.raises(InvalidInputError, match="prompt is empty"):
        generate(model, [], options=greedy())
    with pytest.raises(ContextLengthError, match=f"has {CONTEXT} tokens, but at most {CONTEXT - 1} fit"):
        generate(model, [1] * CONTEXT, options=greedy())
    with pytest.raises(InvalidInputError, match=r"prompt_ids\[1\] is 53; allowed: token ids from 0 to 52"):
        generate(model, [1, VOCAB], options=greedy())
    with pytest.raises(InvalidInputError, match=r"prompt_ids\[0\] is -1"):
        generate(model, [-1], options=greedy())
    with pytest.raises(InvalidInputError, match=r"stop_ids\[0\] is 99"):
        generate(model, PROMPT, options=greedy(stop_ids=(99,)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; allowed: a finite number of at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0; allowed: a number above 0, at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_k": -1}, "top_k is -1; allowed: a whole number, 0 for all tokens"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"min_p": 2.0}, "min_p is 2.0; allowed: a number from 0 to 1"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"max_tokens": 0}, "max_tokens is 0; allowed: a whole number of at least 1, or None"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        GenerationOptions(**options)
    assert caught.value.param == next(iter(options))
