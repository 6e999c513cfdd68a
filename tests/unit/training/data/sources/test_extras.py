from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ossia.core.errors import MissingExtraError
from ossia.training.data.corpus.build import build
from ossia.training.data.filters.personal import PersonalDataScrubber
from ossia.training.data.sources.extras import need
from ossia.training.data.sources.manifest import parse_manifest


def test_a_module_that_is_there() -> None:
    assert need("json.decoder").JSONDecoder


@pytest.mark.parametrize(
    ("hidden", "package", "extra"), [("phonenumbers", "phonenumbers", "data"), ("stdnum.luhn", "python-stdnum", "data")]
)
def test_what_is_missing_is_named_with_its_extra(
    hidden: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(MissingExtraError, match=rf"'{package}'.*ossia\[{extra}\]"):
        PersonalDataScrubber(kinds=["phone", "card"])


def test_ray_has_an_extra_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "a.txt").write_text("text")
    source = {"name": "a", "path": "a.txt", "license": "x", "origin": "y"}
    with pytest.raises(MissingExtraError, match=r"ossia\[ray\]"):
        build(parse_manifest({"sources": [source]}, folder=tmp_path), tmp_path / "out", engine="ray")


def test_an_error_within_a_package_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_package.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        need("broken_package")
