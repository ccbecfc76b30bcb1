"""Builds with setuptools, and adds what lets mypy see the types in the wheel.

A module that is a single file cannot carry `py.typed`; a stub package beside it can, and a module's own text is its
fullest stub. So the wheel holds each `NAME.py` a second time as `NAME-stubs/__init__.pyi`, which nothing ever runs.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from setuptools.build_meta import *  # noqa: F403  the hooks are setuptools' own
from setuptools.command.build_py import build_py

# Each hook runs in a process of its own. What it makes on its way lies outside of the tree: there, the next build would
# pack it too, and a folder `build` hides the program of this name.
_scratch = tempfile.TemporaryDirectory(prefix="flat-rlm-build-")
_settings = Path(_scratch.name, "build.cfg")
_settings.write_text(f"[build]\nbuild_base = {_scratch.name}\n[egg_info]\negg_base = {_scratch.name}\n", "utf-8")
os.environ["DIST_EXTRA_CONFIG"] = str(_settings)


class BuildWithStubs(build_py):
    def run(self) -> None:
        super().run()
        for module in [] if self.editable_mode else self.py_modules:
            stub = Path(self.build_lib, f"{module}-stubs", "__init__.pyi")
            stub.parent.mkdir(exist_ok=True)
            stub.write_text(_with_options(Path(f"{module}.py").read_text("utf-8")), "utf-8")


def _with_options(source: str) -> str:
    """`source`, where a function that hands `**options` on to `RLM` names them: a typo is then an error to mypy."""
    init = re.search(r"^class RLM:.*?def __init__\(\s+self,(.*?),\s*\) -> None:", source, re.DOTALL | re.MULTILINE)
    if init is None:
        return source
    options = init[1].replace("*,", "")

    def named(signature: re.Match[str]) -> str:
        taken = "prompt: str," in signature[0]  # by the function's own first parameter
        own = re.sub(r"\s+prompt: [^,]+,", "", options) if taken else options
        return signature[0].replace("**options: Any", own)

    return re.sub(r"^def \w+\([^()]*?\*\*options: Any", named, source, flags=re.MULTILINE)
