"""Answers of a server, byte for byte: lists of files and pieces of headers, sound ones that were damaged."""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest import mock

from autofit.references import find
from autofit.remote import http

from support import ggufs

HEADERS = ("Content-Length", "Content-Range", "Location", "Link", "Content-Encoding", "Transfer-Encoding", "ETag",
           "X-Linked-ETag", "Retry-After", "Content-Type", "Connection", "X-Error-Code")  # fmt: skip
VALUES = ("", "0", "-1", "5", "99999999999999999999", "gzip", "identity", "chunked", "close", "bytes 0-9/10",
          "bytes 5-1/0", "bytes */*", "bytes */0", "http://127.0.0.1:1/", "https://cdn.invalid/", "//x", "/o/r",
          "a\x1b[2J", "\x80\xff", "x" * 70_000, "NaN", "Wed, 21 Oct 2065 07:28:00 GMT", '<http://h/>; rel="next"',
          '"' + "a" * 64 + '"', "GatedRepo", "multipart/byteranges; boundary=x")  # fmt: skip
STATUSES = ("200", "206", "204", "301", "302", "304", "307", "401", "403", "404", "416", "429", "500", "503", "100",
            "99", "9999", "x")  # fmt: skip


@cache
def model() -> bytes:
    """The header of a sound model."""
    return ggufs.llama(n_vocab=300).header()


def make(rng: random.Random) -> list[str]:
    """A list of files and pieces of one of them, as a server sends them; most are damaged somewhere."""
    header, size = model(), len(model())  # a file that ends with its header: a download that has just begun
    rows: list[Any] = [{"type": "file", "path": "m-Q4_K_M.gguf", "size": size, "oid": "0" * 40}]
    if rng.random() < 0.3:
        rows[0][rng.choice(("path", "size", "oid", "type", "lfs"))] = rng.choice(
            (None, -1, 1 << 62, 1.5, "", "../x.gguf", "a\x1b.gguf", [], {"oid": 3}, "m-00001-of-00002.gguf", True)
        )
    answers = [answer("200", {"Content-Length": None}, json.dumps(rows).encode())]
    start = 0
    for end in sorted({rng.randrange(1, size), size} if rng.random() < 0.5 else {size}):
        # a part that breaks off is gone on with
        sent: dict[str, str | None] = {"Content-Length": str(size - start)}
        answers.append(answer("206", {**sent, "Content-Range": f"bytes {start}-{size - 1}/{size}"}, header[start:end]))
        start = end
    return [damage(rng, text) for text in answers]


def answer(status: str, headers: dict[str, str | None], body: bytes) -> str:
    lines = [f"HTTP/1.1 {status} OK"]
    lines += [f"{name}: {len(body) if value is None else value}" for name, value in headers.items()]
    return "\r\n".join(lines) + "\r\n\r\n" + body.decode("latin-1")


def damage(rng: random.Random, text: str) -> str:
    head, _, body = text.partition("\r\n\r\n")
    lines = head.split("\r\n")
    for _ in range(rng.choice((0, 1, 1, 2, 4))):
        what = rng.randrange(7)
        if what == 0:
            lines[0] = f"HTTP/1.1 {rng.choice(STATUSES)} {rng.choice(VALUES)}"
        elif what == 1:
            lines.append(f"{rng.choice(HEADERS)}: {rng.choice(VALUES)}")
        elif what == 2 and len(lines) > 1:
            at = rng.randrange(1, len(lines))
            lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(VALUES)}"
        elif what == 3 and len(lines) > 1:
            del lines[rng.randrange(1, len(lines))]
        elif what == 4 and body:
            at = rng.randrange(len(body))
            body = body[:at] + chr(rng.randrange(256)) + body[at + 1 :]
        elif what == 5:
            body = body[: rng.randrange(len(body) + 1)]
        else:
            body += rng.choice(("x", "\0" * 1000, "]", "[" * 5000))
    return "\r\n".join(lines) + "\r\n\r\n" + body


def run(answers: list[str]) -> None:
    """Read the repository that these answers are of."""
    server().script = [text.encode("latin-1", "replace") for text in answers]
    environ = {"HF_ENDPOINT": server().url, "PATH": os.environ.get("PATH", "")}
    # waits would be nearly all of the time
    clock = SimpleNamespace(monotonic=time.monotonic, time=time.time, sleep=lambda seconds: None)
    with mock.patch.dict(os.environ, environ, clear=True), mock.patch.object(http, "time", clock):
        found = find("hf:o/r")
    assert found.model.architecture == "llama" or found.model.tensors is not None
    assert all(note.isprintable() for note in found.files.notes)


class Server:
    """Sends whatever it is told to, one answer for each request, and closes."""

    def __init__(self) -> None:
        self.script: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                connection.settimeout(2)
                try:
                    asked = b""
                    while b"\r\n\r\n" not in asked and (part := connection.recv(1 << 16)):
                        asked += part
                    if self.script:
                        connection.sendall(self.script.pop(0))
                except OSError:
                    continue


@cache
def server() -> Server:
    return Server()
