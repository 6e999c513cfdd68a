from __future__ import annotations

import pytest

from ossia.cli.sizes import GIB, RESERVED, longest_context, measure
from ossia.model.config import PUBLISHED


@pytest.mark.parametrize(
    ("name", "total", "active", "gib"),
    [("openai/gpt-oss-20b", 20.9, 3.6, 12.8), ("openai/gpt-oss-120b", 116.8, 5.1, 60.8)],
)
def test_the_published_figures(name: str, total: float, active: float, gib: float) -> None:
    sizes = measure(PUBLISHED[name])
    assert round(sizes.num_parameters / 1e9, 1) == total
    assert round(sizes.num_active_parameters / 1e9, 1) == active
    assert round(sizes.mxfp4_bytes / GIB, 1) == gib
    assert sizes.bf16_bytes == 2 * sizes.num_parameters


def test_the_cache_grows_by_two_kib_a_token_and_full_layer() -> None:
    sizes = measure(PUBLISHED["openai/gpt-oss-20b"])
    assert sizes.kv_bytes(0) == 0
    assert sizes.kv_bytes(128) == 24 * 128 * 2048
    assert sizes.kv_bytes(1128) - sizes.kv_bytes(1028) == 100 * 12 * 2048


def test_longest_context_is_the_largest_that_fits() -> None:
    sizes = measure(PUBLISHED["openai/gpt-oss-20b"])
    memory = 16 * GIB
    longest = longest_context(sizes, sizes.mxfp4_bytes, memory=memory, limit=131_072)
    room = memory * (1 - RESERVED) - sizes.mxfp4_bytes
    assert sizes.kv_bytes(longest) <= room < sizes.kv_bytes(longest + 2)
    assert longest_context(sizes, sizes.mxfp4_bytes, memory=80 * GIB, limit=131_072) == 131_072
    assert longest_context(sizes, sizes.bf16_bytes, memory=16 * GIB, limit=131_072) == 0
