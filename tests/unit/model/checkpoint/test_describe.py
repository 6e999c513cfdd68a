from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ossia.core.errors import ModelNotFoundError
from ossia.model.checkpoint import describe, save_checkpoint
from ossia.model.checkpoint.layout import Kind
from ossia.model.transformer import Transformer

MakeModel = Callable[..., Transformer]


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSSIA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "parameters", "packed"),
    [("openai/gpt-oss-20b", 20_914_757_184, 13_761_264_768), ("openai/gpt-oss-120b", 116_829_156_672, 65_248_815_744)],
)
def test_published_models_offline(name: str, parameters: int, packed: int) -> None:
    """The bytes are `total_size` of the index files on the hub."""
    info = describe(name)
    assert info.folder is None
    assert info.found == ()
    assert info.num_parameters == parameters == sum(info.parameters.values())
    assert sum(info.num_bytes["hf-mxfp4"].values()) == sum(info.num_bytes["original"].values()) == packed
    assert sum(info.num_bytes["hf-bf16"].values()) == 2 * parameters
    assert info.parameters[Kind.EXPERTS] > 0.9 * parameters


def test_what_a_folder_holds(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    save_checkpoint(model, tmp_path / "m", format="hf-bf16")
    save_checkpoint(model, tmp_path / "m" / "original", format="original")
    info = describe(tmp_path / "m")
    assert [(found.name, found.float_dtypes) for found in info.found] == [
        ("hf-bf16", (torch.bfloat16,)),
        ("original", (torch.bfloat16,)),
    ]
    assert [found.num_bytes for found in info.found] == [
        sum(info.num_bytes["hf-bf16"].values()),
        sum(info.num_bytes["original"].values()),
    ]
    assert info.found[0].num_bytes == sum(tensor.nbytes for tensor in model.state_dict().values())


def test_only_the_original(make_model: MakeModel, tmp_path: Path) -> None:
    save_checkpoint(make_model(), tmp_path / "m" / "original", format="original")
    assert [found.folder for found in describe(tmp_path / "m").found] == [tmp_path / "m" / "original"]


def test_sizes_that_cannot_be_packed(make_model: MakeModel, make_config: Callable[..., object], tmp_path: Path) -> None:
    save_checkpoint(make_model(make_config(hidden=20)), tmp_path / "m", format="hf-bf16")
    assert list(describe(tmp_path / "m").num_bytes) == ["hf-bf16"]


def test_unknown_models() -> None:
    with pytest.raises(ModelNotFoundError, match="ossia pull"):
        describe("openai/gpt-oss-999b")
