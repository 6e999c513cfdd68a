"""An exponential moving average of the weights (Polyak averaging): less noise than the last step's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ossia.training.parallel import own_part
from ossia.training.trainer_config import AverageConfig


class WeightAverage:
    """Follows the float32 masters: a <- decay * a + (1 - decay) * w after each step.

    Until `config.start` of the run it is the masters themselves, so that it does not remember the beginning.

    Attributes:
        state: the averages by "average.parameter name", as a checkpoint keeps them.
    """

    def __init__(self, masters: Mapping[str, Tensor], *, config: AverageConfig) -> None:
        self.config = config
        self._masters = dict(masters)
        self.state = {f"average.{name}": master.clone() for name, master in masters.items()}

    @torch.no_grad()
    def update(self, progress: float) -> None:
        """Take in the masters as they are, at this share of the run."""
        averages = [own_part(average) for average in self.state.values()]
        masters = [own_part(master) for master in self._masters.values()]
        rest = 1 - self.config.decay if progress > self.config.start else 1.0
        if averages:
            torch._foreach_lerp_(averages, masters, rest)  # pyright: ignore[reportPrivateImportUsage]

    def weights(self) -> dict[str, Tensor]:
        """The averages by parameter name, not copied."""
        return {name.removeprefix("average."): tensor for name, tensor in self.state.items()}
