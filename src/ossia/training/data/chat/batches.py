"""Batches of conversations for fine-tuning: whole examples side by side in rows, mixed with examples of tasks."""

# Shapes: B rows, S tokens a row.

from __future__ import annotations

import datetime
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.harmony.content import Effort
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity
from ossia.training.config import DataConfig
from ossia.training.config import Identity as TaskIdentity
from ossia.training.data.batches.bins import pack_bins
from ossia.training.data.batches.conversations import ChannelWeights, Example, encode_conversation
from ossia.training.data.batches.examples import ExampleSource
from ossia.training.data.batches.packing import Batch, pack_row, stack_rows
from ossia.training.data.chat.file import BadRow, GoodRow
from ossia.training.data.chat.rows import ChatRow

_FIRST_DATE = datetime.date(2024, 1, 1)
_NUM_DATES = 2000
_DATED = 0.8
"""Share of the examples whose system message tells a date; scripts often leave it out."""
_SOME_DATE = "2024-01-01"


class Encoder(NamedTuple):
    """How conversations become examples.

    Attributes:
        tokenizer: the model's.
        identity: what its system message says.
        weights: how much each kind of message counts.
        efforts: of rows that say none, one is drawn.
    """

    tokenizer: Tokenizer
    identity: Identity
    weights: ChannelWeights
    efforts: tuple[Effort, ...]

    def encode(self, row: ChatRow, *, effort: Effort, date: str | None) -> list[Example]:
        """The examples of a conversation."""
        conversation, learned = row.conversation(self.identity, effort=effort, date=date)
        return encode_conversation(conversation, tokenizer=self.tokenizer, weights=self.weights, learned=learned)

    def draw(self, row: ChatRow, rng: random.Random) -> list[Example]:
        """The examples with a date and, where the row says none, an effort drawn: answers should not hang on them."""
        day = _FIRST_DATE + datetime.timedelta(days=rng.randrange(_NUM_DATES))
        date = day.isoformat() if rng.random() < _DATED else None
        return self.encode(row, effort=rng.choice(self.efforts), date=date)

    def sizes(self, row: ChatRow) -> list[int]:
        """Tokens that each example takes in a row, at most, whatever is drawn. Dates are all of one length."""
        efforts = self.efforts if row.effort is None else (row.effort,)
        drawn = [self.encode(row, effort=effort, date=_SOME_DATE) for effort in efforts]
        return [max(len(example.ids) for example in same) - 1 for same in zip(*drawn, strict=True)]


class Piece(NamedTuple):
    """One example of a row."""

    row: int
    example: int


class Fitting(NamedTuple):
    """Rows that fit, and those that do not."""

    rows: list[GoodRow]
    too_long: list[BadRow]


def fit_rows(rows: Sequence[GoodRow], *, encoder: Encoder, length: int) -> Fitting:
    """Part the rows whose examples all fit into `length` tokens from the others, and from those that teach nothing."""
    fitting = Fitting([], [])
    for line, row in rows:
        sizes = encoder.sizes(row)
        if not sizes:
            fitting.too_long.append(BadRow(line, "nothing to learn: all that the assistant says has the weight 0"))
        elif max(sizes) > length:
            reason = f"{max(sizes):,} tokens, but a row holds {length:,}; raise data.sequence_length, or shorten it"
            fitting.too_long.append(BadRow(line, reason))
        else:
            fitting.rows.append(GoodRow(line, row))
    return fitting


class ChatBatches:
    """Batch k of an endless stream: the rows of a file over and over, in another order each time.

    Which examples share a row is decided once; where the rows stand is drawn for each pass, and so are dates and
    efforts. All follows from the seed and from k.

    Args:
        rows: conversations that fit (`fit_rows`).
        encoder: how they become examples.
        length: tokens of a row.
        num_rows: rows of a batch.
        seed: another one gives other batches.
        task_share: share of all rows that hold examples of tasks instead, against forgetting.
        task_mix: how often each task is drawn there.
    """

    def __init__(
        self,
        rows: Sequence[ChatRow],
        *,
        encoder: Encoder,
        length: int,
        num_rows: int,
        seed: int,
        task_share: float = 0.0,
        task_mix: Mapping[str, float] | None = None,
    ) -> None:
        if not 0 <= task_share < 1:
            raise InvalidInputError(
                f"the share of tasks is {task_share}; use a number from 0 to below 1", param="data.keep_tasks"
            )
        self._rows = rows
        self._encoder = encoder
        self._length = length
        self._num_rows = num_rows
        self._seed = seed
        self._task_share = task_share
        self._tasks = _task_source(encoder, task_mix or {}) if task_share else None
        pieces = [
            (Piece(number, example), size)
            for number, row in enumerate(rows)
            for example, size in enumerate(encoder.sizes(row))
        ]
        bins = pack_bins([size for _, size in pieces], capacity=length)
        self._bins = [[pieces[place][0] for place in places] for places in bins]
        self._order: tuple[int, list[int]] | None = None

    @property
    def num_packed(self) -> int:
        """Rows of tokens that one pass over the file takes."""
        return len(self._bins)

    @property
    def batches_per_epoch(self) -> float:
        """Batches that one pass over the file takes."""
        return self.num_packed / (self._num_rows * (1 - self._task_share))

    def batch(self, number: int) -> Batch:
        """Batch `number`, counted from 0."""
        first, after = (self._num_task_rows(number * self._num_rows + n) for n in (0, self._num_rows))
        num_tasks = after - first
        start = number * self._num_rows - first
        rows = [self._file_row(start + i) for i in range(self._num_rows - num_tasks)]
        rows += [self._task_row(first + i) for i in range(num_tasks)]
        return stack_rows(rows)

    def _num_task_rows(self, num_rows: int) -> int:
        """How many of the first so many rows of the stream hold tasks."""
        return int(num_rows * self._task_share)

    def _file_row(self, number: int) -> Batch:
        epoch, place = divmod(number, len(self._bins))
        if self._order is None or self._order[0] != epoch:
            order = list(range(len(self._bins)))
            random.Random(f"{self._seed} order {epoch}").shuffle(order)
            self._order = (epoch, order)
        pieces = self._bins[self._order[1][place]]
        return self._pack([self._example(piece, epoch) for piece in pieces])

    def _example(self, piece: Piece, epoch: int) -> Example:
        rng = random.Random(f"{self._seed} {epoch} {piece.row}")
        return self._encoder.draw(self._rows[piece.row], rng)[piece.example]

    def _pack(self, examples: Sequence[Example]) -> Batch:
        left = iter(examples)
        return pack_row(lambda: next(left, None), length=self._length, padding=self._encoder.tokenizer.endoftext)

    def _task_row(self, number: int) -> Batch:
        assert self._tasks is not None
        tasks, rng = self._tasks, random.Random(f"{self._seed} task {number}")
        return pack_row(lambda: tasks.draw(rng), length=self._length, padding=self._encoder.tokenizer.endoftext)


def _task_source(encoder: Encoder, mix: Mapping[str, float]) -> ExampleSource:
    identity = TaskIdentity(
        model_identity=encoder.identity.model_identity, knowledge_cutoff=encoder.identity.knowledge_cutoff
    )
    return ExampleSource(DataConfig(mix=mix), tokenizer=encoder.tokenizer, identity=identity)
