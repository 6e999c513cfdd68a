"""One turn of a model: conversation -> prompt ids -> sampled ids -> parsed messages, as a stream of what is new."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from ossia.core.errors import ContextLengthError, InvalidInputError
from ossia.harmony.message import Channel, Conversation, Message
from ossia.harmony.parse import ContentDelta, Event, FinishReason, HarmonyParser, MessageStart
from ossia.harmony.render import render
from ossia.model.loading import LoadedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingChoice:
    """What a user chose, in the words of `GenerationOptions`; None leaves it to the model's defaults."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            raise InvalidInputError(
                f"--temperature is {self.temperature}; it must be between 0 (greedy) and 10", param="temperature"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InvalidInputError(f"--top-p is {self.top_p}; it must be above 0 and at most 1", param="top_p")
        if self.top_k < 0:
            raise InvalidInputError(
                f"--top-k is {self.top_k}; it must be at least 1, or 0 for all tokens", param="top_k"
            )
        if not 0 <= self.min_p <= 1:
            raise InvalidInputError(f"--min-p is {self.min_p}; it must be between 0 and 1", param="min_p")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInputError(f"--max-tokens is {self.max_tokens}; it must be at least 1", param="max_tokens")


class Kind(StrEnum):
    """What a piece of a turn is to its reader."""

    REASONING = "reasoning"
    PREAMBLE = "preamble"  # commentary to nobody in particular: told to the user between calls
    CALL = "call"
    ANSWER = "answer"


class Delta(NamedTuple):
    """One sampled token: the text that it completed (often none), and to what that belongs (None inside a header)."""

    kind: Kind | None
    text: str


class Turn:
    """A turn in progress. Iterate over it once; the other attributes are then what came of it so far.

    Attributes:
        num_prompt_tokens: tokens that the model was given.
        num_tokens: tokens sampled.
        num_reasoning_tokens: those of them that belong to reasoning.
        seconds_to_first: from the start to the first token; 0 before that.
        seconds: from the start to the last token.
        num_repairs: where the parser had to mend what the model wrote.
    """

    def __init__(self, loaded: LoadedModel, conversation: Conversation, *, choice: SamplingChoice) -> None:
        """Render the conversation.

        Raises:
            ContextLengthError: it does not fit the model's context with one token of an answer.
        """
        self._loaded = loaded
        self._choice = choice
        self._prompt_ids = render(conversation, tokenizer=loaded.tokenizer, next_role="assistant")
        check_length(self._prompt_ids, limit=loaded.context_length)
        self._parser = HarmonyParser(loaded.tokenizer, role="assistant")
        self.num_prompt_tokens = len(self._prompt_ids)
        self.num_tokens = 0
        self.num_reasoning_tokens = 0
        self.seconds_to_first = 0.0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Delta]:
        start = time.perf_counter()
        kind: Kind | None = None
        for token in sample(self._loaded, self._prompt_ids, choice=self._choice):
            self.num_tokens += 1
            self.seconds = time.perf_counter() - start
            self.seconds_to_first = self.seconds_to_first or self.seconds
            kind, text = read_events(self._parser.push(token), kind)
            self.num_reasoning_tokens += kind is Kind.REASONING
            yield Delta(kind, text)
            if self._parser.is_done:  # also where the model begins to speak for others
                break
        rest = read_events(self._parser.finish(), kind)
        if rest.text:
            yield rest

    def run(self) -> None:
        """Sample the whole turn, for those who only want what came of it."""
        for _ in self:
            pass

    def finish(self) -> None:
        """Close a turn that was interrupted; of one that was iterated to its end nothing is left to close."""
        self._parser.finish()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the model said, each message with its ids as sampled."""
        return tuple(self._parser.messages)

    @property
    def num_repairs(self) -> int:
        return len(self._parser.repairs)

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ended; "length" also for a turn that is not over."""
        return self._parser.finish_reason or FinishReason.LENGTH

    def text_of(self, *kinds: Kind) -> str:
        """The contents of the messages of these kinds, one under the other."""
        return "\n".join(message.text for message in self.messages if kind_of(message) in kinds)

    @property
    def answer(self) -> str:
        return self.text_of(Kind.ANSWER)


def read_events(events: Iterable[Event], kind: Kind | None) -> Delta:
    """The text that events bring, and what it belongs to, where `kind` is what the text before them belonged to."""
    text = ""
    for event in events:
        if isinstance(event, MessageStart):
            kind = kind_of(event)
        elif isinstance(event, ContentDelta):
            text += event.text
    return Delta(kind, text)


def kind_of(message: MessageStart | Message) -> Kind:
    """What a message is to its reader."""
    if message.recipient:
        return Kind.CALL
    if message.channel == Channel.ANALYSIS:
        return Kind.REASONING
    return Kind.PREAMBLE if message.channel == Channel.COMMENTARY else Kind.ANSWER


def sample(loaded: LoadedModel, prompt_ids: Sequence[int], *, choice: SamplingChoice) -> Iterator[int]:
    """Sample ids until a stop token (which comes too), the token limit or the end of the context."""
    from ossia.model.generate import GenerationOptions, generate

    defaults = loaded.sampling
    room = loaded.context_length - len(prompt_ids)
    limit = choice.max_tokens or defaults.max_tokens or room
    options = GenerationOptions(
        temperature=defaults.temperature if choice.temperature is None else choice.temperature,
        top_p=defaults.top_p if choice.top_p is None else choice.top_p,
        top_k=choice.top_k,
        min_p=choice.min_p,
        seed=choice.seed,
        max_tokens=min(room, limit),
        stop_ids=loaded.stop_ids,
    )
    return generate(loaded.model, prompt_ids, options=options)


def check_length(prompt_ids: Sequence[int], *, limit: int) -> None:
    """Raises:
    ContextLengthError: the prompt leaves no place for a token of an answer.
    """
    if len(prompt_ids) >= limit:
        raise ContextLengthError(num_tokens=len(prompt_ids), limit=limit - 1, param="prompt")


def require_text(text: str, *, what: str) -> str:
    """The text without white space around it.

    Raises:
        InvalidInputError: nothing is left.
    """
    stripped = text.strip()
    if not stripped:
        raise InvalidInputError(f"the {what} is empty; write something for the model to answer", param=what)
    return stripped
