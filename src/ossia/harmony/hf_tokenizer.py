"""Reads and writes tokenizers as Hugging Face folders (`tokenizer.json` and the small files beside it).

The tokenizer.json describes byte-level BPE: each byte stands as a printable character (the alphabet of GPT-2), the
o200k pattern cuts the text, `ignore_merges` takes a piece that is a token as it is, and merges are listed by rank.
Our own `o200k_ids.json` beside it maps each id to the id of the same token in o200k_harmony.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ossia.core.errors import CorruptFileError, MissingFileError, StorageError, VocabularyError
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import (
    O200K_PATTERN,
    O200K_VOCAB_SIZE,
    SPECIAL_TOKENS,
    ControlToken,
    Vocabulary,
    o200k_harmony_vocabulary,
    recover_merges,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T")

TOKENIZER_FILE = "tokenizer.json"
O200K_IDS_FILE = "o200k_ids.json"


def write_tokenizer_json(tokenizer: Tokenizer, path: str | os.PathLike[str]) -> None:
    """Writes a tokenizer.json with which `tokenizers` and Transformers give the same ids.

    Raises:
        VocabularyError: the ranks do not come from merging pairs, so there are no merges to list.
        StorageError: the file cannot be written; one that was there before is untouched.
    """
    vocabulary = tokenizer.vocabulary
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added_token(name, token_id) for name, token_id in _by_id(vocabulary.specials)],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": vocabulary.pattern},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {to_letters(token): rank for token, rank in _by_id(vocabulary.ranks)},
            "merges": [[to_letters(left), to_letters(right)] for left, right in tokenizer.merges.values()],
        },
    }
    _write_json(Path(path), content)


def write_tokenizer_folder(
    tokenizer: Tokenizer, folder: str | os.PathLike[str], *, chat_template: str | None = None
) -> None:
    """Writes all that `AutoTokenizer.from_pretrained(folder)` needs, and `o200k_ids.json` where the ids are known.

    Args:
        tokenizer: what to write.
        folder: made if absent; its other files are left alone.
        chat_template: the text of chat_template.jinja; none is written without it.

    Raises:
        VocabularyError: as `write_tokenizer_json`.
        StorageError: a file cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}") from error
    write_tokenizer_json(tokenizer, folder / TOKENIZER_FILE)
    special = {
        "bos_token": str(ControlToken.STARTOFTEXT),
        "eos_token": str(ControlToken.RETURN),
        "pad_token": str(ControlToken.ENDOFTEXT),
    }
    _write_json(folder / "special_tokens_map.json", special, indent=2)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    _write_json(folder / "tokenizer_config.json", config, indent=2)
    if tokenizer.vocabulary.o200k_ids is not None:
        _write_json(folder / O200K_IDS_FILE, {"o200k_ids": tokenizer.vocabulary.o200k_ids})
    if chat_template is not None:
        _write_text(folder / "chat_template.jinja", chat_template)


def read_tokenizer_json(path: str | os.PathLike[str], *, size: int | None = None) -> Tokenizer:
    """Reads a byte-level BPE tokenizer.json; that of o200k_harmony gives the built-in tokenizer.

    Args:
        path: the file. `o200k_ids.json` is read too where it lies beside it.
        size: ids in all (the model's vocab_size); by default one more than the largest id, or 201,088 for
            o200k_harmony, of which the published file lists only the first special tokens.

    Raises:
        MissingFileError: there is no such file.
        CorruptFileError: the file is not JSON, or not a tokenizer.json.
        VocabularyError: its data contradict themselves, or are of another kind than byte-level BPE by rank.
    """
    path = Path(path)
    content = _read_json(path)
    try:
        specials = {str(token["content"]): _whole(token["id"]) for token in content["added_tokens"]}
        model = content["model"]
        if model["type"] != "BPE" or content.get("normalizer") is not None:
            raise VocabularyError(f"{path} is of another kind; only byte-level BPE without a normalizer can be read")
        ranks = {
            _to_bytes(letters): _whole(rank) for letters, rank in model["vocab"].items() if letters not in specials
        }
        # Older files write a merge as one string; a space never stands in a token's letters.
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        pattern = _split_pattern(content["pre_tokenizer"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptFileError(
            f"{path} is not a byte-level BPE tokenizer.json ({type(error).__name__}: {error}); "
            "fetch it again or write it with write_tokenizer_json"
        ) from error
    if size in (None, O200K_VOCAB_SIZE) and _is_o200k_harmony(ranks, specials=specials, pattern=pattern):
        return Tokenizer.o200k_harmony()
    vocabulary = Vocabulary(
        ranks=ranks,
        specials=specials,
        size=size or max([*ranks.values(), *specials.values()], default=0) + 1,
        o200k_ids=_read_o200k_ids(path.with_name(O200K_IDS_FILE)),
        pattern=pattern,
    )
    _check_merges(ranks, merges=merges, path=path)
    return Tokenizer(vocabulary)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Reads the tokenizer of a model folder; its size is the vocab_size of config.json, where there is one.

    Raises:
        MissingFileError: the folder has no tokenizer.json.
        CorruptFileError: a file cannot be understood.
        VocabularyError: as `read_tokenizer_json`.
    """
    folder = Path(folder)
    config = folder / "config.json"
    size: Any = _read_json(config).get("vocab_size") if config.exists() else None
    if not isinstance(size, int | None):
        raise CorruptFileError(f"{config}: vocab_size is {size!r}, but must be a whole number")
    return read_tokenizer_json(folder / TOKENIZER_FILE, size=size)


def _added_token(name: str, token_id: int) -> dict[str, Any]:
    return {
        "id": token_id,
        "content": name,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _by_id(tokens: Mapping[T, int]) -> list[tuple[T, int]]:
    return sorted(tokens.items(), key=lambda item: item[1])


def _split_pattern(pre_tokenizer: dict[str, Any]) -> str:
    """The pattern of a Split followed by a bare ByteLevel, the only way of cutting text that tiktoken can follow."""
    split, byte_level = pre_tokenizer["pretokenizers"]
    isolates = (split["behavior"], split["invert"]) in {("Isolated", False), ("Removed", True)}
    is_bare = not byte_level["add_prefix_space"] and not byte_level["use_regex"]
    if not (split["type"] == "Split" and isolates and byte_level["type"] == "ByteLevel" and is_bare):
        raise VocabularyError("the pre_tokenizer is of another kind; only Split by a Regex, then ByteLevel can be read")
    return str(split["pattern"]["Regex"])


def _whole(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"id {value!r} is not a whole number")
    return value


def _is_o200k_harmony(ranks: dict[bytes, int], *, specials: dict[str, int], pattern: str) -> bool:
    return (
        len(ranks) == min(SPECIAL_TOKENS.values())
        and pattern == O200K_PATTERN
        and specials.items() <= SPECIAL_TOKENS.items()
        and ranks == o200k_harmony_vocabulary().ranks
    )


def _check_merges(ranks: dict[bytes, int], *, merges: list[tuple[str, ...]], path: Path) -> None:
    """Checks that the listed merges say what the ranks imply; then byte-pair encoding by rank gives the same ids."""
    listed: set[tuple[bytes, bytes]] = set()
    last = -1
    for number, merge in enumerate(merges):
        if len(merge) != 2:
            raise CorruptFileError(f"{path}: merge {number} is {merge!r}, but a merge joins two tokens")
        left, right = _to_bytes(merge[0]), _to_bytes(merge[1])
        rank = ranks.get(left + right)
        if rank is None or left not in ranks or right not in ranks:
            raise VocabularyError(
                f"{path}: merge {number} ({merge[0]} {merge[1]}) has a part or a result without an id"
            )
        if rank < last:
            raise VocabularyError(
                f"{path}: merge {number} makes token {rank} after one made token {last}; "
                "only vocabularies whose ids follow the order of the merges can be read"
            )
        last = rank
        listed.add((left, right))
    for token, parts in recover_merges(ranks).items():
        if parts not in listed:
            raise VocabularyError(f"{path}: token {ranks[token]} ({to_letters(token)}) is made by no listed merge")


def _read_o200k_ids(path: Path) -> tuple[int, ...] | None:
    if not path.exists():
        return None
    ids = _read_json(path).get("o200k_ids")
    if not isinstance(ids, list) or not all(isinstance(item, int) for item in cast("list[Any]", ids)):
        raise CorruptFileError(f"{path} must hold a list of whole numbers named o200k_ids")
    return tuple(cast("list[int]", ids))


@functools.cache
def _letters() -> str:
    """The character for each byte: itself where it prints in Latin-1, else the next free one from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    spare = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(spare)) for byte in range(256))


@functools.cache
def _bytes_of_letters() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(_letters())}


def to_letters(token: bytes) -> str:
    """A token's bytes in the printable alphabet of byte-level BPE."""
    return token.decode("latin-1").translate(_letters())


def _to_bytes(letters: str) -> bytes:
    try:
        return bytes(map(_bytes_of_letters().__getitem__, letters))
    except KeyError as error:
        raise VocabularyError(
            f"the token {letters!r} holds {error.args[0]!r}, which stands for no byte in byte-level BPE"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise MissingFileError(f"there is no {path.name} in {path.parent}; fetch the model again") from None
    except OSError as error:
        raise CorruptFileError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not valid JSON ({error}); fetch it again") from error
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds a JSON {type(content).__name__}, but an object is wanted")
    return cast("dict[str, Any]", content)


def _write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    _write_text(path, json.dumps(content, ensure_ascii=False, indent=indent) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Writes beside the file, then renames: a failure leaves what was there."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {error.strerror}; what was there is untouched") from error
