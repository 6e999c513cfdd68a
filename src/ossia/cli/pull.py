"""`ossia pull`: fetch a model from the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from ossia.cli.options import examples

EXAMPLES = examples(
    "ossia pull openai/gpt-oss-20b",
)


def command(
    repo_id: Annotated[
        str, typer.Argument(metavar="REPO", help="A repository on the hub, such as openai/gpt-oss-20b.")
    ],
    original: Annotated[
        bool, typer.Option("--original", help="Fetch OpenAI's own layout instead of the Hugging Face one.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A branch, tag or commit. Default: the newest.", show_default=False),
    ] = None,
) -> None:
    """Fetch a model from the Hugging Face hub.

    It lands in $OSSIA_HOME/models (~/.ossia/models). A download that was cut off goes on where it stopped.
    """
    from ossia.model.checkpoint.load import pull

    typer.echo(f"{repo_id} is in {pull(repo_id, original=original, revision=revision)}")
    typer.echo(f"Talk to it with: ossia chat {repo_id}", err=True)
