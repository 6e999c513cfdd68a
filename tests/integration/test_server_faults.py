"""A server process that is killed, or told to stop, in the middle of its work."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import openai
import pytest

SERVER = """
import sys
from pathlib import Path
from ossia.core.paths import PACKAGE_ROOT
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.model.loading import Identity
from ossia.server.app import build_context
from ossia.engine.scripted import ScriptedEngine
from ossia.server.serve import serve
from ossia.server.settings import ServerSettings
from ossia.agent.turns import ServedModel

home = Path(sys.argv[1])
tokenizer = load_tokenizer(PACKAGE_ROOT / "nano")
text = "<|channel|>final<|message|>" + "word " * 40 + "<|return|>"
engine = ScriptedEngine(tokenizer, script=lambda _: text, seconds_per_event=float(sys.argv[2]))
identity = Identity(model_identity="You are a test.", knowledge_cutoff=None)
model = ServedModel(name="scripted", tokenizer=tokenizer, identity=identity, context_length=4096)
settings = ServerSettings(port=0, database_url=f"sqlite:///{home}/faults.db", drain_seconds=float(sys.argv[3]))
serve(build_context(engine, model=model, settings=settings, home=home), announce=lambda url: print(url, flush=True))
"""


@contextmanager
def process(home: Path, *, pace: float, drain: float = 20.0) -> Iterator[tuple[subprocess.Popen[str], openai.OpenAI]]:
    command = [sys.executable, "-c", SERVER, str(home), str(pace), str(drain)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with openai.OpenAI(base_url=url, api_key="none", timeout=60) as client:
            yield server, client
    finally:
        server.kill()
        server.wait(30)
        assert server.stdout is not None
        server.stdout.close()


def test_kill_in_mid_response_leaves_a_whole_store_and_a_failed_response(tmp_path):
    with process(tmp_path, pace=0.0) as (server, client):
        done = client.responses.create(model="scripted", input="Hello")
    with process(tmp_path, pace=0.5) as (server, client):
        slow = client.responses.create(model="scripted", input="Hello", background=True)
        assert client.responses.retrieve(slow.id).status == "in_progress"
        server.send_signal(signal.SIGKILL)
        server.wait(30)
    with process(tmp_path, pace=0.0) as (server, client):
        failed = client.responses.retrieve(slow.id)
        assert failed.status == "failed"
        assert failed.error is not None
        assert failed.error.code == "server_error"
        with pytest.raises(openai.BadRequestError):
            list(client.responses.retrieve(slow.id, stream=True))
        assert client.responses.retrieve(done.id).output_text == done.output_text
        after = client.responses.create(model="scripted", input="And?", previous_response_id=done.id)
        assert after.status == "completed"


def test_sigterm_lets_streams_and_background_responses_end(tmp_path):
    with process(tmp_path, pace=0.03) as (server, client):
        background = client.responses.create(model="scripted", input="Hello", background=True)
        stream = client.responses.create(model="scripted", input="Hello", stream=True)
        events = [next(stream)]
        server.send_signal(signal.SIGTERM)
        events += list(stream)
        assert events[-1].type == "response.completed"
        assert server.wait(30) == 0
    with process(tmp_path, pace=0.0) as (server, client):
        assert client.responses.retrieve(background.id).status == "completed"
        assert client.responses.retrieve(events[-1].response.id).status == "completed"


def test_sigterm_ends_what_takes_too_long(tmp_path):
    with process(tmp_path, pace=5.0, drain=1.0) as (server, client):
        background = client.responses.create(model="scripted", input="Hello", background=True)
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        assert time.monotonic() - began < 50  # not the minutes that the response would take
    with process(tmp_path, pace=0.0) as (server, client):
        late = client.responses.retrieve(background.id)
        assert late.status == "failed"
        assert late.error is not None


def test_a_second_signal_ends_it_at_once(tmp_path):
    with process(tmp_path, pace=5.0, drain=1000.0) as (server, client):
        background = client.responses.create(model="scripted", input="Hello", background=True)
        server.send_signal(signal.SIGTERM)
        with suppress(openai.APIConnectionError):
            while True:  # the first signal has arrived once nobody is let in any more
                client.with_options(max_retries=0).models.list()
        time.sleep(0.5)  # on to the wait for background responses
        assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == -signal.SIGTERM
    with process(tmp_path, pace=0.0) as (server, client):
        assert client.responses.retrieve(background.id).status == "failed"
