from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ossia.core.errors import CorruptFileError, MissingFileError, TensorMismatchError
from ossia.model.checkpoint.reader import INDEX_NAME, TensorFiles, read_header, read_json

TENSORS = {
    "a": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
    "b": torch.arange(5, dtype=torch.uint8),
    "scalar": torch.tensor(2.5),
    "none": torch.empty(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_reads_what_safetensors_wrote(file: Path) -> None:
    files = TensorFiles.open(file.parent)
    assert files.infos.keys() == TENSORS.keys()
    for name, wanted in TENSORS.items():
        got = files.get(name)
        assert got.dtype == wanted.dtype
        assert torch.equal(got, wanted)
    view = files.get("a")
    files.release()
    files.close()
    assert torch.equal(view, TENSORS["a"])


@given(cut=st.integers(min_value=1))
def test_any_truncation_is_noticed(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_file(TENSORS, folder / "whole")
    content = (folder / "whole").read_bytes()
    path = folder / "model.safetensors"
    path.write_bytes(content[: -(1 + cut % len(content))])
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        read_header(path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{not json", b"", "unreadable"),
        (b"[]", b"", "not a JSON object"),
        ({"x": {"dtype": "F32"}}, b"", "'x' is malformed"),
        ({"x": entry("F32", [-1], 0, 4)}, b"1234", "'x' is malformed"),
        ({"x": entry("F32", [2], 0, 4)}, b"1234", "should take 8 bytes"),
        ({"x": entry("U8", [2], 0, 2), "y": entry("U8", [2], 1, 3)}, b"123", "'y' begins at byte"),
        ({"x": entry("U8", [2], 0, 2)}, b"123", "longer than its header says"),
    ],
)
def test_contradictory_headers(tmp_path: Path, header: Any, data: bytes, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        read_header(write(tmp_path / "model.safetensors", header, data))


def test_unknown_dtypes_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "model.safetensors", {"x": entry("F4", [2], 0, 1)}, b"1")
    with pytest.raises(TensorMismatchError, match=r"'x' has dtype F4.*BF16"):
        read_header(path)


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    data = b"\x09" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    header = {"x": entry("U8", [1], 0, 1), "y": entry("F32", [2], 1, 9)}
    text = json.dumps(header).encode()
    write(tmp_path / "model.safetensors", text + b" " * (-len(text) % 8), data)
    assert TensorFiles.open(tmp_path).get("y").tolist() == [1.5, -2.0]


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(MissingFileError, match=r"two\.safetensors is missing, though"):
        TensorFiles.open(tmp_path)
    partial = tmp_path / ".cache" / "huggingface" / "download"
    partial.mkdir(parents=True)
    (partial / "abc.incomplete").touch()
    with pytest.raises(MissingFileError, match=r"two\.safetensors is missing: its download was interrupted"):
        TensorFiles.open(tmp_path)


def test_a_half_download_in_the_hub_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "123"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    (tmp_path / "models--a--b" / "blobs" / "f.incomplete").touch()
    with pytest.raises(MissingFileError, match=r"half-finished.*pull"):
        TensorFiles.open(snapshot)


def test_an_index_that_lies(tmp_path: Path) -> None:
    save_file({"a": TENSORS["a"]}, tmp_path / "one.safetensors")
    for content, error, message in [
        ({"weight_map": {"b": "one.safetensors"}}, TensorMismatchError, "'b' is missing"),
        ({"weight_map": {"a": "../one.safetensors"}}, CorruptFileError, "not a plain file name"),
        ({"weight_map": ["a"]}, CorruptFileError, "weight_map"),
        ([1], CorruptFileError, "expected an object"),
    ]:
        (tmp_path / INDEX_NAME).write_text(json.dumps(content))
        with pytest.raises(error, match=message):
            TensorFiles.open(tmp_path)


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": TENSORS["a"]}, tmp_path / f"{name}.safetensors")
    with pytest.raises(TensorMismatchError, match=r"'a' is in both .*one\.safetensors and .*two\.safetensors"):
        TensorFiles.open(tmp_path)


def test_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no \*\.safetensors"):
        TensorFiles.open(tmp_path)
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(MissingFileError, match=r"pytorch_model\.bin only.*pickles.*save_pretrained"):
        TensorFiles.open(tmp_path)


def test_json_files(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b'{"a": \xff')
    with pytest.raises(CorruptFileError, match=r"x\.json is not JSON"):
        read_json(tmp_path / "x.json")
