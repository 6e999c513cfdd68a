"""Fetches models from the Hugging Face hub. The only module that uses the network.

Models go to `models_home()/organisation/name` as plain files, not into the Hugging Face cache: a user can see, copy
and delete them, and `resolve_model` finds copies made by hand. What other tools put into that cache is found, too.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from ossia.core.errors import CheckpointError, InvalidInputError, ModelNotFoundError, OssiaError, StorageError
from ossia.model.checkpoint.resolve import is_repo_id, pulled_folder
from ossia.model.checkpoint.source import ORIGINAL_FOLDER, Checkpoint

HF_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*", "USAGE_POLICY*"]
ORIGINAL_FILES = ["original/*.json", "original/*.safetensors", "tokenizer*", "*.jinja", "LICENSE*", "USAGE_POLICY*"]
NOT_WANTED = {False: ["original/*", "metal/*"], True: ["metal/*"]}

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def pull(repo_id: str, *, original: bool = False, revision: str | None = None) -> Path:
    """Fetch a model; one that was cut off goes on where it stopped, and a whole one is only checked.

    Args:
        repo_id: such as "openai/gpt-oss-20b".
        original: OpenAI's own layout (`original/`) instead of the Hugging Face one.
        revision: a branch, tag or commit; the hub's `main` by default.

    Returns:
        The model's folder.

    Raises:
        InvalidInputError: this is not a hub id.
        ModelNotFoundError: no such model, no access to it, or no network.
        StorageError: not enough space on the disk.
        CheckpointError: what arrived is not a whole gpt-oss model.
    """
    if not is_repo_id(repo_id):
        raise InvalidInputError(f"{repo_id!r} is no hub id; they look like openai/gpt-oss-20b", param="repo_id")
    from huggingface_hub import snapshot_download

    folder = pulled_folder(repo_id)
    arguments: dict[str, Any] = {
        "repo_id": repo_id,
        "revision": revision,
        "local_dir": folder,
        "allow_patterns": ORIGINAL_FILES if original else HF_FILES,
        "ignore_patterns": NOT_WANTED[original],
    }
    with _explained(repo_id, folder):
        _check_space(snapshot_download(**arguments, dry_run=True), folder)
        snapshot_download(**arguments)
    try:
        Checkpoint.open(folder / ORIGINAL_FOLDER if original else folder)
    except CheckpointError as error:
        raise type(error)(f"{repo_id} was fetched into {folder}, but cannot be used: {error}") from error
    return folder


def _check_space(files: list[Any], folder: Path) -> None:
    """Compares what will be fetched with the free space, before the first byte."""
    needed = sum(file.file_size or 0 for file in files if file.will_download)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise StorageError(
            f"{needed / 1e9:.1f} GB are to be fetched into {folder}, but its disk has {free / 1e9:.1f} GB free; "
            "free some space, or set OSSIA_HOME to a folder on a larger disk"
        )


@contextmanager
def _explained(repo_id: str, folder: Path) -> Iterator[None]:
    """Turns the hub client's errors into ours, which say what to do."""
    from huggingface_hub.errors import HfHubHTTPError

    # What the transport raises: httpx's, whichever version the hub's client is built upon.
    transport_error = cast(type[Exception], HfHubHTTPError.__bases__[0])
    try:
        yield
    except (OSError, transport_error) as error:
        raise _explain(error, repo_id, folder) from error


def _explain(error: BaseException, repo_id: str, folder: Path) -> OssiaError:
    from huggingface_hub import errors

    if isinstance(error, errors.DryRunError) and error.__cause__ is not None:
        error = error.__cause__  # it only says that the dry run failed; the cause says why
    if isinstance(error, errors.GatedRepoError):  # before RepositoryNotFoundError, its base class
        return ModelNotFoundError(
            f"{repo_id} is gated: accept its terms on the hub, then set HF_TOKEN to a token of that account"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelNotFoundError(f"{repo_id} has no such revision; leave it out to fetch the newest")
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(
            f"the hub has no model {repo_id}, or it is private: check the spelling, or set HF_TOKEN to a token that "
            "may read it"
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return StorageError(f"cannot write {folder}: {error.strerror}; free some space and pull again, it resumes")
    return ModelNotFoundError(
        f"cannot fetch {repo_id}: the hub does not answer ({type(error).__name__}: {error}). Check the network and "
        "HF_HUB_OFFLINE; set HF_ENDPOINT to use a mirror, HF_TOKEN if the model needs an account; or copy the model's "
        f"files by hand into {folder}. Without any download: ossia chat nano"
    )
