"""A server that behaves like the Hub and its storage (lists, redirects, ranges, tokens), or as it is told to."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

STEP_BYTES = 1 << 18  #: written at once
COMMIT = "0123456789abcdef0123456789abcdef01234567"


PAGES_MAY_READ = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Authorization, Range",
    "Access-Control-Expose-Headers": "X-Repo-Commit, X-Error-Code, ETag, Link, Content-Range",
}


class Content(NamedTuple):
    """A file: its first bytes, and zeros up to its size."""

    head: bytes
    size: int

    def part(self, start: int, end: int) -> bytes:
        data = self.head[start:end]
        return data + bytes(min(end, self.size) - start - len(data))

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.head + str(self.size).encode()).hexdigest()


@dataclass
class Request:
    path: str
    range: str | None
    authorization: str | None
    sent_bytes: int = 0


Behavior = Callable[["Handler"], bool]  #: answers instead; false: go on as usual


@dataclass
class Hub:
    """Repositories (`ORG/NAME` or `ORG/NAME@REVISION`) and plain files (by path); what was asked for."""

    repositories: dict[str, Mapping[str, Content]] = field(default_factory=dict)
    plain: dict[str, Content] = field(default_factory=dict)
    documents: dict[str, bytes] = field(default_factory=dict)  #: by path
    token: str | None = None  #: needed for repositories
    delay_s: float = 0.0  #: before each answer
    storage: str | None = None  #: where large files are: another server
    page: int = 1000
    lets_pages_read: bool = False  #: of other sites, as the Hub does (CORS)
    behaviors: list[tuple[str, Behavior]] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""

    @property
    def sent_bytes(self) -> int:
        return sum(request.sent_bytes for request in self.requests)

    def when(self, pattern: str, behavior: Behavior) -> None:
        """Answer requests whose path matches otherwise."""
        self.behaviors.append((pattern, behavior))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_OPTIONS(self) -> None:
        """What a browser asks before it sends a token."""
        self.request_seen = Request(self.path, None, None)
        self.reply(200 if self.hub.lets_pages_read else 405, b"")

    def do_GET(self) -> None:
        hub = self.hub
        self.request_seen = Request(self.path, self.headers.get("Range"), self.headers.get("Authorization"))
        with hub.lock:
            hub.requests.append(self.request_seen)
        try:
            if hub.delay_s:
                time.sleep(hub.delay_s)
            if not any(re.search(pattern, self.path) and behavior(self) for pattern, behavior in hub.behaviors):
                self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        if path in hub.documents:
            return self.reply(200, hub.documents[path], {"Content-Type": "application/json"})
        if path.lstrip("/") in hub.plain:
            return self.file(hub.plain[path.lstrip("/")])
        if hub.token and self.headers.get("Authorization") != f"Bearer {hub.token}":
            return self.reply(401, b"Invalid credentials", {"X-Error-Code": "RepoNotFound"})
        quoted = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", quoted):
            return self.tree(*map(unquote, match.groups()))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/refs", quoted):
            names = [
                each.partition("@")[2] or "main" for each in hub.repositories if each.partition("@")[0] == match[1]
            ]
            refs = {"branches": [{"name": each, "targetCommit": COMMIT} for each in names]}
            return self.reply(200 if names else 404, json.dumps(refs).encode())
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", quoted):
            return self.resolve(*map(unquote, match.groups()))
        return self.reply(404, b"not found", {"X-Error-Code": "RepoNotFound"})

    def files(self, repository: str, revision: str) -> Mapping[str, Content] | None:
        name = repository if revision in ("main", COMMIT) else f"{repository}@{revision}"
        return self.hub.repositories.get(name)

    def tree(self, repository: str, revision: str) -> None:
        files = self.files(repository, revision)
        if files is None:
            known = repository in self.hub.repositories
            code = "RevisionNotFound" if known else "RepoNotFound"
            return self.reply(404, b"", {"X-Error-Code": code})
        rows: list[dict[str, Any]] = [{"type": "directory", "path": "x", "oid": "0" * 40, "size": 0}]
        for path, content in sorted(files.items()):
            row: dict[str, Any] = {"type": "file", "path": path, "size": content.size, "oid": content.oid[:40]}
            if is_large(path):
                row["lfs"] = {"oid": content.oid, "size": content.size, "pointerSize": 134}
            rows.append(row)
        query = urlsplit(self.path).query
        match = re.search(r"cursor=(\d+)", query)
        at = int(match[1]) if match else 0
        headers = {"Content-Type": "application/json"}
        if at + self.hub.page < len(rows):
            following = f"{self.hub.url}{urlsplit(self.path).path}?recursive=true&cursor={at + self.hub.page}"
            headers["Link"] = f'<{following}>; rel="next"'
        return self.reply(200, json.dumps(rows[at : at + self.hub.page]).encode(), headers)

    def resolve(self, repository: str, revision: str, path: str) -> None:
        files = self.files(repository, revision)
        if files is None or path not in files:
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = files[path]
        if not is_large(path):
            return self.file(content, {"X-Repo-Commit": COMMIT, "ETag": f'"{content.oid[:40]}"'})
        storage = self.hub.storage or self.hub.url
        headers = {
            "Location": f"{storage}/xet/{content.oid}?X-Signature=secret",
            "X-Linked-ETag": f'"{content.oid}"',
            "X-Linked-Size": str(content.size),
            "X-Repo-Commit": COMMIT,
        }
        with self.hub.lock:
            self.hub.plain[f"xet/{content.oid}"] = content
        return self.reply(302, b"Found. Redirecting", headers)

    def file(self, content: Content, extra: Mapping[str, str] | None = None) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if match is None:
            return self.reply(200, content.part(0, content.size), extra)
        start, end = int(match[1]), min(int(match[2]) + 1, content.size)
        if start >= content.size:
            return self.reply(416, b"", {"Content-Range": f"bytes */{content.size}"})
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{content.size}", "ETag": f'"{content.oid[:32]}"'}
        headers |= extra or {}
        return self.reply(206, content.part(start, end), headers)

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        given = dict(headers or {})
        given.setdefault("Content-Length", str(len(body)))
        if self.hub.lets_pages_read:
            given |= PAGES_MAY_READ
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for at in range(0, len(body), STEP_BYTES):  # a client may go away before the end
                part = body[at : at + STEP_BYTES]
                self.request_seen.sent_bytes += len(part)
                self.wfile.write(part)


def is_large(path: str) -> bool:
    """Whether the Hub keeps a file in its storage, behind a redirect."""
    return path.endswith((".gguf", ".safetensors"))


class Listener(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that does not like the certificate


@contextmanager
def serve(hub: Hub | None = None, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Hub]:
    """A hub that listens at `hub.url`."""
    hub = hub or Hub()
    server = Listener((host, 0), type("Bound", (Handler,), {"hub": hub}))
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    hub.url = f"http://{host}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def content_of(path: Any) -> Content:
    """A sparse file of tests as a file of the server: its first 16 MiB, and its size."""
    with open(path, "rb") as file:  # noqa: PTH123
        head = file.read(1 << 24).rstrip(b"\0")
    return Content(head, path.stat().st_size)
