from __future__ import annotations

import pytest
from hypothesis import settings

from ossia.tasks.chat import load_chat
from ossia.tasks.words import load_words

# A task reads its lists at its first problem, which is slow once; no test here asserts a time.
settings.register_profile("tasks", settings.get_profile("default"), deadline=None)


@pytest.fixture(autouse=True, scope="session")
def _lists() -> None:
    load_words()
    load_chat()


@pytest.fixture(autouse=True, scope="package")
def _no_deadline():
    before = settings.get_current_profile_name()
    settings.load_profile("tasks")
    yield
    settings.load_profile(before)
