"""From a trained run to a model folder that anyone can load: MXFP4 experts, config, tokenizer, chat template, card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia.core.errors import StorageError
from ossia.harmony.chat_template import nano_chat_template
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint import save_checkpoint
from ossia.model.checkpoint.load import read_config, resolve_model
from ossia.model.loading import read_json_if_any
from ossia.model.transformer import Transformer
from ossia.tasks.registry import TASKS
from ossia.training.config import TrainConfig

_WEIGHT_FILES = (".safetensors", ".safetensors.index.json", ".bin", ".pt")
MAX_NEW_TOKENS = 1024
"""Small models may loop; the tasks that they are taught need far fewer tokens."""


def package_model(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    config: TrainConfig,
    tokenizer: Tokenizer,
    format: str = "hf-mxfp4",  # noqa: A002 - as `save_checkpoint` calls it
) -> None:
    """Write trained weights as a Hugging Face folder with MXFP4 experts and all else in bfloat16.

    Args:
        weights: float32 weights by parameter name.
        folder: where to; what was there is replaced once everything is written.
        config: the run, for the model's shape and identity.
        tokenizer: the model's tokenizer.
        format: "hf-bf16" leaves the experts unpacked, to see what packing costs.
    """
    model = Transformer(config.model, dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    save_checkpoint(model, folder, format=format)
    identity = config.identity
    template = nano_chat_template(identity.model_identity, knowledge_cutoff=identity.knowledge_cutoff)
    write_tokenizer_folder(tokenizer, folder, chat_template=template)
    about = {
        "name": config.name,
        "model_identity": identity.model_identity,
        "knowledge_cutoff": identity.knowledge_cutoff,
        "tasks": {name: weight for name, weight in config.data.mix.items() if name in TASKS},
    }
    _add_to_json(folder / "config.json", {"ossia": about})
    _add_to_json(folder / "generation_config.json", {"do_sample": False, "max_new_tokens": MAX_NEW_TOKENS})


def repackage_model(weights: Mapping[str, Tensor], folder: Path, *, init: str, name: str) -> None:
    """Write trained weights as `package_model` does, with tokenizer, template and defaults of another model's folder.

    Args:
        weights: float32 weights by parameter name.
        folder: where to; what was there is replaced once everything is written.
        init: the model that the run began with.
        name: of the new model, for `ossia info`.

    Raises:
        StorageError: it could not be written.
        ModelNotFoundError: `init` is gone.
    """
    source = resolve_model(init)
    model = Transformer(read_config(source), dtype=torch.float32, device=torch.device("cpu"))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(weights[parameter_name])
    save_checkpoint(model, folder, format="hf-mxfp4")
    try:
        for path in source.iterdir():
            if path.is_file() and path.name != "config.json" and not path.name.endswith(_WEIGHT_FILES):
                shutil.copyfile(path, folder / path.name)
        about = read_json_if_any(source / "config.json").get("ossia")
        _add_to_json(folder / "config.json", {"ossia": {**(about or {}), "name": name}})
    except OSError as error:
        raise StorageError(f"cannot write the model to {folder} ({error}); free some space and run again") from error


def _add_to_json(path: Path, values: Mapping[str, object]) -> None:
    """Add keys to a JSON object in a file."""
    raw = json.loads(path.read_text(encoding="utf-8")) | dict(values)
    path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def read_taught_tasks(config: Mapping[str, Any]) -> dict[str, float]:
    """The tasks that a model was taught and how often, as `package_model` wrote them; all alike if it says none.

    Args:
        config: of its config.json.
    """
    about = config.get("ossia")
    tasks = about.get("tasks") if isinstance(about, Mapping) else None
    found = {name: float(weight) for name, weight in tasks.items() if name in TASKS} if isinstance(tasks, dict) else {}
    return found or dict.fromkeys(TASKS, 1.0)
