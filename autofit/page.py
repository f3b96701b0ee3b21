"""The page of `autofit web` over HTTP: on this machine alone, at a secret address, the files that a build has made."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from autofit.errors import UsageError

HOST = "127.0.0.1"
IDLE_S = 30.0  #: how long a connection may say nothing
_TYPES = {
    ".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8", ".json": "application/json", ".svg": "image/svg+xml",
    ".wasm": "application/wasm", ".py": "text/plain; charset=utf-8",
}  # fmt: skip
_HEADERS = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Page:
    """Files by the path of their address; `made` are contents that are no files."""

    def __init__(self, folder: Path, made: Mapping[str, bytes]) -> None:
        found = (path for path in folder.rglob("*") if path.is_file())
        self.files = {path.relative_to(folder).as_posix(): path for path in found}
        self.made = made

    def content(self, name: str) -> bytes | None:
        """What stands at an address; `None`: nothing does."""
        if name in self.made:
            return self.made[name]
        path = self.files.get(name or "index.html")
        try:
            return None if path is None else path.read_bytes()
        except OSError:  # built anew meanwhile
            return None


class Server(ThreadingHTTPServer):
    """What listens; `secret` is the first part of each address."""

    daemon_threads = True

    def __init__(self, page: Page, port: int) -> None:
        super().__init__((HOST, port), Handler)
        self.page = page
        self.secret = secrets.token_urlsafe(16)
        self.hosts = {f"{name}:{self.server_address[1]}" for name in (HOST, "localhost")}

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/{self.secret}/"

    def handle_error(self, request: object, client_address: object) -> None:
        return None  # a browser that went away


def listen(page: Page, port: int = 0) -> Server:
    """A server for the page, which listens already.

    Raises:
        UsageError: the port is taken, or not ours to take.
    """
    try:
        return Server(page, port)
    except OSError as error:
        cause = error.strerror or str(error)
        raise UsageError(f"--port {port}: {cause}", hint="leave it out, and a free one is taken") from error


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of the page's files. A name that leads here from elsewhere is refused (DNS rebinding)."""

    server: Server
    server_version = "autofit"
    sys_version = ""
    protocol_version = "HTTP/1.1"
    timeout = IDLE_S

    def do_GET(self) -> None:
        content = self._content()
        if content is not None:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self._content()

    def _content(self) -> bytes | None:
        """The head of the answer, and what is to follow."""
        if self.headers.get("Host", "") not in self.server.hosts:
            self._head(421)
            return None
        _, _, rest = urlsplit(self.path).path.partition("/")
        secret, slash, name = rest.partition("/")
        if not secrets.compare_digest(secret.encode(), self.server.secret.encode()) or not slash:
            self._head(404)
            return None
        content = self.server.page.content(name)
        if content is None:
            self._head(404)
            return None
        suffix = Path(name or "index.html").suffix
        self._head(200, _TYPES.get(suffix, "application/octet-stream"), len(content))
        return content

    def _head(self, status: int, content_type: str = "text/plain; charset=utf-8", n_bytes: int = 0) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": str(n_bytes), **_HEADERS}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return None
