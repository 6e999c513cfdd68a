"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ossia.agent.turns import Sampling


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
KvDtype = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="KV cache: auto (as the model) or fp8 (half the memory).", show_default=False),
]
NumDrafts = Annotated[
    int | None,
    typer.Option(metavar="N", help="Draft so many tokens by looking them up in the text.", show_default=False),
]
Tools = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Tools, by commas: python, browser, workspace (apply_patch, container, repo_browser), plugins.",
    ),
]
Mcp = Annotated[
    list[str] | None,
    typer.Option(metavar="LABEL=SERVER", help="Tools of an MCP server: a command, or an http address. Repeatable."),
]
McpConfined = Annotated[
    bool,
    typer.Option("--mcp-sandbox", help="Run commands of --mcp in a sandbox: no network, none of your files."),
]
UnsafePython = Annotated[
    bool, typer.Option("--unsafe-python", help="Run python and container without a sandbox, with all your rights.")
]
Files = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep python's /mnt/data here. Default: a temporary folder.", show_default=False),
]
Root = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="What apply_patch, container and repo_browser work on. Default: here.", show_default=False
    ),
]
Search = Annotated[
    str,
    typer.Option(metavar="NAME", help="What browser searches: docs, folder:PATH, searxng, brave, exa or you."),
]
SearchUrl = Annotated[
    str | None, typer.Option(metavar="URL", help="Of a SearXNG, or of a saved site.", show_default=False)
]
SearchKey = Annotated[
    str | None,
    typer.Option(metavar="KEY", envvar="OSSIA_SEARCH_KEY", help="Of a search service.", show_default=False),
]


def split_names(text: str | None) -> list[str]:
    """The names in a list like ``add,subtract``, each once; none of None."""
    return list(dict.fromkeys(name.strip() for name in (text or "").split(",") if name.strip()))


def check_sampling(sampling: Sampling) -> Sampling:
    """The choice, if its values can be taken: better told before a model is loaded.

    Raises:
        InvalidInputError: a value out of range.
    """
    from ossia.model.loading import SamplingDefaults

    sampling.resolve(SamplingDefaults(), room=1)
    return sampling
