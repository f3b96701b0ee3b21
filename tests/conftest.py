"""No test asks a server elsewhere: those that need one start their own and say so."""

from __future__ import annotations

import gc
import os
import signal

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
