"""nano as GGUF in llama.cpp: the same ids for the same text, and the same greedy answers as ours.

python -m benchmarks.engine.gguf_llama            writes benchmarks/results/gguf-llama-cpp.md and .json
python -m benchmarks.engine.gguf_llama --json     prints the JSON and writes nothing

Needs llama-cpp-python, which builds from its source (CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python
--no-binary llama-cpp-python). llama.cpp rounds activations to 8 bits for MXFP4 and Q8_0 and rounds the ends of YaRN's
blend to whole dimensions, so logits agree to some percent only, and where two tokens are about as likely it may take
the other one.
"""

# V vocabulary

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from benchmarks.timing import tell
from torch import Tensor

from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.harmony.content import Effort
from ossia.harmony.message import Conversation, Message, Role
from ossia.harmony.render import render
from ossia.model.attention import KVCache
from ossia.model.checkpoint.gguf import write_gguf
from ossia.model.checkpoint.gguf_layout import DENSE_TYPES
from ossia.model.checkpoint.load import load_model, resolve_model
from ossia.model.generate import GenerationOptions, generate, next_logits
from ossia.model.loading import LoadedModel, load
from ossia.model.transformer import Transformer

COMMAND = "python -m benchmarks.engine.gguf_llama"
CONTEXT = 1024
MAX_TOKENS = 300
QUESTIONS = (
    "How many r's are in strawberry?",
    "What is 348 + 759?",
    "Spell the word elephant backwards.",
    "What does river mean?",
    "Hello, who are you?",
    "Convert 3 km to m.",
    "What is 12 times 14?",
    "A pen costs 3 dollars. How much do 7 pens cost?",
)


class Answer(NamedTuple):
    """One question answered by both.

    Attributes:
        error: of llama.cpp's logits over the first token of the answer, as a share of ours' norm.
        differs: the first place where the tokens differ, None where they are the same.
        gap: by how much ours prefers its token to llama.cpp's at that place, in logits.
    """

    effort: str
    question: str
    num_tokens: int
    error: float
    differs: int | None
    gap: float | None


class Peer:
    """llama.cpp on one file."""

    def __init__(self, path: Path, *, vocab_size: int) -> None:
        import llama_cpp

        self._library = llama_cpp
        with quiet():
            self._llama: Any = llama_cpp.Llama(
                str(path), n_ctx=CONTEXT, n_threads=1, n_threads_batch=1, swa_full=True, verbose=False
            )
        self._vocab_size = vocab_size

    def tokenize(self, text: str) -> list[int]:
        """The ids of text in which names of control tokens stand for them."""
        return list(self._llama.tokenize(text.encode(), add_bos=False, special=True))

    def start(self, ids: Sequence[int]) -> Tensor:
        """Forget all, read a prompt, and return the logits behind it, float32 [V]."""
        self._llama.reset()
        return self.push(ids)

    def push(self, ids: Sequence[int]) -> Tensor:
        """Read more."""
        self._llama.eval(list(ids))
        pointer = self._library.llama_get_logits_ith(self._llama._ctx.ctx, -1)
        return torch.tensor(pointer[: self._vocab_size])

    def close(self) -> None:
        self._llama.close()


def main() -> None:
    """Compare, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    options = parser.parse_args()
    record = measure()
    tell(record, render_page(record), name="gguf-llama-cpp", as_json=options.json)


def measure() -> dict[str, Any]:
    """All answers by all types of dense matrices, as JSON types."""
    import llama_cpp

    loaded = load("nano", device="cpu")
    model = reference()
    answers: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(prefix="ossia-gguf-") as folder:
        for kind in DENSE_TYPES:
            path = Path(folder) / f"nano-{kind}.gguf"
            write_gguf(resolve_model("nano"), path, dense=kind)
            answers[kind] = [answer._asdict() for answer in compare(loaded, model=model, path=path)]
    return {
        "command": COMMAND,
        "environment": describe(),
        "llama_cpp": f"llama-cpp-python {llama_cpp.__version__}; {llama_cpp.llama_print_system_info().decode()}",
        "answers": answers,
    }


def reference() -> Transformer:
    """nano in float32, experts unpacked."""
    return load_model(resolve_model("nano"), dtype=torch.float32, packed_experts=False)


def compare(
    loaded: LoadedModel,
    *,
    model: Transformer,
    path: Path,
    efforts: Sequence[Effort] = tuple(Effort),
    questions: Sequence[str] = QUESTIONS,
) -> Iterator[Answer]:
    """Every question at every effort, by ours in float32 and by llama.cpp.

    Raises:
        AssertionError: llama.cpp cuts a prompt into other tokens.
    """
    peer = Peer(path, vocab_size=model.config.vocab_size)
    try:
        for effort in efforts:
            for question in questions:
                yield compare_one(loaded, model=model, peer=peer, effort=effort, question=question)
    finally:
        peer.close()


def compare_one(loaded: LoadedModel, *, model: Transformer, peer: Peer, effort: Effort, question: str) -> Answer:
    """One question."""
    opening = loaded.opening(effort=effort, date="2026-01-01")
    prompt = render(
        Conversation(messages=(*opening, Message(role=Role.USER, content=question))), tokenizer=loaded.tokenizer
    )
    tokens = peer.tokenize(loaded.tokenizer.decode(prompt))
    assert tokens == list(prompt), f"llama.cpp's ids of {question!r} are not ours"
    options = GenerationOptions(temperature=0.0, max_tokens=MAX_TOKENS, stop_ids=loaded.stop_ids)
    ours = list(generate(model, prompt, options=options))
    theirs = peer.start(prompt)
    first = logits_after(model, prompt)
    error = float((theirs - first).norm() / first.norm())
    for place, token in enumerate(ours):
        choice = int(theirs.argmax())
        if choice != token:
            exact = logits_after(model, [*prompt, *ours[:place]])
            return Answer(effort.value, question, len(ours), error, place, float(exact[token] - exact[choice]))
        theirs = peer.push([token])
    return Answer(effort.value, question, len(ours), error, None, None)


def logits_after(model: Transformer, ids: Sequence[int]) -> Tensor:
    """float32 [V]."""
    return next_logits(model, ids, cache=KVCache(model.config, capacity=len(ids), dtype=torch.float32))[0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """llama.cpp writes to standard error whatever `verbose` says."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def render_page(record: dict[str, Any]) -> str:
    """The results as a Markdown page."""
    rows, notes = [], []
    for kind, answers in record["answers"].items():
        same = [answer for answer in answers if answer["differs"] is None]
        rows.append(
            [
                kind,
                f"{len(same)} of {len(answers)}",
                f"{sum(answer['num_tokens'] for answer in answers):,}",
                f"{max(answer['error'] for answer in answers):.3f}",
            ]
        )
        notes += [
            f"- {kind}, {answer['effort']}, {answer['question']!r}: differs at token {answer['differs']} of "
            f"{answer['num_tokens']}, where ours prefers its own by {answer['gap']:.2f} logits."
            for answer in answers
            if answer["differs"] is not None
        ]
    environment = record["environment"]
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware")
    header = ["dense matrices", "same greedy answers", "tokens compared", "largest error of logits"]
    return "\n".join(
        [
            "# nano as GGUF, in llama.cpp",
            "",
            f"`ossia convert nano nano.gguf --format gguf`; {len(QUESTIONS)} questions at three efforts, answered",
            "greedily by llama.cpp and by our model in float32. Prompts are cut into the same ids. The error is that",
            "of the first token's logits, relative to their norm: llama.cpp rounds activations to 8 bits, and the ends",
            "of YaRN's blend to whole dimensions.",
            "",
            markdown_table(header, rows),
            "",
            *(["Where answers differ:", "", *notes, ""] if notes else []),
            "## How it was measured",
            "",
            f"- Command: `{record['command']}`",
            f"- {record['llama_cpp'].strip(' |')}",
            f"- Hardware: {environment['hardware']}; {versions}",
            "",
        ]
    )


if __name__ == "__main__":
    main()
