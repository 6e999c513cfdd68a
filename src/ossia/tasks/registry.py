"""All tasks by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ossia.tasks.arithmetic import Add, Compare, Subtract
from ossia.tasks.base import Task
from ossia.tasks.chat import Decline, SmallTalk
from ossia.tasks.dates import Dates
from ossia.tasks.define import Define
from ossia.tasks.functions import FunctionCalls
from ossia.tasks.hierarchy import Hierarchy
from ossia.tasks.letters import CountLetters, ReverseWord, SpellWord
from ossia.tasks.products import Divide, Multiply
from ossia.tasks.python_math import PythonMath
from ossia.tasks.refusal import Refusal
from ossia.tasks.structured import StructuredOutput
from ossia.tasks.units import ConvertUnits
from ossia.tasks.word_problems import WordProblems

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
            WordProblems(),
            PythonMath(),
            FunctionCalls(),
            StructuredOutput(),
            Refusal(),
            Hierarchy(),
            SmallTalk("greet"),
            SmallTalk("identity"),
            SmallTalk("conversation"),
            Decline(),
            Define(),
        )
    }
)
