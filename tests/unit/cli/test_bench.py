from __future__ import annotations

import json
from typing import Any

import pytest


def test_random_weights_need_no_files(run: Any) -> None:
    result = run("bench", "nano", "--random-weights", "--batch", "1,2", "--prompt", "4", "--output", "4", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["random_weights"] is True
    assert [row["num_seqs"] for row in record["rows"]] == [1, 2]
    assert {"hardware", "torch"} <= set(record["environment"])


def test_a_table_for_people(run: Any) -> None:
    result = run("bench", "--batch", "1", "--prompt", "4", "--output", "4", "--prompts", "8")
    assert result.exit_code == 0, result.output
    for part in ("1 decode", "prompt 8", "tokens/s"):
        assert part in result.stdout


@pytest.mark.parametrize(("option", "value"), [("--batch", "1,x"), ("--prompts", "-3"), ("--batch", "0")])
def test_what_is_no_number_is_refused(run: Any, option: str, value: str) -> None:
    result = run("bench", option, value)
    assert result.exit_code == 1
    assert "allowed" in result.output or "whole numbers" in result.output
