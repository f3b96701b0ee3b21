"""No test asks a server elsewhere: those that need one start their own and say so."""

from __future__ import annotations

import gc
import os

os.environ["HF_HUB_OFFLINE"] = "1"
# The models that tests share are some million objects, which a collection of all generations looks through again.
gc.set_threshold(50_000, 20, 100)
