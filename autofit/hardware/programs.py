"""Programs of this machine: where they are, and the errors of one that gives no answer."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from autofit.files import is_shim

MAX_TEXT_BYTES = 1 << 20  #: of a file or of a program's output


class ToolError(Exception):
    """A program or library that gave no answer; the text says why."""


class ToolTimeoutError(ToolError):
    """A program that had not answered when the time was over."""


def find_program(name: str, env: Mapping[str, str], platform: str = sys.platform) -> str | None:
    """The absolute path of a program: one that is given by its path, or the first of that name on `PATH`.

    Entries that are empty or relative are left out on every system, and so is the current directory, where Windows
    looks first: a file in a downloaded folder must not be started because it is called `nvidia-smi`. Shims are left out
    too: the program behind them is meant.
    """
    if os.path.basename(name) != name:  # noqa: PTH119 - somebody gave a path
        path = os.path.abspath(name)  # noqa: PTH100
        return path if os.path.isfile(path) and os.access(path, os.X_OK) else None  # noqa: PTH113
    windows = platform == "win32"
    names = [name] if not windows or name.lower().endswith((".exe", ".com")) else [f"{name}.exe", f"{name}.com"]
    for folder in env.get("PATH", "").split(";" if windows else ":"):
        folder = folder.strip('"') if windows else folder
        if not (re.match(r"[A-Za-z]:[\\/]|\\\\", folder) if windows else folder.startswith("/")):
            continue
        for each in names:
            path = os.path.join(folder, each)  # noqa: PTH118
            if os.path.isfile(path) and os.access(path, os.X_OK) and not is_shim(path):  # noqa: PTH113
                return path
    return None
