"""The command line as users run it: real processes, pipes and model folders, on a tiny model with random weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ossia.cli.main import app
from ossia.harmony.hf_tokenizer import write_tokenizer_folder
from ossia.harmony.tokenizer import Tokenizer
from ossia.harmony.vocab import ControlToken, Vocabulary
from ossia.model.checkpoint import save_checkpoint
from ossia.model.config import ModelConfig
from ossia.model.transformer import Transformer

NUM_IDS = 288
GREEDY = ("--temperature", "0", "--max-tokens", "12")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of a token a byte: it babbles, but the same way each time."""
    folder = tmp_path_factory.mktemp("models") / "babble"
    tokenizer = Tokenizer(
        Vocabulary(
            ranks={bytes([value]): value for value in range(256)},
            specials={str(name): 256 + place for place, name in enumerate(ControlToken)},
            size=NUM_IDS,
        )
    )
    config = ModelConfig(
        vocab_size=NUM_IDS,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=16,
        max_position_embeddings=600,
        eos_token_ids=(tokenizer.return_,),
        pad_token_id=tokenizer.endoftext,
    )
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config, dtype=torch.bfloat16, device=torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    save_checkpoint(model, folder, format="hf-mxfp4")
    write_tokenizer_folder(tokenizer, folder)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    raw["ossia"] = {"model_identity": "You are Babble."}
    path.write_text(json.dumps(raw))
    return folder


def ossia(*args: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ossia.cli.main", *map(str, args)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, encoding="utf-8")


def generated(folder: Path, *args: str) -> dict[str, object]:
    """What `ossia generate` makes of a prompt, run in this process, where torch is imported already."""
    result = CliRunner().invoke(app, ["generate", str(folder), "--raw", "-p", "abc", "--json", *args])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record.pop("timing")["total_seconds"] > 0
    return record


def test_generate_is_repeatable(model_folder: Path) -> None:
    record = generated(model_folder, *GREEDY)
    assert record["tokens"] == {"prompt": 3, "completion": 12} or record["finish_reason"] == "stop"
    assert record == generated(model_folder, *GREEDY)
    sampled = generated(model_folder, "--seed", "5", "--max-tokens", "12")
    assert sampled == generated(model_folder, "--seed", "5", "--max-tokens", "12")
    assert sampled["text"] != record["text"]


def test_generation_config_is_heeded_unless_overruled(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "greedy"
    shutil.copytree(model_folder, folder)
    (folder / "generation_config.json").write_text('{"do_sample": false, "max_new_tokens": 12}')
    assert generated(folder) == generated(model_folder, *GREEDY)
    assert generated(folder, "--max-tokens", "3") == generated(model_folder, "--temperature", "0", "--max-tokens", "3")


def test_chat_through_a_pipe(model_folder: Path) -> None:
    result = ossia("chat", model_folder, *GREEDY, stdin="Hello\n")
    assert result.returncode in (0, 1), result.stderr  # random weights need not reach an answer in 12 tokens
    assert "Traceback" not in result.stderr
    assert (result.returncode == 1) == (result.stdout == "")


def test_a_question_beyond_the_context(model_folder: Path) -> None:
    result = ossia("chat", model_folder, stdin="x" * 700)
    assert (result.returncode, result.stdout) == (1, "")
    assert "at most 599 fit" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_info_of_a_folder(model_folder: Path) -> None:
    record = json.loads(ossia("info", model_folder, "--json").stdout)
    assert record["shape"]["experts"] == 4
    assert record["files_bytes"] > 0
    assert record["parameters"] > record["active_parameters"]


def test_convert_keeps_the_answers(model_folder: Path, tmp_path: Path) -> None:
    expected = generated(model_folder, *GREEDY)
    for name in ("hf-bf16", "original", "hf-mxfp4"):
        result = CliRunner().invoke(app, ["convert", str(model_folder), str(tmp_path / name), "--format", name])
        assert result.exit_code == 0, result.output
        assert generated(tmp_path / name, *GREEDY) == expected


@pytest.mark.parametrize("command", ["chat", "generate"])
def test_a_model_that_is_not_there(command: str, tmp_path: Path) -> None:
    result = ossia(command, tmp_path / "nowhere", stdin="Hello")
    assert (result.returncode, result.stdout) == (1, "")
    assert "nowhere" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_truncated_checkpoint_names_the_file(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(model_folder, folder)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    result = ossia("generate", folder, "-p", "Hello")
    assert result.returncode == 1
    assert weights.name in result.stderr
    assert "truncated" in result.stderr


def test_a_model_of_another_type(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "llama"
    shutil.copytree(model_folder, folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    result = ossia("info", folder)
    assert result.returncode == 1
    assert "llama" in result.stderr
