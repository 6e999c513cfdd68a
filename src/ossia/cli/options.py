"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer


def examples(*lines: str) -> str:
    """The end of a --help text: command lines to copy, kept as they are."""
    return "\n".join(["\b\nExamples:", *(f"  {line}" for line in lines)])


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help='"nano", a pulled model such as openai/gpt-oss-20b, or a folder.')
]
EffortName = Annotated[str, typer.Option("--effort", metavar="LEVEL", help="Reasoning effort: low, medium or high.")]
Instructions = Annotated[
    str | None,
    typer.Option(
        "--instructions", "--system", metavar="TEXT", help="Instructions for the model (the developer message)."
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T", help="0 is greedy. Default: the model's generation_config.json, else 1.", show_default=False
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(metavar="P", help="Sample from the most probable tokens that sum to P.", show_default=False),
]
TopK = Annotated[int, typer.Option(metavar="K", help="Sample from the K most probable tokens; 0: from all.")]
MinP = Annotated[
    float, typer.Option(metavar="P", help="Sample from tokens at least P times as probable as the most probable one.")
]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", show_default=False)]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="At most so many tokens, reasoning included. Default: the model's generation_config.json, else what fits.",
        show_default=False,
    ),
]
ShowReasoning = Annotated[
    bool, typer.Option("--show-reasoning", help="Show the model's reasoning, not just its length.")
]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1, or auto: the GPU if there is one.")]
