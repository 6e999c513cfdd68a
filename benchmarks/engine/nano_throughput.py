"""Throughput of the engine on the built-in nano, on a CPU: 1, 4, 16 and 64 requests at once.

Beside it, in turns with it: (a) `generate`, one request after another, and (b) Transformers' `generate`, batched, on
the same weights in float32. All answer the same prompts greedily with the same number of tokens.

python -m benchmarks.engine.nano_throughput            writes benchmarks/results/engine-nano.md and .json
python -m benchmarks.engine.nano_throughput --json     prints the JSON and writes nothing
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.engine.python_overhead import measure_overhead
from benchmarks.timing import tell

from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.request import SamplingParams
from ossia.evals.environment import describe
from ossia.evals.report import markdown_table
from ossia.harmony.message import Conversation, Message, Role
from ossia.harmony.render import render
from ossia.kernels import native
from ossia.model.checkpoint.convert import convert
from ossia.model.checkpoint.load import load_model, resolve_model
from ossia.model.generate import GenerationOptions, generate
from ossia.model.loading import LoadedModel, load
from ossia.model.transformer import Transformer
from ossia.tasks.registry import TASKS

COMMAND = "python -m benchmarks.engine.nano_throughput"
CONCURRENCIES = (1, 4, 16, 64)
NUM_TOKENS = 64
ALONE = 8
"""Requests that one-at-a-time generation answers at most; its speed does not depend on how many wait."""
ROUNDS = 3


def main() -> None:
    """Measure, then print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, write no files")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's threads (default: all)")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"runs of each, of which the median counts ({ROUNDS})"
    )
    options = parser.parse_args()
    record = measure(num_threads=options.threads, rounds=options.rounds)
    tell(record, render_page(record), name="engine-nano", as_json=options.json)


def measure(*, num_threads: int, rounds: int) -> dict[str, Any]:
    """All figures, as JSON types."""
    loaded = load("nano", device="cpu")
    native.set_num_threads(num_threads)
    plain = load_model(resolve_model("nano"), dtype=torch.float32)  # what plain torch is fastest with
    # Prompts share their beginning: without this the engine would compute less than its peers.
    llm = LLM(loaded, config=EngineConfig(has_prefix_cache=False))
    peer = TransformersPeer(loaded)
    rows = [measure_row(llm, peer, plain, number, num_threads=num_threads, rounds=rounds) for number in CONCURRENCIES]
    python = measure_overhead(loaded, draw_prompts(loaded, 64), num_tokens=NUM_TOKENS)
    return {
        "command": COMMAND,
        "environment": describe(),
        "num_threads": num_threads,
        "kernels": native.info().level or "torch",
        "tokens_per_answer": NUM_TOKENS,
        "rows": rows,
        "engine_python_ms_per_step_at_64": {name: round(1e3 * value, 4) for name, value in python.items()},
    }


def measure_row(
    llm: LLM, peer: TransformersPeer, plain: Transformer, number: int, *, num_threads: int, rounds: int
) -> dict[str, Any]:
    """Tokens a second of the three, in turns, at one number of requests."""
    prompts = draw_prompts(llm.loaded, number)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)

    def engine() -> None:
        torch.set_num_threads(1)  # the engine's own kernels have threads of their own, torch's would be in their way
        llm.generate(prompts, params, progress=False)

    def one_at_a_time() -> None:
        torch.set_num_threads(num_threads)
        for prompt in prompts[:ALONE]:
            list(generate(plain, prompt, options=GenerationOptions(temperature=0.0, max_tokens=NUM_TOKENS)))

    def transformers() -> None:
        torch.set_num_threads(num_threads)
        peer.generate(prompts)

    works: dict[str, Callable[[], None]] = {
        "engine": engine,
        "one_at_a_time": one_at_a_time,
        "transformers": transformers,
    }
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    answered = {name: min(number, ALONE) if name == "one_at_a_time" else number for name in works}
    speed = {name: answered[name] * NUM_TOKENS / statistics.median(taken) for name, taken in seconds.items()}
    return {
        "requests": number,
        **{f"{name}_tokens_per_second": round(value, 1) for name, value in speed.items()},
        "ratio_to_one_at_a_time": round(speed["engine"] / speed["one_at_a_time"], 2),
        "ratio_to_transformers": round(speed["engine"] / speed["transformers"], 2),
    }


class TransformersPeer:
    """Transformers on the same weights, unpacked to bfloat16 (which is exact for MXFP4) and run in float32."""

    def __init__(self, loaded: LoadedModel) -> None:
        from transformers import GptOssForCausalLM

        self._pad = loaded.tokenizer.endoftext
        with tempfile.TemporaryDirectory() as folder:
            convert(resolve_model("nano"), Path(folder) / "dense", format="hf-bf16")
            self._model = GptOssForCausalLM.from_pretrained(Path(folder) / "dense", dtype=torch.float32).eval()

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]]) -> None:
        """Answer all prompts as one batch, padded on the left."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        out = self._model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            pad_token_id=self._pad,
        )
        assert out.shape[1] == longest + NUM_TOKENS


def draw_prompts(loaded: LoadedModel, number: int) -> list[list[int]]:
    """Questions of nano's tasks, as a chat would send them."""
    rng = random.Random(0)
    tasks = [TASKS[name] for name in ("count_letters", "add", "reverse", "compare")]
    prompts = []
    for index in range(number):
        question = tasks[index % len(tasks)].problem(rng, held_out=True).prompt
        conversation = Conversation((*loaded.opening(date="2026-01-01"), Message(role=Role.USER, content=question)))
        prompts.append(list(render(conversation, tokenizer=loaded.tokenizer, next_role="assistant")))
    return prompts


def render_page(record: dict[str, Any]) -> str:
    """The results as Markdown."""
    rows = [
        [
            str(row["requests"]),
            f"{row['engine_tokens_per_second']:,.0f}",
            f"{row['one_at_a_time_tokens_per_second']:,.0f}",
            f"{row['transformers_tokens_per_second']:,.0f}",
            f"{row['ratio_to_one_at_a_time']:.2f} x",
            f"{row['ratio_to_transformers']:.2f} x",
        ]
        for row in record["rows"]
    ]
    header = [
        "requests at once",
        "engine, tokens/s",
        "one at a time",
        "Transformers, batched",
        "to one at a time",
        "to Transformers",
    ]
    python, environment = record["engine_python_ms_per_step_at_64"], record["environment"]
    return "\n".join(
        [
            "# The engine on nano, on a CPU",
            "",
            f"`{COMMAND}`, {record['num_threads']} threads, {record['tokens_per_answer']} tokens an answer,",
            f"greedy. The engine runs on {record['kernels']} kernels in the checkpoint's own dtypes, its peers on",
            "torch in float32, which is fastest for them. The first ratio is the engine to `generate`, one request",
            "after another; the second is the engine to Transformers' batch.",
            "",
            markdown_table(header, rows),
            "",
            f"The engine's own work at 64 requests, {python['own']:.3f} ms a step: "
            + ", ".join(f"{name} {python[name]:.3f}" for name in ("schedule", "build", "sample", "commit"))
            + f". Choosing among the logits, {python['choose']:.3f} of these, is not counted.",
            f"A whole step without the model takes {python['total']:.3f} ms.",
            "",
            f"{environment['hardware']}; "
            + ", ".join(f"{name} {value}" for name, value in environment.items() if name != "hardware"),
            "",
        ]
    )


if __name__ == "__main__":
    main()
