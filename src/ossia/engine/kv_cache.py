"""The page tensors of the KV cache.

Layers with full attention keep every token, sliding layers only what their window can still see. So that memory goes
to whichever kind needs it, both draw on the same pages: a page number belongs either to the full layers, and then holds
one block of S tokens of each of them, or to the sliding layers. A page therefore has as many layer slots as the larger
of the two groups has layers. Layers alternate in gpt-oss, so a page holds a block of half the layers, and a long
context costs about half of a cache that keeps all tokens in all layers.
"""

# P pages, S page size, K KV heads, C head dim

from __future__ import annotations

import torch
from torch import Tensor

from ossia.core.errors import InvalidInputError
from ossia.model.config import ModelConfig

DEFAULT_PAGE_SIZE = 16
NULL_PAGE = 0
"""Padding is written there, and nothing that is read there counts."""
MIN_PAGES = 3
"""The null page, and one for each group."""


class PagedKVCache:
    """Keys and values in pages. Which sequence owns which page is the block manager's affair.

    Attributes:
        keys: a tensor [P, S, K, C] for each layer slot.
        values: likewise.

    Raises:
        InvalidInputError: fewer pages than the null page and one for each group, or an empty page.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int = DEFAULT_PAGE_SIZE,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
    ) -> None:
        _require(num_pages >= MIN_PAGES, "num_pages", num_pages, f"at least {MIN_PAGES}")
        _require(page_size >= 1, "page_size", page_size, "at least 1")
        shape = (num_layer_slots(config), num_pages, page_size, config.num_key_value_heads, config.head_dim)
        self._keys = torch.empty(shape, dtype=dtype, device=device)
        self._values = torch.empty_like(self._keys)
        for held in (self._keys, self._values):
            held.view(torch.uint8)[:, NULL_PAGE].zero_()
        self.keys, self.values = self._keys.unbind(0), self._values.unbind(0)
        self.num_pages, self.page_size = num_pages, page_size
        self.dtype, self.device = dtype, self._keys.device
        self._slots = layer_slots(config)

    @property
    def num_bytes(self) -> int:
        """What it takes in memory."""
        return 2 * self._keys.numel() * self._keys.element_size()

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer of the model, [P, S, K, C] each."""
        slot = self._slots[index]
        return self.keys[slot], self.values[slot]


def layer_slots(config: ModelConfig) -> tuple[int, ...]:
    """The slot of each layer: its place among the layers of its group."""
    counts = {True: 0, False: 0}
    slots = []
    for layer in range(config.num_hidden_layers):
        is_sliding = config.window(layer) is not None
        slots.append(counts[is_sliding])
        counts[is_sliding] += 1
    return tuple(slots)


def num_layer_slots(config: ModelConfig) -> int:
    """Layers of the larger group."""
    return 1 + max(layer_slots(config))


def has_full_layers(config: ModelConfig) -> bool:
    return any(config.window(layer) is None for layer in range(config.num_hidden_layers))


def has_sliding_layers(config: ModelConfig) -> bool:
    return any(config.window(layer) is not None for layer in range(config.num_hidden_layers))


def bytes_per_page(config: ModelConfig, *, page_size: int = DEFAULT_PAGE_SIZE, dtype: torch.dtype) -> int:
    """What one page takes, keys and values of all its slots."""
    width = config.num_key_value_heads * config.head_dim
    return 2 * num_layer_slots(config) * page_size * width * dtype.itemsize


def pages_in_budget(
    config: ModelConfig, *, num_bytes: int, page_size: int = DEFAULT_PAGE_SIZE, dtype: torch.dtype
) -> int:
    """How many pages fit into a budget, the null page included.

    Raises:
        InvalidInputError: not even the fewest do.
    """
    per_page = bytes_per_page(config, page_size=page_size, dtype=dtype)
    if num_bytes < MIN_PAGES * per_page:
        raise InvalidInputError(
            f"{num_bytes} bytes are too few for a KV cache of this model: a page of {page_size} tokens takes "
            f"{per_page} bytes, and at least {MIN_PAGES} are needed; give it more memory or take smaller pages",
            param="num_bytes",
        )
    return num_bytes // per_page


def num_pages_for(config: ModelConfig, *, num_tokens: int, page_size: int = DEFAULT_PAGE_SIZE) -> int:
    """Pages that one sequence of so many tokens holds while it decodes."""
    blocks = -(-num_tokens // page_size)
    full = blocks if has_full_layers(config) else 0
    # A window that does not begin at a page's begin reaches into one more.
    sliding = min(blocks, -(-config.sliding_window // page_size) + 1) if has_sliding_layers(config) else 0
    return full + sliding


def _require(is_allowed: bool, name: str, got: object, allowed: str) -> None:
    if not is_allowed:
        raise InvalidInputError(f"{name} is {got!r}; allowed: {allowed}", param=name)
