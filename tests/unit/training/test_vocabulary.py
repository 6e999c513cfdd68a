from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from ossia.core.errors import InvalidInputError, VocabularyError
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.training import vocabulary
from ossia.training.config import TrainConfig
from ossia.training.data.batches.examples import GPT_OSS_IDENTITY, ExampleSource
from ossia.training.vocabulary import FORCED, first_vocabulary, prepare_tokenizer, with_special_ids


def test_the_vocabulary_has_the_size_of_the_recipe(recipe: TrainConfig, tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == recipe.model.vocab_size
    specials = [tokenizer.start, tokenizer.end, tokenizer.message, tokenizer.channel, tokenizer.return_, tokenizer.call]
    assert len(set(specials)) == 6
    assert all(0 <= token < tokenizer.vocab_size for token in specials)


def test_the_words_of_the_format_are_the_tokens_of_o200k(tokenizer: Tokenizer) -> None:
    full = Tokenizer.o200k_harmony()
    for text in FORCED:
        ours = [tokenizer.decode_bytes([token]) for token in tokenizer.encode(text)]
        assert ours == [full.decode_bytes([token]) for token in full.encode(text)], text
    assert GPT_OSS_IDENTITY in FORCED


def test_any_text_survives(tokenizer: Tokenizer) -> None:
    for text in ("strawberry", "Žluťoučký kůň 🐎", "12,345 - 6", "\x00\n\t"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_tokens_of_their_own(tokenizer: Tokenizer) -> None:
    assert [tokenizer.decode([token]) for token in tokenizer.encode("4096")] == list("4096")


def test_text_of_the_mix_takes_few_more_tokens_than_in_o200k(recipe: TrainConfig, tokenizer: Tokenizer) -> None:
    full = Tokenizer.o200k_harmony()
    source = ExampleSource(recipe.data, tokenizer=full, identity=recipe.identity)
    rng = random.Random(99)
    texts = [full.decode([i for i in source.draw(rng).ids if not full.is_special(i)]) for _ in range(30)]
    ours, theirs = (sum(len(t.encode(text)) for text in texts) for t in (tokenizer, full))
    assert theirs <= ours < 1.6 * theirs


def test_the_stop_ids_are_those_of_the_tokenizer(recipe: TrainConfig, tokenizer: Tokenizer) -> None:
    model = with_special_ids(recipe, tokenizer)
    assert model.eos_token_ids == (tokenizer.return_, tokenizer.call, tokenizer.endoftext)
    assert model.pad_token_id == tokenizer.endoftext


def test_a_run_keeps_its_tokenizer(
    recipe: TrainConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def choose(*args: object, size: int, **options: object) -> object:
        calls.append(size)
        return tokenizer.vocabulary

    monkeypatch.setattr(vocabulary, "choose_vocabulary", choose)
    first = prepare_tokenizer(recipe, tmp_path)
    second = prepare_tokenizer(recipe, tmp_path)
    assert calls == [recipe.model.vocab_size]
    assert first.encode("Spell plum.") == second.encode("Spell plum.") == tokenizer.encode("Spell plum.")


def test_a_tokenizer_of_another_size_is_refused(recipe: TrainConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    write_tokenizer_folder(tokenizer, tmp_path / "tokenizer")
    larger = replace(recipe, model=replace(recipe.model, vocab_size=1024))
    with pytest.raises(VocabularyError, match="delete the folder to choose anew"):
        prepare_tokenizer(larger, tmp_path)


def test_the_first_tokens_are_those_of_o200k_in_order_with_the_forced_ones() -> None:
    full = Tokenizer.o200k_harmony()
    first = Tokenizer(first_vocabulary(size=2048))
    kept = first.vocabulary.o200k_ids
    assert kept is not None
    ordinary = set(kept[: 2048 - 16])
    joined = [token for token in range(1200) if token not in ordinary]
    assert all(any(char.isdigit() for char in full.decode([token])) for token in joined), "only joined digits are left"
    for text in FORCED:
        assert [kept[token] for token in first.encode(text)] == full.encode(text)


def test_a_way_to_choose_that_there_is_not(recipe: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="frequency, rank"):
        prepare_tokenizer(recipe, tmp_path, by="length")
