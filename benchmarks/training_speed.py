"""Tokens a second and MFU of pre-training steps on a GPU, for the shapes that nano was chosen from.

    python benchmarks/training_speed.py                      # both shapes
    python benchmarks/training_speed.py --shape A --rows 64
    torchrun --nproc-per-node 8 benchmarks/training_speed.py --rows 1024
    OMP_NUM_THREADS=1 python benchmarks/training_speed.py --shape H --rows 2 --warmup 1 --steps 3   # a CPU

Batches are random tokens in documents of random lengths, made ahead, so that the trainer alone is measured. Prints one
JSON line a shape. The first `--warmup` steps, which compile, are timed apart. MFU is as `ossia.training.flops` defines
it. Where a GPU lies idle shows `--profile DIR`, a trace of three steps for chrome://tracing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from ossia.model.config import ModelConfig, num_parameters
from ossia.training.config import load_recipe
from ossia.training.data.batches.packing import Batch
from ossia.training.flops import active_parameters, mfu, peak_flops
from ossia.training.initial import build_model
from ossia.training.parallel import World, join_world
from ossia.training.trainer import Trainer
from ossia.training.trainer_config import PRECISIONS, QuantizeConfig, RunConfig, TrainerConfig

RECIPE = Path(__file__).parents[1] / "recipes" / "nano.toml"
SHAPES = {
    "A": {"hidden_size": 384, "intermediate_size": 384, "num_attention_heads": 6, "num_key_value_heads": 2},
    "H": {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 1},
}
"""What differs from recipes/nano.toml: 8 layers, 16 experts of which 4 are active, a vocabulary of 8,192."""
NUM_BATCHES = 8


class RandomBatches:
    """Batches over and over of a few that were made ahead; documents of 60 to 400 tokens."""

    def __init__(self, *, rows: int, length: int, vocab_size: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._batches: list[Batch] = []
        for _ in range(NUM_BATCHES):
            ids = torch.randint(vocab_size, (rows, length + 1), generator=generator)
            is_first = torch.rand(rows, length, generator=generator) < 1 / 170
            is_first[:, 0] = True
            documents = is_first.cumsum(dim=1).int() - 1
            place = torch.arange(length).expand(rows, length)
            start = torch.where(is_first, place, 0).cummax(dim=1).values
            self._batches.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), place - start, documents))

    def batch(self, number: int) -> Batch:
        return self._batches[number % NUM_BATCHES]


def measure(name: str, model: ModelConfig, options: argparse.Namespace, world: World) -> dict[str, object]:
    """Train `warmup` steps, then `steps`, and say how fast the latter were."""
    run = RunConfig(
        steps=100_000,
        log_every=100_000,
        checkpoint_every=100_000,
        activation_checkpointing=options.activation_checkpointing,
        tensorboard=False,
    )
    trainer = Trainer(
        build_model(model, init=None, seed=0, device=world.device, precision=options.precision),
        source=RandomBatches(rows=options.rows, length=options.length, vocab_size=model.vocab_size),
        config=TrainerConfig(run=run, quantize=QuantizeConfig(experts=options.experts)),
        folder=Path(tempfile.mkdtemp()),
        mesh=world.mesh,
    )
    batches = trainer.batches()

    def steps(count: int) -> tuple[float, float]:
        """Wall time and this process's CPU time."""
        synchronize(world)
        started, began = time.perf_counter(), time.process_time()
        for _ in range(count):
            trainer.take_step(next(batches).to(world.device))
        synchronize(world)
        return time.perf_counter() - started, time.process_time() - began

    compiling, _ = steps(options.warmup)
    seconds, cpu_seconds = steps(options.steps)
    if options.profile is not None and world.is_first:
        with torch.profiler.profile() as trace:
            steps(3)
        options.profile.mkdir(parents=True, exist_ok=True)
        trace.export_chrome_trace(str(options.profile / f"shape-{name}.json"))
    speed = options.steps * options.rows * options.length / seconds
    is_gpu = world.device.type == "cuda"
    device = torch.cuda.get_device_name(world.device) if is_gpu else "CPU"
    peak = peak_flops(device)
    share = None if peak is None else mfu(speed, model, sequence_length=options.length, peak=peak * world.size)
    return {
        "shape": name,
        "device": device,
        "num_devices": world.size,
        "torch": torch.__version__,
        "parameters": num_parameters(model),
        "active_parameters": active_parameters(model),
        "rows": options.rows,
        "sequence_length": options.length,
        "precision": options.precision,
        "experts": options.experts,
        "activation_checkpointing": options.activation_checkpointing,
        "warmup_seconds": round(compiling, 2),
        "seconds_per_step": round(seconds / options.steps, 5),
        "cpu_seconds_per_step": round(cpu_seconds / options.steps, 4),
        "tokens_per_second": round(speed),
        "mfu": None if share is None else round(share, 4),
        "peak_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2) if is_gpu else None,
    }


def synchronize(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    parser.add_argument("--rows", type=int, default=128, help="rows of a batch, over all processes")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--precision", choices=PRECISIONS, default="auto")
    parser.add_argument("--experts", choices=["mxfp4"], help="round them at every step (quantization-aware training)")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--profile", type=Path, metavar="DIR")
    options = parser.parse_args()
    base = load_recipe(str(RECIPE)).model
    with join_world() as world:
        for name in SHAPES if options.shape == "both" else [options.shape]:
            result = measure(name, replace(base, **SHAPES[name]), options, world)
            if world.is_first:
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
