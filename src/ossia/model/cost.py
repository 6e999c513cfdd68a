"""What the model's arithmetic needs at the least: bytes read by a decode step, multiplications of a prompt."""

# D hidden, H heads, K KV heads, C head dim, E experts, A active experts, F expert hidden, V vocabulary

from __future__ import annotations

from ossia.model.config import ModelConfig

MXFP4_BYTES = 17 / 32
"""Bytes a weight: four bits, and one byte of scale for 32 of them."""


def expected_experts(config: ModelConfig, *, num_tokens: int) -> float:
    """How many distinct experts of a layer see any of so many tokens, if each token's choice is uniform."""
    share = config.num_experts_per_tok / config.num_local_experts
    return config.num_local_experts * (1 - (1 - share) ** num_tokens)


def step_bytes(
    config: ModelConfig, *, num_seqs: int, context: int, num_experts: float | None = None, dense_bytes: float = 2
) -> float:
    """Bytes that a decode step must read: weights (of experts, those in use) once, and each sequence's keys and values.

    Args:
        config: the shape; experts in MXFP4, keys and values in 16 bits.
        num_seqs: sequences in the step, a token each.
        context: tokens that each one holds.
        num_experts: distinct experts in use, the mean over layers; None for what uniform routing gives.
        dense_bytes: bytes a weight of attention and lm_head.
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, C, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.num_local_experts
    if num_experts is None:
        num_experts = expected_experts(config, num_tokens=num_seqs)
    layer = dense_bytes * (D * (H + 2 * K) * C + H * C * D) + 2 * E * D + num_experts * 3 * F * D * MXFP4_BYTES
    windows = [config.window(index) for index in range(config.num_hidden_layers)]
    held = sum(context if window is None else min(context, window) for window in windows)
    return len(windows) * layer + num_seqs * held * 2 * K * C * 2 + dense_bytes * V * D


def prompt_flops(config: ModelConfig, *, length: int) -> float:
    """Multiplications and additions of a prompt's forward pass, with the logits of its last token."""
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, C, A = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.num_experts_per_tok
    layer = 2 * length * (D * (H + 2 * K) * C + H * C * D + A * 3 * F * D)
    pairs = 0.0
    for index in range(config.num_hidden_layers):
        window = min(config.window(index) or length, length)
        pairs += window * (window + 1) / 2 + (length - window) * window
    return config.num_hidden_layers * layer + 4 * H * C * pairs + 2 * V * D
