"""`ossia train sft`: fine-tune a model on your own conversations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ossia.cli.options import examples
from ossia.cli.train.options import Out, Overrides, parse_overrides
from ossia.cli.train.sft_screen import JsonScreen, Screen
from ossia.cli.train.stopping import stop_told

EXAMPLES = examples(
    "ossia train sft --data mine.jsonl --out runs/mine",
    "ossia train sft --data mine.jsonl --out runs/mine --epochs 20 --keep-tasks 0.3",
    "ossia train sft --data mine.jsonl --model openai/gpt-oss-20b --out runs/mine --set data.sequence_length=4096",
    "ossia train check mine.jsonl",
)

Data = Annotated[
    Path | None,
    typer.Option(
        "--data", metavar="FILE", help="JSON lines, a conversation each; see docs/finetune.md.", show_default=False
    ),
]
Model = Annotated[
    str | None, typer.Option(metavar="NAME|DIR", help="Begin with this model. Default: nano.", show_default=False)
]
Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH",
        help="A recipe of recipes/, or a path to a TOML file. Default: none is needed.",
        show_default=False,
    ),
]
OnError = Annotated[
    str | None,
    typer.Option(
        metavar="stop|skip", help="What a row that is no conversation does. Default: stop.", show_default=False
    ),
]
Epochs = Annotated[
    float | None, typer.Option(metavar="N", help="Passes over the file. Default: 3.", show_default=False)
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="RATE", help="Learning rate of Muon; AdamW's is 0.3 of it. Default: 0.002.", show_default=False
    ),
]
ValShare = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Share of the conversations held out. Default: 0.1.", show_default=False),
]
KeepTasks = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the training that is Ossia's own tasks, so that nano keeps them. Default: 0.",
        show_default=False,
    ),
]


def command(
    out: Out,
    data: Data = None,
    model: Model = None,
    recipe: Recipe = None,
    on_error: OnError = None,
    epochs: Epochs = None,
    lr: Rate = None,
    val_share: ValShare = None,
    keep_tasks: KeepTasks = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")] = False,
    overrides: Overrides = None,
) -> None:
    """Teach a model your own conversations.

    All weights are trained. A run that was stopped goes on when it is begun again; Ctrl-C finishes the step and writes
    a checkpoint. The finished model is the folder DIR/model, its experts in MXFP4.
    """
    from ossia.training.sft_config import ADAMW_SHARE, load_sft_config

    given: dict[str, Any] = {
        "init": model,
        "data.on_error": on_error,
        "data.epochs": epochs,
        "data.val_share": val_share,
        "data.keep_tasks": keep_tasks,
        "optimizer.muon_lr": lr,
        "optimizer.adamw_lr": None if lr is None else lr * ADAMW_SHARE,
    }
    values = {key: value for key, value in given.items() if value is not None} | parse_overrides(overrides)
    config = load_sft_config(recipe=recipe, data=None if data is None else str(data), overrides=values)

    from ossia.training.sft import finetune

    screen = JsonScreen() if as_json else Screen()
    with stop_told(), screen:
        result = finetune(config, out, on_data=screen.data, on_log=screen.progress)
    if result.is_first:
        screen.result(result)
