"""A file system without room for a byte: engines start all the same, and what needs a file says so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.fake_engines import TINY, Engines

pytestmark = pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a file system")
SERVER = ("llama-server", "-m", TINY)
LISTENS = "print('main: server is listening on http://127.0.0.1:8080', file=sys.stderr); sys.exit(5)"
_FULL = """
mount -t tmpfs -o mode=700,size=64k tmpfs "$1" && mkdir -m 700 "$1/run" || exit 77
head -c 100000 /dev/zero > "$1/fill" 2> /dev/null
for name in CACHE STATE DATA CONFIG; do export "XDG_${name}_HOME=$1/$name"; done
export XDG_RUNTIME_DIR="$1/run" HOME="$1" TMPDIR="$1"
shift
exec "$@"
"""


def on_a_full_disk(engines: Engines, *words: str) -> subprocess.CompletedProcess[str]:
    place = engines.folder / "full"
    place.mkdir()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _FULL, "full", str(place), *engines.command(*words)],
        env={**engines.environ, "FAKE_DOES": LISTENS}, cwd=engines.folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip("mounts are not allowed here")
    return done


@pytest.mark.parametrize("own", [(), ("--watch",), ("--retries", "2")])
def test_an_engine_is_started(own: tuple[str, ...], tmp_path: Path) -> None:
    engines = Engines(tmp_path)
    done = on_a_full_disk(engines, "run", *own, "--", *SERVER)
    assert done.returncode == 5 and engines.said["argv"][:2] == ["-m", TINY]
    assert "what it takes is not reserved" in done.stderr and "No space left on device" in done.stderr
    assert ("autofit: ready after" in done.stderr) is bool(own)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("run", "--", "sh", "-c", "llama-server"), ("shims", "full/shims")])
def test_what_needs_files_says_so(words: tuple[str, ...], tmp_path: Path) -> None:
    engines = Engines(tmp_path)
    done = on_a_full_disk(engines, *words)
    assert done.returncode == 2 and "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert not engines.says.exists()


def test_output_to_a_full_disk_is_the_engines_matter(tmp_path: Path) -> None:
    """Its write fails, as it would without autofit, and its end is passed on."""
    engines = Engines(tmp_path)
    does = "try:\n  [os.write(1, b'y' * 4096) for _ in range(1000)]\nexcept OSError: sys.exit(28)"
    with Path("/dev/full").open("wb") as full:
        for own in ((), ("--watch",)):
            done = subprocess.run(
                engines.command("run", "-q", *own, "--", *SERVER), env={**engines.environ, "FAKE_DOES": does},
                stdout=full, stderr=subprocess.PIPE, cwd=engines.folder, timeout=60,
            )  # fmt: skip
            assert done.returncode == 28, done.stderr
