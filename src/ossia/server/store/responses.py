"""Responses, their items and their events. All methods block: call them through `Database.call`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Select, and_, delete, insert, literal, select, update

from ossia.harmony.message import Channel, Message, Role
from ossia.server.replay import Said
from ossia.server.responses.builder import StreamEvent
from ossia.server.responses.items import Item
from ossia.server.store.database import Database
from ossia.server.store.rows import StoredResponse, is_alive, item_of, item_row, response_of
from ossia.server.store.tables import conversations, events, items, responses

_OPEN = ("queued", "in_progress")
_MAX_CHAIN = 10_000
_MAX_IN = 500  # parameters of an IN clause


class StoredItem(NamedTuple):
    """An item and on which side of a response it stands."""

    item: Item
    is_output: bool


class ResponseStore:
    """See the module.

    Args:
        clock: seconds since 1970.
        ttl: seconds that a row lives; None for ever.
        server: names this process in rows that it works at.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float], ttl: float | None, server: str) -> None:
        self._database = database
        self._clock = clock
        self._ttl = ttl
        self.server = server

    def open(self, response: StoredResponse, inputs: Sequence[Item], *, lease_seconds: float) -> None:
        """Keep a response that begins, so that it can be found, and found dead."""

        def work(db: Connection) -> None:
            row = self._row(response) | {"server": self.server, "lease_until": self._clock() + lease_seconds}
            db.execute(insert(responses).values(row))
            _add_items(db, response, inputs, is_output=False)

        self._database.run(work)

    def close(
        self,
        response: StoredResponse,
        *,
        inputs: Sequence[Item] | None,
        outputs: Sequence[Item],
        log: Sequence[StreamEvent] = (),
        conversation_items: Sequence[Item] = (),
    ) -> bool:
        """Keep a response that is over, with all that belongs to it, in one transaction.

        Args:
            inputs: None if `open` kept them.
            log: its events, to be streamed again.
            conversation_items: what to append to its conversation.

        Returns:
            False if it was deleted in the meantime; nothing is kept then.
        """

        def work(db: Connection) -> bool:
            row = self._row(response) | {"server": None, "lease_until": None}
            if inputs is None:
                changed = update(responses).where(responses.c.id == response.id, responses.c.status.in_(_OPEN))
                if db.execute(changed.values(row)).rowcount == 0:
                    return False
            else:
                db.execute(insert(responses).values(row))
                _add_items(db, response, inputs, is_output=False)
            _add_items(db, response, outputs, is_output=True)
            if log:
                rows = [{"response_id": response.id, **event._asdict()} for event in log]
                db.execute(insert(events), rows)
            if conversation_items and response.conversation_id is not None:
                self._append(db, response, conversation_items)
            return True

        return self._database.run(work)

    def _append(self, db: Connection, response: StoredResponse, new: Sequence[Item]) -> None:
        expiry = None if self._ttl is None else self._clock() + self._ttl
        alive = update(conversations).where(
            conversations.c.id == response.conversation_id, conversations.c.owner == response.owner
        )
        if db.execute(alive.values(expires_at=expiry)).rowcount:  # else it was deleted in the meantime
            rows = [
                item_row(item, owner=response.owner, is_output=False, conversation_id=response.conversation_id)
                for item in new
            ]
            db.execute(insert(items), rows)

    def _row(self, response: StoredResponse) -> dict[str, object]:
        return {
            "id": response.id,
            "owner": response.owner,
            "created_at": response.created_at,
            "expires_at": None if self._ttl is None else response.created_at + self._ttl,
            "status": response.status,
            "is_background": response.is_background,
            "previous_id": response.previous_id,
            "conversation_id": response.conversation_id,
            "body": json.dumps(response.body, separators=(",", ":")),
            "state": json.dumps(response.state),
        }

    def load(self, owner: str, response_id: str) -> StoredResponse | None:
        """A response of that owner."""
        query = select(responses).where(
            responses.c.id == response_id, responses.c.owner == owner, is_alive(responses, self._clock())
        )
        row = self._database.run(lambda db: db.execute(query).mappings().one_or_none())
        return None if row is None else response_of(row)

    def history(self, owner: str, response_id: str) -> list[StoredItem]:
        """All items up to and with a response, along its `previous_response_id`s, in order.

        An earlier response that was deleted or has expired ends the walk; what lay before it is gone with it.
        """
        step = (
            select(responses.c.id, responses.c.previous_id, literal(0).label("depth"))
            .where(responses.c.id == response_id, responses.c.owner == owner)
            .cte("chain", recursive=True)
        )
        earlier = select(responses.c.id, responses.c.previous_id, step.c.depth + 1).join(
            step, and_(responses.c.id == step.c.previous_id, responses.c.owner == owner, step.c.depth < _MAX_CHAIN)
        )
        chain = step.union_all(earlier)
        query = select(items).join(chain, items.c.response_id == chain.c.id).order_by(chain.c.depth.desc(), items.c.key)
        rows = self._database.run(lambda db: db.execute(query).mappings().all())
        return [StoredItem(item_of(row), row["is_output"]) for row in rows]

    def delete(self, owner: str, response_id: str) -> bool:
        """Forget a response; False if there is none."""
        query = delete(responses).where(responses.c.id == response_id, responses.c.owner == owner)
        return self._database.run(lambda db: db.execute(query).rowcount) > 0

    def log(self, response_id: str, *, after: int) -> list[StreamEvent]:
        """A response's events behind a sequence number."""
        query = (
            select(events.c.sequence, events.c.type, events.c.data)
            .where(events.c.response_id == response_id, events.c.sequence > after)
            .order_by(events.c.sequence)
        )
        return self._database.run(lambda db: [StreamEvent(*row) for row in db.execute(query).all()])

    # ---- what was said ----

    def find_items(self, owner: str, ids: Iterable[str]) -> dict[str, Item]:
        """Stored items by their ids."""
        wanted = list(dict.fromkeys(ids))
        found: dict[str, Item] = {}
        for i in range(0, len(wanted), _MAX_IN):
            query = select(items).where(items.c.owner == owner, items.c.id.in_(wanted[i : i + _MAX_IN]))
            for row in self._database.run(lambda db, query=query: db.execute(query).mappings().all()):
                found.setdefault(row["id"], item_of(row))
        return found

    def find_calls(self, owner: str, call_ids: Iterable[str]) -> dict[str, Said]:
        """What the model said under these call ids, with the reasoning before it."""
        wanted = list(dict.fromkeys(call_ids))
        found: dict[str, Said] = {}
        for i in range(0, len(wanted), _MAX_IN):
            part = wanted[i : i + _MAX_IN]
            origin = (
                select(items.c.response_id)
                .where(items.c.owner == owner, items.c.call_id.in_(part), items.c.is_output)
                .where(items.c.response_id.is_not(None))
            )
            query = (
                select(items)
                .where(items.c.response_id.in_(origin), items.c.is_output)
                .order_by(items.c.response_id, items.c.key)
            )
            found.update(self._database.run(lambda db, query=query: _read_calls(db, query)))
        return {call_id: found[call_id] for call_id in wanted if call_id in found}

    # ---- what died ----

    def renew(self, response_ids: Iterable[str], *, lease_seconds: float) -> None:
        """Say that this process still works at these."""
        ids = list(response_ids)
        if ids:
            query = update(responses).where(responses.c.id.in_(ids), responses.c.server == self.server)
            until = self._clock() + lease_seconds
            self._database.run(lambda db: db.execute(query.values(lease_until=until)))

    def fail_orphans(self, is_dead: Callable[[str], bool]) -> list[str]:
        """Mark responses as failed whose server is gone: by `is_dead`, or by its lease having run out."""
        query = select(responses).where(responses.c.status.in_(_OPEN), responses.c.server.is_not(None))
        now = self._clock()

        def work(db: Connection) -> list[str]:
            failed: list[str] = []
            for row in db.execute(query).mappings().all():
                if not is_dead(row["server"]) and (row["lease_until"] or 0.0) >= now:
                    continue
                message = "the server stopped while it worked at this response; ask again"
                body = json.loads(row["body"]) | {"status": "failed"}
                body["error"] = {"code": "server_error", "message": message}
                change = update(responses).where(responses.c.id == row["id"], responses.c.status.in_(_OPEN))
                values = {"status": "failed", "server": None, "lease_until": None, "body": json.dumps(body)}
                if db.execute(change.values(values)).rowcount:
                    failed.append(row["id"])
            return failed

        return self._database.run(work)

    def sweep(self) -> int:
        """Delete what has expired and is not in progress; how many responses went."""
        now = self._clock()
        query = delete(responses).where(responses.c.expires_at <= now, responses.c.status.not_in(_OPEN))
        return self._database.run(lambda db: db.execute(query).rowcount)


def _add_items(db: Connection, response: StoredResponse, new: Sequence[Item], *, is_output: bool) -> None:
    if new:
        rows = [item_row(item, owner=response.owner, is_output=is_output, response_id=response.id) for item in new]
        db.execute(insert(items), rows)


def _read_calls(db: Connection, query: Select[tuple[object, ...]]) -> dict[str, Said]:
    found: dict[str, Said] = {}
    reasoning: list[Message] = []
    response_id = None
    for row in db.execute(query).mappings():
        if row["response_id"] != response_id:
            response_id, reasoning = row["response_id"], []
        item = item_of(row)
        for message in item.messages:
            if message.is_call and item.call_id is not None:
                found[item.call_id] = Said(tuple(reasoning), message)
                reasoning = []
            elif message.is_call or message.role is Role.TOOL:
                reasoning = []  # a tool of the server answered: what led to it lies behind
            elif message.channel == Channel.ANALYSIS:
                reasoning.append(message)
    return found
