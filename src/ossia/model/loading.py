"""What whoever talks to a model needs of its folder: weights, tokenizer, identity and sampling defaults."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ossia.core.errors import CorruptFileError, InvalidInputError
from ossia.core.paths import models_home
from ossia.harmony.content import DeveloperContent, Effort, SystemContent
from ossia.harmony.message import Message, Role

if TYPE_CHECKING:
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.model.config import ModelConfig
    from ossia.model.transformer import Transformer

SMALL_BYTES = 1 << 30
"""A model that takes less in float32 is small: for torch on a CPU it is loaded so, since bfloat16 products are slow on
many. The C++ kernels take the checkpoint's own dtypes, packed experts too."""
SMALL_MODEL_THREADS = 1
"""The matrices of a small model are so quickly done that a second thread gains little on an idle machine. On a busy one
it costs a factor of ten: each of a token's hundreds of parallel sections waits for the thread that got no core."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a model's system message says of itself."""

    model_identity: str
    knowledge_cutoff: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """What generation_config.json recommends; without one, sampling from the model's own distribution.

    Attributes:
        max_tokens: how long an answer may get (`max_new_tokens`); None for as long as the context holds.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A model that is ready to be talked to.

    Attributes:
        mapped_bytes: of its weights, which are pages of files: they count as free memory until they are read, and can
            be read again.
    """

    name: str
    model: Transformer
    tokenizer: Tokenizer
    identity: Identity
    sampling: SamplingDefaults
    mapped_bytes: int = 0

    @property
    def context_length(self) -> int:
        """How many tokens, prompt and answer together, the model can see."""
        return self.model.config.max_position_embeddings

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an assistant's turn."""
        return (self.tokenizer.return_, self.tokenizer.call, self.tokenizer.endoftext)

    def opening(
        self, *, effort: Effort = Effort.MEDIUM, date: str | None = None, instructions: str | None = None
    ) -> tuple[Message, ...]:
        """The messages before the first question: the system message, and with instructions a developer message."""
        system = SystemContent(
            model_identity=self.identity.model_identity,
            knowledge_cutoff=self.identity.knowledge_cutoff,
            effort=effort,
            date=date,
        )
        messages = [Message(role=Role.SYSTEM, content=system)]
        if instructions:
            messages.append(Message(role=Role.DEVELOPER, content=DeveloperContent(instructions=instructions)))
        return tuple(messages)


def load(name_or_path: str, *, device: str = "auto") -> LoadedModel:
    """Load a model and all that belongs to it. Imports torch.

    Args:
        name_or_path: "nano", a hub id that was pulled, or a model folder.
        device: "cpu", "cuda", "cuda:1", or "auto": the GPU if there is one.

    Raises:
        ModelNotFoundError: the name leads to nothing on this machine.
        CheckpointError: the folder cannot be read.
        InvalidInputError: torch knows no such device, or cannot reach it.
    """
    import torch

    from ossia.kernels import native
    from ossia.model.checkpoint.load import load_model, read_config, resolve_model
    from ossia.model.checkpoint.mapped import load_mapped
    from ossia.model.checkpoint.source import Checkpoint

    folder = resolve_model(name_or_path)
    config = read_config(folder)
    place = choose_device(device)
    if place.type == "cuda":
        let_memory_grow()
    is_small_on_cpu = place.type == "cpu" and is_small(config)
    is_native = place.type == "cpu" and native.is_available()
    dtype = torch.float32 if is_small_on_cpu and not is_native else torch.bfloat16
    if is_small_on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(SMALL_MODEL_THREADS)
    raw = read_json_if_any(folder / "config.json")
    if is_native and Checkpoint.open(folder).layout.is_packed:
        # The C++ kernels read weights as they lie in the file; copying would only cost memory and time.
        model, mapped_bytes = load_mapped(folder)
    else:
        model, mapped_bytes = load_model(folder, device=place, dtype=dtype), 0
    return LoadedModel(
        name=name_or_path,
        model=model,
        tokenizer=find_tokenizer(folder, vocab_size=config.vocab_size),
        identity=read_identity(raw),
        sampling=read_sampling(read_json_if_any(folder / "generation_config.json")),
        mapped_bytes=mapped_bytes,
    )


class FoundModel(NamedTuple):
    """A model's config, and what is on this machine of it: nothing, for a published one that was not fetched."""

    config: ModelConfig
    folder: Path | None = None
    format: str | None = None
    num_bytes: int | None = None


def find(name_or_path: str) -> FoundModel:
    """Find a model and check its files; the configs of the published ones are built in, so they need no folder.

    Raises:
        ModelNotFoundError: the name leads to nothing on this machine.
        CheckpointError: its folder cannot be read.
    """
    from ossia.model.config import PUBLISHED

    if name_or_path in PUBLISHED and not Path(name_or_path).is_dir() and not (models_home() / name_or_path).is_dir():
        return FoundModel(PUBLISHED[name_or_path])

    from ossia.model.checkpoint.load import resolve_model
    from ossia.model.checkpoint.source import Checkpoint

    opened = Checkpoint.open(resolve_model(name_or_path))
    return FoundModel(opened.config, opened.folder, opened.layout.name, opened.files.num_bytes)


def find_tokenizer(folder: Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a model folder. OpenAI's original layout comes without one: it lies a folder up, or is o200k's.

    Raises:
        MissingFileError: there is none, and the vocabulary is not o200k_harmony.
        CorruptFileError, VocabularyError: it cannot be understood.
    """
    from ossia.harmony.hf_tokenizer import TOKENIZER_FILE, load_tokenizer
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.harmony.vocab import O200K_VOCAB_SIZE

    for place in (folder, folder.parent if folder.name == "original" else folder):
        if (place / TOKENIZER_FILE).is_file():
            return load_tokenizer(place)
    return Tokenizer.o200k_harmony() if vocab_size == O200K_VOCAB_SIZE else load_tokenizer(folder)


def is_small(config: ModelConfig) -> bool:
    """Whether the model takes little memory even in float32 with its experts unpacked."""
    from ossia.model.config import num_parameters

    return 4 * num_parameters(config) < SMALL_BYTES


def choose_device(name: str) -> Any:
    """The torch device of that name; "auto" is the first GPU, or the CPU.

    Raises:
        InvalidInputError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InvalidInputError(f"device {name!r} is not known; use cpu, cuda, cuda:1 or auto", param="device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"device {name!r} is not here: torch sees {torch.cuda.device_count()} GPUs; use --device cpu",
            param="device",
        )
    return device


def let_memory_grow() -> None:
    """Have torch map GPU memory in pages, so that what one tensor gives back fits the next of another size.

    Experts are re-laid layer by layer into tensors of other sizes. With torch's fixed segments the holes between them
    cost 16 GiB of an 80 GB card for gpt-oss-120b, which then does not fit.
    """
    import torch

    torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def read_identity(config: Mapping[str, Any]) -> Identity:
    """The identity that a model's config.json gives under `ossia`, else that of the published models."""
    from ossia.harmony.content import DEFAULT_IDENTITY, DEFAULT_KNOWLEDGE_CUTOFF

    own = config.get("ossia")
    if not isinstance(own, Mapping) or "model_identity" not in own:
        return Identity(model_identity=DEFAULT_IDENTITY, knowledge_cutoff=DEFAULT_KNOWLEDGE_CUTOFF)
    cutoff = own.get("knowledge_cutoff")
    return Identity(model_identity=str(own["model_identity"]), knowledge_cutoff=None if cutoff is None else str(cutoff))


def read_sampling(config: Mapping[str, Any]) -> SamplingDefaults:
    """What a generation_config.json says, in Transformers' words: `do_sample: false` is greedy."""
    is_greedy = config.get("do_sample") is False
    max_tokens = config.get("max_new_tokens")
    return SamplingDefaults(
        temperature=0.0 if is_greedy else float(config.get("temperature") or 1.0),
        top_p=1.0 if is_greedy else float(config.get("top_p") or 1.0),
        max_tokens=None if max_tokens is None else int(max_tokens),
    )


def read_json_if_any(path: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one if there is no file.

    Raises:
        CorruptFileError: the file holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise CorruptFileError(f"{path} cannot be read as JSON ({error}); fetch the model again") from error
    if not isinstance(value, dict):
        raise CorruptFileError(f"{path} should hold a JSON object; fetch the model again")
    return value
