from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.engine.constraint import JsonObject, JsonSchema, Lark, Regex, ToolGrammar, TurnConstraint
from ossia.engine.grammar.matcher import MaskFiller, MaskRequest, mask_width

SCHEMA = JsonSchema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
TURN = TurnConstraint(tools=(ToolGrammar.function("f"), ToolGrammar.builtin("python")), parallel_calls=True)
CONSTRAINTS = [SCHEMA, JsonObject(), Regex("(ab|cd)*e?"), TURN]


def walk(grammars: Any, matcher: Any, rng: np.random.Generator, num_tokens: int) -> list[int]:
    """Takes random allowed tokens; those taken."""
    taken: list[int] = []
    while len(taken) < num_tokens and not matcher.is_finished:
        taken.append(int(rng.choice(sorted(grammars.allowed(matcher)))))
        assert matcher.advance(taken[-1]), f"the mask allowed what the matcher refuses: {matcher.error}"
    return taken


@pytest.mark.parametrize(("vocab_size", "width"), [(1, 1), (32, 1), (33, 2), (201_088, 6284)])
def test_the_width_of_a_mask(vocab_size: int, width: int) -> None:
    assert mask_width(vocab_size) == width


@given(seed=st.integers(0, 2**32), index=st.integers(0, len(CONSTRAINTS) - 1), length=st.integers(0, 40))
def test_what_a_mask_forbids_is_refused_and_changes_nothing(grammars: Any, seed: int, index: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    matcher = grammars.compile(CONSTRAINTS[index])
    walk(grammars, matcher, rng, length)
    if matcher.is_finished:
        return
    allowed = grammars.allowed(matcher)
    for token_id in rng.integers(0, grammars.tokenizer.vocab_size, 20).tolist():
        if token_id not in allowed and grammars.tokenizer.is_special(token_id):
            assert not matcher.advance(token_id)
    assert not matcher.advance(-1)
    assert not matcher.advance(grammars.tokenizer.vocab_size)
    assert matcher.error is None
    assert grammars.allowed(matcher) == allowed


@given(
    seed=st.integers(0, 2**32),
    index=st.integers(0, len(CONSTRAINTS) - 1),
    length=st.integers(0, 40),
    back=st.integers(0, 40),
)
def test_rollback_and_fork_lead_where_a_fresh_matcher_stands(
    grammars: Any, seed: int, index: int, length: int, back: int
) -> None:
    rng = np.random.default_rng(seed)
    matcher = grammars.compile(CONSTRAINTS[index])
    taken = walk(grammars, matcher, rng, length)
    fork = matcher.fork()
    back = min(back, len(taken))
    matcher.rollback(back)
    fresh = grammars.compile(CONSTRAINTS[index])
    for token_id in taken[: len(taken) - back]:
        assert fresh.advance(token_id)
    assert grammars.allowed(matcher) == grammars.allowed(fresh)
    assert (matcher.num_tokens, matcher.is_accepting) == (fresh.num_tokens, fresh.is_accepting)
    for token_id in taken[len(taken) - back :]:
        assert matcher.advance(token_id)
    assert grammars.allowed(matcher) == grammars.allowed(fork)
    assert (matcher.is_finished, matcher.num_excess) == (fork.is_finished, fork.num_excess)


def test_more_than_there_is_cannot_be_taken_back(grammars: Any) -> None:
    with pytest.raises(ValueError, match="1 tokens"):
        grammars.compile(SCHEMA).rollback(1)


@pytest.mark.parametrize("name", ["endoftext", "return_"])
def test_an_end_id_ends_what_is_complete(grammars: Any, name: str) -> None:
    end_id = getattr(grammars.tokenizer, name)
    matcher = grammars.compile(Regex("a+"))
    assert not matcher.advance(end_id)
    assert end_id not in grammars.allowed(matcher)
    assert grammars.takes(matcher, "a")
    assert matcher.is_accepting
    assert not matcher.is_finished
    assert end_id in grammars.allowed(matcher)
    assert matcher.advance(end_id)
    assert matcher.is_finished
    assert matcher.num_excess == 1
    assert not matcher.advance(end_id)
    assert grammars.allowed(matcher) == {grammars.tokenizer.endoftext}
    matcher.rollback(1)
    assert matcher.num_excess == 0
    assert grammars.takes(matcher, "a")


def test_forced_tokens_are_the_only_ones_allowed(grammars: Any) -> None:
    matcher = grammars.compile(TURN)
    assert matcher.forced_tokens() == []
    assert grammars.takes(matcher, "<|channel|>commentary to=functions.f")
    assert matcher.forced_tokens() == []  # " json", "<|message|>" or " <|constrain|>"
    assert grammars.takes(matcher, " <|constrain|>")
    forced = matcher.forced_tokens()
    assert grammars.tokenizer.decode(forced).startswith("json<|message|>")
    for token_id in forced[:2]:
        assert grammars.allowed(matcher) == {token_id}
        assert matcher.advance(token_id)
    complete = grammars.compile(Regex("ab*"))
    assert grammars.takes(complete, "a")
    assert complete.forced_tokens() == []


def test_counting_what_is_allowed_changes_nothing(grammars: Any) -> None:
    matcher = grammars.compile(Regex("abc"))
    ids = [grammars.tokenizer.encode(letter)[0] for letter in "abcd"]
    assert matcher.count_allowed(ids) == 3
    assert matcher.count_allowed(ids[1:]) == 0
    assert matcher.num_tokens == 0


@given(seed=st.integers(0, 2**32), num_drafts=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_a_batch_of_masks_equals_each_alone(grammars: Any, seed: int, num_drafts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    vocab_size = grammars.tokenizer.vocab_size
    requests: list[MaskRequest] = []
    wanted: list[set[int]] = []
    for index, count in enumerate(num_drafts):
        matcher = grammars.compile(CONSTRAINTS[index % len(CONSTRAINTS)])
        walk(grammars, matcher, rng, int(rng.integers(0, 12)))
        ahead = matcher.fork()
        drafts = walk(grammars, ahead, rng, count)
        if drafts and rng.random() < 0.5:  # one that may not be allowed
            drafts[int(rng.integers(0, len(drafts)))] = int(rng.integers(0, vocab_size))
        requests.append(MaskRequest(matcher, len(wanted), tuple(drafts)))
        probe = matcher.fork()
        wanted.append(grammars.allowed(probe))
        is_live = not probe.is_finished
        for draft in drafts:
            is_live = is_live and probe.advance(draft)
            wanted.append(grammars.allowed(probe) if is_live else {grammars.tokenizer.endoftext})
    masks = np.full((len(wanted) + 1, grammars.compiler.mask_width), 7, np.int32)
    before = [request.matcher.num_tokens for request in requests]
    MaskFiller(num_threads=2).fill(requests, masks)
    assert [grammars.ids_of(row) for row in masks[:-1]] == wanted
    assert (masks[-1] == 7).all()
    assert [request.matcher.num_tokens for request in requests] == before
    for request in requests:
        assert grammars.allowed(request.matcher) == wanted[request.row]


def test_a_grammar_that_grows_too_complex_breaks_its_matcher_alone(grammars: Any) -> None:
    matcher = grammars.compile(Lark('start: a\na: a a | "x"'))
    x = grammars.tokenizer.encode("x")[0]
    while matcher.error is None:
        grammars.allowed(matcher)
        matcher.advance(x)
        assert matcher.num_tokens < 1000
    assert "oo many items" in matcher.error
    assert not matcher.is_finished
    assert not matcher.is_accepting
    assert not matcher.advance(x)
    assert grammars.allowed(matcher) == {grammars.tokenizer.endoftext}
    masks = np.zeros((2, grammars.compiler.mask_width), np.int32)
    other = grammars.compile(Regex("ab"))
    MaskFiller(num_threads=2).fill([MaskRequest(matcher, 0), MaskRequest(other, 1)], masks)
    assert grammars.ids_of(masks[0]) == {grammars.tokenizer.endoftext}
    assert grammars.tokenizer.encode("a")[0] in grammars.ids_of(masks[1])
