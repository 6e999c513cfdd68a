"""Drafts by prompt lookup: what followed the last few tokens when they stood in the sequence before. No torch.

Texts repeat themselves: names, code that is edited, quotes of the prompt. A draft costs no second model; the step that
verifies it gives the same tokens as plain decoding would (`accept_drafts`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ossia.core.errors import InvalidInputError
from ossia.engine.sequence import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupConfig:
    """How drafts are looked for.

    Attributes:
        max_ngram: prefer places that agree in so many of the last tokens.
        min_ngram: and take none that agrees in fewer.
        max_drafts: tokens to draft at most.
        first_drafts: tokens to draft at most before anything is known of a sequence.
        max_places: look at so many places at most, the latest first.
        max_pause: longest pause, in steps, of a sequence whose drafts keep being wrong.
        index_batch: index so many tokens in one call at most, so that a long prompt does not hold up a step.
    """

    max_ngram: int = 4
    min_ngram: int = 2
    max_drafts: int = 8
    first_drafts: int = 4
    max_places: int = 16
    max_pause: int = 32
    index_batch: int = 4096

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not isinstance(value, int) or value < (0 if name == "max_pause" else 1):
                raise InvalidInputError(f"{name} is {value!r}; allowed: a whole number of at least 1", param=name)
        if self.min_ngram > self.max_ngram:
            raise InvalidInputError(
                f"min_ngram is {self.min_ngram} and max_ngram {self.max_ngram}; min_ngram must not be above it",
                param="min_ngram",
            )


@dataclass(eq=False, kw_only=True, slots=True)
class _Index:
    """What is known of one sequence.

    Attributes:
        latest: behind which token each n-gram of `min_ngram` tokens last ended, as the index of the token after it.
        earlier: for each token, the place before that where the n-gram in front of it stood too; -1 for none.
        num_drafts: how many to draft next time.
        num_wrong: verifications in a row of which not one draft was right.
        pause: steps to let pass before drafting again.
    """

    latest: dict[tuple[int, ...], int] = field(default_factory=dict[tuple[int, ...], int])
    earlier: list[int] = field(default_factory=list[int])
    num_drafts: int
    num_wrong: int = 0
    pause: int = 0


class PromptLookup:
    """Drafts for any number of sequences. Release each when it ends.

    Args:
        config: how drafts are looked for.
    """

    def __init__(self, config: LookupConfig | None = None) -> None:
        self.config = config or LookupConfig()
        self._indices: dict[Sequence, _Index] = {}

    @property
    def num_sequences(self) -> int:
        """Sequences that have an index."""
        return len(self._indices)

    def propose(self, sequence: Sequence, max_drafts: int) -> tuple[int, ...]:
        """Guess the tokens behind the known ones, `max_drafts` at most.

        Nothing is guessed while a token is in flight, or if the request says no.
        """
        if max_drafts < 1 or sequence.num_in_flight or not sequence.request.params.speculate:
            return ()
        index = self._indices.get(sequence)
        if index is None:
            index = self._indices[sequence] = _Index(num_drafts=min(self.config.first_drafts, self.config.max_drafts))
        tokens = sequence.token_ids
        if not self._extend(index, tokens):
            return ()
        if index.pause:
            index.pause -= 1
            return ()
        place = self._find(index, tokens)
        if place < 0:
            return ()
        drafts = tokens[place : place + min(max_drafts, index.num_drafts)]
        while len(drafts) < min(max_drafts, index.num_drafts):
            drafts.append(drafts[len(drafts) - len(tokens) + place])  # the text runs in a circle
        return tuple(drafts)

    def record(self, sequence: Sequence, *, num_drafts: int, num_accepted: int) -> None:
        """Learn how many of a sequence's drafts were right, for the length of the next ones."""
        index = self._indices.get(sequence)
        if index is None or num_drafts == 0:
            return
        if num_accepted == 0:
            index.num_wrong += 1
            index.num_drafts = 1
            index.pause = min((1 << min(index.num_wrong, 20)) - 1, self.config.max_pause)
            return
        index.num_wrong = 0
        length = num_drafts * 2 if num_accepted == num_drafts else num_accepted + 1
        index.num_drafts = min(max(length, 1), self.config.max_drafts)

    def release(self, sequence: Sequence) -> None:
        """Forget a sequence that ended; one that is unknown is left alone."""
        self._indices.pop(sequence, None)

    def _extend(self, index: _Index, tokens: list[int]) -> bool:
        """Index the n-grams that a known token follows; False while there are more of them than one call takes."""
        n = self.config.min_ngram
        latest, earlier = index.latest, index.earlier
        begin = len(earlier)
        end = min(len(tokens), begin + self.config.index_batch)
        for place in range(begin, end):
            if place < n:
                earlier.append(-1)
                continue
            key = tuple(tokens[place - n : place])
            earlier.append(latest.get(key, -1))
            latest[key] = place
        return end == len(tokens)

    def _find(self, index: _Index, tokens: list[int]) -> int:
        """The token to start from: the one behind the longest agreement, of equals the latest; -1 for none."""
        config = self.config
        n, length = config.min_ngram, len(tokens)
        if length < n:
            return -1
        place = index.latest.get(tuple(tokens[length - n :]), -1)
        best, best_length = place, n
        for _ in range(config.max_places):
            if place < 0 or best_length >= config.max_ngram:
                break
            agreed = n
            while agreed < config.max_ngram and agreed < place and tokens[place - agreed - 1] == tokens[-agreed - 1]:
                agreed += 1
            if agreed > best_length:
                best, best_length = place, agreed
            place = index.earlier[place]
        return best


def accept_drafts(drafts: tuple[int, ...], sampled: list[int]) -> list[int]:
    """The tokens that a verified step gives: those sampled up to the first that its draft did not foresee, it included.

    Sampled token i was chosen as if the drafts before it were right, by the uniform number of its own place in the
    output; so what is kept is what plain decoding gives, token for token, greedy or not.

    Args:
        drafts: D guesses.
        sampled: 1 + D tokens: where the first draft stands, and behind each draft.
    """
    num_right = 0
    for draft, token in zip(drafts, sampled, strict=False):
        if draft != token:
            break
        num_right += 1
    return sampled[: num_right + 1]
