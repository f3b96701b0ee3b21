"""Encrypted connections, directly and through a proxy, and the line of progress."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from autofit.errors import RemoteError
from autofit.remote import progress
from autofit.remote.http import Client

from support.hub_server import Content, Hub, serve

FILE = Content(b"0123456789", 1000)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture
def secure(certificate: Path) -> Iterator[Hub]:
    """A server that speaks TLS, known as localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with serve(Hub(plain={"f": FILE}), tls=context) as hub:
        yield hub


def test_a_certificate_is_asked_for(secure: Hub, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autofit.remote.http.time.sleep", lambda seconds: None)
    url = secure.url.replace("http://127.0.0.1", "https://localhost")
    client = Client(environ={"REQUESTS_CA_BUNDLE": str(certificate / "cert.pem")})
    found = client.piece(f"{url}/f", 0, 10, authorization="Bearer hf_secret")
    assert (found.data, secure.requests[-1].authorization) == (FILE.head, "Bearer hf_secret")
    secure.when("/down", lambda handler: bool(handler.reply(302, b"", {"Location": "http://localhost:1/f"})) or True)
    with pytest.raises(RemoteError, match="from https to http"):
        client.piece(f"{url}/down", 0, 10)
    client.close()
    with pytest.raises(RemoteError, match="no secure connection"):
        Client(environ={}).piece(f"{url}/f", 0, 10)


def test_a_proxy_opens_a_tunnel_and_sees_no_token(
    secure: Hub, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))
    to = ("127.0.0.1", int(secure.url.rpartition(":")[2]))

    def tunnel() -> None:
        near, _ = listener.accept()
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(1 << 16)
        asked.append(head)
        with near, socket.create_connection(to) as far:
            near.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=pump, args=(far, near), daemon=True).start()
            pump(near, far)

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass

    threading.Thread(target=tunnel, daemon=True).start()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://me:pass@127.0.0.1:{listener.getsockname()[1]}")
    client = Client(environ={"REQUESTS_CA_BUNDLE": str(certificate / "cert.pem")})
    url = secure.url.replace("http://127.0.0.1", "https://localhost")
    assert client.piece(f"{url}/f", 0, 10, authorization="Bearer hf_secret").data == FILE.head
    client.close()
    listener.close()
    assert asked[0].startswith(b"CONNECT localhost:") and b"Proxy-Authorization: Basic" in asked[0]
    assert b"hf_secret" not in asked[0]


class Terminal:
    def __init__(self, is_terminal: bool) -> None:
        self.text, self.is_terminal = "", is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        return None


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_for_a_terminal(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr(progress, "DELAY_S", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal(is_terminal))
    bar = progress.Progress("o/r")
    bar.add(2_500_000)
    bar.done()
    assert ("o/r: 2.5 MB read" in terminal.text) == is_terminal
    assert terminal.text.endswith("\r\x1b[K" if is_terminal else "")
    quiet = progress.Progress("o/r", is_wanted=False)
    quiet.add(1)
    assert terminal.text.count("MB") == is_terminal
