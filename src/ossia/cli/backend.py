"""The model that a command talks to, and the engine that runs it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ossia.agent.turns import ServedModel, Turns

if TYPE_CHECKING:
    from ossia.agent.turns import EngineClient
    from ossia.model.loading import LoadedModel

T = TypeVar("T")


class Backend(NamedTuple):
    """A loaded model and its engine, which has a thread of its own."""

    loaded: LoadedModel
    engine: EngineClient

    @property
    def turns(self) -> Turns:
        """Takes turns of the model."""
        return Turns(self.engine, model=ServedModel.of(self.loaded))


def open_backend(name: str, *, device: str, **sizes: Any) -> Backend:
    """Load a model and start its engine. Imports torch, which takes most of the time to the first answer.

    Args:
        sizes: of `EngineConfig`; None leaves one at its default.

    Raises:
        ModelNotFoundError, CheckpointError, InvalidInputError: see `ossia.model.loading.load` and `build_engine`.
        NotEnoughMemoryError: the model does not fit into this machine's memory.
    """
    from ossia.engine.async_engine import AsyncEngine
    from ossia.engine.build import EngineConfig, build_engine
    from ossia.engine.memory import check_memory
    from ossia.model.loading import load

    config = EngineConfig(**{key: value for key, value in sizes.items() if value is not None})
    check_memory(name, device=device, engine=config)
    loaded = load(name, device=device)
    return Backend(loaded, AsyncEngine(build_engine(loaded, config=config)))


def run_with(backend: Backend, work: Coroutine[Any, Any, T]) -> T:
    """Run some work of a backend, then end its engine. Ctrl-C cancels the work first."""

    async def whole() -> T:
        try:
            return await work
        finally:
            await backend.engine.shutdown()

    return asyncio.run(whole())
