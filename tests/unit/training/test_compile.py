"""What torch.compile is given on a GPU can be traced: checked on a CPU by tracing alone, without generating code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ossia.harmony.tokenizer import Tokenizer
from ossia.training.attention import DenseRowAttention
from ossia.training.config import TrainConfig
from ossia.training.initial import build_model
from ossia.training.objective import Objective, recompute_layers
from ossia.training.sources import make_source

CPU = torch.device("cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's tracer looks at it
@pytest.mark.filterwarnings("ignore:<class 'torch.autograd.function.Function'> should not be instantiated")  # it does
@pytest.mark.parametrize("way", ["whole", "by layer", "by layer, computed again"])
def test_the_losses_are_one_graph(config: TrainConfig, tokenizer: Tokenizer, tmp_path: Path, way: str) -> None:
    """In bfloat16, so that experts go the grouped way as on a GPU; losses and gradients are those of eager torch."""
    source = make_source(config.data, tokenizer=tokenizer, identity=config.identity)
    models = [build_model(config.model, init=None, seed=0, device=CPU, precision="bfloat16") for _ in range(2)]
    eager, traced = (Objective(model, config=config.trainer.loss) for model in models)
    run = traced
    if way == "whole":
        run = torch.compile(traced, backend="eager", fullgraph=True)
    else:
        for layer in models[1].layers:
            layer.forward = torch.compile(layer.forward, backend="eager", fullgraph=True)
        if way.endswith("again"):
            recompute_layers(models[1])
    for number in range(2):
        batch = source.batch(number)
        attention = DenseRowAttention(batch.documents, window=config.model.sliding_window)
        expected, got = eager(batch, attention), run(batch, attention)
        for losses in (expected, got):
            losses.total.backward()
        assert float(got.cross_entropy) == pytest.approx(float(expected.cross_entropy), rel=5e-3)
        torch.testing.assert_close(got.loads, expected.loads, rtol=0, atol=0.05)
    for (name, one), (_, other) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        # The two ways of the experts round at 2^-8 in different places.
        assert (one.grad - other.grad).float().norm() <= 0.1 * one.grad.float().norm() + 1e-6, name
