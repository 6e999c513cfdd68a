"""API keys: made, kept as hashes, found, revoked."""

from __future__ import annotations

import stat

import pytest

from ossia.core.errors import CorruptFileError, InvalidInputError
from ossia.server.auth import ANONYMOUS, Authenticator, KeyFile, make_key, secret_of
from ossia.server.errors import ApiError
from ossia.server.store.database import Database
from ossia.server.store.keys import DatabaseKeys


@pytest.fixture(params=["file", "database"])
def store(request, tmp_path):
    if request.param == "file":
        yield KeyFile(tmp_path / "keys.json")
        return
    database = Database(f"sqlite:///{tmp_path / 'keys.db'}")
    database.migrate()
    yield DatabaseKeys(database)
    database.close()


def test_keys_live_and_die(store, tmp_path):
    new = make_key("laptop", now=1.0, requests_per_minute=5)
    store.add(new.record)
    other = make_key("other", now=2.0)
    store.add(other.record)
    assert [key.name for key in store.list()] == ["laptop", "other"]
    assert store.find(new.record.hash) == new.record
    clock = iter(range(0, 10_000, 10)).__next__
    authenticator = Authenticator([store], clock=clock)
    assert authenticator.identify(new.secret).requests_per_minute == 5
    assert store.revoke(new.record.id, at=3.0)
    assert not store.revoke(new.record.id, at=4.0)
    assert store.find(new.record.hash) is None
    assert store.list()[0].revoked_at == 3.0
    with pytest.raises(ApiError) as caught:
        authenticator.identify(new.secret)
    assert caught.value.info.status == 401
    for path in tmp_path.iterdir():
        assert new.secret.encode() not in path.read_bytes()


def test_without_any_key_everybody_is_anonymous(store):
    authenticator = Authenticator([store])
    assert authenticator.identify(None) is ANONYMOUS
    assert authenticator.identify("anything") is ANONYMOUS
    assert authenticator.known(None) is ANONYMOUS
    with pytest.raises(ApiError):
        Authenticator([store], requires_key=True).identify(None)
    with pytest.raises(ApiError):
        Authenticator([store], given=["a-key-of-the-command-line"]).identify("another-one")


def test_a_key_file_is_private_read_anew_and_checked(tmp_path):
    path = tmp_path / "keys.json"
    one, two = KeyFile(path), KeyFile(path)
    new = make_key("a", now=0.0)
    one.add(new.record)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert two.find(new.record.hash) == new.record
    assert sorted(tmp_path.iterdir()) == [path]
    path.write_text('{"no": "list"}')
    with pytest.raises(CorruptFileError):
        two.list()


def test_names_and_limits_are_checked():
    for name in ("", " ", "a\nb", "x" * 101):
        with pytest.raises(InvalidInputError):
            make_key(name, now=0.0)
    with pytest.raises(InvalidInputError):
        make_key("a", now=0.0, concurrency=-1)
    assert make_key("a", now=0.0).secret != make_key("a", now=0.0).secret


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer abc"}, "abc"),
        ({"authorization": "bearer  abc "}, "abc"),
        ({"x-api-key": "abc"}, "abc"),
        ({"authorization": "Basic abc"}, None),
        ({"authorization": "Bearer "}, None),
        ({}, None),
    ],
)
def test_where_a_key_is_looked_for(headers, expected):
    assert secret_of(headers) == expected
