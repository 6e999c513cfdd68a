from __future__ import annotations

from pathlib import Path

import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint.load import load_model
from ossia.training.config import TrainConfig, load_recipe
from ossia.training.initial import build_model
from ossia.training.package import package_model
from ossia.training.run import train
from ossia.training.vocabulary import prepare_tokenizer

CPU = torch.device("cpu")


def test_a_seed_gives_the_same_random_weights(config: TrainConfig) -> None:
    one, same, other = (build_model(config.model, init=None, seed=seed, device=CPU) for seed in (1, 1, 2))
    weights = [dict(model.named_parameters()) for model in (one, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["lm_head.weight"], weights[2]["lm_head.weight"])


def test_a_run_begins_with_the_dequantised_weights_and_the_tokenizer_of_a_model(
    config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """A run of one step at a rate of nothing gives the model that it began with."""
    model = build_model(config.model, init=None, seed=3, device=CPU)
    package_model(dict(model.named_parameters()), tmp_path / "start", config=config, tokenizer=tokenizer)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'init = "{tmp_path / "start"}"\n[data]\nsequence_length = 64\nrows = 1\nmix = {{spell = 1}}\n')
    again = load_recipe(
        str(recipe), overrides={"run.steps": 1, "optimizer.muon_lr": 1e-30, "optimizer.adamw_lr": 1e-30}
    )
    assert again.model == config.model
    assert again.identity == config.identity
    assert prepare_tokenizer(again, tmp_path / "run").encode("Spell plum.") == tokenizer.encode("Spell plum.")
    folder = train(again, tmp_path / "run", device=CPU)
    before, after = (load_model(path, dtype=torch.float32) for path in (tmp_path / "start", folder))
    weights = dict(before.named_parameters())
    # Zeros move by the rate.
    assert all(torch.allclose(weights[name], p, rtol=0, atol=1e-29) for name, p in after.named_parameters())
    started = build_model(again.model, init=again.init, seed=0, device=CPU)
    assert all(torch.equal(weights[name], parameter) for name, parameter in started.named_parameters())
    assert started.embed_tokens.weight.requires_grad
