"""The store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from ossia.core.errors import InvalidInputError, StorageError
from ossia.harmony.message import Message, Role
from ossia.server.responses.builder import StreamEvent
from ossia.server.responses.items import Item
from ossia.server.store.conversations import ConversationStore, StoredConversation
from ossia.server.store.database import Database
from ossia.server.store.responses import ResponseStore
from ossia.server.store.rows import StoredResponse
from ossia.server.store.tables import metadata


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL of our own; its programs refuse to run as root."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("PostgreSQL is not installed")
    as_other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="ossia-pg-"))
    if as_other:
        shutil.chown(folder, "postgres")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"

    def run(*command: str) -> None:
        subprocess.run([*as_other, *command], check=True, stdout=subprocess.DEVNULL, cwd="/")

    run("initdb", "-D", f"{folder}/data", "-U", "ossia", "--auth=trust", "-E", "UTF8")
    run("pg_ctl", "-D", f"{folder}/data", "-o", options, "-w", "-l", f"{folder}/log", "start")
    yield f"postgresql://ossia@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", f"{folder}/data", "-m", "immediate", "-w", "stop")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request, tmp_path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'x.db'}" if request.param == "sqlite" else request.getfixturevalue("postgresql")
    database = Database(url)
    database.migrate()
    yield database
    with database.engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
    database.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def make(database: Database, clock: Clock, *, ttl: float | None = 100.0, server: str = "s") -> ResponseStore:
    return ResponseStore(database, clock=clock, ttl=ttl, server=server)


def response(name: str, *, owner: str = "a", previous: str | None = None, status: str = "completed") -> StoredResponse:
    body = {"id": name, "text": "snø \u0000 日本 \U0001f600"}
    return StoredResponse(name, owner, status, False, previous, None, body, {"date": "d"}, created_at=1000.0)


def said(name: str, text: str, *, call: bool = False, channel: str = "final") -> Item:
    recipient = "functions.f" if call else None
    message = Message(Role.ASSISTANT, content=text, channel=channel, recipient=recipient, token_ids=(1, 2, 3))
    body = {"id": name, "type": "function_call" if call else "message"} | ({"call_id": f"c_{name}"} if call else {})
    return Item(body, (message,))


def asked(name: str, text: str) -> Item:
    return Item({"id": name, "type": "message"}, (Message(Role.USER, content=text),))


def test_migrations_make_the_tables(database):
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    database.migrate()  # again: nothing to do


def test_chains_come_back_in_order_and_only_to_their_owner(database):
    store = make(database, Clock())
    for i in range(5):
        previous = f"r{i - 1}" if i else None
        store.close(
            response(f"r{i}", previous=previous), inputs=[asked(f"i{i}", f"q{i}")], outputs=[said(f"o{i}", f"a{i}")]
        )
    found = store.history("a", "r4")
    assert [entry.item.id for entry in found] == [f"{side}{i}" for i in range(5) for side in "io"]
    assert found[1].item.messages[0].token_ids == (1, 2, 3)
    assert [entry.is_output for entry in found[:2]] == [False, True]
    assert store.load("a", "r4") == response("r4", previous="r3")
    assert store.load("b", "r4") is None
    assert store.history("b", "r4") == []
    assert not store.delete("b", "r2")
    assert store.delete("a", "r2")
    assert [entry.item.id for entry in store.history("a", "r4")] == ["i3", "o3", "i4", "o4"]


def test_calls_come_back_with_their_reasoning(database):
    store = make(database, Clock())
    outputs = [
        said("r", "why", channel="analysis"),
        said("x", "{}", call=True),
        said("r2", "and", channel="analysis"),
        said("y", "{}", call=True),
    ]
    store.close(response("r0"), inputs=[], outputs=outputs)
    found = store.find_calls("a", ["c_x", "c_y", "c_nothing"])
    assert [m.text for m in found["c_x"].reasoning] == ["why"]
    assert [m.text for m in found["c_y"].reasoning] == ["and"]
    assert found["c_y"].message.token_ids == (1, 2, 3)
    assert store.find_calls("b", ["c_x"]) == {}
    assert set(store.find_items("a", [*map(str, range(1200)), "x"])) == {"x"}
    assert store.find_items("b", ["x"]) == {}


def test_events_are_kept_and_go_with_their_response(database):
    store = make(database, Clock())
    log = [StreamEvent(i, "t", f'{{"n":{i}}}') for i in range(5)]
    store.close(response("r0"), inputs=[], outputs=[], log=log)
    assert store.log("r0", after=2) == log[3:]
    store.delete("a", "r0")
    assert store.log("r0", after=-1) == []


def test_what_a_dead_server_left_is_failed(database):
    clock = Clock()
    dead, alive, late = (make(database, clock, server=name) for name in ("dead", "alive", "late"))
    for name, store in (("r1", dead), ("r2", alive), ("r3", late)):
        store.open(response(name, status="in_progress"), [asked("i", "q")], lease_seconds=30)
    assert alive.fail_orphans(lambda name: name == "dead") == ["r1"]
    clock.now += 20
    alive.renew(["r2", "r3"], lease_seconds=30)  # r3 is not its own
    clock.now += 20
    assert alive.fail_orphans(lambda _: False) == ["r3"]
    found = alive.load("a", "r1")
    assert (found.status, found.body["error"]["code"], found.server) == ("failed", "server_error", None)
    assert not dead.close(response("r1"), inputs=None, outputs=[said("o", "late")])
    assert dead.load("a", "r1").status == "failed"
    assert alive.close(response("r2"), inputs=None, outputs=[said("o", "in time")])
    assert alive.load("a", "r2").status == "completed"


def test_expired_rows_are_not_seen_and_swept(database):
    clock = Clock()
    store = make(database, clock)
    conversations = ConversationStore(database, clock=clock, ttl=100.0)
    store.close(response("r0"), inputs=[asked("i", "q")], outputs=[])
    store.open(response("r1", status="in_progress"), [], lease_seconds=1e6)
    conversations.create("a", StoredConversation("conv", clock.now, {}), [asked("i", "q")])
    clock.now += 101
    assert store.load("a", "r0") is None
    assert conversations.load("a", "conv") is None
    assert store.sweep() == 1
    assert conversations.sweep() == 1
    assert store.close(response("r1"), inputs=None, outputs=[])
    forever = make(database, clock, ttl=None)
    forever.close(response("r9"), inputs=[], outputs=[])
    clock.now += 1e9
    assert forever.load("a", "r9") is not None


def test_conversations_hold_items_of_their_own(database):
    clock = Clock()
    store, conversations = make(database, clock), ConversationStore(database, clock=clock, ttl=None)
    conversations.create("a", StoredConversation("conv", 1.0, {"k": "v"}), [asked("i0", "q")])
    made = response("r0")._replace(conversation_id="conv")
    answer = said("o0", "a")
    store.close(made, inputs=[asked("i1", "q")], outputs=[answer], conversation_items=[asked("i1", "q"), answer])
    assert [item.id for item in conversations.items("a", "conv")] == ["i0", "i1", "o0"]
    store.delete("a", "r0")
    assert len(conversations.items("a", "conv")) == 3
    assert conversations.change("a", "conv", {"x": "y"})
    assert conversations.load("a", "conv").metadata == {"x": "y"}
    assert not conversations.change("b", "conv", {})
    assert conversations.remove("a", "conv", "i1")
    conversations.append("a", "conv", [asked("i2", "q")])
    assert [item.id for item in conversations.items("a", "conv")] == ["i0", "o0", "i2"]
    assert conversations.delete("a", "conv")
    gone = response("r1")._replace(conversation_id="conv")
    assert store.close(gone, inputs=[], outputs=[answer], conversation_items=[answer])
    assert conversations.items("a", "conv") == []


def test_many_writers_at_once(database):
    store = make(database, Clock())
    with ThreadPoolExecutor(8) as pool:
        jobs = [
            pool.submit(store.close, response(f"r{i}"), inputs=[asked("i", "q")], outputs=[said("o", "a")])
            for i in range(80)
        ]
    assert all(job.result() for job in jobs)
    assert all(len(store.history("a", f"r{i}")) == 2 for i in range(80))


def test_a_database_file_is_its_owners(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'deep' / 'x.db'}")
    database.migrate()
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "deep").iterdir())
    database.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Database(f"sqlite:///{tmp_path / 'file' / 'x.db'}")


def test_urls_are_checked(tmp_path):
    for url in ("mysql://x/y", "nonsense", "oracle://x"):
        with pytest.raises(InvalidInputError):
            Database(url)
    (tmp_path / "broken.db").write_bytes(b"no database at all, but long enough to be read as a header" * 20)
    database = Database(f"sqlite:///{tmp_path / 'broken.db'}")
    with pytest.raises(StorageError):
        database.migrate()
    database.close()
