"""Hatchling's hook that puts the page of `autofit web` into a wheel, if `web/dist` holds that of this version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class PageHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        page = Path(self.root) / "web" / "dist"
        if version == "editable" or os.environ.get("AUTOFIT_WITHOUT_PAGE") or not (page / "files.json").is_file():
            return
        facts = json.loads((page / "facts.json").read_text(encoding="utf-8"))
        if facts["version"] == self.metadata.version:
            build_data["force_include"][str(page)] = "autofit/_web"
