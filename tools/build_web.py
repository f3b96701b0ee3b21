"""Build the page of `web/` into one folder that any static host serves: `python tools/build_web.py [--out DIR]`.

The page is the files of `web/` as they are, Pyodide, and wheels: this source's own, and those of what a plan imports.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WEB = ROOT / "web"
DIST = WEB / "dist"
PAGE = ("index.html", "style.css", "icon.svg", "planner.py")
RUNTIME = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip")
DEPENDENCIES = ("pluggy", "tomlkit")  #: of the base install, and pure
PURE_PARTS = {"PyYAML": "yaml/"}  #: and one that works without its compiled part, for which there is no wheel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DIST, help="where to (default: web/dist)")
    out: Path = parser.parse_args().out
    modules = WEB / "node_modules"
    if not (modules / "pyodide").is_dir():
        print("web/node_modules is not there: run npm ci --prefix web, or just web", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=out.parent if out.parent.is_dir() else None) as folder:
        made = Path(folder) / "dist"
        build(made, modules / "pyodide")
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(made, out)
    for path in sorted(files_of(out), key=lambda path: -path.stat().st_size)[:6]:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(out)}")
    print(f"{sum(path.stat().st_size for path in files_of(out)):>12,}  bytes in all: {out}")
    return 0


def build(out: Path, pyodide: Path) -> None:
    """Everything into `out`."""
    shutil.copytree(WEB / "src", out / "src")
    for name in PAGE:
        shutil.copy2(WEB / name, out / name)
    (out / "runtime").mkdir()
    for name in RUNTIME:
        shutil.copyfile(pyodide / name, out / "runtime" / name)
    lock = json.loads((pyodide / "pyodide-lock.json").read_text(encoding="utf-8"))
    (out / "runtime" / "pyodide-lock.json").write_text(json.dumps({**lock, "packages": {}}), encoding="utf-8")
    wheels = out / "wheels"
    wheels.mkdir()
    own_wheel(wheels)
    pinned = [f"{name}=={version(name)}" for name in DEPENDENCIES]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(wheels)]
    subprocess.run([*command, *pinned], check=True, stdout=subprocess.DEVNULL)
    for name, folder in PURE_PARTS.items():
        pure_wheel(name, folder, wheels)
    (out / "facts.json").write_text(json.dumps(facts(), separators=(",", ":")), encoding="utf-8")
    listed = {str(path.relative_to(out)): path.stat().st_size for path in sorted(files_of(out))}
    digest = hashlib.sha256()
    for name in listed:
        digest.update(name.encode() + b"\0" + (out / name).read_bytes())
    build_id = digest.hexdigest()[:12]
    (out / "files.json").write_text(json.dumps({"build": build_id, "files": listed}, indent=1), encoding="utf-8")
    worker = (WEB / "offline.js").read_text(encoding="utf-8")
    (out / "offline.js").write_text(worker.replace("BUILD_ID", build_id), encoding="utf-8")


def own_wheel(folder: Path) -> None:
    """The wheel of this source, without the page itself."""
    from hatchling.builders.wheel import WheelBuilder

    os.environ["AUTOFIT_WITHOUT_PAGE"] = "1"
    try:
        list(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"]))
    finally:
        del os.environ["AUTOFIT_WITHOUT_PAGE"]


def pure_wheel(name: str, folder: str, wheels: Path) -> None:
    """A wheel of the modules of an installed package that are Python, and of what says its version."""
    found = distribution(name)
    kept = [path for path in found.files or () if str(path).startswith(folder) and path.suffix == ".py"]
    about = f"{name.lower()}-{found.version}.dist-info/METADATA"
    with zipfile.ZipFile(wheels / f"{name.lower()}-{found.version}-py3-none-any.whl", "w") as wheel:
        for path in sorted(kept):
            wheel.writestr(zipfile.ZipInfo(str(path)), Path(str(path.locate())).read_bytes(), zipfile.ZIP_DEFLATED)
        wheel.writestr(zipfile.ZipInfo(about), found.read_text("METADATA") or "", zipfile.ZIP_DEFLATED)


def facts() -> dict[str, Any]:
    """What forms are made of, so that the page shows them before Python has been loaded."""
    spec = importlib.util.spec_from_file_location("planner", WEB / "planner.py")
    assert spec is not None and spec.loader is not None
    planner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(planner)
    os.environ["AUTOFIT_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # plugins of whoever builds it
    os.environ["AUTOFIT_PROFILES"] = os.devnull  # and their profiles
    found: dict[str, Any] = planner.facts({})
    return found


def files_of(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    raise SystemExit(main())
