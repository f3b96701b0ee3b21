"""Build autofit.pyz: one file that runs wherever Python 3.11 or newer is, with all that autofit needs.

    python tools/archive/build.py [OUTPUT]        dist/autofit.pyz unless another name is given

The packages are those of a wheel of this tree and of the declared dependencies, without compiled extensions: the file
runs on every machine, and made twice of the same packages it has the same bytes.
"""

from __future__ import annotations

import hashlib
import stat
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START = Path(__file__).with_name("autofit_archive.py")
MAIN = "import autofit_archive\n\nraise SystemExit(autofit_archive.main())\n"
SHEBANG = b"#!/usr/bin/env python3\n"
_DATE = (2020, 1, 1, 0, 0, 0)
_COMPILED = (".so", ".pyd", ".dylib", ".pyc")
_LEFT_OUT = ("bin", "share", "__pycache__")


def build(output: Path) -> Path:
    """Write the archive.

    Raises:
        CalledProcessError: pip failed, and has said why.
    """
    with tempfile.TemporaryDirectory() as place:
        site = Path(place) / "site"
        offline = ["--no-build-isolation"] if find_spec("hatchling") else []
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", *offline, "--target", str(site), str(ROOT)]
        subprocess.run(pip, check=True)
        return pack(site, output)


def pack(site: Path, output: Path) -> Path:
    """Write the archive of a folder of packages."""
    files = {f"site/{name}": (site / name).read_bytes() for name in _names(site)}
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name}\0{len(data)}\0".encode() + data)
    files |= {"__main__.py": MAIN.encode(), START.name: START.read_bytes(), "BUILD": digest.hexdigest()[:32].encode()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as file:
        file.write(SHEBANG)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in sorted(files.items()):
                archive.writestr(_entry(name), data)
    output.chmod(output.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return output


def _names(site: Path) -> list[str]:
    """Every file that Python needs of the packages."""
    paths = (path.relative_to(site) for path in site.rglob("*") if path.is_file())
    return [
        path.as_posix()
        for path in paths
        if path.suffix not in _COMPILED and not set(path.parts) & set(_LEFT_OUT) and path.name != "RECORD"
    ]


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


if __name__ == "__main__":
    print(build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist/autofit.pyz"))
