"""Messages kept and sealed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.core.errors import InvalidInputError, StorageError
from ossia.harmony.message import Message, Role
from ossia.server.replay import ReplayCache, Said, Sealer, load_secret, pack_messages, unpack_messages

_message = st.builds(
    Message,
    st.just(Role.ASSISTANT),
    content=st.text(max_size=20),
    channel=st.sampled_from(["analysis", "commentary", "final"]),
    recipient=st.none() | st.just("functions.f"),
    token_ids=st.none() | st.lists(st.integers(0, 9000), max_size=5).map(tuple),
)


@given(st.lists(_message, max_size=4).map(tuple))
def test_packing_and_sealing_keep_all(messages):
    assert unpack_messages(pack_messages(messages)) == messages
    sealer = Sealer(bytes(32))
    assert sealer.open(sealer.seal(messages, owner="a"), owner="a") == messages


def test_sealed_content_is_for_one_owner_and_not_to_be_changed():
    sealer = Sealer(bytes(32))
    sealed = sealer.seal([Message(Role.ASSISTANT, content="secret thought", channel="analysis")], owner="a")
    data = base64.b64decode(sealed)
    assert b"secret" not in data
    changed = base64.b64encode(data[:-1] + bytes([data[-1] ^ 1])).decode()
    cases = [
        (sealed, "b", sealer),
        (changed, "a", sealer),
        (sealed, "a", Sealer(b"1" * 32)),
        (sealed[:20], "a", sealer),
    ]
    cases += [(text, "a", sealer) for text in ("", "no base64!", "é", base64.b64encode(b"\x02" * 40).decode())]
    for text, owner, other in cases:
        with pytest.raises(InvalidInputError, match="cannot be opened"):
            other.open(text, owner=owner)


def test_the_cache_forgets_the_oldest_and_knows_owners():
    cache = ReplayCache(max_tokens=100)
    said = [Said((), Message(Role.ASSISTANT, content="x", token_ids=tuple(range(20)))) for _ in range(5)]
    for i, entry in enumerate(said[:2]):
        cache.keep("a", f"call_{i}", entry)
    assert cache.find("a", "call_0") is said[0]  # and so is the youngest now
    assert cache.find("b", "call_0") is None
    assert cache.find("a", None) is None
    for i in (2, 3):
        cache.keep("a", f"call_{i}", said[i])
    assert cache.find("a", "call_1") is None
    assert cache.find("a", "call_3") is said[3]
    cache.forget("a", "call_3")
    assert cache.find("a", "call_3") is None


def test_the_secret_is_made_once_and_private(tmp_path):
    path = tmp_path / "deep" / "secret"
    secret = load_secret(path)
    assert load_secret(path) == secret
    assert len(secret) == 32
    assert path.stat().st_mode & 0o077 == 0
    path.write_bytes(b"short")
    with pytest.raises(StorageError):
        load_secret(path)
