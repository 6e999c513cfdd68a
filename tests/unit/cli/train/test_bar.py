from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from ossia.cli.train.bar import describe


@dataclass
class Report:
    step: int = 1200
    loss: float = 1.25
    tokens_per_second: float = 1_300_000.0
    max_load: float = 1.1
    mfu: float | None = None
    skipped: int = 0


def test_a_report_is_a_line() -> None:
    line = describe(cast("Any", Report()), 0.25)
    assert line == " 25%  step 1,200  loss 1.2500  1,300,000 tokens/s  busiest expert 1.10 x even"


def test_what_is_known_of_the_device_and_what_was_left_out_are_told() -> None:
    line = describe(cast("Any", Report(mfu=0.354, skipped=2)), 1.0)
    assert "1,300,000 tokens/s (35.4% MFU)" in line
    assert line.endswith("2 steps left out")
