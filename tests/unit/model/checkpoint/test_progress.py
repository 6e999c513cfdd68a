from __future__ import annotations

import pytest

from ossia.model.checkpoint.progress import progress_bar


def test_nothing_is_shown_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("converting") as progress:
        progress(1, 2)
        progress(2, 2)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_the_description(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("converting") as progress:
        progress(1, 2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "converting" in err
