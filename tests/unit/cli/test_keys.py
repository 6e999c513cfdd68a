"""`ossia keys` over the server's own stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ossia.server.auth import Authenticator, hash_key

LIMITS = ("--requests-per-minute", "60", "--tokens-per-minute", "1000", "--concurrency", "2")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path))
    return tmp_path


def add(run: Any, *args: str) -> dict[str, str]:
    result = run("keys", "add", *args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_key_is_shown_once_on_stdout_and_kept_as_a_hash(run: Any, home: Path) -> None:
    result = run("keys", "add", "laptop")
    assert result.exit_code == 0
    secret = result.stdout.strip()
    assert secret.startswith("ossia_")
    assert "not shown again" in result.stderr
    kept = (home / "keys.json").read_text()
    assert secret not in kept
    assert hash_key(secret) in kept
    listed = run("keys", "list").stdout
    assert secret not in listed
    assert f"...{secret[-4:]}" in listed


def test_a_key_lets_its_owner_in_until_it_is_revoked(run: Any, home: Path) -> None:
    from ossia.server.app import KEY_FILE
    from ossia.server.auth import KeyFile

    made = add(run, "laptop", *LIMITS)

    def is_known() -> bool:
        return Authenticator([KeyFile(home / KEY_FILE)]).has_keys()

    caller = Authenticator([KeyFile(home / KEY_FILE)]).identify(made["key"])
    assert (caller.key_id, caller.requests_per_minute, caller.concurrency) == (made["id"], 60, 2)
    assert is_known()
    assert run("keys", "revoke", made["id"]).exit_code == 0
    assert not is_known()
    again = run("keys", "revoke", made["id"])
    assert again.exit_code == 1
    assert "`ossia keys list`" in again.stderr


def test_list_as_json_has_all_but_the_hash(run: Any) -> None:
    made = add(run, "laptop", *LIMITS)
    add(run, "ci")
    run("keys", "revoke", made["id"])
    first, second = json.loads(run("keys", "list", "--json").stdout)
    assert (first["id"], first["name"], first["tokens_per_minute"]) == (made["id"], "laptop", 1000)
    assert (first["revoked_at"] is not None, second["revoked_at"]) == (True, None)
    assert "hash" not in first
    shown = run("keys", "list").stdout.splitlines()
    assert shown[0].endswith("laptop  60 requests/min  1000 tokens/min  2 at once  revoked")


def test_keys_can_lie_in_a_database(run: Any, home: Path) -> None:
    url = f"sqlite:///{home}/other.db"
    made = add(run, "team", "--database", url)
    assert not (home / "keys.json").exists()
    assert [key["id"] for key in json.loads(run("keys", "list", "--database", url, "--json").stdout)] == [made["id"]]
    assert json.loads(run("keys", "list", "--json").stdout) == []
    assert run("keys", "revoke", made["id"], "--database", url).exit_code == 0


def test_no_keys_says_how_to_make_one(run: Any) -> None:
    result = run("keys", "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "ossia keys add NAME" in result.stderr


@pytest.mark.parametrize("args", [[" "], ["x", "--concurrency", "-1"], ["x", "--database", "nonsense"]])
def test_what_makes_no_key(run: Any, args: list[str]) -> None:
    result = run("keys", "add", *args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert len(result.stderr.splitlines()) == 1
