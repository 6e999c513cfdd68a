from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import pytest

from ossia.cli.chat.approval import Approver


def ask(approver: Approver, *names: str) -> list[bool]:
    async def work() -> list[bool]:
        return [await approver(name, {}) for name in names]

    return asyncio.run(work())


def typing(*lines: str | type[BaseException]) -> tuple[Callable[[str], str], list[str]]:
    """A reader of these lines, and the prompts that it is given."""
    left = list(lines)
    prompts: list[str] = []

    def read_line(prompt: str) -> str:
        prompts.append(prompt)
        line = left.pop(0)
        if not isinstance(line, str):
            raise line
        return line

    return read_line, prompts


@pytest.mark.parametrize(
    ("line", "is_allowed"),
    [("y", True), ("Yes ", True), ("n", False), ("", False), ("what?", False), (EOFError, False)],
)
def test_only_a_yes_allows(line: str | type[BaseException], is_allowed: bool) -> None:
    read_line, prompts = typing(line)
    assert ask(Approver(read_line=read_line), "python") == [is_allowed]
    assert "allow python?" in prompts[0]


def test_always_holds_for_that_tool() -> None:
    read_line, prompts = typing("always", "n")
    assert ask(Approver(read_line=read_line), "python", "python", "browser.open", "python") == [True, True, False, True]
    assert len(prompts) == 2


def test_ctrl_c_stops_the_whole_answer() -> None:
    read_line, _ = typing(KeyboardInterrupt)
    seen: list[bool] = []

    async def call(approver: Approver) -> None:
        seen.append(await approver("python", {}))

    async def work() -> None:
        await asyncio.create_task(call(Approver(read_line=read_line)))  # as a call of the loop: in a task of its own
        await asyncio.sleep(10)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(work())
    assert seen == [False]
    assert signal.getsignal(signal.SIGINT) is before
