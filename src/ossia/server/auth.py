"""Who calls: API keys, stored as hashes only.

A key is `ossia_` and 256 random bits, so a plain SHA-256 of it can be stored: nobody finds the key by trying. Keys
that a user made up and gives with `--api-key` are hashed in memory alone.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from ossia.core.errors import CorruptFileError, InvalidInputError, StorageError
from ossia.server.errors import ApiError

KEY_PREFIX = "ossia_"
_CACHE_SECONDS = 5.0
_MAX_CACHED = 4096
_MAX_NAME = 100


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class KeyRecord:
    """What is kept of a key.

    Attributes:
        id: names its owner's data; no secret.
        name: for people.
        hash: SHA-256 of the key, in hex.
        hint: the key's last four characters, by which its owner knows it again.
        requests_per_minute, tokens_per_minute, concurrency: its own limits; None for the server's.
    """

    id: str
    name: str
    hash: str
    hint: str
    created_at: float
    revoked_at: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


class NewKey(NamedTuple):
    """A key just made; `secret` is shown once and kept nowhere."""

    record: KeyRecord
    secret: str


class KeyStore(Protocol):
    """Where the records of keys lie. Its methods may block; the server calls them in a thread."""

    def add(self, record: KeyRecord) -> None: ...
    def list(self) -> Sequence[KeyRecord]: ...
    def revoke(self, key_id: str, *, at: float) -> bool: ...
    def find(self, key_hash: str) -> KeyRecord | None: ...


class Caller(NamedTuple):
    """Whose request it is. `key_id` is the owner of all that is stored for it."""

    key_id: str
    name: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None


ANONYMOUS = Caller("anonymous", "anonymous")


def hash_key(secret: str) -> str:
    """SHA-256 of a key, in hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def make_key(
    name: str,
    *,
    now: float,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    concurrency: int | None = None,
) -> NewKey:
    """A new key, not yet in any store.

    Raises:
        InvalidInputError: the name is empty or too long, or a limit is negative.
    """
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise InvalidInputError(f"a key's name has 1 to {_MAX_NAME} printable characters; got {name!r}", param="name")
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "concurrency": concurrency,
    }
    for param, value in limits.items():
        if value is not None and value < 0:
            raise InvalidInputError(f"{param} is {value}; give a number of at least 0 (no limit)", param=param)
    secret = KEY_PREFIX + base64.urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=").decode()
    record = KeyRecord(
        id=f"key_{secrets.token_hex(8)}",
        name=name,
        hash=hash_key(secret),
        hint=secret[-4:],
        created_at=now,
        **limits,
    )
    return NewKey(record, secret)


class KeyFile:
    """Keys in a JSON file that only its owner can read. A changed file is read again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read_at: tuple[int, int] | None = None  # mtime and size of what was read
        self._records: dict[str, KeyRecord] = {}

    def list(self) -> Sequence[KeyRecord]:
        """All keys, revoked ones too.

        Raises:
            CorruptFileError: the file holds something else.
        """
        with self._lock:
            self._refresh()
            return list(self._records.values())

    def find(self, key_hash: str) -> KeyRecord | None:
        """The record of a key that is in force."""
        with self._lock:
            self._refresh()
            record = self._records.get(key_hash)
        return None if record is None or record.revoked_at is not None else record

    def add(self, record: KeyRecord) -> None:
        """Keep a key.

        Raises:
            StorageError: the file cannot be written.
        """
        with self._lock:
            self._refresh()
            self._records[record.hash] = record
            self._write()

    def revoke(self, key_id: str, *, at: float) -> bool:
        """Put a key out of force; False if there is none of that id in force."""
        with self._lock:
            self._refresh()
            for record in self._records.values():
                if record.id == key_id and record.revoked_at is None:
                    self._records[record.hash] = dataclasses.replace(record, revoked_at=at)
                    self._write()
                    return True
        return False

    def _refresh(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._records, self._read_at = {}, None
            return
        if self._read_at == (stat.st_mtime_ns, stat.st_size):
            return
        try:
            rows = json.loads(self.path.read_text(encoding="utf-8"))
            records = [KeyRecord(**row) for row in rows]
        except (OSError, ValueError, TypeError) as error:
            raise CorruptFileError(f"{self.path} is no key file ({error}); mend it or make the keys anew") from error
        self._records = {record.hash: record for record in records}
        self._read_at = (stat.st_mtime_ns, stat.st_size)

    def _write(self) -> None:
        rows = [dataclasses.asdict(record) for record in self._records.values()]
        aside = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(rows, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, self.path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            raise StorageError(f"cannot write {self.path} ({error}); nothing was changed") from error
        self._read_at = None


class Authenticator:
    """Tells callers by their keys.

    Args:
        stores: where keys lie, asked in order.
        given: keys in clear, from the command line.
        requires_key: None: if there is any key in force.
        clock: seconds, for a cache that keeps the stores from being asked at each request; a revoked key is refused
            after at most 5 s.
    """

    def __init__(
        self,
        stores: Sequence[KeyStore] = (),
        *,
        given: Sequence[str] = (),
        requires_key: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = tuple(stores)
        self._given = tuple((hash_key(key), Caller(f"key_{hash_key(key)[:16]}", "given")) for key in given)
        self._requires_key = requires_key
        self._clock = clock
        self._cache: dict[str, tuple[float, Caller | None]] = {}
        self._has_keys: tuple[float, bool] | None = None

    def has_keys(self) -> bool:
        """Whether any key is in force. Asks the stores."""
        return bool(self._given) or any(key.revoked_at is None for store in self._stores for key in store.list())

    def is_required(self) -> bool:
        """Whether requests without a key are refused. May block."""
        if self._requires_key is not None:
            return self._requires_key
        now = self._clock()
        if self._has_keys is None or now - self._has_keys[0] > _CACHE_SECONDS:
            self._has_keys = (now, self.has_keys())
        return self._has_keys[1]

    def known(self, secret: str | None) -> Caller | None:
        """Whose request it is, if that is known without asking the stores."""
        now = self._clock()
        if secret is None:
            required = self._requires_key
            if required is None and self._has_keys is not None and now - self._has_keys[0] <= _CACHE_SECONDS:
                required = self._has_keys[1]
            return ANONYMOUS if required is False else None
        found = self._cache.get(hash_key(secret))
        return found[1] if found is not None and now - found[0] <= _CACHE_SECONDS else None

    def identify(self, secret: str | None) -> Caller:
        """Whose request it is. May block.

        Raises:
            ApiError: no key where one is needed, or a wrong one (401).
        """
        caller = None if secret is None else self._look_up(secret)
        if caller is not None:
            return caller
        if not self.is_required():
            return ANONYMOUS
        message = "no API key was given; send it as 'Authorization: Bearer KEY'"
        if secret is not None:
            message = "this API key is not known here; `ossia keys list` names those that are"
        raise ApiError(message, status=401, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    def _look_up(self, secret: str) -> Caller | None:
        digest = hash_key(secret)
        for known, caller in self._given:
            if hmac.compare_digest(known, digest):
                return caller
        now = self._clock()
        cached = self._cache.get(digest)
        if cached is not None and now - cached[0] <= _CACHE_SECONDS:
            return cached[1]
        record = next((found for store in self._stores if (found := store.find(digest)) is not None), None)
        caller = None
        if record is not None:
            caller = Caller(
                record.id, record.name, record.requests_per_minute, record.tokens_per_minute, record.concurrency
            )
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[digest] = (now, caller)
        return caller


def secret_of(headers: Mapping[str, str]) -> str | None:
    """The key that a request carries: as a bearer token, or as Anthropic's clients send it (`x-api-key`)."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key") or headers.get("api-key") or None
