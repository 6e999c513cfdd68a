"""The model card of a trained model: what it is, what it learned from, how, and how well it does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ossia.evals.report import markdown_table, render_accuracy
from ossia.evals.results import EvalResults
from ossia.model.config import ModelConfig, num_parameters


@dataclass(frozen=True, kw_only=True, slots=True)
class CardTexts:
    """What a card says that neither the model nor its results tell.

    Attributes:
        name: of the model.
        license: of its weights, as an SPDX identifier.
        data: Markdown about the data with its licences; a data card of `ossia data card`, say.
        procedure: commands that made it, in order.
        limits: Markdown, a list of what it does badly and must not be used for.
    """

    name: str
    license: str
    data: str
    procedure: Sequence[str]
    limits: str


def render_card(
    texts: CardTexts, *, config: ModelConfig, about: dict[str, Any], num_bytes: int, results: EvalResults
) -> str:
    """The card as Markdown with the front matter that the Hugging Face hub reads.

    Args:
        texts: what a person says.
        config: the model's shape.
        about: the "ossia" table of its config.json: identity and taught tasks.
        num_bytes: of its weight files.
        results: measured on exactly these files.
    """
    shape = [
        ["layers", f"{config.num_hidden_layers}, hidden {config.hidden_size}"],
        ["experts", f"{config.num_experts_per_tok} of {config.num_local_experts}, hidden {config.intermediate_size}"],
        ["attention", f"{config.num_attention_heads} heads, {config.num_key_value_heads} for keys and values"],
        ["parameters", f"{num_parameters(config):,}"],
        ["weights", f"{num_bytes / (1 << 20):.1f} MiB, experts in MXFP4"],
        ["vocabulary", f"{config.vocab_size:,}"],
        ["says of itself", str(about.get("model_identity", ""))],
    ]
    front = "\n".join(["---", f"license: {texts.license.lower()}", "language: en", "library_name: ossia", "---"])
    commands = "\n".join(texts.procedure)
    procedure = ["## Procedure", f"```sh\n{commands}\n```"] if texts.procedure else []
    parts = [
        front,
        f"# {texts.name}: model card",
        "A small model of the architecture of gpt-oss, speaking harmony.",
        markdown_table(["", ""], shape),
        "## Data",
        texts.data.strip(),
        *procedure,
        "## Results",
        f"Held-out problems, greedy, at most {results.max_tokens} tokens an answer; 95 % Wilson intervals in brackets. "
        f"Weights: SHA-256 `{results.weights_sha256}`.",
        render_accuracy(results),
        "## Limits",
        texts.limits.strip(),
    ]
    return "\n\n".join(parts) + "\n"
