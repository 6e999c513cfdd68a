"""What models said, kept so that it goes back in as it was said.

Clients send back less than they got: agents drop reasoning between two tool calls, and none sends token ids.
`ReplayCache` keeps the messages of late answers in memory, by call id and item id; `Sealer` packs them into a reasoning
item's `encrypted_content`, which a client can carry but neither read nor forge.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ossia.core.errors import InvalidInputError, OssiaError, StorageError
from ossia.harmony.message import Conversation, Message, conversation_from_dict, conversation_to_dict

_MAX_TOKENS = 4_000_000
_NONCE_BYTES = 12
_VERSION = b"\x01"
_MAX_SEALED = 64 << 20


class Said(NamedTuple):
    """One thing a model said, with what led to it.

    Attributes:
        reasoning: messages on the analysis channel right before it.
        message: itself, with its ids as sampled.
        results: what tools of the server answered to it and to the calls before it.
    """

    reasoning: tuple[Message, ...]
    message: Message
    results: tuple[Message, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """What an item that stands for it is to the model."""
        return (self.message, *self.results)


class ReplayCache:
    """What was said lately, by owner and by call or item id. The oldest go when it is full.

    Args:
        max_tokens: about how many sampled ids all entries hold together.
    """

    def __init__(self, *, max_tokens: int = _MAX_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._num_tokens = 0
        self._entries: OrderedDict[tuple[str, str], Said] = OrderedDict()

    def keep(self, owner: str, name: str, said: Said) -> None:
        """Remember what was said under a call id or an item id."""
        key = (owner, name)
        old = self._entries.pop(key, None)
        if old is not None:
            self._num_tokens -= _size(old)
        self._entries[key] = said
        self._num_tokens += _size(said)
        while self._num_tokens > self._max_tokens and len(self._entries) > 1:
            _, gone = self._entries.popitem(last=False)
            self._num_tokens -= _size(gone)

    def find(self, owner: str, name: str | None) -> Said | None:
        """What was said under that id to that owner."""
        if not name:
            return None
        found = self._entries.get((owner, name))
        if found is not None:
            self._entries.move_to_end((owner, name))
        return found

    def forget(self, owner: str, name: str) -> None:
        """Drop an entry."""
        gone = self._entries.pop((owner, name), None)
        if gone is not None:
            self._num_tokens -= _size(gone)


def _size(said: Said) -> int:
    return 16 + sum(len(m.token_ids or ()) + len(m.text) // 4 for m in (*said.reasoning, *said.messages))


def pack_messages(messages: Sequence[Message]) -> str:
    """Messages as JSON, token ids included; for this server's own eyes."""
    return json.dumps(conversation_to_dict(Conversation(tuple(messages)))["messages"], separators=(",", ":"))


def unpack_messages(text: str) -> tuple[Message, ...]:
    """What `pack_messages` packed."""
    return conversation_from_dict({"messages": json.loads(text)}, trust_token_ids=True).messages


class Sealer:
    """Encrypts messages for a client to carry: AES-256-GCM, bound to the client's key.

    Args:
        secret: 32 bytes. Contents sealed with another secret cannot be opened.
    """

    def __init__(self, secret: bytes) -> None:
        self._cipher = AESGCM(secret)

    def seal(self, messages: Sequence[Message], *, owner: str) -> str:
        """Messages as opaque text."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        data = zlib.compress(pack_messages(messages).encode())
        return base64.b64encode(_VERSION + nonce + self._cipher.encrypt(nonce, data, owner.encode())).decode()

    def open(self, sealed: str, *, owner: str) -> tuple[Message, ...]:
        """The messages again.

        Raises:
            InvalidInputError: it was not sealed here for that owner, or was changed.
        """
        fault = InvalidInputError(
            "encrypted_content cannot be opened: it was changed, or is another server's or another key's; leave it out",
            param="encrypted_content",
        )
        try:
            data = base64.b64decode(sealed, validate=True)
            nonce = data[1 : 1 + _NONCE_BYTES]
            if data[:1] != _VERSION or len(nonce) != _NONCE_BYTES:
                raise fault
            plain = self._cipher.decrypt(nonce, data[1 + _NONCE_BYTES :], owner.encode())
            return unpack_messages(zlib.decompressobj().decompress(plain, _MAX_SEALED).decode())
        except (ValueError, InvalidTag, zlib.error, OssiaError):
            raise fault from None


def load_secret(path: Path) -> bytes:
    """The server's secret from a file that only its owner can read; made if there is none.

    Raises:
        StorageError: the file can be neither read nor written, or holds something else.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            secret = path.read_bytes()
            if len(secret) != 32:
                raise StorageError(f"{path} should hold 32 bytes; remove it, and a new one is made") from None
            return secret
        with os.fdopen(descriptor, "wb") as file:
            secret = secrets.token_bytes(32)
            file.write(secret)
            return secret
    except OSError as error:
        raise StorageError(f"cannot read or make {path} ({error})") from error
