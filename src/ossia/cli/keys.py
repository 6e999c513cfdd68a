"""`ossia keys`: the API keys that `ossia serve` takes."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ossia.cli.extras import extra
from ossia.cli.options import examples
from ossia.core.errors import InvalidInputError
from ossia.core.paths import data_home

if TYPE_CHECKING:
    from ossia.server.auth import KeyRecord, KeyStore

app = typer.Typer(
    help="Make, list and revoke the API keys that `ossia serve` takes. Only their hashes are kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
    epilog=examples("ossia keys add laptop", "ossia keys list", "ossia keys revoke key_0123456789abcdef"),
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database", metavar="URL", help="Keys in this database. Default: a file in $OSSIA_HOME.", show_default=False
    ),
]


@contextmanager
def open_stores(database_url: str | None) -> Iterator[dict[str, KeyStore]]:
    """The stores that a server with this database asks, by name.

    Raises:
        MissingExtraError: the server's packages are not installed.
        StorageError: the database cannot be opened.
    """
    with extra("server"):
        from ossia.server.app import KEY_FILE
        from ossia.server.auth import KeyFile
        from ossia.server.store.database import Database, default_url
        from ossia.server.store.keys import DatabaseKeys

    database = Database(database_url or default_url())
    try:
        database.migrate()
        yield {"file": KeyFile(data_home() / KEY_FILE), "database": DatabaseKeys(database)}
    finally:
        database.close()


@app.command(
    epilog=examples(
        "ossia keys add laptop",
        "ossia keys add ci --requests-per-minute 60 --tokens-per-minute 100000 --json",
        "ossia keys add team --database postgresql+psycopg://user@host/ossia",
    )
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="For people: whose it is.")],
    requests_per_minute: Annotated[int | None, typer.Option(metavar="N", help="0: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(metavar="N", help="0: no limit.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="Requests at once; 0: no limit.")] = None,
    database: DatabaseUrl = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown this once and kept nowhere. Limits that are not given are the server's."""
    with open_stores(database) as stores:
        from ossia.server.auth import make_key

        key = make_key(
            name,
            now=time.time(),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=concurrency,
        )
        stores["file" if database is None else "database"].add(key.record)
    if as_json:
        typer.echo(json.dumps({"id": key.record.id, "name": name, "key": key.secret}))
        return
    typer.echo(key.secret)
    typer.echo(f"{key.record.id} for {name}. Keep the key: it is not shown again.", err=True)


@app.command("list", epilog=examples("ossia keys list", "ossia keys list --json"))
def list_keys(database: DatabaseUrl = None, as_json: Json = False) -> None:
    """List the keys, revoked ones too."""
    with open_stores(database) as stores:
        records = [record for store in stores.values() for record in store.list()]
    if as_json:
        typer.echo(json.dumps([to_public(record) for record in records]))
        return
    if not records:
        typer.echo("no keys; make one with: ossia keys add NAME", err=True)
    for record in records:
        typer.echo(as_line(record))


@app.command(epilog=examples("ossia keys revoke key_0123456789abcdef"))
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `ossia keys list` shows it.")],
    database: DatabaseUrl = None,
) -> None:
    """Put a key out of force; servers that run refuse it after a few seconds."""
    with open_stores(database) as stores:
        is_done = [store.revoke(key_id, at=time.time()) for store in stores.values()]
    if not any(is_done):
        raise InvalidInputError(f"no key {key_id!r} is in force; `ossia keys list` shows those that are", param="id")
    typer.echo(f"{key_id} is revoked", err=True)


def to_public(record: KeyRecord) -> dict[str, Any]:
    """What is told of a key: all but its hash."""
    fields = dataclasses.asdict(record)
    del fields["hash"]
    return fields


def as_line(record: KeyRecord) -> str:
    """``key_01...  ...WxYz  2026-01-02  laptop  60 requests/min``."""
    limits = [
        f"{value} {unit}"
        for value, unit in (
            (record.requests_per_minute, "requests/min"),
            (record.tokens_per_minute, "tokens/min"),
            (record.concurrency, "at once"),
        )
        if value is not None
    ]
    made = datetime.fromtimestamp(record.created_at, tz=UTC).date().isoformat()
    state = ["revoked"] if record.revoked_at is not None else []
    return "  ".join([record.id, f"...{record.hint}", made, record.name, *limits, *state])
