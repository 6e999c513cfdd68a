from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ossia.core.errors import CorruptFileError, MissingFileError, TensorMismatchError, UnsupportedModelError
from ossia.model.checkpoint import Checkpoint, load_model, read_config, save_checkpoint
from ossia.model.transformer import Transformer

MakeModel = Callable[..., Transformer]


@pytest.fixture(params=["hf-mxfp4", "hf-bf16", "original"])
def folder(request: pytest.FixtureRequest, make_model: MakeModel, tmp_path: Path) -> Path:
    save_checkpoint(make_model(), tmp_path / request.param, format=request.param)
    return tmp_path / request.param


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_formats_are_recognised(folder: Path, make_config: Callable[[], object]) -> None:
    assert Checkpoint.open(folder).layout.name == folder.name
    assert read_config(folder) == make_config()


def test_a_missing_folder_or_config(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    (folder / "config.json").unlink()
    with pytest.raises(MissingFileError, match=r"config\.json is missing"):
        load_model(folder)


def test_only_the_original_folder_was_fetched(make_model: MakeModel, tmp_path: Path) -> None:
    save_checkpoint(make_model(), tmp_path / "original", format="original")
    assert Checkpoint.open(tmp_path).folder == tmp_path / "original"


@pytest.mark.parametrize("name", ["hf-bf16", "hf-mxfp4"])
def test_other_models(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    save_checkpoint(make_model(), tmp_path, format=name)
    for changes, message in [
        ({"model_type": "llama"}, r"config\.json: .*'llama'.*'gpt_oss'"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"'bitsandbytes'; allowed are mxfp4"),
        ({"hidden_size": 0}, r"config\.json describes an impossible model: hidden_size"),
    ]:
        before = (tmp_path / "config.json").read_text()
        edit_config(tmp_path, **changes)
        with pytest.raises(UnsupportedModelError, match=message):
            load_model(tmp_path)
        (tmp_path / "config.json").write_text(before)


def test_a_truncated_file_is_named(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors is truncated"):
        load_model(folder)


def test_a_missing_tensor(folder: Path) -> None:
    name = sorted(load_file(folder / "model.safetensors"))[0]
    edit_tensors(folder, lambda tensors: tensors.__delitem__(name))
    with pytest.raises(TensorMismatchError, match=rf"missing tensor\(s\) '{name}'"):
        load_model(folder)


def test_an_unexpected_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update(stray=torch.zeros(3)))
    with pytest.raises(TensorMismatchError, match=r"unexpected tensor\(s\) 'stray'"):
        load_model(folder)


def test_many_wrong_tensors_are_counted(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.update({f"stray{i}": torch.zeros(1) for i in range(9)}))
    with pytest.raises(TensorMismatchError, match="and 4 more"):
        load_model(folder)


def test_a_wrong_shape(folder: Path) -> None:
    edit_config(folder, vocab_size=51)
    with pytest.raises(TensorMismatchError, match=r"embed.*has shape \[50, 64\], but .* calls for \[51, 64\]"):
        load_model(folder)


def test_a_wrong_dtype(folder: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if "embed" in name and "un" not in name)
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    edit_tensors(folder, spoil)
    with pytest.raises(TensorMismatchError, match=r"embed.*has dtype float8_e4m3fn.*allows bfloat16, float16, float32"):
        load_model(folder)


def test_floats_in_place_of_blocks(make_model: MakeModel, tmp_path: Path) -> None:
    save_checkpoint(make_model(), tmp_path, format="hf-mxfp4")
    name = "model.layers.0.mlp.experts.down_proj_scales"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: tensors[name].float()}))
    with pytest.raises(TensorMismatchError, match=rf"'{name}' has dtype float32, .*hf-mxfp4 allows uint8"):
        load_model(tmp_path)


def test_wider_floats_are_taken(make_model: MakeModel, tmp_path: Path) -> None:
    save_checkpoint(make_model(), tmp_path, format="hf-bf16")
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: t.float() for name, t in tensors.items()}))
    loaded, wanted = load_model(tmp_path).state_dict(), make_model().state_dict()
    assert all(torch.equal(loaded[name], wanted[name]) for name in wanted)
