"""The page in a real Chromium: its size, the time to the first answer, and from a slider's move to other bars.

    python bench/web.py [--moves 20]

Needs what `tests/web` needs: `npm ci --prefix web`, and a Chromium. A machine that is busy is slow.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=20)
    moves = parser.parse_args().moves
    chromium = os.environ.get("AUTOFIT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium: install one, or name it in AUTOFIT_CHROMIUM", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "dist"
        build = [sys.executable, str(ROOT / "tools" / "build_web.py"), "--out", str(page)]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        files = [path for path in page.rglob("*") if path.is_file()]
        plain = sum(path.stat().st_size for path in files)
        packed = sum(len(gzip.compress(path.read_bytes(), 6)) for path in files)
        print(f"{len(files)} files, {plain:,} bytes, {packed:,} packed by gzip; load {os.getloadavg()[0]:.1f}")
        with served(page) as url:
            job = {"url": url, "chromium": chromium, "modules": str(ROOT / "web" / "node_modules"), "moves": moves}
            driver = ["node", str(ROOT / "bench" / "web.mjs")]
            done = subprocess.run(driver, input=json.dumps(job), text=True, check=True, stdout=subprocess.PIPE)
    for name, found in json.loads(done.stdout).items():
        took = sorted(found["slider_ms"])
        print(f"{name}: first answer {found['cold_ms']:,.0f} ms from an empty cache, {found['warm_ms']:,.0f} ms again")
        print(
            f"  slider to bars: median {statistics.median(took):.0f} ms of {len(took)}, {took[0]:.0f} to {took[-1]:.0f}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
