"""Conversations as token ids with what is learned of them: the one way, for users' rows and for the tasks' alike."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, fields
from typing import NamedTuple

from ossia.core.errors import InvalidInputError
from ossia.harmony.message import Channel, Conversation, Message
from ossia.harmony.render import render_examples
from ossia.harmony.tokenizer import Tokenizer


class Example(NamedTuple):
    """Token ids, and for each whether the model is to learn to produce it.

    Attributes:
        ids: what the model reads.
        is_learned: one for each id.
        targets: what is learned at each place; None where that is `ids` throughout. A finished answer within a
            conversation is read with `<|end|>` and learned with `<|return|>`, which is what ends it when it is sampled.
        weights: how much each place counts in the loss; None for 1 throughout.
    """

    ids: list[int]
    is_learned: list[bool]
    targets: list[int] | None = None
    weights: list[float] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ChannelWeights:
    """How much the tokens of each kind of message count in the loss; 0 leaves them unlearned, headers included.

    Attributes:
        analysis: chain of thought.
        calls: calls of tools, on whatever channel.
        commentary: what is said to the user before a call.
        final: answers.
    """

    analysis: float = 1.0
    calls: float = 1.0
    commentary: float = 1.0
    final: float = 1.0

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if not 0 <= value < float("inf"):
                raise InvalidInputError(f"the weight of {name} is {value}; use a number from 0 on", param=name)
        if not any(values.values()):
            raise InvalidInputError("all channels have the weight 0; nothing would be learned", param="weights")

    def of(self, message: Message) -> float:
        """The weight of a message of the assistant."""
        if message.is_call:
            return self.calls
        if message.channel == Channel.ANALYSIS:
            return self.analysis
        return self.final if message.channel == Channel.FINAL else self.commentary


EVEN = ChannelWeights()


def encode_conversation(
    conversation: Conversation,
    *,
    tokenizer: Tokenizer,
    weights: ChannelWeights = EVEN,
    learned: Container[int] | None = None,
) -> list[Example]:
    """A conversation as one or several examples (`harmony.render.render_examples` says when and why).

    Args:
        conversation: whole, the assistant's answers included.
        tokenizer: the model's.
        weights: how much each kind of message counts.
        learned: places of the messages to learn; None for all of the assistant's.
    """
    messages = conversation.messages
    by_message = [weights.of(message) for message in messages]
    chosen = [i for i, weight in enumerate(by_message) if weight > 0 and (learned is None or i in learned)]
    examples: list[Example] = []
    for ids, sampled, sources in render_examples(conversation, tokenizer=tokenizer, learned=frozenset(chosen)):
        targets = [token if wanted is None else wanted for token, wanted in zip(ids, sampled, strict=True)]
        is_even = all(by_message[i] == 1 for i in set(sources) if i in chosen)
        examples.append(
            Example(
                ids,
                [wanted is not None for wanted in sampled],
                None if targets == ids else targets,
                None if is_even else [by_message[i] for i in sources],
            )
        )
    return examples
