"""A small random model with nano's tokenizer, for whatever needs a whole engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from ossia.core.paths import PACKAGE_ROOT
from ossia.engine.build import EngineConfig, build_engine
from ossia.engine.engine import Engine
from ossia.harmony.hf_tokenizer import load_tokenizer
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.config import ModelConfig, RopeConfig
from ossia.model.loading import Identity, LoadedModel, SamplingDefaults
from ossia.model.transformer import Transformer

WINDOW = 8


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(PACKAGE_ROOT / "nano")


@pytest.fixture(scope="session")
def loaded(tokenizer: Tokenizer) -> LoadedModel:
    """A random model whose logits are far apart, so that float32 rounding never decides a token."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=WINDOW,
        max_position_embeddings=256,
        rope=RopeConfig(theta=10000.0, factor=1.0),
        eos_token_ids=(tokenizer.return_,),
        pad_token_id=tokenizer.endoftext,
    )
    model = Transformer(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "norm" in name else 0.4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name))
    return LoadedModel(
        name="random",
        model=model.eval(),
        tokenizer=tokenizer,
        identity=Identity(model_identity="You are a random model.", knowledge_cutoff=None),
        sampling=SamplingDefaults(temperature=0.0, max_tokens=8),
    )


@pytest.fixture(scope="session")
def make_engine(loaded: LoadedModel) -> Callable[..., Engine]:
    """An engine over the random model, with fields of EngineConfig."""

    def make(*, has_overlap: bool = False, **fields: object) -> Engine:
        config = dataclasses.replace(EngineConfig(num_pages=256, page_size=4), **fields)  # type: ignore[arg-type]
        return build_engine(loaded, config=config, has_overlap=has_overlap)

    return make
