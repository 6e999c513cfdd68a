"""The engine's own work a step: everything but the model.

The model's forward pass is replaced by fixed logits; all else is real: scheduling, building the batch, sampling, stop
conditions, detokenizing, events.

python -m benchmarks.engine.python_overhead --requests 64
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from ossia.engine import sampler
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.native_runner import NativeRunner
from ossia.engine.request import Request, SamplingParams
from ossia.engine.runner import TorchRunner
from ossia.kernels.native_model import NativeBatch, NativeOutput
from ossia.model.config import ModelConfig
from ossia.model.loading import LoadedModel, load


class FixedModel:
    """Takes a model's place, in torch or in C++: any tokens in, the same hidden states and logits out."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._hidden = torch.zeros(4096, config.hidden_size)
        self._logits = torch.randn(4096, config.vocab_size, generator=torch.Generator().manual_seed(0))
        self.norm = SimpleNamespace(weight=self._hidden[0])

    def __call__(self, token_ids: torch.Tensor, **_: object) -> torch.Tensor:
        return self._hidden[: len(token_ids)]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._logits[: len(hidden)]

    def step(self, batch: NativeBatch, *, out_rows: torch.Tensor, **_: object) -> NativeOutput:
        return NativeOutput(None, self._logits[: len(out_rows)])


def measure_overhead(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], *, num_tokens: int, params: SamplingParams | None = None
) -> dict[str, float]:
    """Median seconds a decode step: by phase, `own` for the engine's own work, and `total` with array operations."""
    choose = sampler.choose
    engine = build_engine(loaded, config=EngineConfig(has_prefix_cache=False))
    runner = engine.runner
    fixed: Any = FixedModel(loaded.model.config)
    if isinstance(runner, NativeRunner):
        runner.native = fixed
    else:
        assert isinstance(runner, TorchRunner)
        runner.model = fixed
    taken: dict[str, list[float]] = defaultdict(list)
    watch(engine, "_step", taken["total"])
    watch(engine.scheduler, "schedule", taken["schedule"])
    watch(runner.builder, "build", taken["build"])
    watch(engine, "_sample", taken["sample"])
    watch(engine, "_commit", taken["commit"])
    watch(sampler, "choose", taken["choose"])
    params = params or SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    for index, prompt in enumerate(prompts):
        engine.add(Request(id=str(index), prompt_ids=tuple(prompt), params=params))
    while engine.has_work:
        engine.step()
    sampler.choose = choose
    seconds = {name: statistics.median(times[4:-2]) for name, times in taken.items()}
    # Choosing among the logits is arithmetic over [N, V]; all else of these is bookkeeping.
    seconds["own"] = sum(seconds[name] for name in ("schedule", "build", "sample", "commit")) - seconds["choose"]
    return seconds


def watch(owner: Any, name: str, taken: list[float]) -> None:
    """Time every call of a method."""
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            taken.append(time.perf_counter() - start)

    setattr(owner, name, timed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    options = parser.parse_args()
    prompts = [list(range(100, 200)) for _ in range(options.requests)]
    params = SamplingParams(temperature=options.temperature, max_tokens=200, ignore_eos=True)
    seconds = measure_overhead(load("nano", device="cpu"), prompts, num_tokens=200, params=params)
    print(json.dumps({name: f"{1e3 * value:.3f} ms" for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
