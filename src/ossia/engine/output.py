"""From a sequence's tokens to its text, and to where it ends. No torch.

The text leaves control tokens out unless asked for their names; a character that a control token interrupts becomes
U+FFFD. Stop strings are looked for in the text between two control tokens, never across one. A stop id ends the answer
whether or not it is a control token, and adds nothing to the text.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from ossia.engine.output_event import TokenLogprob
from ossia.engine.request import FinishReason, SamplingParams
from ossia.harmony.tokenizer import Detokenizer, Tokenizer


class OutputDelta(NamedTuple):
    """What some new tokens add to an answer.

    Attributes:
        token_ids: those of the pushed tokens that count: all up to the one that ends the answer, that one included.
        text: new text that is final.
        logprobs: of the tokens that count, if they were given.
        finish_reason: set if the answer ends here.
        stop: the stop string or stop id that ended it.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    stop: str | int | None = None

    @property
    def num_counted(self) -> int:
        """How many of the pushed tokens count."""
        return len(self.token_ids)


class SequenceOutput:
    """Follows one sequence's output.

    Args:
        tokenizer: of the model.
        params: `stop`, `min_tokens` and `ignore_eos` count here.
        stop_ids: tokens that end the answer, the engine's own or the request's.
        max_tokens: the answer ends with LENGTH at so many tokens.
        has_control_tokens: write the names of control tokens into the text.
        matcher: made of `params.stop`; give it where several sequences share it.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stop_ids: Iterable[int],
        max_tokens: int,
        has_control_tokens: bool = False,
        matcher: StopMatcher | None = None,
    ) -> None:
        self._is_special = tokenizer.is_special
        self._name_of = tokenizer.decode if has_control_tokens else None
        self._detokenizer = Detokenizer(tokenizer)
        self._stop_ids = frozenset() if params.ignore_eos else frozenset(stop_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self._matcher = (matcher or StopMatcher(params.stop)) if params.stop else None
        self._state = 0  # of the matcher
        self._held = ""  # text that may become a stop string
        self._pieces: list[str] = []
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stop: str | int | None = None

    @property
    def text(self) -> str:
        """All text given out so far; after the end, the whole answer."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def push(self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprob] | None = None) -> OutputDelta:
        """Take new tokens, with a logprob each or none at all. After the end nothing counts any more."""
        num_counted, text = 0, ""
        for token in token_ids:
            if self.finish_reason is not None:
                break
            num_counted += 1
            text += self._push_token(token)
        if text:
            self._pieces.append(text)
        return OutputDelta(
            tuple(token_ids[:num_counted]),
            text,
            None if logprobs is None else tuple(logprobs[:num_counted]),
            self.finish_reason,
            self.stop,
        )

    def finish(self, reason: FinishReason) -> OutputDelta:
        """End the answer from outside (cancelled, deadline, error, nothing more allowed); gives what was held back.

        An answer that has ended stays as it is.
        """
        if self.finish_reason is not None:
            return OutputDelta(finish_reason=self.finish_reason, stop=self.stop)
        self.finish_reason = reason
        text = self._flush()
        if text:
            self._pieces.append(text)
        return OutputDelta(text=text, finish_reason=reason)

    def _push_token(self, token: int) -> str:
        """The text that this token makes final; sets the finish reason if it is the last."""
        is_stop = token in self._stop_ids and self.num_tokens >= self._min_tokens
        self.num_tokens += 1
        if is_stop:
            self.finish_reason, self.stop = FinishReason.STOP, token
            return self._flush()
        if self._is_special(token):
            text = self._flush()
            if self._name_of is not None:
                text += self._name_of((token,))
        else:
            text = self._detokenizer.push(token)
            if self._matcher is not None and text:
                text = self._match(text)
        if self.num_tokens >= self._max_tokens and self.finish_reason is None:
            self.finish_reason = FinishReason.LENGTH
            text += self._flush()
        return text

    def _match(self, text: str) -> str:
        """Look for stop strings in new text; gives what is final of it and of the text held back."""
        assert self._matcher is not None
        if not self._state and not self._matcher.may_begin_in(text):
            return text
        is_live = self.num_tokens >= self._min_tokens
        self._state, stop, end = self._matcher.feed(text, state=self._state, is_live=is_live)
        if stop is not None:
            self.finish_reason, self.stop = FinishReason.STOP, stop
            ready = (self._held + text[:end])[: -len(stop)]
            self._held = ""
            return ready
        ready = self._held + text
        num_held = self._matcher.num_held(self._state)
        self._held = ready[len(ready) - num_held :]
        return ready[: len(ready) - num_held]

    def _flush(self) -> str:
        """What was held back, and U+FFFD if a character was cut off; what comes next starts afresh."""
        text = self._held + self._detokenizer.finish()
        self._held = ""
        self._state = 0
        return text


class StopMatcher:
    """Finds the first stop string to be completed, a piece of text at a time (Aho and Corasick 1975).

    Of several that end at the same character the longest is taken. The result does not depend on how the text is cut.

    Args:
        stops: at least one text, none empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._steps: list[dict[str, int]] = [{}]
        depth = [0]
        self._stop: list[str | None] = [None]  # the longest stop string that ends in this state
        for stop in stops:
            state = 0
            for char in stop:
                following = self._steps[state].get(char)
                if following is None:
                    following = self._steps[state][char] = len(self._steps)
                    self._steps.append({})
                    depth.append(depth[state] + 1)
                    self._stop.append(None)
                state = following
            self._stop[state] = stop
        self._opening = re.compile("[" + "".join(map(re.escape, self._steps[0])) + "]")
        self._fallback = [0] * len(self._steps)
        # What of the text's end may still become a stop string. A leaf itself may not, but an ending of it may.
        self._num_held = [depth[state] if self._steps[state] else 0 for state in range(len(self._steps))]
        self._link()

    def may_begin_in(self, text: str) -> bool:
        """Whether the text has a character that a stop string begins with."""
        return self._opening.search(text) is not None

    def num_held(self, state: int) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return self._num_held[state]

    def feed(self, text: str, *, state: int, is_live: bool = True) -> tuple[int, str | None, int]:
        """Read on from a state, 0 at the start.

        Args:
            text: the next characters.
            state: where the last piece ended.
            is_live: whether a stop string completed here counts.

        Returns:
            The new state, the stop string completed first, if any, and how much of the text was read up to its end.
        """
        steps, fallback, stops = self._steps, self._fallback, self._stop
        for place, char in enumerate(text):
            following = steps[state].get(char)
            while following is None and state:
                state = fallback[state]
                following = steps[state].get(char)
            state = following or 0
            if is_live and state and stops[state] is not None:
                return state, stops[state], place + 1
        return state, None, len(text)

    def _link(self) -> None:
        """Set where each state falls back to: the longest proper ending of it that is a state. Breadth first."""
        queue = deque(self._steps[0].values())
        while queue:
            state = queue.popleft()
            fallback = self._fallback[state]
            if self._stop[state] is None:
                self._stop[state] = self._stop[fallback]
            if not self._steps[state]:
                self._num_held[state] = self._num_held[fallback]
            for char, following in self._steps[state].items():
                back = fallback
                while back and char not in self._steps[back]:
                    back = self._fallback[back]
                self._fallback[following] = self._steps[back].get(char, 0)
                queue.append(following)
