from __future__ import annotations

from pathlib import Path
from typing import Any

from ossia.harmony.hf_tokenizer import load_tokenizer

RECIPE = """
name = "small"
[model]
vocab_size = 1600
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
num_local_experts = 2
num_experts_per_tok = 1
sliding_window = 16
max_position_embeddings = 256
[identity]
model_identity = "You are small."
[data.mix]
greet = 1.0
"""


def test_a_vocabulary_is_chosen_once(run: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    given = ("train", "vocabulary", "--recipe", str(recipe), "--out", str(tmp_path / "run"), "--examples", "50")
    result = run(*given)
    assert result.exit_code == 0, result.output
    assert "1,600 tokens" in result.stdout
    path = tmp_path / "run" / "tokenizer" / "tokenizer.json"
    written = path.stat().st_mtime_ns
    assert load_tokenizer(path.parent).vocab_size == 1600
    assert run(*given).exit_code == 0
    assert path.stat().st_mtime_ns == written


def test_a_model_to_begin_with_keeps_its_own(run: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "more.toml"
    recipe.write_text('name = "more"\ninit = "nano"\n[data.mix]\ngreet = 1.0\n')
    result = run("train", "vocabulary", "--recipe", str(recipe), "--out", str(tmp_path / "run"))
    assert result.exit_code == 1
    assert "keeps its tokenizer" in result.output


def test_a_vocabulary_of_the_first_tokens(run: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    given = ("train", "vocabulary", "--recipe", str(recipe), "--examples", "50")
    for by in ("frequency", "rank"):
        assert run(*given, "--out", str(tmp_path / by), "--by", by).exit_code == 0
    by_use, first = (load_tokenizer(tmp_path / by / "tokenizer").vocabulary for by in ("frequency", "rank"))
    assert first.size == by_use.size == 1600
    assert max(first.o200k_ids[: 1600 - 16]) <= max(by_use.o200k_ids[: 1600 - 16])
    assert first.ranks != by_use.ranks
