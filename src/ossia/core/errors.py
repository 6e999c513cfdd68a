"""Every error that Ossia raises on purpose, as one tree.

    OssiaError
    ├── InvalidInputError (ValueError)     what a user gave cannot be taken; `param` names it
    │   └── ContextLengthError             the prompt does not fit the model's context
    ├── ModelNotFoundError                 no such model here, or it cannot be fetched
    ├── CheckpointError                    a model folder that cannot be read
    │   ├── MissingFileError               a file is absent or half downloaded
    │   ├── CorruptFileError               a file is truncated or is not what it claims to be
    │   ├── TensorMismatchError            a tensor is absent, or has a wrong shape or dtype
    │   └── UnsupportedModelError          a config of another architecture
    ├── VocabularyError                    tokenizer data that fail their checksum or contradict themselves
    ├── DatasetError                       a folder of training data that cannot be read, or not by this tokenizer
    ├── StorageError                       no room or no right to write; what was there is untouched
    ├── TrainingError                      a run that cannot go on
    ├── NotEnoughMemoryError               a model that this machine has no room for; nothing was loaded
    ├── EngineOverloadedError              the engine's queue is full
    ├── CacheIntegrityError                the KV cache's bookkeeping contradicts itself: a bug in Ossia
    ├── EngineDeadError                    the engine stopped; nothing more comes of its requests
    ├── MissingExtraError (ImportError)    an optional dependency is not installed; names the extra
    ├── ToolError                          tools: a call that fails in a way the model can read about
    │   ├── FetchError                     tools: a page that cannot be had
    │   │   ├── FetchDeniedError           tools: an address that may not be opened
    │   │   └── SearchError                tools: a search that cannot be made
    │   └── PatchError                     tools: a patch that cannot be read or does not fit; nothing was changed
    ├── SandboxError                       tools: no sandbox can be had, or a program cannot be started in it
    ├── PathEscapeError (PermissionError)  tools: a path that leads out of its folder
    ├── McpError                           tools: an MCP server that cannot be reached, or does not speak as it should
    └── ApiError                           server: a request that only HTTP knows how to refuse

Those marked with a room are defined in it, for they carry what only it knows; all are drawn here.
A message says what was got, what is allowed, and which option or step mends it.
"""

from __future__ import annotations


class OssiaError(Exception):
    """Base of all errors that Ossia raises on purpose."""


class InvalidInputError(OssiaError, ValueError):
    """Input from a user that cannot be taken.

    Attributes:
        param: the name of the offending parameter, when one is to blame.
        code: the kind of fault for programs, in OpenAI's words ("invalid_type"); None where there is nothing finer.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(InvalidInputError):
    """A prompt that does not fit the model's context window."""

    def __init__(self, *, num_tokens: int, limit: int, param: str | None = None) -> None:
        super().__init__(
            f"the prompt has {num_tokens} tokens, but at most {limit} fit this model's context "
            "(one place is kept for the answer); shorten the prompt or drop earlier turns",
            param=param,
        )
        self.num_tokens = num_tokens
        self.limit = limit


class ModelNotFoundError(OssiaError):
    """A model name that leads to nothing on this machine, or that cannot be fetched."""


class CheckpointError(OssiaError):
    """A model folder that cannot be read."""


class MissingFileError(CheckpointError):
    """A file of a checkpoint is absent or only half downloaded."""


class CorruptFileError(CheckpointError):
    """A file of a checkpoint is truncated or is not what it claims to be."""


class TensorMismatchError(CheckpointError):
    """A tensor of a checkpoint is absent, or has a wrong shape or dtype."""


class UnsupportedModelError(CheckpointError):
    """A config that describes another architecture."""


class VocabularyError(OssiaError):
    """Tokenizer data that fail their checksum or contradict themselves."""


class DatasetError(OssiaError):
    """A folder of training data that is absent, damaged, of another version, or made with another tokenizer."""


class StorageError(OssiaError):
    """Writing failed (no space, no permission); what was there before is untouched."""


class TrainingError(OssiaError):
    """A training run that cannot go on."""


class NotEnoughMemoryError(OssiaError):
    """A model that the machine has no room for; nothing was loaded.

    Attributes:
        needed: bytes that it takes, as estimated.
        free: bytes that may still be taken.
    """

    def __init__(self, message: str, *, needed: int, free: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free


class EngineOverloadedError(OssiaError):
    """The engine's queue is full; nothing was added.

    Attributes:
        num_waiting: answers that wait already.
        limit: how many may.
    """

    def __init__(self, *, num_new: int, num_waiting: int, limit: int) -> None:
        super().__init__(
            f"{num_waiting} answers wait for the engine and {num_new} more would join them, but at most {limit} may "
            "wait; try again later, or raise max_queue"
        )
        self.num_waiting = num_waiting
        self.limit = limit


class CacheIntegrityError(OssiaError):
    """The KV cache's bookkeeping contradicts itself: a bug in Ossia."""


class MissingExtraError(OssiaError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, *, extra: str) -> None:
        super().__init__(f"this needs the package '{package}'; install it with: pip install 'ossia[{extra}]'")
        self.package = package
        self.extra = extra


class EngineDeadError(OssiaError):
    """The engine has stopped, by an error of its own or because it was shut down; what it had in hand is lost."""
