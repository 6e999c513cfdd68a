from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.unit.training.training_helpers import make_trainer

from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.attention import PackedAttention
from ossia.model.checkpoint import load_model
from ossia.model.transformer import Transformer
from ossia.tasks.registry import TASKS
from ossia.training.config import TrainConfig
from ossia.training.package import package_model, read_taught_tasks
from ossia.training.trainer import Trainer


@pytest.fixture(scope="module")
def trained(config: TrainConfig, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    folder = tmp_path_factory.mktemp("run")
    trainer = make_trainer(config, tokenizer, folder)
    trainer.train()
    package_model(trainer.master_weights(), folder / "model", config=config, tokenizer=tokenizer)
    return trainer


def test_the_folder_loads(trained: Trainer, tokenizer: Tokenizer) -> None:
    folder: Path = trained.folder / "model"
    model = load_model(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert model.config == trained.model.config
    read = load_tokenizer(folder)
    assert read.vocab_size == tokenizer.vocab_size
    text = 'Spell "berry".'
    assert read.encode(text) == tokenizer.encode(text)
    assert read.return_ == tokenizer.return_
    assert model.config.eos_token_ids == (read.return_, read.call, read.endoftext)


def test_what_is_not_packed_is_the_masters_in_bfloat16(trained: Trainer) -> None:
    model = load_model(trained.folder / "model", device=torch.device("cpu"), dtype=torch.float32)
    loaded = dict(model.named_parameters())
    masters = trained.master_weights()
    plain = [name for name in loaded if not name.endswith((".gate_up", ".down"))]
    assert len(plain) > 20
    for name in plain:
        assert torch.equal(loaded[name].detach(), masters[name].bfloat16().float()), name


def test_experts_can_be_left_unpacked(
    trained: Trainer, config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    masters = trained.master_weights()
    package_model(masters, tmp_path / "dense", config=config, tokenizer=tokenizer, format="hf-bf16")
    loaded = dict(load_model(tmp_path / "dense", dtype=torch.float32).named_parameters())
    for name, weight in loaded.items():
        assert torch.equal(weight.detach(), masters[name].bfloat16().float()), name


def test_the_packaged_model_predicts_as_the_trained_one(trained: Trainer, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("How do you spell banana?")
    packaged = load_model(trained.folder / "model", device=torch.device("cpu"), dtype=torch.float32)

    def probabilities(model: Transformer) -> torch.Tensor:
        with torch.no_grad():
            positions = torch.arange(len(ids))
            hidden = model(torch.tensor(ids), positions=positions, attention=PackedAttention([0, len(ids)]))
            return torch.softmax(model.logits(hidden), dim=-1)

    # MXFP4 rounds an expert's weights by up to a sixth; total variation stays small beside that of a random model.
    distance = (probabilities(packaged) - probabilities(trained.model)).abs().sum(-1) / 2
    assert float(distance.mean()) < 0.1


def test_the_folder_says_who_the_model_is(trained: Trainer, config: TrainConfig) -> None:
    folder = trained.folder / "model"
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    identity = config.identity
    assert raw["ossia"] == {
        "name": "tiny",
        "model_identity": identity.model_identity,
        "knowledge_cutoff": identity.knowledge_cutoff,
        "tasks": dict(config.data.mix),
    }
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    assert identity.model_identity in template


def test_what_a_model_was_taught_is_told(trained: Trainer, config: TrainConfig) -> None:
    about = json.loads((trained.folder / "model" / "config.json").read_text())
    assert read_taught_tasks(about) == dict(config.data.mix) == {"spell": 0.5, "greet": 0.5}
    assert read_taught_tasks({"ossia": {"tasks": {"gone": 1.0}}}) == read_taught_tasks({}) == dict.fromkeys(TASKS, 1.0)
