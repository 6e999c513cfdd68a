"""Texts and conversations to measure with.

They are made from Python's standard library, the packaged vocabulary and a seed, so nothing has to be downloaded, and
the same Python gives the same texts everywhere.
"""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ossia.harmony.vocab import load_o200k_ranks

MEGABYTE = 1_000_000

SHORT_CHAT = (
    "Hi there! Could you help me plan a weekend trip to Lisbon? I'd like to see the old town, eat well, and keep it "
    "under 400 € for two people. We arrive on Friday at 18:30 and leave on Sunday evening."
)

EMOJI = "😀🎉🚀👩‍💻🇵🇹"


@cache
def code_text(size: int = MEGABYTE) -> str:
    """Python source of the standard library, `size` characters."""
    return take("".join(path.read_text(encoding="utf-8") for path in standard_library()[:60]), size)


@cache
def english_text(size: int = MEGABYTE) -> str:
    """Prose of the standard library's docstrings, `size` characters."""
    return take("\n\n".join(docstrings()), size)


@cache
def cjk_text(size: int = MEGABYTE) -> str:
    """Made-up Chinese: words of one or two characters drawn by a Zipf law, with a mark after every 2 to 10 of them."""
    rng = random.Random(0)
    words = [
        word for word in map(decode_or_empty, load_o200k_ranks()) if 1 <= len(word) <= 2 and all(map(is_cjk, word))
    ][:4000]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    parts: list[str] = []
    length = 0
    while length < size:
        part = "".join(rng.choices(words, weights, k=rng.randint(2, 10))) + rng.choice("，。，。、？！\n")
        parts.append(part)
        length += len(part)
    return take("".join(parts), size)


def is_cjk(character: str) -> bool:
    """Whether this is one of the unified ideographs."""
    return "\u4e00" <= character <= "\u9fff"


def decode_or_empty(token: bytes) -> str:
    """The text of a token, nothing if it is not whole characters."""
    return token.decode("utf-8", errors="ignore")


def standard_library() -> list[Path]:
    """The modules at the top of the standard library, by name."""
    return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))


def docstrings() -> Iterator[str]:
    """All docstrings of the standard library's top modules."""
    for path in standard_library():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield text


def take(text: str, size: int) -> str:
    """The first `size` characters of a text, repeated if it is shorter."""
    return (text * -(-size // len(text)))[:size]


def short_conversation(*, note: str) -> dict[str, Any]:
    """A system message and three turns, in harmony's JSON form; `note` makes its long texts unlike others."""
    return {
        "messages": [
            {"role": "system", "content": [system_content(note)]},
            text_message("user", f"{SHORT_CHAT} {note}"),
            text_message("assistant", "With pleasure. Do you prefer walking or trams?", channel="final"),
            text_message("user", "Walking, mostly."),
        ]
    }


def tool_conversation(num_tools: int = 12, *, note: str) -> dict[str, Any]:
    """A developer message that declares functions, a question, a call and its result; `note` as above."""
    return {
        "messages": [
            {"role": "system", "content": [system_content(note)]},
            {
                "role": "developer",
                "content": [
                    {
                        "type": "developer_content",
                        "instructions": "Answer with the tools where they help.",
                        "tools": {
                            "functions": {"name": "functions", "description": None, "tools": tools(num_tools, note)}
                        },
                    }
                ],
            },
            text_message("user", "What is the weather in Lisbon and in Porto?"),
            text_message("assistant", "Two look-ups are needed.", channel="analysis"),
            text_message(
                "assistant",
                '{"city": "Lisbon", "unit": "celsius"}',
                channel="commentary",
                recipient="functions.get_weather_0",
                content_type="<|constrain|>json",
            ),
            {
                **text_message("tool", '{"temperature": 21, "sky": "clear"}', channel="commentary"),
                "name": "functions.get_weather_0",
                "recipient": "assistant",
            },
        ]
    }


def system_content(note: str) -> dict[str, Any]:
    """The usual system message and a note."""
    return {
        "type": "system_content",
        "model_identity": f"You are ChatGPT, a large language model trained by OpenAI. {note}",
        "reasoning_effort": "Medium",
        "conversation_start_date": "2025-06-28",
        "knowledge_cutoff": "2024-06",
        "channel_config": {"valid_channels": ["analysis", "commentary", "final"], "channel_required": True},
    }


def tools(count: int, note: str) -> list[dict[str, Any]]:
    """Functions with nested, optional and enumerated parameters."""
    return [
        {
            "name": f"get_weather_{index}",
            "description": f"Gets the current weather in a city. {note}",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "The city, e.g. Lisbon"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                    "options": {
                        "type": "object",
                        "properties": {"wind": {"type": "boolean"}, "station": {"type": "string"}},
                        "required": ["wind"],
                    },
                },
                "required": ["city"],
            },
        }
        for index in range(count)
    ]


def text_message(role: str, text: str, **fields: str) -> dict[str, Any]:
    """One message with a text."""
    return {"role": role, "content": [{"type": "text", "text": text}], **fields}


def completion_text(num_words: int) -> str:
    """What a model samples after `<|start|>assistant`: reasoning, a call, a preamble and an answer."""
    words = english_text().split()
    reasoning, answer = " ".join(words[:num_words]), " ".join(words[num_words : 2 * num_words])
    return (
        f"<|channel|>analysis<|message|>{reasoning}<|end|>"
        f"<|start|>assistant<|channel|>commentary<|message|>Let me look that up.<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
    )
