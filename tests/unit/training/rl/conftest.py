from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.training.rl.helpers import ScriptRunner, make_loaded

from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.engine import Engine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.loading import LoadedModel


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(PACKAGE_ROOT / "nano")


@pytest.fixture
def loaded(tokenizer: Tokenizer) -> LoadedModel:
    return make_loaded(tokenizer)


@pytest.fixture
def scripted(loaded: LoadedModel) -> Callable[[Callable[[str], str]], Engine]:
    """An engine that follows a script."""

    def make(script: Callable[[str], str]) -> Engine:
        engine = build_engine(loaded, config=EngineConfig(num_pages=512))
        engine.runner = ScriptRunner(loaded.tokenizer, script=script)
        return engine

    return make
