"""A model that says what the test tells it to, so that commands are tested without weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from ossia.cli.backend import Backend
from ossia.engine.request import Request
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults

CONTEXT_LENGTH = 400
ADDING = (
    "<|channel|>analysis<|message|>17+25 is 42<|end|>"
    "<|start|>assistant<|channel|>final<|message|>17 + 25 = 42.<|return|>"
)


class Script:
    """What the model will say, turn by turn, and what it was asked.

    Attributes:
        completions: texts with control tokens by name; used up from the front.
        said: those that were used up.
        prompts: the prompts, as text.
        sizes: what the engine was to be built with.
        names: of the models that were to be loaded.
    """

    def __init__(self, *, context_length: int = CONTEXT_LENGTH) -> None:
        self.completions: list[str] = []
        self.said: list[str] = []
        self.prompts: list[str] = []
        self.names: list[str] = []
        self.sizes: dict[str, Any] = {}
        self.loaded = LoadedModel(
            name="scripted",
            model=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=context_length)),  # pyright: ignore
            tokenizer=Tokenizer.o200k_harmony(),
            identity=Identity(model_identity="You are a script.", knowledge_cutoff=None),
            sampling=SamplingDefaults(),
        )
        self.engine = ScriptedEngine(self.loaded.tokenizer, script=self._say, context_length=context_length)

    def _say(self, prompt: str) -> str:
        self.prompts.append(prompt)
        self.said.append(self.completions.pop(0))
        return self.said[-1]

    @property
    def backend(self) -> Backend:
        return Backend(self.loaded, self.engine)

    @property
    def requests(self) -> list[Request]:
        return self.engine.requests

    def open(self, name: str, *, device: str, **sizes: Any) -> Backend:
        """Stands in for `ossia.cli.backend.open_backend`."""
        self.names.append(name)
        self.sizes = sizes
        return self.backend


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr("ossia.cli.backend.open_backend", script.open)
    script.completions.append(ADDING)
    return script


@pytest.fixture
def run() -> Callable[..., Any]:
    """Runs the command line in this process: `run("chat", stdin="...")`."""
    from ossia.cli.main import app

    def invoke(*args: str, stdin: str | bytes | None = None) -> Any:
        return CliRunner().invoke(app, args, input=stdin)

    return invoke
