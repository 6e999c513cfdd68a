"""What the parser needs to know of single ids: which control they are, their bytes, and a header's sections."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from ossia.harmony.header import Section
from ossia.harmony.vocab import ControlToken

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ossia.harmony.tokenizer import Tokenizer

STOPS = frozenset({ControlToken.END, ControlToken.RETURN, ControlToken.CALL, ControlToken.ENDOFTEXT})
HEADER_MARKS = frozenset({ControlToken.CHANNEL, ControlToken.CONSTRAIN, ControlToken.MESSAGE})

_REPLACEMENT = "\ufffd".encode()
_MEANINGFUL = (ControlToken.START, *sorted(HEADER_MARKS), *sorted(STOPS))


class TokenReader:
    """Looks up ids, any integers, in one tokenizer. Safe to share between parsers.

    Attributes:
        controls: the control tokens that mean something to the parser, by id.
        num_plain: ids from 0 up to it are ordinary tokens; others may be.
        texts: texts of ordinary tokens that are whole characters by themselves; filled as they are met.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        specials = tokenizer.vocabulary.specials
        self.controls = {specials[token]: token for token in _MEANINGFUL}
        self.num_plain = min(specials.values())
        self.texts: dict[int, str] = {}
        self._tokenizer = tokenizer

    def knows(self, token_id: int) -> bool:
        """Whether the id lies within the vocabulary."""
        return 0 <= token_id < self._tokenizer.vocab_size

    def is_special(self, token_id: int) -> bool:
        """Whether the id is a special token, with a meaning or without."""
        return self._tokenizer.is_special(token_id)

    def bytes_of(self, token_id: int) -> bytes:
        """The bytes of a token; those of U+FFFD for an id outside the vocabulary."""
        return self._tokenizer.token_bytes(token_id) if self.knows(token_id) else _REPLACEMENT

    def remember(self, token_id: int) -> None:
        """Notes the text of an ordinary token in `texts`, if it is whole by itself."""
        try:
            text = self.bytes_of(token_id).decode()
        except UnicodeDecodeError:
            return
        if text:
            self.texts[token_id] = text

    def decode_plain(self, ids: Iterable[int]) -> str:
        """The text of ids that need not be known; for notes."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def sections(self, ids: Iterable[int]) -> list[Section]:
        """Cuts a header at its control tokens.

        `<|start|>`, `<|message|>` and stop tokens, which open or end a header, are left out.
        """
        sections: list[Section] = []
        marker: ControlToken | None = None
        text: list[int] = []
        for token_id in ids:
            if not self.is_special(token_id):
                text.append(token_id)
                continue
            # A token without a meaning in headers still ends a name; ENDOFPROMPT stands for all of those.
            control = self.controls.get(token_id, ControlToken.ENDOFPROMPT)
            if control in (ControlToken.CHANNEL, ControlToken.CONSTRAIN, ControlToken.ENDOFPROMPT):
                sections.append(Section(marker, self.decode_plain(text)))
                marker, text = control, []
        return [*sections, Section(marker, self.decode_plain(text))]


@functools.lru_cache(maxsize=8)
def token_reader(tokenizer: Tokenizer) -> TokenReader:
    """The reader of a tokenizer, shared so that its texts are gathered once."""
    return TokenReader(tokenizer)
