"""`ossia bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli import options
from ossia.cli.groups import grouped
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError

if TYPE_CHECKING:
    from ossia.evals.speed import SpeedConfig, SpeedRow
    from ossia.model.loading import LoadedModel

EXAMPLES = examples(
    "ossia bench",
    "ossia bench nano --batch 1,16 --prompts 512 --json",
    "ossia bench openai/gpt-oss-20b --batch 1,8,32 --prompts 8192",
    "ossia bench openai/gpt-oss-120b --random-weights",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What is measured."""

    batch: Annotated[str, typer.Option(metavar="A,B", help="Numbers of sequences that decode together.")] = "1,8,32"
    prompt: Annotated[int, typer.Option(metavar="N", help="Tokens of each sequence's prompt.")] = 128
    output: Annotated[int, typer.Option(metavar="N", help="Tokens that each sequence generates.")] = 64
    prompts: Annotated[
        str, typer.Option(metavar="A,B", help="Lengths of prompts whose time to the first token is measured.")
    ] = ""
    count_experts: Annotated[
        bool, typer.Option("--count-experts", help="Count the experts that steps use, in place of what is expected.")
    ] = False
    seed: Annotated[int, typer.Option(help="Draws the prompts and random weights.")] = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Runner:
    """What runs it."""

    device: options.Device = "auto"
    kv_dtype: options.KvDtype = None
    cpu_quant: Annotated[
        str | None, typer.Option(metavar="NAME", help="On a CPU: none, q8 or bf12, see docs/cpu.md.")
    ] = None
    max_num_batched_tokens: Annotated[
        int, typer.Option(metavar="N", help="Tokens of prompts that a step computes.")
    ] = 8192


@grouped
def command(
    model: options.Model = "nano",
    *,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="Draw weights of the model's shape: nothing is downloaded.")
    ] = False,
    measured: Measured,
    runner: Runner,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure decode steps and prompts, as the engine runs them.

    Each row is a median. The limit of a decode step is the time to read what it must read (the experts in use, all
    other weights, keys and values) at the bandwidth that is measured first.
    """
    from rich.console import Console

    from ossia.evals.environment import describe

    config = _speed_config(measured)
    loaded = _draw(model, runner.device, measured.seed) if random_weights else _load(model, runner.device)
    environment = describe(device=str(loaded.model.norm.weight.device))
    rows = _measure(loaded, config, runner)
    if as_json:
        record = {
            "model": model,
            "random_weights": random_weights,
            "environment": environment,
            "rows": [row.to_dict() for row in rows],
        }
        typer.echo(json.dumps(record))
        return
    typer.echo(f"{model}{', random weights' if random_weights else ''}; {'; '.join(environment.values())}")
    Console().print(_table(rows))


def _speed_config(measured: Measured) -> SpeedConfig:
    from ossia.evals.speed import SpeedConfig

    return SpeedConfig(
        batches=_numbers(measured.batch, "batch"),
        prompt=measured.prompt,
        output=measured.output,
        prompts=_numbers(measured.prompts, "prompts"),
        counts_experts=measured.count_experts,
        seed=measured.seed,
    )


def _measure(loaded: LoadedModel, config: SpeedConfig, runner: Runner) -> list[SpeedRow]:
    from rich.console import Console
    from rich.progress import Progress

    from ossia.engine.build import EngineConfig
    from ossia.evals.speed import measure_speed

    engine_config = EngineConfig(
        max_num_batched_tokens=runner.max_num_batched_tokens,
        kv_dtype=runner.kv_dtype or "auto",
        cpu_quant=runner.cpu_quant or "none",
    )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as bar:
        item = bar.add_task("measuring", total=None)
        return measure_speed(
            loaded,
            config,
            engine_config=engine_config,
            progress=lambda done, total: bar.update(item, completed=done, total=total),
        )


def _load(model: str, device: str) -> LoadedModel:
    from ossia.model.loading import load

    return load(model, device=device)


def _draw(model: str, device: str, seed: int) -> LoadedModel:
    """A model of a known shape with random weights; a published one needs no folder."""
    import torch

    from ossia.harmony.tokenizer import Tokenizer
    from ossia.model.loading import choose_device, find, find_tokenizer, let_memory_grow
    from ossia.model.random_weights import random_model

    found = find(model)
    place = choose_device(device)
    if place.type == "cuda":
        let_memory_grow()
    torch.manual_seed(seed)
    vocab_size = found.config.vocab_size
    tokenizer = (
        Tokenizer.o200k_harmony() if found.folder is None else find_tokenizer(found.folder, vocab_size=vocab_size)
    )
    return random_model(found.config, name=model, tokenizer=tokenizer, device=place)


def _numbers(text: str, param: str) -> tuple[int, ...]:
    """The whole numbers of a list like ``1,8,32``."""
    names = options.split_names(text)
    if wrong := [name for name in names if not name.isdecimal()]:
        raise InvalidInputError(
            f"--{param} holds {', '.join(wrong)}; write whole numbers with commas between them, as in 1,8,32",
            param=param,
        )
    return tuple(int(name) for name in names)


def _table(rows: list[SpeedRow]) -> Any:
    from rich.table import Table

    table = Table("step", "ms", "tokens/s", "limit ms", "share of limit", "experts a layer", "TFLOP/s")
    for row in rows:
        name = f"{row.num_seqs} decode" if row.kind == "decode" else f"prompt {row.num_tokens}"
        limit = "" if row.limit_ms is None or row.share is None else f"{row.limit_ms:.3f}"
        table.add_row(
            name,
            f"{row.ms:.3f}",
            f"{row.tokens_per_second:,.0f}",
            limit,
            "" if row.share is None else f"{row.share:.0%}",
            "" if row.num_experts is None else f"{row.num_experts:.1f}",
            "" if row.teraflops is None else f"{row.teraflops:.2f}",
        )
    return table
