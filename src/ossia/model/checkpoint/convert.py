"""`convert`: from one format to another, file to file."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

from ossia.core.errors import InvalidInputError, StorageError
from ossia.harmony.hf_tokenizer import TOKENIZER_FILE, write_tokenizer_json
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import O200K_VOCAB_SIZE
from ossia.model.checkpoint.original import ORIGINAL
from ossia.model.checkpoint.save import save_checkpoint
from ossia.model.checkpoint.source import ORIGINAL_FOLDER, Checkpoint
from ossia.model.checkpoint.stream import Progress
from ossia.model.checkpoint.writer import MAX_SHARD_BYTES

COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "o200k_ids.json",
    "vocab.json",
    "merges.txt",
    "LICENSE*",
    "USAGE_POLICY*",
)
"""Files that belong to a model whatever the format of its weights."""


def convert(
    source: Path | str,
    target: Path | str,
    *,
    format: str,  # noqa: A002 - the word that users type
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a model folder in another format, tensor by tensor, without building the model.

    bfloat16 to MXFP4 rounds the experts; all other ways are exact. Tokenizer files come along; OpenAI's layout has
    none, so a Hugging Face folder made from it alone gets the tokenizer of the published models.

    Raises:
        InvalidInputError: the format is not known or cannot hold this model, or source and target are one folder.
        CheckpointError: the source cannot be read.
        StorageError: the target could not be written; what was there is untouched.
    """
    source, target = Path(source), Path(target)
    opened = Checkpoint.open(source)
    if target.exists() and target.resolve() in (source.resolve(), opened.folder.resolve()):
        raise InvalidInputError(f"source and target are both {source}; choose another folder to write", param="target")
    save_checkpoint(opened, target, format=format, max_shard_bytes=max_shard_bytes, progress=progress)
    opened.files.close()
    found = companions(opened.folder)
    try:
        for path in found:
            shutil.copyfile(path, target / path.name)
    except OSError as error:
        raise StorageError(f"cannot copy the tokenizer to {target}: {error.strerror or error}") from error
    if not found and format != ORIGINAL.name and opened.config.vocab_size == O200K_VOCAB_SIZE:
        write_tokenizer_json(Tokenizer.o200k_harmony(), target / TOKENIZER_FILE)


def companions(folder: Path) -> list[Path]:
    """The files to take along; those of `original/` lie one folder up."""
    found = _matching(folder)
    return found or (_matching(folder.parent) if folder.name == ORIGINAL_FOLDER else [])


def _matching(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_file() and any(fnmatch(path.name, glob) for glob in COMPANIONS)
    )
