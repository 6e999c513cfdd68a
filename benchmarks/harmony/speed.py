"""Speed of tokenizing, rendering and parsing beside openai-harmony in the same run; linear time on 1 MB of anything.

python -m benchmarks.harmony.speed            writes benchmarks/results/harmony-speed.md and .json
python -m benchmarks.harmony.speed --json     prints the JSON and writes nothing
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import math
import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harmony import texts
from benchmarks.timing import (
    Comparison,
    compare,
    comparison_rows,
    format_seconds,
    tell,
    time_once,
)

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.harmony.message import conversation_from_dict
from ossia.harmony.parse import ContentDelta, HarmonyParser, parse
from ossia.harmony.render import render
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import load_o200k_ranks

COMMAND = "python -m benchmarks.harmony.speed"
UNSEEN = 256
"""More distinct system and tool texts than the renderer remembers."""
LINEAR_SIZES = (250_000, 500_000, 1_000_000)
PEER_SIZE = 20_000
LINEAR_UNITS = {
    "one letter": "a",
    "spaces": " ",
    "one CJK character": "中",
    "digits": "0123456789",
    "emoji": texts.EMOJI,
}


def main() -> None:
    """Measure, then print or write."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="print JSON, write no files")
    arguments.add_argument("--rounds", type=int, default=15, help="interleaved samples a row (default 15)")
    options = arguments.parse_args()
    tokenizer = Tokenizer.o200k_harmony()
    peer = load_peer()
    comparisons = [
        row
        for measure in (measure_encode, measure_decode, measure_render, measure_parse)
        for row in measure(tokenizer, peer, rounds=options.rounds)
    ]
    linear = measure_linear(tokenizer, peer)
    record = {
        "command": COMMAND,
        "environment": describe(packages=("ossia", "openai-harmony", "tiktoken")),
        "comparisons": [row.to_dict() for row in comparisons],
        "linear": linear,
    }
    tell(record, render_page(record, comparisons), name="harmony-speed", as_json=options.json)


def load_peer() -> Any:
    """openai-harmony's encoding, with the ranks that Ossia ships: it would download them otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        lines = (
            base64.b64encode(token) + b" %d\n" % rank
            for token, rank in sorted(load_o200k_ranks().items(), key=lambda item: item[1])
        )
        Path(folder, "o200k_base.tiktoken").write_bytes(b"".join(lines))
        os.environ["TIKTOKEN_ENCODINGS_BASE"] = folder
        import openai_harmony

        return openai_harmony.load_harmony_encoding(openai_harmony.HarmonyEncodingName.HARMONY_GPT_OSS)


def measure_encode(tokenizer: Tokenizer, peer: Any, *, rounds: int) -> list[Comparison]:
    """Encode as data, look-alikes of control tokens included: what each library offers for untrusted text."""
    rows: list[Comparison] = []
    for name, text in encode_texts().items():
        if tokenizer.encode(text) != peer.encode(text, disallowed_special=()):
            raise AssertionError(f"encode, {name}: the two libraries do not agree, so there is nothing to compare")
        rows.append(
            compare(
                f"encode, {name}",
                size=f"{len(text):,} characters",
                ours=partial(tokenizer.encode, text),
                peer=partial(peer.encode, text, disallowed_special=()),
                rounds=rounds,
            )
        )
    return rows


def measure_decode(tokenizer: Tokenizer, peer: Any, *, rounds: int) -> list[Comparison]:
    """Decode the ids of the same texts."""
    rows: list[Comparison] = []
    for name, text in encode_texts().items():
        ids = tokenizer.encode(text)
        rows.append(
            compare(
                f"decode, {name}",
                size=f"{len(ids):,} tokens",
                ours=partial(tokenizer.decode, ids),
                peer=partial(peer.decode, ids),
                rounds=rounds,
            )
        )
    return rows


def measure_render(tokenizer: Tokenizer, peer: Any, *, rounds: int) -> list[Comparison]:
    """Render for the assistant's next turn: conversation objects at hand, and from JSON with texts never seen before.

    The latter is what a server does for a new client. Ossia keeps the tokens of the last system and developer texts,
    so the records differ, and there are more of them than it keeps.
    """
    import openai_harmony

    role = openai_harmony.Role.ASSISTANT

    def render_ours(conversation: Any) -> list[int]:
        return render(conversation, tokenizer=tokenizer, next_role="assistant")

    def render_peer(conversation: Any) -> list[int]:
        return peer.render_conversation_for_completion(conversation, role)

    rows: list[Comparison] = []
    for name, make in (("short chat", texts.short_conversation), ("12 tools and a call", texts.tool_conversation)):
        records = [make(note=f"Note {index}.") for index in range(UNSEEN)]
        ours = conversation_from_dict(records[0])
        theirs = openai_harmony.Conversation.from_json(json.dumps(records[0]))
        ids = render_ours(ours)
        if ids != render_peer(theirs):
            raise AssertionError(f"render, {name}: the two libraries do not agree, so there is nothing to compare")
        size = f"{len(ids):,} tokens"
        rows.append(
            compare(
                f"render, {name}",
                size=size,
                ours=partial(render_ours, ours),
                peer=partial(render_peer, theirs),
                rounds=rounds,
            )
        )
        lines_ours, lines_peer = (itertools.cycle([json.dumps(record) for record in records]) for _ in range(2))
        rows.append(
            compare(
                f"render, {name}, JSON unseen",
                size=size,
                ours=lambda lines=lines_ours: render_ours(conversation_from_dict(json.loads(next(lines)))),
                peer=lambda lines=lines_peer: render_peer(openai_harmony.Conversation.from_json(next(lines))),
                rounds=rounds,
            )
        )
    return rows


def measure_parse(tokenizer: Tokenizer, peer: Any, *, rounds: int) -> list[Comparison]:
    """Parse well-formed completions, whole and one token at a time with the text of each step taken."""
    import openai_harmony

    role = openai_harmony.Role.ASSISTANT

    def stream_ours(ids: list[int]) -> str:
        parser = HarmonyParser(tokenizer, role="assistant")
        pieces = [event.text for token in ids for event in parser.push(token) if isinstance(event, ContentDelta)]
        parser.finish()
        return "".join(pieces)

    def stream_peer(ids: list[int]) -> str:
        parser = openai_harmony.StreamableParser(peer, role)
        pieces: list[str] = []
        for token in ids:
            parser.process(token)
            if delta := parser.last_content_delta:
                pieces.append(delta)
        parser.process_eos()
        return "".join(pieces)

    rows: list[Comparison] = []
    for name, words in (("short", 40), ("long", 4000)):
        ids = tokenizer.encode_with_specials(texts.completion_text(words))
        if stream_ours(ids) != stream_peer(ids):
            raise AssertionError(f"parse, {name}: the two libraries do not agree, so there is nothing to compare")
        size = f"{len(ids):,} tokens"
        rows.append(
            compare(
                f"parse, {name}, whole",
                size=size,
                ours=partial(parse, ids, tokenizer=tokenizer, role="assistant"),
                peer=partial(peer.parse_messages_from_completion_tokens, ids, role),
                rounds=rounds,
            )
        )
        rows.append(
            compare(
                f"parse, {name}, streaming",
                size=size,
                ours=partial(stream_ours, ids),
                peer=partial(stream_peer, ids),
                rounds=rounds,
            )
        )
    return rows


def measure_linear(tokenizer: Tokenizer, peer: Any) -> list[dict[str, Any]]:
    """Encode runs of one thing at three sizes, best of five each. The growth is 1.0 where time is linear.

    The peer gets one run of a small size only: its time is quadratic, so a large one would take minutes.
    """
    rows: list[dict[str, Any]] = []
    for name, unit in LINEAR_UNITS.items():
        seconds: list[float] = []
        for size in LINEAR_SIZES:
            text = texts.take(unit, size)
            seconds.append(min(time_once(partial(tokenizer.encode, text), loops=1) for _ in range(5)))
        growth = math.log(seconds[-1] / seconds[0]) / math.log(LINEAR_SIZES[-1] / LINEAR_SIZES[0])
        peer_seconds = time_once(partial(peer.encode, texts.take(unit, PEER_SIZE), disallowed_special=()), loops=1)
        rows.append(
            {
                "name": name,
                "sizes": list(LINEAR_SIZES),
                "seconds": seconds,
                "growth": round(growth, 2),
                "peer_size": PEER_SIZE,
                "peer_seconds": peer_seconds,
            }
        )
    return rows


def encode_texts() -> dict[str, str]:
    """The texts by name."""
    return {
        "short chat": texts.SHORT_CHAT,
        "English prose": texts.english_text(),
        "Python code": texts.code_text(),
        "Chinese": texts.cjk_text(),
    }


def render_page(record: dict[str, Any], comparisons: list[Comparison]) -> str:
    """The results as a Markdown page."""
    environment = record["environment"]
    linear = [
        [
            row["name"],
            *(format_seconds(seconds) for seconds in row["seconds"]),
            str(row["growth"]),
            format_seconds(row["peer_seconds"]),
        ]
        for row in record["linear"]
    ]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    return "\n".join(
        [
            "# Speed of harmony",
            "",
            "Beside openai-harmony in the same process: samples taken in turns, medians of CPU time. The last column",
            "says how many times as fast Ossia is. Before timing, the results of both are checked to be equal.",
            "",
            markdown_table(["", "size", "Ossia", "openai-harmony", "as fast"], comparison_rows(comparisons)),
            "",
            "## Linear time",
            "",
            "Encoding runs of one thing, best of five. Growth is the exponent of size from the smallest to the",
            "largest text: 1 is linear, 2 quadratic. Such a run is one piece, the worst case of byte-pair encoding.",
            "",
            markdown_table(
                [
                    "run of",
                    *(f"{size:,} characters" for size in LINEAR_SIZES),
                    "growth",
                    f"openai-harmony, {PEER_SIZE:,} characters",
                ],
                linear,
            ),
            "",
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
