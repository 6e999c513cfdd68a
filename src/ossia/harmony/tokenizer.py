"""Text to token ids and back: byte-pair encoding by tiktoken over a `Vocabulary`.

Encoding is total: every `str` encodes, in time close to linear in its length (from tiktoken 0.14 on; earlier ones are
quadratic in a single piece), and never to a control token. Half surrogate pairs, which no UTF-8 can hold, become
U+FFFD; whole pairs become the character they stand for.
"""

from __future__ import annotations

import codecs
import functools
import re
from typing import TYPE_CHECKING, Protocol, cast

# The engine itself rather than tiktoken.Encoding around it: a method call less for each short message, and
# encode_single_piece, which Encoding keeps private. tiktoken ships no types for it.
from tiktoken._tiktoken import CoreBPE  # pyright: ignore[reportMissingImports, reportUnknownVariableType]

from ossia.core.errors import InvalidInputError, VocabularyError
from ossia.harmony.vocab import ControlToken, Vocabulary, o200k_harmony_vocabulary, recover_merges

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# White space without the line ends, as the pattern's \s has it (Unicode White_Space).
_BLANKS = "\t\x0b\x0c \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_BLANK_RUN = re.compile(f"[{_BLANKS}]*")
# tiktoken's regex engine panics on a piece of 999,999 blanks or more. Runs that may be this long are cut out first;
# every run of two steps or more holds two neighbouring probes, so looking at one character a step finds them all.
_PROBE_STEP = 250_000


class _Engine(Protocol):
    """What we use of tiktoken's CoreBPE."""

    def encode_ordinary(self, text: str) -> list[int]: ...
    def encode_single_piece(self, piece: bytes) -> list[int]: ...
    def decode_bytes(self, tokens: Sequence[int]) -> bytes: ...


class Tokenizer:
    """Encodes and decodes with one vocabulary. Safe to share between threads.

    Attributes:
        vocabulary: what it was built from.
        vocab_size: how many ids the model has, padding included.
        start, end, message, channel, constrain, return_, call, endoftext: ids of the control tokens.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Builds the encoder (0.2 s for all of o200k).

        Raises:
            VocabularyError: a control token that harmony needs is missing, or the pattern is no regular expression.
        """
        self.vocabulary = vocabulary
        self.vocab_size = vocabulary.size
        self._engine = _build_engine(vocabulary)
        self._encode_ordinary = self._engine.encode_ordinary
        self._specials = dict(vocabulary.specials)
        self._special_ids = frozenset(self._specials.values())
        by_length = sorted(self._specials, key=len, reverse=True)
        self._special_pattern = re.compile(f"({'|'.join(map(re.escape, by_length))})")
        self._token_bytes = _token_bytes(vocabulary)
        self.start = self.special_id(ControlToken.START)
        self.end = self.special_id(ControlToken.END)
        self.message = self.special_id(ControlToken.MESSAGE)
        self.channel = self.special_id(ControlToken.CHANNEL)
        self.constrain = self.special_id(ControlToken.CONSTRAIN)
        self.return_ = self.special_id(ControlToken.RETURN)
        self.call = self.special_id(ControlToken.CALL)
        self.endoftext = self.special_id(ControlToken.ENDOFTEXT)

    @staticmethod
    def o200k_harmony() -> Tokenizer:
        """The tokenizer of the published models, built once a process."""
        return _o200k_harmony()

    @functools.cached_property
    def merges(self) -> Mapping[bytes, tuple[bytes, bytes]]:
        """The pair that each longer token is merged from, in rank order (2 s for all of o200k, the first time).

        Raises:
            VocabularyError: the ranks do not come from merging pairs.
        """
        return recover_merges(self.vocabulary.ranks)

    def encode(self, text: str) -> list[int]:
        """Encodes text as data: look-alikes of control tokens become ordinary tokens."""
        if len(text) >= _PROBE_STEP:
            return self._encode_long(text)
        try:
            return self._encode_ordinary(text)
        except UnicodeEncodeError:
            return self._encode_ordinary(_replace_surrogates(text))

    def _encode_long(self, text: str) -> list[int]:
        text = _replace_surrogates(text)
        ids: list[int] = []
        done = 0
        for start, stop in _long_blank_runs(text):
            ids += self._encode_ordinary(text[done:start])
            ids += self._engine.encode_single_piece(text[start:stop].encode())
            done = stop
        return ids + self._encode_ordinary(text[done:]) if done else self._encode_ordinary(text)

    def encode_with_specials(self, text: str) -> list[int]:
        """Encodes trusted text, in which the names of special tokens stand for those tokens."""
        ids: list[int] = []
        for i, part in enumerate(self._special_pattern.split(text)):
            if i % 2:
                ids.append(self._specials[part])
            elif part:
                ids += self.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decodes ids to text; bytes that are not UTF-8 become U+FFFD, special tokens their names.

        Raises:
            InvalidInputError: an id lies outside the vocabulary.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of the tokens, laid end to end. Padding ids have none.

        Raises:
            InvalidInputError: an id lies outside the vocabulary.
        """
        try:
            return self._engine.decode_bytes(ids)
        except (KeyError, OverflowError, TypeError):
            return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: a special token's are its name, a padding id's are empty.

        Raises:
            InvalidInputError: the id lies outside the vocabulary.
        """
        try:
            if token_id >= 0:
                return self._token_bytes[token_id]
        except (IndexError, TypeError):
            pass
        raise InvalidInputError(
            f"{token_id!r} is no token id of this vocabulary; ids are whole numbers from 0 to {self.vocab_size - 1}",
            param="ids",
        )

    def special_id(self, name: str) -> int:
        """The id of a special token, such as `<|start|>`.

        Raises:
            VocabularyError: the vocabulary has no such special token.
        """
        try:
            return self._specials[name]
        except KeyError:
            raise VocabularyError(
                f"the vocabulary has no special token {name!r}; harmony needs {', '.join(ControlToken)}"
            ) from None

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a special token, named or reserved."""
        return token_id in self._special_ids


class Detokenizer:
    """Turns ids into text one at a time, holding back the bytes of an unfinished character.

    The pieces joined together, `finish()` included, are what `Tokenizer.decode` makes of all ids at once.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._pending = b""

    def push(self, token_id: int) -> str:
        """The text that this token completes; may be empty.

        Raises:
            InvalidInputError: the id lies outside the vocabulary.
        """
        data = self._pending + self._token_bytes(token_id)
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._pending = data[used:]
        return text

    def finish(self) -> str:
        """What is left: U+FFFD if a character was cut off, else nothing. Ready for new ids afterwards."""
        text = self._pending.decode("utf-8", errors="replace")
        self._pending = b""
        return text


@functools.cache
def _o200k_harmony() -> Tokenizer:
    return Tokenizer(o200k_harmony_vocabulary())


def _build_engine(vocabulary: Vocabulary) -> _Engine:
    try:
        engine = cast("_Engine", CoreBPE(dict(vocabulary.ranks), dict(vocabulary.specials), vocabulary.pattern))
    except ValueError as error:
        raise VocabularyError(f"tiktoken cannot take the pattern {vocabulary.pattern!r}: {error}") from error
    return engine


def _token_bytes(vocabulary: Vocabulary) -> list[bytes]:
    table = [b""] * vocabulary.size
    for token, token_id in vocabulary.ranks.items():
        table[token_id] = token
    for name, token_id in vocabulary.specials.items():
        table[token_id] = name.encode()
    return table


def _replace_surrogates(text: str) -> str:
    """Joins surrogate pairs to characters and replaces each surrogate that stands alone by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _long_blank_runs(text: str) -> Iterator[tuple[int, int]]:
    """Finds the pieces, as half-open intervals, that the pattern makes of very long runs of blanks.

    A blank other than a line end can only open a piece or lie in an all-blank one, so a piece starts where the run
    does. A line end right behind the run would join it (`\\s*[\\r\\n]+`, which the engine takes in its stride);
    any other character takes the last blank with it (`\\s+(?!\\S)`).
    """
    stop = 0
    for probe in range(0, len(text) - _PROBE_STEP, _PROBE_STEP):
        if probe < stop or text[probe : probe + _PROBE_STEP + 1].strip(_BLANKS):
            continue
        floor = max(stop, probe - _PROBE_STEP)
        start = floor + len(text[floor:probe].rstrip(_BLANKS))
        run = _BLANK_RUN.match(text, probe)
        assert run is not None
        stop = run.end()
        if stop == len(text):
            yield start, stop
        elif text[stop] not in "\r\n":
            yield start, stop - 1
