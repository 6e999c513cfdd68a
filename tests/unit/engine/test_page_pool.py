import pytest

from ossia.core.errors import CacheIntegrityError
from ossia.engine.page_pool import PagePool

KEY, OTHER_KEY = (0, b"a"), (1, b"a")


def test_every_page_but_the_null_page_is_handed_out_once() -> None:
    pool = PagePool(5)
    pages = [pool.take() for _ in range(4)]
    assert sorted(pages) == [1, 2, 3, 4]
    assert pool.num_free == 0
    pool.check_integrity(dict.fromkeys(pages, 1))


def test_a_shared_page_is_held_until_the_last_lets_go() -> None:
    pool = PagePool(3)
    page = pool.take()
    pool.name(page, KEY)
    pool.share(page)
    pool.release(page)
    assert (pool.num_free, pool.is_idle(page)) == (1, False)
    pool.release(page)
    assert (pool.num_free, pool.num_idle, pool.is_idle(page)) == (2, 1, True)
    assert pool.find(KEY) == page
    pool.share(page)
    assert (pool.num_free, pool.num_idle) == (1, 0)
    pool.check_integrity({page: 1})


def test_free_pages_go_first_and_then_the_one_idle_longest() -> None:
    pool = PagePool(5)
    old, young, plain = pool.take(), pool.take(), pool.take()
    pool.name(old, KEY)
    pool.name(young, OTHER_KEY)
    for page in (old, young, plain):
        pool.release(page)
    assert {pool.take(), pool.take()} == {plain, 4}
    assert pool.num_evictions == 0
    assert pool.take() == old
    assert pool.num_evictions == 1
    assert (pool.find(KEY), pool.find(OTHER_KEY)) == (None, young)
    assert pool.key_of(old) is None


def test_a_key_stays_with_the_page_that_had_it_first() -> None:
    pool = PagePool(4)
    first, second = pool.take(), pool.take()
    pool.name(first, KEY)
    pool.name(second, KEY)
    pool.name(first, OTHER_KEY)
    assert pool.find(KEY) == first
    assert pool.find(OTHER_KEY) is None
    assert pool.key_of(second) is None
    pool.release(second)
    assert pool.num_idle == 0


def test_wrong_counts_are_found() -> None:
    pool = PagePool(4)
    page = pool.take()
    pool.check_integrity({page: 1})
    for num_holders in ({}, {page: 2}, {page: 1, 3: 1}):
        with pytest.raises(CacheIntegrityError, match="references"):
            pool.check_integrity(num_holders)


def test_dropped_keys_are_found_no_more_and_no_page_is_lost() -> None:
    pool = PagePool(5)
    idle, held, plain = pool.take(), pool.take(), pool.take()
    pool.name(idle, KEY)
    pool.name(held, OTHER_KEY)
    pool.release(idle)
    pool.drop_keys()
    assert (pool.find(KEY), pool.find(OTHER_KEY), pool.key_of(held)) == (None, None, None)
    assert (pool.num_idle, pool.num_free) == (0, 2)
    pool.check_integrity({held: 1, plain: 1})
    pool.release(held)
    assert pool.num_free == 3
    pool.name(plain, KEY)  # keys can be given again
    assert pool.find(KEY) == plain
