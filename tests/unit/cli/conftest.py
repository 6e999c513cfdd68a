"""A model that says what the test tells it to, so that commands are tested without weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from ossia.harmony.tokenizer import Tokenizer
from ossia.model import loading
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults

if TYPE_CHECKING:
    from ossia.cli.turn import SamplingChoice

Completion = str | Callable[[], Iterator[int]]

ADDING = (
    "<|channel|>analysis<|message|>17+25 is 42<|end|>"
    "<|start|>assistant<|channel|>final<|message|>17 + 25 = 42.<|return|>"
)


class Script:
    """What the model will say, turn by turn, and what it was asked.

    Attributes:
        completions: texts with control tokens by name, or functions that yield ids; used up from the front.
        prompts: the prompts, as text.
        choices: how sampling was asked for.
    """

    def __init__(self) -> None:
        self.completions: list[Completion] = []
        self.prompts: list[str] = []
        self.choices: list[SamplingChoice] = []
        self.loaded = LoadedModel(
            name="scripted",
            model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=400)),  # pyright: ignore
            tokenizer=Tokenizer.o200k_harmony(),
            identity=Identity(model_identity="You are a script.", knowledge_cutoff=None),
            sampling=SamplingDefaults(),
        )

    def sample(self, loaded: LoadedModel, prompt_ids: Sequence[int], *, choice: SamplingChoice) -> Iterator[int]:
        """Stands in for `ossia.cli.turn.sample`."""
        self.prompts.append(loaded.tokenizer.decode(prompt_ids))
        self.choices.append(choice)
        completion = self.completions.pop(0)
        if isinstance(completion, str):
            ids = loaded.tokenizer.encode_with_specials(completion)
            yield from ids if choice.max_tokens is None else ids[: choice.max_tokens]
        else:
            yield from completion()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    from ossia.cli import turn

    script = Script()

    def load(name: str, *, device: str = "auto") -> LoadedModel:
        return script.loaded

    monkeypatch.setattr(turn, "sample", script.sample)
    monkeypatch.setattr(loading, "load", load)
    script.completions.append(ADDING)
    return script


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs the command line in this process: `run("chat", stdin="...")`."""
    from ossia.cli.main import app

    def invoke(*args: str, stdin: str | bytes | None = None) -> Any:
        return CliRunner().invoke(app, args, input=stdin)

    return invoke
