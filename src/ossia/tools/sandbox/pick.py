"""Which sandbox: bubblewrap, else a container runtime, else none, and that only if it was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

from ossia.core.errors import InvalidInputError
from ossia.tools.sandbox.base import Sandbox, SandboxError
from ossia.tools.sandbox.bubblewrap import BubblewrapSandbox
from ossia.tools.sandbox.container import DEFAULT_IMAGE, ContainerSandbox
from ossia.tools.sandbox.unsafe import UnsafeSandbox

SandboxName = Literal["auto", "bubblewrap", "docker", "podman", "none"]
NAMES: tuple[SandboxName, ...] = ("auto", "bubblewrap", "docker", "podman", "none")


def pick_sandbox(name: SandboxName = "auto", *, is_unsafe_allowed: bool = False, image: str = DEFAULT_IMAGE) -> Sandbox:
    """The first sandbox that works here, tried by running something in it.

    Args:
        name: a certain one, or `auto`.
        is_unsafe_allowed: whether `none` may be taken; `auto` takes it last.
        image: for a container runtime.

    Raises:
        SandboxError: none works; says what stands in the way of each.
        InvalidInputError: an unknown name, or `none` without leave.
    """
    if name not in NAMES:
        raise InvalidInputError(f"unknown sandbox {name!r}; use {', '.join(NAMES)}", param="sandbox")
    if name == "none" and not is_unsafe_allowed:
        raise InvalidInputError(
            "without a sandbox a program can read and change all your files; say so with --unsafe-python",
            param="sandbox",
        )
    makers: dict[str, Callable[[], BubblewrapSandbox | ContainerSandbox]] = {
        "bubblewrap": BubblewrapSandbox,
        "docker": lambda: ContainerSandbox(runtime="docker", image=image),
        "podman": lambda: ContainerSandbox(runtime="podman", image=image),
    }
    tried: Iterable[str] = makers if name == "auto" else [name] if name in makers else []
    faults: list[str] = []
    for candidate in tried:
        sandbox = makers[candidate]()
        fault = sandbox.find_fault()
        if fault is None:
            return sandbox
        faults.append(fault)
    if name == "none" or (name == "auto" and is_unsafe_allowed):
        return UnsafeSandbox()
    raise SandboxError(
        f"no sandbox works here: {'; '.join(faults)}. Install bubblewrap, or run without a sandbox by --unsafe-python."
    )
