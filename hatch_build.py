"""The wheel's build hook: compiles the CPU kernels where there is a C++ compiler, and goes on without where not.

A wheel with the library inside is tagged for its platform; one without is for any. An editable install leaves the
library beside the sources. `OSSIA_NATIVE=0` in the environment builds without.
"""

from __future__ import annotations

import importlib.util
import os
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = Path("src/ossia/kernels/_native")


class NativeBuildHook(BuildHookInterface):
    """Runs before the files of a wheel are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the library packed."""
        if self.target_name != "wheel" or os.environ.get("OSSIA_NATIVE") == "0":
            return
        builder = load_builder(Path(self.root) / FOLDER / "build.py")
        result = builder.build(Path(self.root) / FOLDER)
        if result.library is None:
            self.app.display_warning(f"the CPU kernels were not built, torch will run instead: {result.reason}")
            return
        build_data["artifacts"].append(f"/{FOLDER.as_posix()}/{builder.LIBRARY_NAME}")
        if version != "editable":
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"


def load_builder(path: Path) -> ModuleType:
    """The module that compiles, without importing the package, which needs torch."""
    spec = importlib.util.spec_from_file_location("ossia_native_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
