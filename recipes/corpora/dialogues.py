"""Conversations: people who chat with people, and short questions with their answers.

What may point to a person is dropped by the message: that the people behind the texts agreed to their publication does
not make names of third persons public. Addresses and numbers are found later, by `ossia data build`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

MIN_TURNS = 4
PUBLIC = 4
"""Two capitalized words in so many conversations are a film or a city; in fewer they may be the name of someone."""

_PAIR = re.compile(r"(?<=[\w,] )([A-Z][a-z]{2,} [A-Z][a-z]{2,})\b")
_PERSONAL = re.compile(
    r"@|https?:|www\.|\bmy (?:last |first |full )?name\b|\bname(?:'s| is)\b|\byour name\b|"
    r"\bwho(?:'s| is| are) (?:this|you)\b|"
    r"\binsta(?:gram)?\b|\bsnapchat\b|\bfacebook\b|\bvenmo\b|\btinder\b|\b(?:my|your|phone) number\b|\btext me\b|"
    r"\bemail\b|\bi live (?:in|at|on)\b|\bmy address\b|\d{5,}",
    re.IGNORECASE,
)
_ABOUT_THE_GAME = re.compile(
    r"leader ?board|\brank(?:ed|ing|ings)?\b|\bpoints?\b|chit.?chat|high score|\bratings?\b|\bchallenge\b|\bbots?\b|"
    r"\brobot|\bchat ?room|\bthis (?:app|site|website|thing)\b|\bcontest\b|"
    r"\bprize\b|\b(?:this|these|new|other|more) chats?\b|\bmatch(?:ed|es)?\b",
    re.IGNORECASE,
)
_UNFIT = re.compile(
    r"\bf+u+c+k|\bshit|\bbitch|\bcunt|\bnigg|\bfag|\bretard|\bporn|\bsex|\bdick\b|suicid|\bkill (?:my|your)self|\brape",
    re.IGNORECASE,
)
SMALL_TALK = ("conversations", "health", "history", "tech_support", "trivia")
"""Files of chatterbot-corpus whose answers are a person's; in others a machine speaks of its circuits, or is rude."""


def dialogues(folder: Path) -> Iterator[dict[str, str]]:
    """Conversations of chitchat-dataset: the topic that was given, then a line a turn of A and B."""
    path = folder / "chitchat_dataset" / "dataset.json"
    conversations: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    counts: Counter[str] = Counter()
    for conversation in conversations.values():
        counts.update({pair for text in _texts(conversation) for pair in _PAIR.findall(text)})
    public = {pair for pair, count in counts.items() if count >= PUBLIC}
    for conversation in conversations.values():
        text = dialogue(conversation, public=public)
        if text is not None:
            yield {"text": text}


def dialogue(conversation: Mapping[str, Any], *, public: set[str]) -> str | None:
    """One conversation as text, or None if too little is left of it or it is not fit for everyone.

    Args:
        conversation: `messages`, a list a turn, of messages with `text` and `sender`; and `prompt`, if it had one.
        public: pairs of capitalized words that name no private person.
    """
    if any(_UNFIT.search(text) for text in _texts(conversation)):
        return None
    letters: dict[str, str] = {}
    turns: list[list[str]] = []
    last = ""
    for message in (message for turn in conversation["messages"] for message in turn):
        text = " ".join(str(message["text"]).split())
        if not text or is_personal(text, public=public) or _ABOUT_THE_GAME.search(text):
            continue
        sender = letters.setdefault(str(message["sender"]), "AB"[len(letters)] if len(letters) < 2 else "")
        if sender != last:
            turns.append([f"{sender}:"])
            last = sender
        turns[-1].append(text)
    if len(turns) < MIN_TURNS or len(letters) != 2:
        return None
    prompt = str(conversation.get("prompt") or "").strip()
    return "\n".join([*([prompt] if prompt else []), *(" ".join(turn) for turn in turns)])


def is_personal(text: str, *, public: set[str]) -> bool:
    """Whether a message tells a name, a place to live, or a way to reach someone."""
    return bool(_PERSONAL.search(text)) or any(pair not in public for pair in _PAIR.findall(text))


def small_talk(folder: Path) -> Iterator[dict[str, str]]:
    """Some files of chatterbot-corpus: exchanges, ten a document, without those that have code."""
    for name in SMALL_TALK:
        path = folder / "chatterbot_corpus" / "data" / "english" / f"{name}.yml"
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]
        exchanges = ["\n".join(_sentence(str(line)) for line in row) for row in rows if "```" not in str(row)]
        for start in range(0, len(exchanges), 10):
            yield {"text": "\n\n".join(exchanges[start : start + 10])}


def _texts(conversation: Mapping[str, Any]) -> Iterator[str]:
    return (str(message["text"]) for turn in conversation["messages"] for message in turn)


def _sentence(line: str) -> str:
    line = " ".join(line.split())
    return line[:1].upper() + line[1:]
