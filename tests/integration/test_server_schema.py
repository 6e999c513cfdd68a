"""schemathesis over the whole OpenAPI page: whatever it makes up, no answer is a server error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest

from ossia.agent.turns import ServedModel
from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.scripted import ScriptedEngine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.model.loading import Identity
from ossia.server.app import build_context, create_app
from ossia.server.settings import ServerSettings

schemathesis = pytest.importorskip("schemathesis")


@pytest.fixture(scope="module")
def api_schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home: Path = tmp_path_factory.mktemp("home")
    tokenizer = load_tokenizer(PACKAGE_ROOT / "nano")
    engine = ScriptedEngine(tokenizer, script=lambda _: "<|channel|>final<|message|>Hello.<|return|>")
    model = ServedModel(
        name="scripted",
        tokenizer=tokenizer,
        identity=Identity(model_identity="You are a script.", knowledge_cutoff=None),
        context_length=4096,
    )
    settings = ServerSettings(database_url=f"sqlite:///{home / 'a.db'}", allowed_hosts=("testserver",))
    context = build_context(engine, model=model, settings=settings, home=home)
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(context))


@pytest.mark.slow
def test_nothing_made_up_is_a_server_error(api_schema: Any) -> None:
    operations = [result.ok() for result in api_schema.get_all_operations()]
    assert len(operations) >= 25
    statuses: set[int] = set()
    for operation in operations:

        @hypothesis.settings(
            max_examples=15, deadline=None, suppress_health_check=list(hypothesis.HealthCheck), derandomize=True
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            response = case.call()
            statuses.add(response.status_code)
            assert response.status_code < 500, (case.as_curl_command(), response.text[:500])

        check()
    assert {200, 400} <= statuses
