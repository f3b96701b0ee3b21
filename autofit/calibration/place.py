"""Where the database of measured starts is: all that a plan looks at where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from autofit.files import data_home

VARIABLE = "AUTOFIT_CALIBRATION"  #: the file's path, or `off`


def place(environ: Mapping[str, str]) -> Path | None:
    """Where the database is, or would be; `None`: nowhere, or it is turned off."""
    stated = environ.get(VARIABLE, "")
    if stated:
        return None if stated in {"off", "0"} else Path(stated)
    home = data_home(environ)
    return None if home is None else home / "autofit" / "calibration.sqlite3"
