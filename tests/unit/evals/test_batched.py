from __future__ import annotations

import pytest
import torch

from ossia.core.errors import ContextLengthError, InvalidInputError
from ossia.evals.batched import attend_rows, generate_batch, num_shared, up_to_stop
from ossia.model.config import ModelConfig
from ossia.model.generate import GenerationOptions, generate
from ossia.model.transformer import Transformer

VOCAB = 61


def make_model(*, window: int = 5, kv_heads: int = 2, seed: int = 0) -> Transformer:
    config = ModelConfig.from_hf(
        {
            "model_type": "gpt_oss",
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 3,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": kv_heads,
            "head_dim": 8,
            "sliding_window": window,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "max_position_embeddings": 128,
        }
    )
    model = Transformer(config, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Sharp logits: near-ties would make token-for-token equality a matter of rounding.
            scale = 1.0 if "norm" in name else 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def solo(model: Transformer, prompt: list[int], *, max_tokens: int, stop_ids: tuple[int, ...]) -> list[int]:
    options = GenerationOptions(temperature=0.0, max_tokens=max_tokens, stop_ids=stop_ids)
    return list(generate(model, prompt, options=options))


def make_prompts(lengths: tuple[int, ...], *, shared: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    draw = torch.randint(VOCAB, (len(lengths), max(lengths)), generator=generator).tolist()
    return [draw[0][:shared] + ids[shared:length] for ids, length in zip(draw, lengths, strict=True)]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize(
    ("lengths", "shared"), [((1,), 0), ((9, 3, 14, 3), 0), ((9, 12, 10, 8, 20), 7), ((6, 6), 6), ((11, 4), 3)]
)
def test_equals_generate_token_for_token(kv_heads: int, lengths: tuple[int, ...], shared: int) -> None:
    model = make_model(kv_heads=kv_heads)
    prompts = make_prompts(lengths, shared=shared)
    answers = generate_batch(model, prompts, max_tokens=21, stop_ids=())
    assert answers == [solo(model, prompt, max_tokens=21, stop_ids=()) for prompt in prompts]
    assert all(len(answer) == 21 for answer in answers)


def test_rows_that_stop_early_do_not_disturb_the_others() -> None:
    model = make_model()
    prompts = make_prompts((5, 9, 7, 12, 6, 8, 10, 5), shared=2)
    free = generate_batch(model, prompts, max_tokens=40, stop_ids=())
    # Stop ids that end rows at different times, some at once and some never.
    stop_ids = (free[0][0], free[1][4], free[2][17])
    answers = generate_batch(model, prompts, max_tokens=40, stop_ids=stop_ids)
    assert answers == [solo(model, prompt, max_tokens=40, stop_ids=stop_ids) for prompt in prompts]
    assert answers == [up_to_stop(ids, stop_ids) for ids in free]
    assert len(answers[0]) == 1
    assert len({len(answer) for answer in answers}) > 2


def test_batch_order_does_not_matter() -> None:
    model = make_model(seed=1)
    prompts = make_prompts((5, 9, 7), shared=0)
    forward = generate_batch(model, prompts, max_tokens=12, stop_ids=(3,))
    assert generate_batch(model, prompts[::-1], max_tokens=12, stop_ids=(3,)) == forward[::-1]


@pytest.mark.parametrize("max_tokens", [1, 7, 8, 9])
def test_budget_is_kept_whatever_the_step_of_looking(max_tokens: int) -> None:
    model = make_model()
    prompts = make_prompts((4, 6), shared=0)
    answers = generate_batch(model, prompts, max_tokens=max_tokens, stop_ids=())
    assert [len(answer) for answer in answers] == [max_tokens, max_tokens]


def test_attend_rows_sees_sinks_windows_and_its_own_row_only() -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 1, 4, 8, generator=generator)
    keys, values = torch.randn(2, 2, 6, 2, 8, generator=generator)
    hidden = torch.tensor([[[False, False, False, True, True, True]], [[True, True, False, False, False, False]]])
    sinks = torch.randn(4, generator=generator)
    out = attend_rows(queries, keys, values, hidden=hidden, sinks=sinks)
    for row in range(2):
        for head in range(4):
            seen = ~hidden[row, 0]
            scores = keys[row, seen, head // 2].double() @ queries[row, 0, head].double() / 8**0.5
            weights = torch.cat((scores, sinks[head, None].double())).softmax(dim=0)[:-1]
            wanted = weights @ values[row, seen, head // 2].double()
            torch.testing.assert_close(out[row, 0, head].double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2, 3], [1, 2]], 1), ([[1], [1]], 0), ([[5, 1], [6, 1]], 0), ([[1, 2, 3]], 2)],
)
def test_num_shared_leaves_each_row_a_token(prompts: list[list[int]], shared: int) -> None:
    assert num_shared(prompts) == shared


def test_nothing_in_nothing_out() -> None:
    assert generate_batch(make_model(), [], max_tokens=3, stop_ids=()) == []


def test_bad_input_is_refused() -> None:
    model = make_model()
    with pytest.raises(InvalidInputError, match="empty"):
        generate_batch(model, [[1], []], max_tokens=3, stop_ids=())
    with pytest.raises(InvalidInputError, match="max_tokens is 0"):
        generate_batch(model, [[1]], max_tokens=0, stop_ids=())
    with pytest.raises(ContextLengthError, match="100 tokens, but at most 98"):
        generate_batch(model, [[1] * 100], max_tokens=30, stop_ids=())
