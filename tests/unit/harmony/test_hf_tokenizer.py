from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HFTokenizer
from transformers import AutoTokenizer

from ossia.core.errors import CheckpointError, CorruptFileError, MissingFileError, StorageError, VocabularyError
from ossia.harmony.hf_tokenizer import (
    load_tokenizer,
    read_tokenizer_json,
    write_tokenizer_folder,
    write_tokenizer_json,
)
from ossia.harmony.prune import count_tokens, prune_vocabulary
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import O200K_VOCAB_SIZE, ControlToken

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = Path(__file__).parents[2] / "golden" / "harmony"
TEXTS = [json.loads(line)["text"] for line in (GOLDEN / "tokenizer.jsonl").read_text("utf-8").splitlines()]

text_with_specials = st.lists(
    st.one_of(
        st.text(max_size=12), st.sampled_from([*ControlToken, "<|", "'ſ", "'Ll", "\r\n", "  \n ", "123456", "İı"])
    )
).map("".join)


@pytest.fixture(scope="module")
def pruned() -> Tokenizer:
    counts = count_tokens(TEXTS, Tokenizer.o200k_harmony())
    return Tokenizer(prune_vocabulary(counts, size=1024, forced=["analysis"]))


@pytest.fixture(scope="module")
def folder(pruned: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pruned")
    write_tokenizer_folder(pruned, path, chat_template="{{ messages[0].content }}")
    return path


@pytest.fixture(scope="module")
def o200k_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("o200k") / "tokenizer.json"
    write_tokenizer_json(Tokenizer.o200k_harmony(), path)
    return path


@pytest.fixture(scope="module", params=["o200k", "pruned"])
def pair(request: pytest.FixtureRequest) -> tuple[Tokenizer, HFTokenizer]:
    """One of our tokenizers, and what the tokenizers library makes of the file written from it."""
    if request.param == "o200k":
        return Tokenizer.o200k_harmony(), HFTokenizer.from_file(str(request.getfixturevalue("o200k_file")))
    path = request.getfixturevalue("folder") / "tokenizer.json"
    return request.getfixturevalue("pruned"), HFTokenizer.from_file(str(path))


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizers_library_gives_our_ids(pair, text) -> None:
    ours, theirs = pair
    ids = ours.encode_with_specials(text)
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids, skip_special_tokens=False) == text


@given(text_with_specials)
@example(" " * 1000 + "x" * 500 + "é" * 300)
def test_the_tokenizers_library_gives_our_ids_for_any_text(pair, text) -> None:
    ours, theirs = pair
    assert theirs.encode(text).ids == ours.encode_with_specials(text)


def test_every_token_is_itself_in_the_tokenizers_library(pair) -> None:
    ours, theirs = pair
    tokens = [token.decode() for token in ours.vocabulary.ranks if token.isascii()]
    assert [e.ids for e in theirs.encode_batch(tokens)] == [ours.encode(token) for token in tokens]
    assert theirs.get_vocab_size() == ours.vocab_size


def test_transformers_loads_the_folder(folder, pruned) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == pruned.vocab_size
    for text in [*TEXTS, "<|start|>user<|message|>hi<|end|>"]:
        ids = pruned.encode_with_specials(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == ids
        assert theirs.decode(ids) == text
    assert theirs.eos_token_id == pruned.return_
    assert theirs.pad_token_id == pruned.endoftext
    assert theirs.bos_token_id == pruned.special_id("<|startoftext|>")
    message = [{"role": "user", "content": "hello"}]
    assert theirs.apply_chat_template(message, tokenize=False) == "hello"


def test_a_pruned_folder_reads_back_equal(folder, pruned) -> None:
    read = load_tokenizer(folder)
    assert read.vocabulary == pruned.vocabulary
    assert list(read.vocabulary.ranks) == list(pruned.vocabulary.ranks)
    assert read.vocabulary.o200k_ids is not None
    assert [read.encode(text) for text in TEXTS] == [pruned.encode(text) for text in TEXTS]


def test_the_o200k_file_reads_back_as_the_built_in(o200k_file) -> None:
    assert read_tokenizer_json(o200k_file) is Tokenizer.o200k_harmony()
    content = json.loads(o200k_file.read_text("utf-8"))
    # The published file stops at 200018; the reserved ids behind it are there all the same.
    content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] <= 200_018]
    o200k_file.write_text(json.dumps(content), "utf-8")
    assert load_tokenizer(o200k_file.parent) is Tokenizer.o200k_harmony()
    assert load_tokenizer(o200k_file.parent).vocab_size == O200K_VOCAB_SIZE


def test_the_size_comes_from_the_config(folder, tmp_path) -> None:
    path = _copy(folder, tmp_path)
    (path.parent / "config.json").write_text('{"vocab_size": 1100}')
    assert load_tokenizer(path.parent).vocab_size == 1100
    assert load_tokenizer(path.parent).decode([1099]) == ""
    (path.parent / "config.json").write_text('{"vocab_size": 1000}')
    with pytest.raises(VocabularyError, match="size 1000"):
        load_tokenizer(path.parent)
    (path.parent / "config.json").write_text('{"vocab_size": "many"}')
    with pytest.raises(CorruptFileError, match="'many'"):
        load_tokenizer(path.parent)


def test_foreign_ways_of_writing_the_same_are_read(folder, tmp_path, pruned) -> None:
    def rewrite(content: dict[str, Any]) -> None:
        # Merges as strings, and as converters list them: every pair that joins to a token, not only the one BPE uses.
        vocab = content["model"]["vocab"]
        pairs = [
            (rank, vocab[token[:i]], vocab[token[i:]], f"{token[:i]} {token[i:]}")
            for token, rank in vocab.items()
            for i in range(1, len(token))
            if token[:i] in vocab and token[i:] in vocab
        ]
        assert len(pairs) > len(content["model"]["merges"])
        content["model"]["merges"] = [merge for *_, merge in sorted(pairs)]
        content["pre_tokenizer"]["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
        vocab |= {token["content"]: token["id"] for token in content["added_tokens"]}

    assert read_tokenizer_json(_edit(folder, tmp_path, rewrite)).vocabulary.ranks == pruned.vocabulary.ranks


def test_o200k_ids_are_optional(folder, tmp_path, pruned) -> None:
    path = _copy(folder, tmp_path)
    (path.parent / "o200k_ids.json").unlink()
    read = load_tokenizer(path.parent)
    assert read.vocabulary == replace(pruned.vocabulary, o200k_ids=None)
    write_tokenizer_folder(read, path.parent)
    assert not (path.parent / "o200k_ids.json").exists()


def _set(*keys: Any, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return change


def _swap_merges(content: Any) -> None:
    merges = content["model"]["merges"]
    merges[10], merges[11] = merges[11], merges[10]


def _swap_ids(content: Any) -> None:
    vocab = content["model"]["vocab"]
    last, before = list(vocab)[-1], list(vocab)[-2]
    vocab[last], vocab[before] = vocab[before], vocab[last]


CHANGES = {
    "no model": (lambda content: content.pop("model"), CorruptFileError, "model"),
    "no added tokens": (lambda content: content.pop("added_tokens"), CorruptFileError, "added_tokens"),
    "unigram": (_set("model", "type", to="Unigram"), VocabularyError, "another kind"),
    "normalizer": (_set("normalizer", to={"type": "NFC"}), VocabularyError, "normalizer"),
    "no pre-tokenizer": (_set("pre_tokenizer", to=None), CorruptFileError, "NoneType"),
    "no split": (_set("pre_tokenizer", "pretokenizers", 0, "type", to="Digits"), VocabularyError, "Split"),
    "prefix space": (_set("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", to=True), VocabularyError, "Split"),
    "vocabulary a list": (_set("model", "vocab", to=["a"]), CorruptFileError, "list"),
    "fractional id": (_set("model", "vocab", "!", to=0.5), CorruptFileError, "0.5"),
    "not a byte letter": (_set("model", "vocab", "語", to=5000), VocabularyError, "語"),
    "no byte": (lambda content: content["model"]["vocab"].pop("Ā"), VocabularyError, "0x00"),
    "shared id": (_set("model", "vocab", "!", to=1), VocabularyError, "share"),
    "special on an ordinary id": (_set("added_tokens", 0, "id", to=5), VocabularyError, "share"),
    "no harmony token": (_set("added_tokens", 8, "content", to="<|begin|>"), VocabularyError, r"<\|start\|>"),
    "a merge of three": (_set("model", "merges", 3, to=["a", "b", "c"]), CorruptFileError, "merge 3"),
    "a merge to nothing": (_set("model", "merges", 3, to=["!", "~"]), VocabularyError, "merge 3"),
    "a merge lost": (lambda content: content["model"]["merges"].pop(3), VocabularyError, "no listed merge"),
    "merges out of order": (_swap_merges, VocabularyError, "order of the merges"),
    "ids out of order": (_swap_ids, VocabularyError, "order of the merges"),
}


@pytest.mark.parametrize(("change", "error", "message"), CHANGES.values(), ids=CHANGES)
def test_contradictory_files_are_refused(folder, tmp_path, change, error, message) -> None:
    path = _edit(folder, tmp_path, change)
    with pytest.raises(error, match=message):
        read_tokenizer_json(path)


@pytest.mark.parametrize("ids", [{}, {"o200k_ids": [1, "2"]}, [1, 2]])
def test_bad_o200k_ids_are_refused(folder, tmp_path, ids) -> None:
    path = _copy(folder, tmp_path)
    (path.parent / "o200k_ids.json").write_text(json.dumps(ids))
    with pytest.raises(CorruptFileError, match=r"o200k_ids\.json"):
        read_tokenizer_json(path)


def test_files_that_are_not_there_or_cut_off(folder, tmp_path) -> None:
    with pytest.raises(MissingFileError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    path = _copy(folder, tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not valid JSON"):
        read_tokenizer_json(path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(CorruptFileError):
        read_tokenizer_json(path)
    path.write_text("[]")
    with pytest.raises(CorruptFileError, match="list"):
        read_tokenizer_json(path)


def test_a_failed_write_leaves_the_old_file(folder, tmp_path, pruned, monkeypatch) -> None:
    path = _copy(folder, tmp_path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match="No space left"):
            write_tokenizer_json(pruned, path)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(file.name for file in folder.iterdir())
    with pytest.raises(StorageError, match="cannot make the folder"):
        write_tokenizer_folder(pruned, path / "below a file")


def _copy(folder: Path, target: Path) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target / "tokenizer.json"


def _edit(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = _copy(folder, target)
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")
    return path
