"""`pull` with the hub's client replaced: no test reaches the network."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from ossia.core.errors import InvalidInputError, MissingFileError, ModelNotFoundError, StorageError
from ossia.model.checkpoint import load_model, pull, resolve_model, save_checkpoint
from ossia.model.transformer import Transformer

REPO = "openai/gpt-oss-20b"
MakeModel = Callable[..., Transformer]


class Hub:
    """Stands in for `snapshot_download`: "downloads" from a folder, or raises."""

    def __init__(self, remote: Path) -> None:
        self.remote = remote
        self.failure: BaseException | None = None
        self.size: int | None = None
        self.downloads: list[list[str]] = []

    def snapshot_download(
        self,
        *,
        repo_id: str,
        revision: str | None,
        local_dir: Path,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        dry_run: bool = False,
    ) -> Any:
        assert repo_id == REPO
        if self.failure is not None:
            raise self.failure
        names = [path.relative_to(self.remote).as_posix() for path in self.remote.rglob("*") if path.is_file()]
        wanted = [
            name
            for name in sorted(names)
            if any(fnmatch(name, glob) for glob in allow_patterns)
            and not any(fnmatch(name, glob) for glob in ignore_patterns)
        ]
        missing = [name for name in wanted if not (local_dir / name).exists()]
        if dry_run:
            return [SimpleNamespace(file_size=self.size, will_download=name in missing) for name in wanted]
        self.downloads.append(missing)
        for name in missing:
            (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.remote / name, local_dir / name)
        return str(local_dir)


@pytest.fixture
def hub(tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path / "home"))
    remote = tmp_path / "remote"
    save_checkpoint(make_model(packed_experts=True), remote, format="hf-mxfp4", max_shard_bytes=30_000)
    save_checkpoint(make_model(packed_experts=True), remote / "original", format="original")
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "metal/model.bin", "run.py", "pytorch_model.bin"):
        (remote / name).parent.mkdir(exist_ok=True)
        (remote / name).write_text(name)
    hub = Hub(remote)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_fetches_the_hugging_face_files(hub: Hub, tmp_path: Path) -> None:
    folder = pull(REPO)
    assert folder == tmp_path / "home" / "models" / "openai" / "gpt-oss-20b" == resolve_model(REPO)
    assert {path.name for path in folder.iterdir() if path.suffix != ".safetensors"} == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
    }
    load_model(folder)


def test_goes_on_where_it_stopped(hub: Hub) -> None:
    folder = pull(REPO)
    (folder / "model-00002-of-00003.safetensors").unlink()
    pull(REPO)
    assert hub.downloads[1] == ["model-00002-of-00003.safetensors"]
    pull(REPO)
    assert hub.downloads[2] == []


def test_fetches_the_original_on_request(hub: Hub) -> None:
    folder = pull(REPO, original=True)
    assert sorted(hub.downloads[0]) == [
        "LICENSE",
        "chat_template.jinja",
        "original/config.json",
        "original/dtypes.json",
        "original/model.safetensors",
        "tokenizer.json",
    ]
    load_model(folder)


def test_checks_what_arrived(hub: Hub) -> None:
    (hub.remote / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"fetched into .* cannot be used: .*model-00001-of-00003"):
        pull(REPO)


def response_error(kind: type[Exception], message: str) -> Exception:
    """A hub error without the HTTP response that it usually carries."""
    error = kind.__new__(kind)
    error.args = (message,)
    error.__str__ = lambda: message  # type: ignore[method-assign]
    return error


def dry_run_failed(cause: BaseException | None) -> Exception:
    error = errors.DryRunError("Dry run cannot be performed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            dry_run_failed(ConnectionError("no route")),
            r"answer \(ConnectionError: no route\).*HF_ENDPOINT",
        ),
        (errors.LocalEntryNotFoundError("offline"), r"network.*HF_TOKEN.*by hand into .*gpt-oss-20b.*ossia chat nano"),
        (errors.OfflineModeIsEnabled("offline mode"), "HF_HUB_OFFLINE"),
        (errors.HfHubHTTPError.__bases__[0]("transport"), "hub does not answer"),
        (dry_run_failed(response_error(errors.GatedRepoError, "403")), "is gated: accept its terms.*HF_TOKEN"),
        (
            response_error(errors.RepositoryNotFoundError, "404"),
            "has no model openai/gpt-oss-20b, or it is private",
        ),
        (response_error(errors.RevisionNotFoundError, "404"), "no such revision"),
    ],
)
def test_failures_say_what_to_do(hub: Hub, failure: BaseException, message: str) -> None:
    hub.failure = failure
    with pytest.raises(ModelNotFoundError, match=message):
        pull(REPO)


def test_a_full_disk_while_fetching(hub: Hub) -> None:
    hub.failure = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(StorageError, match=r"No space left on device; free some space and pull again"):
        pull(REPO)


def test_space_is_checked_before_fetching(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 10**12, 5 * 10**9))
    hub.size = 10**9
    with pytest.raises(StorageError, match=r"9\.0 GB are to be fetched .* 5\.0 GB free; .*OSSIA_HOME"):
        pull(REPO)
    assert hub.downloads == []


def test_names_that_are_no_hub_ids(hub: Hub) -> None:
    for name in ("nano", "../../etc", "a/b/c"):
        with pytest.raises(InvalidInputError, match="no hub id"):
            pull(name)
    assert hub.downloads == []
