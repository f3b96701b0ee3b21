"""Regular expressions that are compiled when they are used: a command uses few of those that its modules have."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, AnyStr

if TYPE_CHECKING:

    def lazy_pattern(expression: AnyStr, flags: int = 0) -> re.Pattern[AnyStr]: ...

else:

    class lazy_pattern:
        """`re.compile(expression, flags)`, at its first use."""

        def __init__(self, expression: str | bytes, flags: int = 0) -> None:
            self._said = (expression, flags)

        def __getattr__(self, name: str) -> Any:
            found = getattr(re.compile(*self._said), name)
            setattr(self, name, found)
            return found
