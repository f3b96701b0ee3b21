"""No test asks a server elsewhere: those that need one start their own and say so."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
