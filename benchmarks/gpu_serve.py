"""The engine on one GPU over random weights of gpt-oss's exact shapes: throughput, memory, and nano end to end.

    python benchmarks/gpu_serve.py --model 20b --requests 512 --prompt 512 --output 256
    python benchmarks/gpu_serve.py --model 20b --memory-gb 16 --requests 1 --prompt 32000 --output 64
    python benchmarks/gpu_serve.py --model 20b --max-num-seqs 512 --where-time-goes
    python benchmarks/gpu_serve.py --nano

Weights are drawn as in benchmarks/gpu_decode.py. Every request runs to its full length. The prefix cache is off.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ossia.engine.build import EngineConfig
from ossia.engine.llm import LLM
from ossia.engine.plan import StepPlan
from ossia.engine.request import SamplingParams
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.attention import CachedAttention, KVCache
from ossia.model.config import PUBLISHED
from ossia.model.loading import let_memory_grow, load
from ossia.model.random_weights import random_model
from ossia.model.transformer import Transformer

VLLM_OUTPUT_TOKENS_PER_SECOND = 13_500
"""vLLM 0.26.0 on the same kind of GPU: 512 requests of 512 in, 256 out."""


def main() -> None:
    """Measure and print JSON."""
    logging.basicConfig(level=logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("20b", "120b"), default="20b")
    parser.add_argument("--requests", type=int, default=512)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=int, default=256)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--batched-tokens", type=int, default=8192)
    parser.add_argument("--context", type=int, default=None)
    parser.add_argument("--memory-gb", type=float, help="cut the card to so many GB (10^9 bytes)")
    parser.add_argument("--where-time-goes", action="store_true", help="time each kind of step on host and device")
    parser.add_argument("--nano", action="store_true", help="answer questions with nano instead")
    options = parser.parse_args()
    if options.memory_gb:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(options.memory_gb * 1e9 / total)
    print(json.dumps(answer_with_nano() if options.nano else serve(options), indent=1))


def serve(options: argparse.Namespace) -> dict[str, Any]:
    """Throughput and peak memory of one offline run."""
    start = time.perf_counter()
    let_memory_grow()
    torch.manual_seed(0)
    name = f"openai/gpt-oss-{options.model}"
    loaded = random_model(PUBLISHED[name], name=name, tokenizer=Tokenizer.o200k_harmony(), device="cuda")
    context = options.context or max(2048, options.prompt + options.output + 64)
    num_bytes = None
    if options.memory_gb:
        num_bytes = int(0.9e9)  # room for activations: free memory as the driver sees it knows nothing of the cut
    llm = LLM(
        loaded,
        config=EngineConfig(
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.batched_tokens,
            context_length=context,
            kv_cache_bytes=num_bytes,
            has_prefix_cache=False,
        ),
    )
    ready = time.perf_counter() - start
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 199_000, (options.requests, options.prompt), generator=generator).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=options.output, ignore_eos=True)
    clock = StepClock(llm) if options.where_time_goes else None
    start = time.perf_counter()
    done = llm.generate(prompts, params, progress=False)
    seconds = time.perf_counter() - start
    num_output = sum(len(completion.token_ids) for completion in done)
    snapshot = llm.engine.snapshot()
    return {
        "model": options.model,
        "runner": type(llm.engine.runner).__name__,
        "requests": options.requests,
        "prompt": options.prompt,
        "output": options.output,
        "seconds": round(seconds, 3),
        "output_tokens_per_second": round(num_output / seconds, 1),
        "ratio_to_vllm": round(num_output / seconds / VLLM_OUTPUT_TOKENS_PER_SECOND, 3),
        "total_tokens_per_second": round((num_output + options.requests * options.prompt) / seconds, 1),
        "ready_seconds": round(ready, 1),
        "num_steps": snapshot.num_steps,
        "num_preemptions": snapshot.num_preemptions,
        "peak_memory_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
        "errors": sorted({a.error for c in done for a in c.answers if a.error}),
        "steps": clock.report() if clock is not None else None,
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
    }


class _Step(NamedTuple):
    """One step: what it was, when its forward pass was called and left on the host, and its bounds on the device."""

    kind: str
    called: float
    left: float
    begin: torch.cuda.Event
    end: torch.cuda.Event


class StepClock:
    """Times the steps of an engine from now on, waiting for none of them."""

    def __init__(self, llm: LLM) -> None:
        self._steps: list[_Step] = []
        self._forward = llm.engine.runner.forward
        llm.engine.runner.forward = self._timed  # type: ignore[method-assign]

    def _timed(self, plan: StepPlan, **options: Any) -> Any:
        num_seqs = len(plan.scheduled)
        is_decode = plan.num_tokens == num_seqs
        kind = f"decode, {-(-num_seqs // 64) * 64} sequences or fewer" if is_decode else "with prompts"
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        called = time.perf_counter()
        begin.record()
        logits = self._forward(plan, **options)
        end.record()
        self._steps.append(_Step(kind, called, time.perf_counter(), begin, end))
        return logits

    def report(self) -> dict[str, dict[str, float]]:
        """By kind of step, in ms: the median from one call to the next, of the host in the call, and of the device."""
        torch.cuda.synchronize()
        kinds: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
        for step, after in zip(self._steps, self._steps[1:], strict=False):
            device = step.begin.elapsed_time(step.end)
            kinds[step.kind].append((1e3 * (after.called - step.called), 1e3 * (step.left - step.called), device))
        names = ("from call to call", "host in forward", "device in forward")
        return {
            kind: {"steps": len(rows), "seconds": round(sum(row[0] for row in rows) / 1e3, 2)}
            | {
                name: round(statistics.median(column), 2)
                for name, column in zip(names, zip(*rows, strict=True), strict=True)
            }
            | {"slowest from call to call": round(max(row[0] for row in rows), 1)}
            for kind, rows in sorted(kinds.items())
        }


def answer_with_nano() -> dict[str, Any]:
    """The same questions on the CPU and on the GPU, there together and one by one (another kernel)."""
    questions = ["What is 17 + 25?", "How many rs are in the word 'strawberry'?", "Reverse the word 'lantern'."] * 8
    params = SamplingParams(temperature=0.0, max_tokens=200)
    answers = {}
    for device in ("cpu", "cuda"):
        llm = LLM(load("nano", device=device), config=EngineConfig(kv_cache_bytes=1 << 28))
        turns = llm.chat(questions, params, progress=False)
        answers[type(llm.engine.runner).__name__] = [turn.text for turn in turns]
        alone = [llm.chat([question], params, progress=False)[0].text for question in questions[:3]]
    first, second = answers.values()
    drift = batch_drift(llm)
    same = sum(a == b for a, b in zip(first, second, strict=True))
    return {
        "runners": list(answers),
        "questions": len(questions),
        "same_answers": same,
        "same_answers_one_by_one": sum(a == b for a, b in zip(first, alone, strict=False)),
        **drift,
        "answers": second[:3],
    }


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens before the first difference."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


@torch.inference_mode()
def plain_logprobs(model: Transformer, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Of the answer's tokens, by the plain model in one pass."""
    ids = torch.tensor([*prompt, *answer])
    weight = model.norm.weight
    cache = KVCache(model.config, capacity=len(ids), dtype=weight.dtype, device=weight.device)
    attention = CachedAttention(cache, num_tokens=len(ids))
    hidden = model(ids, positions=torch.arange(len(ids)), attention=attention)
    logprobs = model.lm_head(hidden[len(prompt) - 1 : -1]).float().log_softmax(-1)
    return logprobs.gather(1, ids[len(prompt) :, None])[:, 0].tolist()


def batch_drift(llm: LLM) -> dict[str, Any]:
    """24 texts continued greedily together and one by one: how far logprobs of the same tokens after the same ones lie
    apart; and from those of the plain model on the CPU."""
    texts = [f"{number} plus {3 * number} is" for number in range(2, 26)]
    plain = load("nano", device="cpu")
    prompts = [plain.tokenizer.encode(text) for text in texts]
    params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True, logprobs=0)
    together = [done.answers[0] for done in llm.generate(prompts, params, progress=False)]
    alone = [llm.generate([prompt], params, progress=False)[0].answers[0] for prompt in prompts]
    apart, same = [], 0
    for one, other in zip(together, alone, strict=True):
        length = common(one.token_ids, other.token_ids)
        same += length == params.max_tokens
        pairs = zip((one.logprobs or ())[:length], (other.logprobs or ())[:length], strict=True)
        apart += [abs(a.logprob - b.logprob) for a, b in pairs]
    from_plain = []
    for prompt, answer in zip(prompts[:8], together, strict=False):
        expected = plain_logprobs(plain.model, prompt, answer.token_ids)
        from_plain += [abs(a.logprob - b) for a, b in zip(answer.logprobs or (), expected, strict=True)]
    return {
        "texts_the_same_in_a_batch_and_alone": same,
        "texts": len(texts),
        "logprobs_compared": len(apart),
        "largest_difference_of_logprobs": max(apart),
        "mean_difference_of_logprobs": statistics.mean(apart),
        "plain": str(plain.model.norm.weight.dtype),
        "logprobs_compared_with_plain": len(from_plain),
        "largest_difference_from_plain": max(from_plain),
        "mean_difference_from_plain": statistics.mean(from_plain),
    }


if __name__ == "__main__":
    main()
