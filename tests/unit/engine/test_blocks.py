# S page size, n blocks of a prefix, w window

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import CacheIntegrityError, InvalidInputError
from ossia.engine.block_hash import block_hash, root_hash
from ossia.engine.blocks import FULL, SLIDING, BlockManager
from ossia.engine.request import Request, SamplingParams
from ossia.engine.sequence import Sequence


def make_sequence(tokens: int | list[int], *, salt: str = "", prompt_logprobs: int | None = None) -> Sequence:
    ids = list(range(tokens)) if isinstance(tokens, int) else tokens
    request = Request(
        id="r", prompt_ids=tuple(ids), params=SamplingParams(prompt_logprobs=prompt_logprobs), cache_salt=salt
    )
    return Sequence(request=request, index=0, seed=0, arrival=0, max_length=1000, token_ids=ids, num_prompt=len(ids))


def compute(blocks: BlockManager, sequence: Sequence, length: int | None = None, *, chunk: int = 1000) -> None:
    """Compute up to `length` tokens, all by default, as the scheduler would."""
    length = len(sequence.token_ids) if length is None else length
    while sequence.num_computed < length:
        end = min(length, sequence.num_computed + chunk)
        assert blocks.can_allocate(sequence, end)
        blocks.allocate(sequence, end)
        sequence.num_computed = end
        blocks.register(sequence, end)
        blocks.release_passed(sequence, end)


def test_a_sequence_holds_all_full_pages_and_only_visible_sliding_ones() -> None:
    blocks = BlockManager(100, page_size=4, window=6)
    sequence = make_sequence(40)
    compute(blocks, sequence)
    assert len(sequence.full_pages) == len(sequence.sliding_pages) == 10
    # The next query, at 40, sees the keys 35 to 39: of the blocks 8 and 9.
    assert [page != 0 for page in sequence.sliding_pages] == [False] * 8 + [True] * 2
    held = [*sequence.full_pages, *sequence.sliding_pages[8:]]
    assert 0 not in held
    assert len(set(held)) == blocks.num_held == 12
    blocks.check_integrity([sequence])


@pytest.mark.parametrize(
    ("page_size", "window", "chunk"), [(16, 128, 1), (16, 128, 64), (4, 5, 7), (1, 1, 1), (8, 3, 1)]
)
def test_sliding_pages_are_bounded_by_window_and_chunk(page_size: int, window: int, chunk: int) -> None:
    blocks = BlockManager(3000, page_size=page_size, window=window, has_full_layers=False, enable_prefix_cache=False)
    sequence = make_sequence(1000)
    most = 0
    while sequence.num_computed < 1000:
        end = min(1000, sequence.num_computed + chunk)
        blocks.allocate(sequence, end)
        sequence.num_computed = end
        most = max(most, blocks.num_held)
        blocks.release_passed(sequence, end)
    assert most <= math.ceil((window - 1 + chunk) / page_size) + 1
    assert blocks.num_held <= math.ceil((window - 1) / page_size) + 1
    assert sequence.full_pages == []


def test_only_full_layers_leave_the_other_table_empty() -> None:
    blocks = BlockManager(20, page_size=4, has_sliding_layers=False)
    first, second = make_sequence(10), make_sequence(10)
    compute(blocks, first)
    assert first.sliding_pages == []
    assert blocks.num_held == 3
    assert blocks.match_prefix(second) == 8
    assert second.sliding_pages == []
    blocks.check_integrity([first, second])


def test_pages_can_be_allocated_up_to_the_last() -> None:
    blocks = BlockManager(8, page_size=4, window=100)  # 7 pages: 3 blocks in two groups, and one page over
    sequence = make_sequence(20)
    assert blocks.reachable_length(sequence) == 12
    assert blocks.can_allocate(sequence, 12)
    assert not blocks.can_allocate(sequence, 13)
    blocks.allocate(sequence, 5)
    assert (blocks.capacity(sequence), blocks.num_free, blocks.reachable_length(sequence)) == (8, 3, 12)
    blocks.allocate(sequence, 12)
    assert not blocks.can_allocate(make_sequence(1), 1)


def test_a_prefix_is_shared_while_held_and_found_when_free() -> None:
    blocks = BlockManager(30, page_size=4, window=6)
    first, second, third = make_sequence(18), make_sequence(18), make_sequence([*range(9), 99, 98])
    compute(blocks, first)
    assert blocks.match_prefix(second) == 16
    assert second.full_pages == first.full_pages[:4]
    # The query at 16 sees 11 to 15: block 3, which the first sequence holds, and 2, which it has given back.
    assert second.sliding_pages[:2] == [0, 0]
    assert second.sliding_pages[2] != 0 == first.sliding_pages[2]
    assert second.sliding_pages[3] == first.sliding_pages[3]
    assert (second.num_computed, second.num_cached, second.num_hashed) == (16, 16, 4)
    num_held = blocks.num_held
    blocks.free(first)
    blocks.check_integrity([first, second])
    assert num_held - blocks.num_held == 2  # its unfinished block, in both groups
    assert blocks.match_prefix(third) == 8
    blocks.check_integrity([second, third])
    assert (blocks.num_prefix_queries, blocks.num_query_tokens, blocks.num_hit_tokens) == (2, 29, 24)


@pytest.mark.parametrize(("num_tokens", "expected"), [(3, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 12)])
def test_one_token_is_left_to_compute(num_tokens: int, expected: int) -> None:
    blocks = BlockManager(30, page_size=4, window=6)
    compute(blocks, make_sequence(12))
    assert blocks.match_prefix(make_sequence(num_tokens)) == expected


def test_after_a_preemption_output_is_found_too_and_one_token_left() -> None:
    blocks = BlockManager(30, page_size=4, window=6)
    sequence = make_sequence(6)
    sequence.token_ids += [50, 51]
    compute(blocks, sequence)
    blocks.free(sequence)
    sequence.num_preemptions = 1
    assert sequence.num_computed == 0
    assert blocks.match_prefix(sequence) == 4  # not 8: nothing would be left
    assert sequence.num_cached == 0  # that of its first admission
    sequence.token_ids.append(52)
    blocks.free(sequence)
    assert blocks.match_prefix(sequence) == 8


def test_salts_keep_prefixes_apart() -> None:
    blocks = BlockManager(30, page_size=4, window=6)
    compute(blocks, make_sequence(13, salt="a"))
    assert blocks.match_prefix(make_sequence(13, salt="b")) == 0
    assert blocks.match_prefix(make_sequence(13)) == 0
    assert blocks.match_prefix(make_sequence(13, salt="a")) == 12


def test_a_later_block_counts_only_behind_the_same_tokens() -> None:
    blocks = BlockManager(30, page_size=4, has_sliding_layers=False)
    compute(blocks, make_sequence([1, 2, 3, 4, 5, 6, 7, 8]))
    assert blocks.match_prefix(make_sequence([9, 9, 9, 9, 5, 6, 7, 8, 0])) == 0
    assert blocks.match_prefix(make_sequence([5, 6, 7, 8, 0])) == 0


def test_prompt_logprobs_fill_the_cache_and_do_not_read_it() -> None:
    blocks = BlockManager(30, page_size=4, window=6)
    asking = make_sequence(9, prompt_logprobs=0)
    compute(blocks, asking)
    again = make_sequence(9, prompt_logprobs=3)
    assert blocks.match_prefix(again) == 0
    assert blocks.num_prefix_queries == 0
    assert blocks.match_prefix(make_sequence(9)) == 8


def test_without_prefix_cache_nothing_is_found() -> None:
    blocks = BlockManager(30, page_size=4, window=6, enable_prefix_cache=False)
    sequence = make_sequence(9)
    compute(blocks, sequence)
    assert blocks.match_prefix(make_sequence(9)) == 0
    blocks.free(sequence)
    assert blocks.num_cached_idle == 0
    assert blocks.num_free == 29


def test_the_tail_of_a_freed_sequence_is_evicted_first() -> None:
    blocks = BlockManager(7, page_size=4, has_sliding_layers=False)
    old = make_sequence(24)
    compute(blocks, old)
    blocks.free(old)
    assert (blocks.num_cached_idle, blocks.num_free) == (6, 6)
    other = make_sequence([70, 71, 72, 73, 74])
    compute(blocks, other)
    assert blocks.num_evictions == 2
    blocks.free(other)
    again = make_sequence(100)
    assert blocks.match_prefix(again) == 16
    blocks.check_integrity([again])


def test_a_prefix_used_again_outlives_one_that_was_not() -> None:
    blocks = BlockManager(7, page_size=4, has_sliding_layers=False)
    popular, other = make_sequence(13), make_sequence([50 + token for token in range(12)])
    compute(blocks, popular, 12)
    blocks.free(popular)
    compute(blocks, other)
    blocks.free(other)
    blocks.match_prefix(popular)
    blocks.free(popular)
    compute(blocks, make_sequence([200, 201, 202, 203, 204, 205, 206, 207, 208]))
    assert blocks.match_prefix(make_sequence(13)) == 12
    assert blocks.match_prefix(make_sequence([50 + token for token in range(13)])) == 0


def test_a_block_computed_twice_is_known_once() -> None:
    blocks = BlockManager(30, page_size=4, window=6)
    first, second = make_sequence(9), make_sequence(9)
    compute(blocks, first)
    compute(blocks, second)
    blocks.check_integrity([first, second])
    num_cached_idle = blocks.num_cached_idle
    blocks.free(second)
    assert blocks.num_cached_idle == num_cached_idle
    third = make_sequence(9)
    blocks.match_prefix(third)
    assert third.full_pages == first.full_pages[:2]


@given(
    page_size=st.integers(1, 4),
    window=st.integers(1, 12),
    num_tokens=st.integers(1, 40),
    groups=st.sampled_from([(True, True), (True, False), (False, True)]),
    data=st.data(),
)
def test_the_longest_usable_prefix_is_found(
    page_size: int, window: int, num_tokens: int, groups: tuple[bool, bool], data: st.DataObject
) -> None:
    """Against the rule, word for word: all full blocks, and sliding ones with a key in (p - w, p] for p = n * S."""
    has_full, has_sliding = groups
    blocks = BlockManager(
        200, page_size=page_size, window=window, has_full_layers=has_full, has_sliding_layers=has_sliding
    )
    sequence = make_sequence(num_tokens)
    num_blocks = num_tokens // page_size
    known: dict[int, set[int]] = {}
    for group in (FULL, SLIDING):
        missing = data.draw(st.sets(st.integers(0, max(0, num_blocks)), max_size=3))
        known[group] = set(range(num_blocks)) - missing
        digest = root_hash("")
        for block in range(num_blocks):
            digest = block_hash(digest, sequence.token_ids[block * page_size : (block + 1) * page_size])
            if block in known[group]:
                page = blocks._pool.take()
                blocks._pool.name(page, (group, digest))
                blocks._pool.release(page)

    def is_usable(n: int) -> bool:
        next_query = n * page_size
        visible = {key // page_size for key in range(max(0, next_query - window + 1), next_query)}
        return (not has_full or set(range(n)) <= known[FULL]) and (not has_sliding or visible <= known[SLIDING])

    expected = max(n for n in range(num_blocks + 1) if n * page_size < num_tokens and is_usable(n))
    match = blocks.find_prefix(sequence)
    assert match.num_blocks == expected
    assert match.num_idle == sum(page != 0 for page in (*match.full_pages, *match.sliding_pages))
    num_free = blocks.num_free
    blocks.take_prefix(sequence, match)
    assert num_free - blocks.num_free == match.num_idle
    assert blocks.capacity(sequence) == sequence.num_computed == expected * page_size
    blocks.check_integrity([sequence])


@given(
    page_size=st.integers(1, 5),
    window=st.integers(1, 20),
    length=st.integers(1, 60),
    chunk=st.integers(1, 30),
    position=st.integers(0, 59),
)
def test_page_counts_are_bounds(page_size: int, window: int, length: int, chunk: int, position: int) -> None:
    blocks = BlockManager(500, page_size=page_size, window=window, enable_prefix_cache=False)
    sequence = make_sequence(length)
    compute(blocks, sequence, min(position, length - 1), chunk=chunk)
    held = blocks.num_held
    missing = blocks.count_missing(
        blocks.capacity(sequence) // page_size, position=sequence.num_computed, length=length, chunk=chunk
    )
    most = held
    while sequence.num_computed < length:
        end = min(length, sequence.num_computed + chunk)
        blocks.allocate(sequence, end)
        sequence.num_computed = end
        most = max(most, blocks.num_held)
        blocks.release_passed(sequence, end)
    assert most <= held + missing
    assert blocks.num_held <= blocks.count_least(length) <= most + 1


def leak(blocks: BlockManager, sequence: Sequence) -> None:
    blocks._pool.take()


def lose(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.full_pages[-1] = 0


def hold_twice(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.full_pages[1] = sequence.full_pages[0]


def mix_groups(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.sliding_pages[-1] = sequence.full_pages[-1]


def run_past_the_table(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.num_computed += 100


def shorten_a_table(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.sliding_pages.pop()


def slide_too_far(blocks: BlockManager, sequence: Sequence) -> None:
    blocks.release_passed(sequence, sequence.num_computed + 4)


def free_twice(blocks: BlockManager, sequence: Sequence) -> None:
    blocks._pool._free.append(blocks._pool._free[-1])


def hand_out_the_null_page(blocks: BlockManager, sequence: Sequence) -> None:
    blocks._pool._free.append(0)


def free_a_held_page(blocks: BlockManager, sequence: Sequence) -> None:
    blocks._pool._free.append(sequence.full_pages[0])


def forget_a_key(blocks: BlockManager, sequence: Sequence) -> None:
    del blocks._pool._keys[sequence.full_pages[0]]


def swap_keys(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.full_pages[:2] = sequence.full_pages[1::-1]


def offer_what_is_not_computed(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.num_hashed += 1


@pytest.mark.parametrize(
    "corrupt",
    [
        leak,
        lose,
        hold_twice,
        mix_groups,
        run_past_the_table,
        shorten_a_table,
        slide_too_far,
        free_twice,
        hand_out_the_null_page,
        free_a_held_page,
        forget_a_key,
        swap_keys,
        offer_what_is_not_computed,
    ],
)
def test_integrity_check_finds(corrupt: Callable[[BlockManager, Sequence], None]) -> None:
    blocks = BlockManager(40, page_size=4, window=6)
    sequence, other = make_sequence(18), make_sequence([*range(60, 75)])
    compute(blocks, sequence)
    compute(blocks, other)
    blocks.check_integrity([sequence, other])
    corrupt(blocks, sequence)
    with pytest.raises(CacheIntegrityError):
        blocks.check_integrity([sequence, other])


def test_integrity_check_finds_a_sequence_it_was_not_told_of() -> None:
    blocks = BlockManager(40, page_size=4, window=6)
    sequence = make_sequence(18)
    compute(blocks, sequence)
    with pytest.raises(CacheIntegrityError, match="references"):
        blocks.check_integrity([])


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"num_pages": 1}, "num_pages"),
        ({"page_size": 0}, "page_size"),
        ({"window": 0}, "window"),
        ({"window": None}, "window"),
        ({"has_full_layers": False, "has_sliding_layers": False}, None),
    ],
)
def test_sizes_are_checked(changes: dict[str, int | bool | None], param: str | None) -> None:
    options = {"num_pages": 10, "page_size": 4, "window": 8, **changes}
    with pytest.raises(InvalidInputError) as caught:
        BlockManager(options.pop("num_pages"), **options)  # type: ignore[arg-type]  # the names above
    assert caught.value.param == param
