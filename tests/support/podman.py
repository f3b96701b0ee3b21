"""A real podman (`.ci/podman.sh`), and an image by the name of llama.cpp's whose server says what reached it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from support.fake_engines import write_program

PODMAN = os.environ.get("AUTOFIT_PODMAN", "")
needs_podman = pytest.mark.skipif(not PODMAN, reason="needs AUTOFIT_PODMAN, of .ci/podman.sh")
BASE = "docker.io/library/python:3.13-slim"  #: which `.ci/podman.sh` leaves
IMAGE = "ghcr.io/ggml-org/llama.cpp:server-b11311"
#: prints its arguments; with $ANSWER ends with that code, after it has read its input; else waits for a signal
ENGINE = """\
#!/usr/local/bin/python3
import json, os, signal, sys, time
def ended(number, frame):  # perhaps in the middle of a print
    os.write(1, f"got {signal.Signals(number).name}\\n".encode())
    os._exit(40 + number)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, ended)
held = bytearray(int(os.environ.get("HOLD_MIB", "0")) << 20)
print(json.dumps({"argv": sys.argv[1:], "tty": os.isatty(0) and os.isatty(1)}), flush=True)
if "ANSWER" in os.environ:
    print(sys.stdin.read().upper())
    sys.exit(int(os.environ["ANSWER"]))
time.sleep(60)
"""


def build_engine(folder: Path) -> None:
    """The image, made of that program in an empty folder."""
    write_program(folder / "engine", ENGINE)
    lines = (f"FROM {BASE}", "COPY engine /app/llama-server", "WORKDIR /app", 'ENTRYPOINT ["/app/llama-server"]')
    (folder / "Containerfile").write_text("\n".join(lines))
    done = subprocess.run(
        [PODMAN, "build", "-q", "-t", IMAGE, str(folder)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
