"""Every rule that changed from build to build is known to what says of which of them a build is unsure."""

from __future__ import annotations

import pkgutil
from importlib import import_module

import autofit_llama
from autofit_llama.engine.versions import Change
from autofit_llama.memory.changes import changes_for
from autofit_llama.model.family_index import FAMILIES

FOLDERS = ("engine", "families", "graph", "memory", "model")


def test_no_change_is_left_out() -> None:
    written = set[str]()
    for _, name, _ in pkgutil.walk_packages(autofit_llama.__path__, "autofit_llama."):
        if name.split(".")[1] in FOLDERS:
            written |= {each.name for each in vars(import_module(name)).values() if isinstance(each, Change)}
    assert written == {each.name for arch in FAMILIES for each in changes_for(arch)}
    assert "" not in written


def test_a_change_has_two_builds_in_order() -> None:
    for arch in FAMILIES:
        assert all(each.without < each.has for each in changes_for(arch))
