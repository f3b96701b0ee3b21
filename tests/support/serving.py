"""A real llama-server, started with a command and asked for a completion."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.dryrun import engine_folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(argv: Sequence[str], log: Path) -> Iterator[str]:
    folder = engine_folder()
    assert folder is not None
    port = argv[argv.index("--port") + 1]
    with (
        log.open("w") as out,
        subprocess.Popen([str(folder / argv[0]), *argv[1:]], stdout=out, stderr=out) as server,
    ):
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def complete(address: str, log: Path) -> int:
    """Tokens of one completion, once the server is up."""
    body = json.dumps({"prompt": "hello", "n_predict": 4, "ignore_eos": True}).encode()
    until = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                break
        except OSError:
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
    with urllib.request.urlopen(f"{address}/completion", data=body, timeout=120) as answer:
        return int(json.loads(answer.read())["tokens_predicted"])
