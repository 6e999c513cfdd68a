"""All tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ossia.tasks.arithmetic import Add, Compare, Subtract
from ossia.tasks.base import Task
from ossia.tasks.chat import Decline, SmallTalk
from ossia.tasks.letters import CountLetters, ReverseWord, SpellWord

TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            CountLetters(),
            SpellWord(),
            ReverseWord(),
            Add(),
            Subtract(),
            Compare(),
            SmallTalk("greet"),
            SmallTalk("identity"),
            Decline(),
        )
    }
)
