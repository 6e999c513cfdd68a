"""Arithmetic about a config: parameters at work, bytes by format, and what fits into how much memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ossia.model.config import ModelConfig

GIB = 1 << 30
DEVICES = {
    "16 GB GPU or laptop": 16 * GIB,
    "24 GB GPU (RTX 4090)": 24 * GIB,
    "32 GB GPU (RTX 5090)": 32 * GIB,
    "80 GB GPU (H100)": 80 * GIB,
    "141 GB GPU (H200)": 141 * GIB,
}
"""Memory by kind of machine, in the sizes that one can buy."""
RESERVED = 0.08
"""Share of a memory that runtime, activations and fragmentation are taken to need."""
BF16_BYTES = 2
MXFP4_BITS = 4.25
"""Four bits a weight, and one byte of scale for 32 of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """What follows from a config.

    Attributes:
        num_parameters: all of them.
        num_active_parameters: those that one token is multiplied with: all but the experts that the router leaves out
            and the embedding table, of which a token reads a single row.
        mxfp4_bytes: expert matrices in MXFP4, the rest in bfloat16.
        bf16_bytes: all in bfloat16.
        kv_bytes_per_token: what the full-attention layers add with each token.
        kv_bytes_fixed: what the sliding layers keep, at most, of the last tokens.
        window: how many tokens those are.
    """

    num_parameters: int
    num_active_parameters: int
    mxfp4_bytes: int
    bf16_bytes: int
    kv_bytes_per_token: int
    kv_bytes_fixed: int
    window: int

    def kv_bytes(self, num_tokens: int) -> int:
        """The KV cache of one sequence of so many tokens."""
        share = min(num_tokens, self.window) / self.window if self.window else 0
        return num_tokens * self.kv_bytes_per_token + round(self.kv_bytes_fixed * share)


def measure(config: ModelConfig) -> Sizes:
    """Work out the sizes of a model."""
    from ossia.model.config import num_parameters

    D, F, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    E, A = config.num_local_experts, config.num_experts_per_tok
    expert_weights = 3 * D * F  # gate, up and down
    expert_biases = 2 * F + D
    total = num_parameters(config)
    num_quantised = L * E * expert_weights
    num_idle = L * (E - A) * (expert_weights + expert_biases) + config.vocab_size * D
    kv_layer = 2 * config.num_key_value_heads * config.head_dim * BF16_BYTES
    num_sliding = sum(config.window(layer) is not None for layer in range(L))
    return Sizes(
        num_parameters=total,
        num_active_parameters=total - num_idle,
        mxfp4_bytes=round(num_quantised * MXFP4_BITS / 8) + (total - num_quantised) * BF16_BYTES,
        bf16_bytes=total * BF16_BYTES,
        kv_bytes_per_token=(L - num_sliding) * kv_layer,
        kv_bytes_fixed=num_sliding * config.sliding_window * kv_layer,
        window=config.sliding_window,
    )


def longest_context(sizes: Sizes, weights: int, *, memory: int, limit: int) -> int:
    """The longest context that fits beside the weights, at most `limit`; 0 if not even a short one does."""
    room = int(memory * (1 - RESERVED)) - weights - sizes.kv_bytes_fixed
    if room <= 0:
        return 0
    return min(limit, room // sizes.kv_bytes_per_token) if sizes.kv_bytes_per_token else limit
