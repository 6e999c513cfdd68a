"""How much arithmetic a training step is, and what share of the device's peak it reaches (MFU)."""

# L layers, H heads, K KV heads, C head dim, D hidden, E experts, A active experts, F expert hidden, V vocabulary

from __future__ import annotations

from ossia.model.config import ModelConfig

PEAK_BF16 = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
}
"""Dense bfloat16 operations a second by NVIDIA's data sheets, by part of the device's name; the first that fits counts.
The sheets' larger figures are for sparse matrices."""


def peak_flops(device_name: str) -> float | None:
    """Peak of a GPU by the name that torch gives it; None if it is not in the table."""
    return next((peak for part, peak in PEAK_BF16.items() if part in device_name), None)


def active_parameters(config: ModelConfig) -> int:
    """Parameters of matrices that a token is multiplied with: attention, router, A experts, the output embedding.

    The input embedding is a look-up and does not count, nor do norms and biases.
    """
    D, F, V = config.hidden_size, config.intermediate_size, config.vocab_size
    H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    E, A = config.num_local_experts, config.num_experts_per_tok
    layer = D * (H + 2 * K) * C + H * C * D + E * D + A * 3 * F * D
    return config.num_hidden_layers * layer + V * D


def training_flops_per_token(config: ModelConfig, *, sequence_length: int) -> float:
    """Multiplications and additions of forward and backward for a token: 6 N + sum over layers of 12 H C S.

    From PaLM (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), with N the active parameters, as of a mixture of
    experts a token uses only those, and with S of a sliding layer no more than its window. As there, neither the causal
    mask nor the borders of packed documents, which spare work, are taken into account, and what is computed again for
    activation checkpointing does not count.
    """
    H, C = config.num_attention_heads, config.head_dim
    spans = [config.window(layer) or sequence_length for layer in range(config.num_hidden_layers)]
    seen = sum(min(span, sequence_length) for span in spans)
    return 6 * active_parameters(config) + 12 * H * C * seen


def mfu(tokens_per_second: float, config: ModelConfig, *, sequence_length: int, peak: float) -> float:
    """Model FLOPs utilisation: the share of `peak` that the model's own arithmetic reaches, from 0 to 1."""
    return tokens_per_second * training_flops_per_token(config, sequence_length=sequence_length) / peak
