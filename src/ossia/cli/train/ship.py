"""`ossia train ship`: a trained model as a folder to give away, with its card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError, StorageError

EXAMPLES = examples(
    "ossia train ship runs/nano/rl/model --results runs/nano/rl-accuracy.json --out dist/nano",
    "ossia train ship runs/tiny/sft/model --results runs/tiny/model-accuracy.json --out dist/tiny --max-mib 1",
)
LIMITS = """- It knows little of the world beyond its tasks, and says wrong things fluently.
- Figures are of one run with one seed, on problems made as the training problems were."""


def command(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="The model's folder.")],
    results: Annotated[
        Path, typer.Option(metavar="FILE", help="The JSON that `ossia eval --out` wrote of these weights.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make; it must not exist or be empty.")],
    data_card: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown about the data.", show_default=False)
    ] = None,
    limits: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Markdown about what it does badly.", show_default=False)
    ] = None,
    made_by: Annotated[
        list[str] | None, typer.Option("--made-by", metavar="COMMAND", help="A command of the procedure. Repeatable.")
    ] = None,
    weights_license: Annotated[
        str, typer.Option("--license", metavar="SPDX", help="Licence of the weights.")
    ] = "Apache-2.0",
    max_mib: Annotated[float, typer.Option(metavar="N", help="Refuse weights of more MiB.")] = 50.0,
) -> None:
    """Copy a model into a folder of its own and write its model card from the results that were measured on it."""
    from ossia.evals.card import CardTexts, render_card
    from ossia.evals.results import EvalResults
    from ossia.evals.run import hash_weights
    from ossia.model.checkpoint.load import read_config, resolve_model
    from ossia.model.loading import read_json_if_any

    folder = resolve_model(str(model))
    config, about = read_config(folder), read_json_if_any(folder / "config.json").get("ossia") or {}
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if num_bytes > max_mib * (1 << 20):
        raise InvalidInputError(
            f"the weights take {num_bytes / (1 << 20):.1f} MiB; allowed: {max_mib:g} (--max-mib)", param="max_mib"
        )
    measured = EvalResults.from_dict(_read_json(results))
    if measured.weights_sha256 != hash_weights(folder):
        raise InvalidInputError(
            f"{results} was measured on other weights than those in {folder}; run ossia eval on this folder",
            param="results",
        )
    texts = CardTexts(
        name=str(about.get("name", folder.name)),
        license=weights_license,
        data=data_card.read_text(encoding="utf-8") if data_card else "Problems of Ossia's tasks, made on the fly.",
        procedure=made_by or [],
        limits=limits.read_text(encoding="utf-8") if limits else LIMITS,
    )
    card = render_card(texts, config=config, about=about, num_bytes=num_bytes, results=measured)
    _copy(folder, out, card)
    typer.echo(f"{texts.name}, {num_bytes / (1 << 20):.1f} MiB of weights, is in {out}")


def _read_json(path: Path) -> dict[str, object]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidInputError(f"{path} is not the JSON of ossia eval: {error}", param="results") from error


def _copy(folder: Path, out: Path, card: str) -> None:
    if out.exists() and any(out.iterdir()):
        raise InvalidInputError(f"{out} is not empty; name another folder or remove it", param="out")
    try:
        shutil.copytree(folder, out, dirs_exist_ok=True)
        (out / "README.md").write_text(card, encoding="utf-8")
    except (OSError, shutil.Error) as error:
        raise StorageError(f"cannot write the model to {out}: {error}; free some space and run again") from error
