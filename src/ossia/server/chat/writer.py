"""The parts of answers in the words of Chat Completions. One writer makes both the deltas of a stream and the message
of an answer given at once, so that the two are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any

from ossia.server.conversation.answer import (
    TEXT_SEPARATOR,
    THOUGHT_SEPARATOR,
    AnswerReader,
    Ending,
    Kind,
    Part,
    PartDelta,
    PartStart,
)
from ossia.server.conversation.tools import CustomSpec, TurnRules, bare_name

if TYPE_CHECKING:
    from ossia.engine.output_event import TokenLogprob
    from ossia.engine.turn import Usage
    from ossia.harmony.tokenizer import Tokenizer

JsonObject = dict[str, Any]

LOWEST_LOGPROB = -9999.0
"""As OpenAI writes the logarithm of what is as good as impossible."""


class ChoiceWriter:
    """Writes one choice.

    Args:
        index: which of the answers.
        rules: say which calls are of custom tools.
        is_legacy: calls are told as `function_call`.
        has_logprobs: the text's tokens come with logprobs.
    """

    def __init__(
        self, index: int, *, rules: TurnRules, tokenizer: Tokenizer, is_legacy: bool = False, has_logprobs: bool = False
    ) -> None:
        self._index = index
        self._rules = rules
        self._tokenizer = tokenizer
        self._is_legacy = is_legacy
        self._has_logprobs = has_logprobs
        self._has_role = False
        self._kind: Kind | None = None
        self._text: list[str] | None = None
        self._thought: list[str] | None = None
        self._separator = ""  # goes in front of the next text or thought
        self._calls: list[JsonObject] = []
        self._pieces: list[str] = []  # of the open call
        self._logprobs: list[JsonObject] = []
        self._open_text = f'{{"index":{index},"delta":{{"content":'
        self._open_call = ""
        no_logprobs = '"logprobs":null,"finish_reason":null}'
        self._close = f"}},{no_logprobs}"
        self._close_call = f"}}}}]}},{no_logprobs}"

    def push(self, parts: Sequence[Part]) -> list[str]:
        """The stream's choices for some parts, as JSON."""
        chunks: list[str] = []
        for part in parts:
            if isinstance(part, PartDelta):
                chunks.append(self._delta(part))
            elif isinstance(part, PartStart):
                chunk = self._start(part)
                if chunk is not None:
                    chunks.append(chunk)
            elif self._kind is Kind.CALL:
                self._end_call()
        return chunks

    def _start(self, start: PartStart) -> str | None:
        self._kind = start.kind
        if start.kind is Kind.TEXT:
            self._separator = TEXT_SEPARATOR if self._text else ""
            if self._text is not None and self._has_role:
                return None
            self._text = []
            return self._chunk({"content": ""})
        if start.kind is Kind.THOUGHT:
            self._separator = THOUGHT_SEPARATOR if self._thought else ""
            return None if self._has_role else self._chunk({"content": None})
        name = bare_name(start.recipient)
        is_custom = isinstance(self._rules.find(name), CustomSpec)
        kind, field = ("custom", "input") if is_custom else ("function", "arguments")
        call = {"id": start.call_id, "type": kind, kind: {"name": name, field: ""}}
        self._calls.append(call)
        self._pieces = []
        if self._is_legacy:
            self._open_call = f'{{"index":{self._index},"delta":{{"function_call":{{"arguments":'
            self._close_call = f"}}{self._close}"
            return self._chunk({"function_call": call["function"]})  # there is one at most
        number = len(self._calls) - 1
        head = f'"index":{number},"type":"{kind}","{kind}"'
        self._open_call = f'{{"index":{self._index},"delta":{{"tool_calls":[{{{head}:{{"{field}":'
        return self._chunk({"tool_calls": [{"index": number, **call}]})

    def _delta(self, delta: PartDelta) -> str:
        text = delta.text
        if self._kind is Kind.CALL:
            self._pieces.append(text)
            return f"{self._open_call}{quote(text)}{self._close_call}"
        if self._separator:
            text, self._separator = self._separator + text, ""
        if self._kind is Kind.TEXT:
            if self._text is None:
                self._text = []
            self._text.append(text)
            if not self._has_logprobs:
                return f"{self._open_text}{quote(text)}{self._close}"
            entries = [self._logprob(entry) for entry in delta.logprobs]
            self._logprobs += entries
            return self._chunk({"content": text}, logprobs={"content": entries, "refusal": None})
        if self._thought is None:
            self._thought = []
        self._thought.append(text)
        return self._chunk({"reasoning": text, "reasoning_content": text})

    def _end_call(self) -> None:
        call = self._calls[-1]
        kind, field = ("custom", "input") if call["type"] == "custom" else ("function", "arguments")
        call[kind] = {**call[kind], field: "".join(self._pieces)}
        self._kind = None

    def _chunk(self, delta: JsonObject, *, logprobs: JsonObject | None = None, finish: str | None = None) -> str:
        if not self._has_role:
            delta = {"role": "assistant", "content": None, "refusal": None, **delta}
            self._has_role = True
        choice = {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return json.dumps(choice, separators=(",", ":"))

    def finish(self, reader: AnswerReader) -> list[str]:
        """The choices that end the stream."""
        if self._kind is Kind.CALL:
            self._end_call()
        chunks: list[str] = []
        if self._text is None and not self._calls:
            self._text = []
            chunks.append(self._chunk({"content": ""}))
        chunks.append(self._chunk({}, finish=self._finish_reason(reader)))
        return chunks

    def choice(self, reader: AnswerReader) -> JsonObject:
        """The whole choice; call `finish` before."""
        message: JsonObject = {"role": "assistant", "content": None, "refusal": None, "annotations": []}
        if self._text is not None:
            message["content"] = "".join(self._text)
        if self._thought is not None:
            message["reasoning"] = message["reasoning_content"] = "".join(self._thought)
        if self._calls and self._is_legacy:
            message["function_call"] = self._calls[0]["function"]
        elif self._calls:
            message["tool_calls"] = self._calls
        has_text = self._has_logprobs and bool(self._text)
        return {
            "index": self._index,
            "message": message,
            "logprobs": {"content": self._logprobs, "refusal": None} if has_text else None,
            "finish_reason": self._finish_reason(reader),
        }

    def _finish_reason(self, reader: AnswerReader) -> str:
        if reader.ending is Ending.LENGTH:
            return "length"
        if self._calls and reader.ending is not Ending.STOP_STRING:
            return "function_call" if self._is_legacy else "tool_calls"
        return "stop"

    def _logprob(self, entry: TokenLogprob) -> JsonObject:
        top = [self._token(token, logprob) for token, logprob in entry.top]
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token: int, logprob: float) -> JsonObject:
        data = self._tokenizer.token_bytes(token)
        return {
            "token": data.decode("utf-8", "replace"),
            "bytes": list(data),
            "logprob": max(logprob, LOWEST_LOGPROB),
        }


def usage_body(usages: Sequence[Usage]) -> JsonObject:
    """Tokens of all answers to one prompt, in the words of Chat Completions."""
    first = usages[0]
    num_output = sum(usage.num_output for usage in usages)
    return {
        "prompt_tokens": first.num_prompt,
        "completion_tokens": num_output,
        "total_tokens": first.num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": max(usage.num_cached for usage in usages), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(usage.num_reasoning for usage in usages),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
