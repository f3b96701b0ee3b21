"""No test asks a server elsewhere: those that need one start their own and say so.

Of a test with many cases the default run may have some: `@pytest.mark.slow_but("a*")` marks all cases as `slow` but
those whose id is like one of the patterns, `@pytest.mark.slow_cases("a*")` marks those alone.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
# The models that tests share are some million objects, which a collection of all generations looks through again.
gc.set_threshold(50_000, 20, 100)

# A shell without job control lets what it starts in the background ignore these, and so would the programs that tests
# start and send them to.
for _name in ("SIGHUP", "SIGINT", "SIGQUIT"):
    _number = getattr(signal, _name, None)
    if _number is not None and signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _name == "SIGINT" else signal.SIG_DFL)

# The same examples in each run, so that a change is judged by what it changes; HYPOTHESIS_PROFILE=default draws others.
settings.register_profile("same", deadline=None, derandomize=True)
if not os.environ.get("HYPOTHESIS_PROFILE"):
    settings.load_profile("same")


def is_slow(item: pytest.Item) -> bool | None:
    """Whether a mark makes this case one of the long tail; `None`: no mark says anything of cases."""
    for name in ("slow_but", "slow_cases"):
        mark = item.get_closest_marker(name)
        if mark is not None:
            case = item.callspec.id  # type: ignore[attr-defined]
            return any(fnmatchcase(case, pattern) for pattern in mark.args) == (name == "slow_cases")
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Before cases are chosen by `-m`. A pattern that no case is like any more is an error, not a test less."""
    cases: dict[str, Counter[bool]] = {}
    for item in items:
        slow = is_slow(item)
        if slow is not None:
            cases.setdefault(item.nodeid.partition("[")[0], Counter())[slow] += 1
            if slow:
                item.add_marker("slow")
    one_sided = [name for name, found in cases.items() if len(found) == 1 < found.total()]
    if one_sided and not any("::" in word for word in config.args):
        raise pytest.UsageError(f"slow_but and slow_cases choose all cases, or none: {', '.join(one_sided)}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file is one worker's: the plans and headers that its tests share are made once, not by each worker."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getvalue("dist") == "load" else None
