"""API keys in the database."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from sqlalchemy import RowMapping, insert, select, update

from ossia.server.auth import KeyRecord
from ossia.server.store.database import Database
from ossia.server.store.tables import api_keys


class DatabaseKeys:
    """A `KeyStore`; see there."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, record: KeyRecord) -> None:
        self._database.run(lambda db: db.execute(insert(api_keys).values(dataclasses.asdict(record))))

    def list(self) -> Sequence[KeyRecord]:
        query = select(api_keys).order_by(api_keys.c.created_at)
        return [_record(row) for row in self._database.run(lambda db: db.execute(query).mappings().all())]

    def revoke(self, key_id: str, *, at: float) -> bool:
        query = update(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None)).values(revoked_at=at)
        return self._database.run(lambda db: db.execute(query).rowcount) > 0

    def find(self, key_hash: str) -> KeyRecord | None:
        query = select(api_keys).where(api_keys.c.hash == key_hash, api_keys.c.revoked_at.is_(None))
        row = self._database.run(lambda db: db.execute(query).mappings().one_or_none())
        return None if row is None else _record(row)


def _record(row: RowMapping) -> KeyRecord:
    return KeyRecord(**row)
