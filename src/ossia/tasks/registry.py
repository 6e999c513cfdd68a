"""All tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ossia.tasks.arithmetic import Add, Compare, Subtract
from ossia.tasks.base import Task
from ossia.tasks.chat import Decline, SmallTalk
from ossia.tasks.dates import Dates
from ossia.tasks.letters import CountLetters, ReverseWord, SpellWord
from ossia.tasks.products import Divide, Multiply
from ossia.tasks.units import ConvertUnits

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
            Multiply(),
            Divide(),
            ConvertUnits(),
            Dates(),
            SmallTalk("greet"),
            SmallTalk("identity"),
            Decline(),
        )
    }
)
