"""A real llama-server, started with a command and asked for a completion."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support import TINY
from support.dryrun import engine_folder

AUTOFIT = [sys.executable, "-P", "-m", "autofit"]
SERVER = ("llama-server", "-m", str(TINY), "--host", "127.0.0.1", "--port", "PORT")


class Place:
    """Where autofit finds a real llama-server, and what it needs besides."""

    def __init__(self, folder: Path) -> None:
        (folder / "runtime").mkdir(mode=0o700)
        self.folder = folder
        self.environ = {
            "PATH": f"{engine_folder()}:/usr/bin:/bin",
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "runtime"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    @contextmanager
    def started(self, *words: str, around: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
        """autofit with these words, behind those of `around`; the address of its server, and its log."""
        port = str(free_port())
        log = self.folder / f"log-{port}"
        words = tuple(word.replace("PORT", port) for word in words)
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*around, *AUTOFIT, *words], env=self.environ, stdout=out, stderr=out, cwd=self.folder
            )
        try:
            yield process, f"http://127.0.0.1:{port}", log
        finally:
            process.kill()
            process.wait()


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


def complete(address: str, log: Path, seconds: float = 120) -> int:
    """Tokens of one completion, once the server is up."""
    body = json.dumps({"prompt": "hello", "n_predict": 4, "ignore_eos": True}).encode()
    until = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                break
        except OSError:
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
    with urllib.request.urlopen(f"{address}/completion", data=body, timeout=120) as answer:
        return int(json.loads(answer.read())["tokens_predicted"])
