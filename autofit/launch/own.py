"""How autofit starts itself again: as a module of this Python, or as the archive that it came in."""

from __future__ import annotations

import sys

ARCHIVE = "autofit_archive"  #: the module that puts an archive's packages on Python's path (`tools/archive/`)


def archive() -> str | None:
    """The file of the archive that this process came out of."""
    return getattr(sys.modules.get(ARCHIVE), "PATH", None)


def own_command() -> tuple[str, ...]:
    """The words in front of autofit's own; `-P`: modules of the current directory are not ours."""
    found = archive()
    return (sys.executable, "-P", *(("-m", "autofit") if found is None else (found,)))


def own_import() -> str:
    """Python that makes `import autofit` work in another process of this interpreter; empty: it does by itself."""
    found = archive()
    return "" if found is None else f"sys.path.insert(0, {found!r}); import {ARCHIVE}; {ARCHIVE}.add()"
