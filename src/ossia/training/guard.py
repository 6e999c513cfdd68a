"""The guard against loss spikes and numbers that are none: a step whose loss leaps up has no say.

The rule: let m be the median of the last `window` losses that counted, and d the median of their distances from m. A
step is left out if its loss or its gradient's norm is not finite, or if at least `warmup` losses are known and its loss
exceeds m + max(spread * d, margin * m). A step left out counts as a gradient of zero, and its loss is not remembered.
After `max_skipped` such steps in a row the run stops: then the weights are to blame, not a batch.

All of it is computed on the device, so that the host need not wait for the loss of a step before it starts the next.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ossia.core.errors import TrainingError
from ossia.training.trainer_config import GuardConfig


class SpikeGuard:
    """Remembers losses and judges steps.

    Attributes:
        state: what a checkpoint keeps: the losses that counted, newest last, [window] float32; and [3] int64, how many
            are known, how many steps were left out in a row, and how many in all.
    """

    def __init__(self, config: GuardConfig, *, device: torch.device) -> None:
        self.config = config
        self._last = torch.zeros((), device=device)
        self.state: dict[str, Tensor] = {
            "guard.losses": torch.zeros(config.window, dtype=torch.float32, device=device),
            "guard.counts": torch.zeros(3, dtype=torch.int64, device=device),
        }

    @torch.no_grad()
    def judge(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether a step may count, bool scalar on the device; remembers its loss if so."""
        losses, counts = self.state["guard.losses"], self.state["guard.counts"]
        known, in_a_row, skipped = counts.unbind()
        place = torch.arange(len(losses), device=losses.device)
        is_known = place >= len(losses) - known  # the newest stand at the end
        middle = _median(losses, is_known)
        spread = _median((losses - middle).abs(), is_known)
        bound = middle + torch.maximum(self.config.spread * spread, self.config.margin * middle)
        is_spike = (known >= self.config.warmup) & (loss > bound)
        self._last = loss
        keep = loss.isfinite() & norm.isfinite() & ~is_spike
        losses.copy_(torch.where(keep, torch.cat((losses[1:], loss.float().reshape(1))), losses))
        is_left_out = (~keep).long()
        known = (known + keep.long()).clamp(max=len(losses))
        counts.copy_(torch.stack((known, (in_a_row + 1) * is_left_out, skipped + is_left_out)))
        return keep

    @property
    def last_loss(self) -> float:
        """The last loss that was judged. Waits for the device."""
        return float(self._last)

    @property
    def num_skipped(self) -> int:
        """Steps left out so far. Waits for the device."""
        return int(self.state["guard.counts"][2])

    @property
    def num_skipped_in_a_row(self) -> int:
        """Steps left out since the last that counted. Waits for the device."""
        return int(self.state["guard.counts"][1])

    def check(self, *, step: int, loss: float, folder: object) -> None:
        """Stop a run that no longer learns. Waits for the device.

        Raises:
            TrainingError: too many steps were left out in a row.
        """
        in_a_row = self.num_skipped_in_a_row
        if in_a_row >= self.config.max_skipped:
            raise TrainingError(
                f"step {step}: {in_a_row} steps in a row were left out, the last with a loss of {loss:.4g}; lower "
                "optimizer.muon_lr or adamw_lr, or raise guard.spread, and run again: it resumes from the last "
                f"checkpoint in {folder}"
            )


def _median(values: Tensor, is_known: Tensor) -> Tensor:
    """The lower median of those that are known, a scalar; of none, infinity."""
    ordered = torch.where(is_known, values, float("inf")).sort().values
    return ordered[((is_known.sum() - 1).clamp(min=0) // 2)]
