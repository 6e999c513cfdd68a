"""Speed of an engine as its users get it: decode steps by batch size, and prompts, beside what the memory allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from ossia.core.errors import InvalidInputError
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.engine import Engine
from ossia.engine.output_event import Choices, OutputEvent
from ossia.engine.request import FinishReason, Request, SamplingParams
from ossia.kernels import native
from ossia.model.config import ModelConfig
from ossia.model.cost import expected_experts, prompt_flops, step_bytes
from ossia.model.loading import LoadedModel

PROMPT_ROUNDS = 3
_COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 30}


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedConfig:
    """What is measured.

    Attributes:
        batches: numbers of sequences that decode together.
        prompt: tokens of each one's prompt.
        output: tokens that each one generates.
        prompts: lengths of prompts whose time to the first token is measured.
        counts_experts: also count the distinct experts of the steps; the engine then records routing, and on a GPU a
            sequence alone does not get its own kernel.
        seed: draws the prompts.
    """

    batches: tuple[int, ...] = (1,)
    prompt: int = 128
    output: int = 64
    prompts: tuple[int, ...] = ()
    counts_experts: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batches", "prompts"):
            if any(value < 1 for value in getattr(self, name)):
                raise InvalidInputError(f"{name} holds {min(getattr(self, name))}; allowed: 1 and more", param=name)
        if not self.batches and not self.prompts:
            raise InvalidInputError("there is nothing to measure; name a batch size or a prompt length", param="batch")
        if self.output < 3 or self.prompt < 1:
            raise InvalidInputError(
                f"prompt is {self.prompt} and output {self.output}; allowed: from 1 and from 3", param="output"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRow:
    """One row of results.

    Attributes:
        kind: "decode" or "prompt".
        num_seqs: sequences in the step.
        num_tokens: tokens of context in the middle of a decode run, or of the prompt.
        ms: median of a decode step, or of the time to a prompt's first token.
        tokens_per_second: of all sequences together.
        limit_ms: the time in which this machine's memory could be read once, for decode steps.
        share: limit_ms over ms.
        num_experts: distinct experts a layer and step: counted, or else expected of uniform routing.
        teraflops: a prompt's arithmetic over its time.
    """

    kind: str
    num_seqs: int
    num_tokens: int
    ms: float
    tokens_per_second: float
    limit_ms: float | None = None
    share: float | None = None
    num_experts: float | None = None
    teraflops: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def measure_speed(
    loaded: LoadedModel,
    config: SpeedConfig,
    *,
    engine_config: EngineConfig,
    progress: Callable[[int, int], None] | None = None,
) -> list[SpeedRow]:
    """Measure one model; greedy, to full length, without a prefix cache.

    Args:
        loaded: the model; on a GPU the engine takes its weights over.
        config: what is measured.
        engine_config: for what concerns kernels and cache; the sizes follow from `config`.
        progress: called with the number of rows done and of all.

    Raises:
        InvalidInputError: lengths that the model's context does not hold.
    """
    bandwidth = read_bandwidth(loaded.model.norm.weight.device)
    engine = build_engine(loaded, config=_sized(engine_config, config))
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer = loaded.tokenizer
    words = torch.tensor([token for token in range(tokenizer.vocab_size) if not tokenizer.is_special(token)])

    def prompt(length: int) -> list[int]:
        return words[torch.randint(0, len(words), (length,), generator=generator)].tolist()

    _run(engine, [prompt(config.prompt)], num_tokens=3)  # what is compiled or made at first use
    rows: list[SpeedRow] = []
    total = len(config.batches) + len(config.prompts)
    dense_bytes = {"q8": 34 / 32, "bf12": 12 / 8}.get(engine_config.cpu_quant, 2)
    for num_seqs in config.batches:
        prompts = [prompt(config.prompt) for _ in range(num_seqs)]
        rows.append(_measure_decode(engine, prompts, config, loaded.model.config, bandwidth, dense_bytes))
        if progress is not None:
            progress(len(rows), total)
    for length in config.prompts:
        times = [sum(_run(engine, [prompt(length)], num_tokens=1).seconds) for _ in range(PROMPT_ROUNDS)]
        seconds = statistics.median(times)
        rows.append(
            SpeedRow(
                kind="prompt",
                num_seqs=1,
                num_tokens=length,
                ms=1e3 * seconds,
                tokens_per_second=length / seconds,
                teraflops=prompt_flops(loaded.model.config, length=length) / seconds / 1e12,
            )
        )
        if progress is not None:
            progress(len(rows), total)
    return rows


def read_bandwidth(device: torch.device) -> float | None:
    """Bytes a second at which this device reads memory; None where there is no way to measure it.

    On a CPU all threads read a block; on a GPU a copy's reads and writes are counted together.
    """
    if device.type == "cpu":
        return (
            native.read_bandwidth(torch.zeros(_COPY_BYTES["cpu"], dtype=torch.uint8)) if native.is_available() else None
        )
    source = torch.zeros(_COPY_BYTES["cuda"], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize(device)
        times.append(begin.elapsed_time(end))
    return 2 * source.numel() / (statistics.median(times[1:]) * 1e-3)


@dataclass(slots=True)
class _Run:
    """What one run of the engine brought: the seconds of each step, and each answer's last event."""

    seconds: list[float]
    last: list[OutputEvent]


def _run(engine: Engine, prompts: Sequence[list[int]], *, num_tokens: int) -> _Run:
    """Run all prompts to their end; the steps' times begin where the last sequence has joined in."""
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for number, ids in enumerate(prompts):
        engine.add(Request(id=f"speed-{number}", prompt_ids=tuple(ids), params=params))
    waiting = {f"speed-{number}" for number in range(len(prompts))}
    run = _Run([], [])
    is_steady = num_tokens == 1
    while engine.has_work:
        begin = time.perf_counter()
        events = engine.step()
        seconds = time.perf_counter() - begin
        ended = [event for event in events if event.finish_reason is not None]
        if is_steady and (num_tokens == 1 or not ended):
            run.seconds.append(seconds)
        waiting -= {event.request_id for event in events if event.token_ids}
        is_steady = is_steady or not waiting
        run.last += ended
    for event in run.last:
        if event.finish_reason is FinishReason.ERROR:
            raise InvalidInputError(f"an answer failed while speed was measured: {event.error}", param="batch")
    return run


def _measure_decode(
    engine: Engine,
    prompts: list[list[int]],
    config: SpeedConfig,
    shape: ModelConfig,
    bandwidth: float | None,
    dense_bytes: float,
) -> SpeedRow:
    num_seqs = len(prompts)
    run = _run(engine, prompts, num_tokens=config.output)
    seconds = statistics.median(run.seconds)
    num_experts = expected_experts(shape, num_tokens=num_seqs)
    if config.counts_experts:
        num_experts = count_experts([event.routing for event in run.last if event.routing is not None], config.prompt)
    context = config.prompt + config.output // 2
    limit = None
    if bandwidth is not None:
        needed = step_bytes(shape, num_seqs=num_seqs, context=context, num_experts=num_experts, dense_bytes=dense_bytes)
        limit = needed / bandwidth
    return SpeedRow(
        kind="decode",
        num_seqs=num_seqs,
        num_tokens=context,
        ms=1e3 * seconds,
        tokens_per_second=num_seqs / seconds,
        limit_ms=None if limit is None else 1e3 * limit,
        share=None if limit is None else limit / seconds,
        num_experts=num_experts,
    )


def count_experts(routings: Sequence[Choices], first: int) -> float:
    """Distinct experts a layer and decode step, from each sequence's routing [T, L, A] from token `first` on."""
    decoded = [routing[first:] for routing in routings]
    num_steps = min(len(part) for part in decoded)
    together = np.stack([part[:num_steps] for part in decoded], axis=2)  # [steps, L, N, A]
    counts = [len(np.unique(layer)) for step in together for layer in step]
    return statistics.mean(counts)


def _sized(engine_config: EngineConfig, config: SpeedConfig) -> EngineConfig:
    longest = max([config.prompt + config.output, *(length + 1 for length in config.prompts)])
    return replace(
        engine_config,
        max_num_seqs=max([1, *config.batches]),
        context_length=longest,
        has_prefix_cache=False,
        records_routing=config.counts_experts,
    )
