"""One message of an engine: what finds it in a line, and what is noted of it."""

from __future__ import annotations

import re
from collections.abc import Callable

from autofit.domain.values import NamedTuple
from autofit.logs.notes import Notes


class Message(NamedTuple):
    """One message of an engine. `needle` is in every line that has it; `pattern` finds it, wherever it begins.

    `source` cites the engine's code that prints it.
    """

    needle: str
    pattern: str
    note: Callable[[Notes, re.Match[str]], None]
    source: str
