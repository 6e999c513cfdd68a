"""The connection to SQLite or PostgreSQL: opening, migrating, and calls from an event loop in threads."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ossia.core.errors import InvalidInputError, StorageError
from ossia.core.paths import data_home

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_NUM_THREADS = 4
_BUSY_MILLISECONDS = 10_000
_MIGRATION_LOCK = 0x6F73736961  # "ossia"


def default_url() -> str:
    """The SQLite file under `data_home()`."""
    return f"sqlite:///{data_home() / 'server.db'}"


class Database:
    """A store of one server.

    Args:
        url: an SQLAlchemy URL: `sqlite:///path` (`sqlite://` for one in memory) or `postgresql+psycopg://...`.

    Raises:
        InvalidInputError: no such kind of database, or a URL that cannot be read.
    """

    def __init__(self, url: str) -> None:
        try:
            parsed = make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise InvalidInputError(
                    f"the database URL begins with {parsed.drivername!r}; use sqlite:/// or postgresql://",
                    param="database_url",
                )
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            in_memory = self.is_sqlite and parsed.database in (None, "", ":memory:")
            if self.is_sqlite and not in_memory:
                assert parsed.database is not None
                _make_private(Path(parsed.database))
            options: dict[str, Any] = {} if self.is_sqlite else {"pool_pre_ping": True}
            if in_memory:
                from sqlalchemy.pool import StaticPool

                options = {"poolclass": StaticPool, "connect_args": {"check_same_thread": False}}
            self.engine: Engine = create_engine(parsed, **options)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise InvalidInputError(f"the database URL cannot be used: {error}", param="database_url") from error
        if self.is_sqlite:
            event.listen(self.engine, "connect", _set_up_sqlite)
        # One thread for SQLite: it has one writer anyway, and so calls keep their order.
        self._threads = ThreadPoolExecutor(1 if self.is_sqlite else _NUM_THREADS, thread_name_prefix="ossia-store")

    def migrate(self) -> None:
        """Bring the tables to this version's state.

        Raises:
            StorageError: the database cannot be reached, or is of a later version.
        """
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        try:
            with self.engine.begin() as connection:
                if not self.is_sqlite:  # of servers that start at once, one migrates
                    connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except Exception as error:
            raise StorageError(f"the database cannot be opened or migrated: {error}") from error

    def run(self, work: Callable[[Connection], T]) -> T:
        """Do work in one transaction: all of it, or nothing.

        Raises:
            StorageError: the database failed.
        """
        try:
            with self.engine.begin() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            logger.error("the database failed", exc_info=error)
            raise StorageError("the database failed; the server's log says more") from error

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A blocking function in one of the store's threads. Once begun it is done whole, whatever the caller does."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, functools.partial(function, *args, **kwargs))

    def close(self) -> None:
        """Finish what was begun, and disconnect."""
        self._threads.shutdown(wait=True)
        self.engine.dispose()


def _make_private(path: Path) -> None:
    """Make an empty database file that only its owner can read: it will hold what users said.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StorageError(f"the database {path} cannot be opened ({error}); choose another --database") from error


def _set_up_sqlite(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")  # a reader needs not wait for a writer
    cursor.execute("PRAGMA synchronous=NORMAL")  # with WAL: whole after a crash
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
    cursor.close()
