"""Which experts each token went to, kept where its keys and values are, for a trainer to replay.

Choices lie in the pages of the layers with full attention: these keep every token of a sequence, and a prefix found in
the cache brings its choices with it. One byte for each layer and active expert (two where there are more than 256
experts) is 32 bytes a token for nano, beside 2 KiB of keys and values in bfloat16.
"""

# T tokens, L layers, E experts, A active experts, P pages, S page size

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.engine.kv_cache import has_full_layers
from ossia.engine.output_event import Choices
from ossia.kernels.router import choose_experts
from ossia.model.config import ModelConfig

_BYTE_EXPERTS = 256


class RoutingPages:
    """The choices of every token in the cache: [P * S, L, A] uint8, or int16 for many experts.

    Args:
        config: the model's.
        num_pages: P of the KV cache.
        page_size: S.
        device: where the runner is.

    Raises:
        InvalidInputError: no layer has full attention, so no table keeps every token.
    """

    def __init__(
        self, config: ModelConfig, *, num_pages: int, page_size: int, device: torch.device | str = "cpu"
    ) -> None:
        if not has_full_layers(config):
            raise InvalidInputError(
                "routing is recorded in the pages of layers with full attention, and this model has none; build the "
                "engine with records_routing=False",
                param="records_routing",
            )
        dtype = torch.uint8 if config.num_local_experts <= _BYTE_EXPERTS else torch.int16
        shape = (num_pages * page_size, config.num_hidden_layers, config.num_experts_per_tok)
        self.choices = torch.zeros(shape, dtype=dtype, device=device)
        self.page_size = page_size

    def write(self, chosen: Tensor, *, slot_mapping: Tensor) -> None:
        """Take a step's choices: chosen int [L, T, A], slot_mapping int64 [T] of the full layers."""
        self.choices.index_copy_(0, slot_mapping, chosen.transpose(0, 1).to(self.choices.dtype))

    def write_layer(self, layer: int, chosen: Tensor, *, slot_mapping: Tensor) -> None:
        """Take one layer's choices [T, A]. Nothing waits on the host, so a CUDA graph may capture it."""
        self.choices[:, layer].index_copy_(0, slot_mapping, chosen.to(self.choices.dtype))

    def read(self, pages: Sequence[int], *, num_tokens: int) -> Choices:
        """The choices of a sequence's first tokens, int16 [num_tokens, L, A]; waits for a GPU.

        Args:
            pages: its pages in the full layers, which hold at least `num_tokens`.
            num_tokens: how many of its tokens have been computed.
        """
        S = self.page_size
        table = torch.tensor(pages, dtype=torch.int64, device=self.choices.device)
        slots = (table[:, None] * S + torch.arange(S, device=self.choices.device)).flatten()[:num_tokens]
        return self.choices.index_select(0, slots).to("cpu", torch.int16).numpy()


class RoutingRecorder:
    """A router backend for one step that routes as the model does and writes the choices down."""

    def __init__(self, pages: RoutingPages, *, slot_mapping: Tensor) -> None:
        self._pages, self._slots = pages, slot_mapping

    def select(self, layer: int, logits: Tensor, num_active: int) -> tuple[Tensor, Tensor]:
        """logits [T, E] -> indices [T, A] and weights [T, A]."""
        indices, weights = choose_experts(logits, num_active=num_active)
        self._pages.write_layer(layer, indices, slot_mapping=self._slots)
        return indices, weights
