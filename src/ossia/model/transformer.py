"""The gpt-oss transformer, for both published sizes and small ones, for inference and training.

Shapes: T tokens, N rows, D model, H heads, K KV heads, C head dim, E experts, A active experts, F expert hidden,
G = 2F, V vocabulary.

Where it departs from a vanilla decoder-only transformer:
- tokens are flat, [T] and [T, D]: which tokens belong to one sequence is known to the attention backend alone;
- RMSNorm before attention and experts, no LayerNorm; its weight multiplies in float32;
- rotary positions over half-split heads, with YaRN, whose concentration multiplies cos and sin;
- grouped-query attention; q, k, v and the output projection have biases;
- each head has a sink, a learned logit in the softmax's denominator;
- layers alternate between a sliding window and full attention, the first one sliding;
- the MLP is a mixture of experts: top A logits of E, softmax over those only, biases everywhere;
- SwiGLU is clamped, has slope 1.702 in its sigmoid, and adds 1 to the up projection;
- input and output embeddings are separate.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from ossia.core.errors import InvalidInputError
from ossia.kernels.experts import ExpertWeights, expert_mlp
from ossia.kernels.mxfp4 import BLOCK, Mxfp4
from ossia.kernels.rms_norm import rms_norm
from ossia.kernels.rope import RopeTables, apply_rope, rope_frequencies, rope_tables
from ossia.kernels.router import choose_experts
from ossia.model.config import ModelConfig


class AttentionBackend(Protocol):
    """Knows which tokens see which, and keeps keys and values if it caches."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, sinks: Tensor, window: int | None) -> Tensor:
        """q [T, H, C], k and v [T, K, C], both turned by rope already, sinks [H] -> [T, H, C]."""
        ...


class LayerBackend(Protocol):
    """An attention backend that runs whole layers by itself, with kernels of its own.

    `Transformer.forward` hands it each layer, unless a router backend is given, which such kernels would not ask.
    """

    def run_layer(self, layer: Layer, x: Tensor, positions: Tensor) -> Tensor:
        """x [T, D] and positions [T] int -> x [T, D]: attention added, then experts added; x may be overwritten."""
        ...


class RouterBackend(Protocol):
    """Chooses the experts: to record the choice, or to replay one."""

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        """logits [T, E] -> indices [T, A] and weights [T, A]."""
        ...


class Transformer(nn.Module):
    """A gpt-oss model. Its weights hold nothing of use until they are loaded or `init_weights` is called.

    Args:
        config: the shape.
        dtype: of all weights but packed experts.
        device: where to build; "meta" builds the shapes only.
        packed_experts: keep the experts' matrices as MXFP4 (uint8 buffers, not parameters).
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        packed_experts: bool = False,
    ) -> None:
        super().__init__()
        factory = Factory(dtype=dtype, device=torch.device(device))
        self.config = config
        self.embed_tokens = Embedding(config, factory)
        self.layers = nn.ModuleList(
            Layer(config, index, factory, packed_experts=packed_experts) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config, factory)
        self.lm_head = Linear(config.vocab_size, config.hidden_size, factory, bias=False)
        self._rope: dict[torch.device, RopeTables] = {}
        if factory.device.type != "meta":
            self.rope(self.norm.weight.device)  # "cuda" has become "cuda:0"

    def forward(
        self,
        token_ids: Tensor,
        *,
        positions: Tensor,
        attention: AttentionBackend | LayerBackend,
        router: RouterBackend | None = None,
    ) -> Tensor:
        """token_ids [T] and positions [T], both int, -> hidden states [T, D] after the final norm."""
        x = self.embed_tokens(token_ids)
        run_layer = getattr(attention, "run_layer", None) if router is None else None
        if run_layer is not None:
            for layer in self.layers:
                x = run_layer(layer, x, positions)
            return self.norm(x)
        cos, sin = self.rope(x.device)
        rope = RopeTables(cos[positions].unsqueeze(1), sin[positions].unsqueeze(1))
        for layer in self.layers:
            x = layer(x, rope=rope, attention=attention, router=router)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [N, D] -> float32 [N, V]."""
        return self.lm_head(hidden).float()

    def rope(self, device: torch.device) -> RopeTables:
        """cos and sin of all positions, made at first use on a device.

        They are no buffers, so that they stay float32 whatever the model is cast to. They are made on the CPU, so that
        every device has the same.
        """
        if device not in self._rope:
            rope = self.config.rope
            with torch.inference_mode(False):  # tables first made while generating must do for training, too
                frequencies = rope_frequencies(
                    self.config.head_dim,
                    theta=rope.theta,
                    factor=rope.factor,
                    beta_fast=rope.beta_fast,
                    beta_slow=rope.beta_slow,
                    original_max_position_embeddings=rope.original_max_position_embeddings,
                    truncate=rope.truncate,
                )
                cos, sin = rope_tables(frequencies, num_positions=self.config.max_position_embeddings)
                self._rope[device] = RopeTables(cos.to(device), sin.to(device))
        return self._rope[device]


class Layer(nn.Module):
    """Attention, then experts, each on the normalised stream and added to it."""

    def __init__(self, config: ModelConfig, index: int, factory: Factory, *, packed_experts: bool) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config, factory)
        self.attn = Attention(config, index, factory)
        self.mlp_norm = RMSNorm(config, factory)
        self.mlp = MixtureOfExperts(config, index, factory, packed_experts=packed_experts)

    def forward(
        self, x: Tensor, *, rope: RopeTables, attention: AttentionBackend, router: RouterBackend | None
    ) -> Tensor:
        """x [T, D] -> [T, D]; rope holds the tokens' rows, [T, 1, C] each."""
        x = x + self.attn(self.attn_norm(x), rope=rope, attention=attention)
        return x + self.mlp(self.mlp_norm(x), router=router)


class Attention(nn.Module):
    """Projections, rope and the sinks; who sees whom is the backend's affair."""

    def __init__(self, config: ModelConfig, index: int, factory: Factory) -> None:
        super().__init__()
        H, K, C = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.index, self.window = index, config.window(index)
        self.num_heads, self.num_kv_heads, self.head_dim = H, K, C
        self.qkv = Linear((H + 2 * K) * C, config.hidden_size, factory)
        self.out = Linear(config.hidden_size, H * C, factory)
        self.sinks = factory.parameter(H)

    def forward(self, x: Tensor, *, rope: RopeTables, attention: AttentionBackend) -> Tensor:
        """x [T, D] -> [T, D]."""
        H, K = self.num_heads, self.num_kv_heads
        heads = self.qkv(x).view(x.shape[0], H + 2 * K, self.head_dim)
        qk, v = heads.split((H + K, K), dim=1)
        q, k = apply_rope(qk, tables=rope).split((H, K), dim=1)
        attended = attention.attend(self.index, q, k, v, sinks=self.sinks, window=self.window)
        return self.out(attended.reshape(x.shape[0], H * self.head_dim))


class MixtureOfExperts(nn.Module):
    """The router and the experts it sends a token to."""

    def __init__(self, config: ModelConfig, index: int, factory: Factory, *, packed_experts: bool) -> None:
        super().__init__()
        self.index, self.num_active = index, config.num_experts_per_tok
        self.router = Linear(config.num_local_experts, config.hidden_size, factory)
        self.experts = Experts(config, factory, is_packed=packed_experts)

    def forward(self, x: Tensor, *, router: RouterBackend | None) -> Tensor:
        """x [T, D] -> [T, D]."""
        logits = self.router(x)
        if router is None:
            indices, weights = choose_experts(logits, num_active=self.num_active)
        else:
            indices, weights = router.select(self.index, logits, self.num_active)
        return self.experts(x, indices, weights)


class Experts(nn.Module):
    """E clamped SwiGLU MLPs, dense or packed. Gate and up rows alternate in `gate_up`, as in the checkpoints.

    Dense: parameters gate_up [E, G, D] and down [E, D, F]. Packed: buffers gate_up_blocks uint8 [E, G, D / 32, 16],
    gate_up_scales uint8 [E, G, D / 32], and likewise down. Both: parameters gate_up_bias [E, G] and down_bias [E, D].

    Raises:
        InvalidInputError: packed, and a dimension is not a multiple of 32.
    """

    def __init__(self, config: ModelConfig, factory: Factory, *, is_packed: bool) -> None:
        super().__init__()
        E, D, F_ = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.alpha, self.limit, self.is_packed = config.swiglu_alpha, config.swiglu_limit, is_packed
        for name, shape in (("gate_up", (E, 2 * F_, D)), ("down", (E, D, F_))):
            if is_packed:
                if shape[-1] % BLOCK:
                    raise InvalidInputError(
                        f"packed experts need hidden_size and intermediate_size to be multiples of {BLOCK}, but got "
                        f"{D} and {F_}; load this model with packed_experts=False",
                        param="packed_experts",
                    )
                self.register_buffer(f"{name}_blocks", factory.bytes(*shape[:2], shape[2] // BLOCK, BLOCK // 2))
                self.register_buffer(f"{name}_scales", factory.bytes(*shape[:2], shape[2] // BLOCK))
            else:
                self.register_parameter(name, factory.parameter(*shape))
        self.gate_up_bias = factory.parameter(E, 2 * F_)
        self.down_bias = factory.parameter(E, D)

    def forward(self, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """x [T, D], indices and weights [T, A] -> [T, D]."""
        experts = ExpertWeights(self._weight("gate_up"), self.gate_up_bias, self._weight("down"), self.down_bias)
        return expert_mlp(x, experts=experts, indices=indices, weights=weights, alpha=self.alpha, limit=self.limit)

    def _weight(self, name: str) -> Tensor | Mxfp4:
        if self.is_packed:
            return Mxfp4(getattr(self, f"{name}_blocks"), getattr(self, f"{name}_scales"))
        return getattr(self, name)


class Embedding(nn.Module):
    """A row [D] for each token."""

    def __init__(self, config: ModelConfig, factory: Factory) -> None:
        super().__init__()
        self.weight = factory.parameter(config.vocab_size, config.hidden_size)

    def forward(self, token_ids: Tensor) -> Tensor:
        return functional.embedding(token_ids, self.weight)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a weight [D]."""

    def __init__(self, config: ModelConfig, factory: Factory) -> None:
        super().__init__()
        self.weight = factory.parameter(config.hidden_size)
        self.eps = config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, weight=self.weight, eps=self.eps)


class Linear(nn.Module):
    """A matrix [out, in] and perhaps a bias [out]. Unlike torch's, it spends no time on initial values."""

    def __init__(self, num_out: int, num_in: int, factory: Factory, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = factory.parameter(num_out, num_in)
        self.bias = factory.parameter(num_out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Factory:
    """Makes uninitialised parameters and buffers of one dtype on one device."""

    def __init__(self, *, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device

    def parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device))

    def bytes(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self.device)


INIT_STD = 0.02
"""Standard deviation of initial weights."""


@torch.no_grad()
def init_weights(model: Transformer, *, seed: int = 0) -> None:
    """Fill a dense model for training: norms 1, biases and sinks 0, matrices normal with deviation 0.02.

    The projections that write into the residual stream (`attn.out` and `experts.down`) are smaller by sqrt(2 * layers),
    which keeps the stream's variance independent of depth (Radford et al. 2019, GPT-2). Values are drawn on the CPU in
    float32, so that a seed gives the same model on every device.

    Raises:
        InvalidInputError: the experts are packed, which cannot be trained.
    """
    if any(isinstance(module, Experts) and module.is_packed for module in model.modules()):
        raise InvalidInputError("packed experts cannot be trained; build the model with packed_experts=False")
    generator = torch.Generator().manual_seed(seed)
    residual_std = INIT_STD / math.sqrt(2 * model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith(("bias", "sinks")):
            parameter.zero_()
        else:
            std = residual_std if name.endswith(("attn.out.weight", "experts.down")) else INIT_STD
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
