"""HTTP with the standard library: pieces of files and small documents, bounded in time, bytes and redirects."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import RemoteError
from autofit.remote.answers import Piece, claimed, pause_of, refusal
from autofit.remote.policy import Origin, is_public, may_have_secret, origin_of, redirected, shown

TIMEOUT_S = 10.0  #: of one step: a connection, or a wait for more bytes
PATIENCE_S = 30.0  #: for everything that one client does, from its first request on, and beside that
PATIENT_BYTES_PER_S = 1 << 14  #: a second for so many bytes: a slow line is waited for, a server that drips is not
DEADLINE_S = 300.0  #: for all of it
MAX_REDIRECTS = 5
MAX_TRIES = 3  #: of a request that fails for a reason that may pass
MAX_WAIT_S = 10.0  #: for a server that asks for a pause
_CHUNK_BYTES = 1 << 15
_REDIRECTS = (301, 302, 303, 307, 308)
_PASSING = (429, 500, 502, 503, 504)

_Failure = (OSError, http.client.HTTPException)


class _Answer(NamedTuple):
    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection
    url: str
    linked_etag: str | None  #: of the file that a redirect led away from


class Client:
    """Connections of one task: a model's headers. Safe for several threads."""

    def __init__(
        self,
        *,
        progress: Callable[[int], None] | None = None,
        done: Callable[[], None] | None = None,
        patience_s: float = PATIENCE_S,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.n_requests = 0
        self.n_bytes = 0
        self._progress = progress
        self._done = done
        self._patience_s = patience_s
        self._environ = environ
        self._started: float | None = None
        self._n_bytes_before = 0
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = {}
        self._open: dict[http.client.HTTPConnection, list[socket.socket]] = {}
        self._context: ssl.SSLContext | None = None
        self._timer: threading.Timer | None = None

    def close(self) -> None:
        """End all connections."""
        with self._lock:
            timer, self._timer, self._started = self._timer, None, None
            idle = [one for several in self._idle.values() for one in several]
            self._idle.clear()
        if timer is not None:
            timer.cancel()
        for connection in idle:
            self._drop(connection)
        if self._done is not None:
            self._done()

    def abort(self) -> None:
        """End what is on its way: it fails at once."""
        with self._lock:
            self._started = float("-inf")
        self._shut()

    # -- what is asked for ------------------------------------------------------------------------------------

    def piece(
        self,
        url: str,
        start: int,
        n_bytes: int,
        *,
        authorization: str | None = None,
        total_bytes: int | None = None,
        at: str | None = None,
    ) -> Piece:
        """`n_bytes` of a file from `start` on, fewer where it ends.

        `total_bytes` is its size, where that is known; `at` is where redirects from `url` have led before.

        Raises:
            RemoteError: no answer, or one that is not what was asked for. ModelNotFoundError: there is no such file.
        """
        parts: list[bytes] = []
        have, piece = 0, None
        for left in reversed(range(MAX_TRIES)):
            piece = self._part(url, at or url, start + have, n_bytes - have, authorization, total_bytes)
            parts.append(piece.data)
            have += len(piece.data)
            if have >= min(n_bytes, max(piece.total_bytes - start, 0)):
                return piece._replace(data=b"".join(parts))
            if not left:
                break
        raise RemoteError(f"{shown(url)}: the connection broke off {MAX_TRIES} times", hint="try again later")

    def document(
        self,
        url: str,
        limit_bytes: int,
        *,
        authorization: str | None = None,
        accept: str = "application/json",
        label: str | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """A whole small document and its headers. `label` is what an error calls it, where that is not its address.

        Raises:
            RemoteError, ModelNotFoundError: as `piece`, or it is longer than `limit_bytes`.
        """
        answer = self._ask(url, url, {"Accept": accept, "Accept-Encoding": "gzip"}, authorization, (200,), label)
        response = answer.response
        data = self._body(answer, limit_bytes + 1)
        if response.getheader("Content-Encoding", "identity").lower() == "gzip":
            data = _unpacked(data, limit_bytes + 1, url)
        if len(data) > limit_bytes:
            raise RemoteError(f"{shown(url)}: the answer has more than {limit_bytes} bytes, which is no list of files")
        return data, {name.lower(): value for name, value in response.getheaders()}

    # -- one request ------------------------------------------------------------------------------------------

    def _part(
        self, url: str, at: str, start: int, n_bytes: int, authorization: str | None, total_bytes: int | None
    ) -> Piece:
        headers = {"Range": f"bytes={start}-{start + n_bytes - 1}", "Accept-Encoding": "identity"}
        answer = self._ask(url, at, headers, authorization, (200, 206, 416))
        response = answer.response
        try:
            length, total = claimed(response, start, n_bytes, url)
            if total_bytes is not None and total != total_bytes:
                raise RemoteError(
                    f"{shown(url)}: has {total} bytes, its listing says {total_bytes}",
                    hint="the repository may have changed meanwhile: try again",
                )
        except RemoteError:
            self._drop(answer.connection, answer.response)
            raise
        data = self._body(answer, length) if length else self._nothing(answer)
        return Piece(data, total, answer.url, response.getheader("ETag"), answer.linked_etag)

    def _ask(
        self,
        url: str,
        at: str,
        headers: dict[str, str],
        authorization: str | None,
        wanted: tuple[int, ...],
        label: str | None = None,
    ) -> _Answer:
        """The answer to a request, redirects followed, tried again where that may help."""
        tries = 0
        while True:
            tries += 1
            try:
                answer = self._follow(url, at, headers, authorization)
            except _Failure as error:
                self._check_time(url)
                if tries >= MAX_TRIES or isinstance(error, socket.gaierror):  # a name without an address stays so
                    raise self._no_answer(label or shown(url), at, error) from error
                self._pause(0.3 * tries, url)
                continue
            status = answer.response.status
            if status in wanted:
                return answer
            asked = pause_of(answer.response)
            self._drop(answer.connection, answer.response)
            if status in _PASSING and tries < MAX_TRIES and asked is not None and asked <= MAX_WAIT_S:
                self._pause(asked or 0.3 * tries, url)
                continue
            raise refusal(label or shown(url), answer.response, asked, has_token=authorization is not None)

    def _no_answer(self, what: str, at: str, error: Exception) -> RemoteError:
        """The error for a request that came to no answer; a proxy is the one that gave none."""
        proxy = self._proxy(origin_of(at))
        if proxy is None or _is_from_behind(error):
            return RemoteError(
                f"{what}: no answer: {_words(error)}", hint="check the network; HF_HUB_OFFLINE=1 asks nobody"
            )
        where = printable(urlsplit(proxy).netloc.rpartition("@")[2], 80)
        return RemoteError(
            f"{what}: no answer from the proxy {where}: {_words(error)}",
            hint="check HTTPS_PROXY and HTTP_PROXY, or name the host in NO_PROXY",
        )

    def _follow(self, url: str, at: str, headers: dict[str, str], authorization: str | None) -> _Answer:
        named, url = origin_of(url), at
        etag = None
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._send(url, named, headers, authorization)
            response = answer.response
            if response.status not in _REDIRECTS:
                return answer._replace(linked_etag=etag)
            etag = etag or response.getheader("X-Linked-ETag")
            location = response.getheader("Location") or ""
            self._nothing(answer)
            url = redirected(url, location, named)
        raise RemoteError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects")

    def _send(self, url: str, named: Origin, headers: dict[str, str], authorization: str | None) -> _Answer:
        origin, parts = origin_of(url), urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {**headers, "User-Agent": "autofit"}
        if authorization is not None and may_have_secret(origin, named):
            sent["Authorization"] = authorization
        proxy = self._proxy(origin)
        if proxy is not None and origin.scheme == "http":
            path, sent = url, {**sent, **_proxy_headers(proxy)}
        for reused in (True, False):
            self._check_time(url)
            connection = self._take(origin) if reused else None
            if reused and connection is None:
                continue
            if connection is None:
                connection = self._connect(origin, is_named=origin.host == named.host, proxy=proxy)
            with self._lock:
                self.n_requests += 1
            try:
                connection.request("GET", path, headers=sent)
                return _Answer(connection.getresponse(), connection, url, None)
            except BaseException as error:
                self._drop(connection)
                # a kept connection may have been ended by the server: that is no failure
                if not (reused and isinstance(error, _Failure)):
                    raise
        raise AssertionError("unreachable")

    # -- bodies -----------------------------------------------------------------------------------------------

    def _body(self, answer: _Answer, n_bytes: int) -> bytes:
        """Up to `n_bytes` of a body; what there is, where the connection breaks off."""
        try:
            data = self._read(answer, n_bytes)
        except BaseException:
            answer.response.close()
            self._drop(answer.connection)
            raise
        self._finish(answer)
        return data

    def _read(self, answer: _Answer, n_bytes: int) -> bytes:
        parts: list[bytes] = []
        have = 0
        try:
            while have < n_bytes:
                self._check_time(answer.url)
                part = answer.response.read(min(_CHUNK_BYTES, n_bytes - have))
                if not part:
                    break
                parts.append(part)
                have += len(part)
                self._count(len(part))
        except http.client.IncompleteRead as error:
            parts.append(error.partial)
            self._count(len(error.partial))
        except _Failure:
            self._check_time(answer.url)
        return b"".join(parts)

    def _nothing(self, answer: _Answer) -> bytes:
        """Pass over a short body, so that the connection can serve again."""
        length = answer.response.length
        if length is not None and length <= _CHUNK_BYTES:
            with suppress(*_Failure):
                answer.response.read()
        self._finish(answer)
        return b""

    def _finish(self, answer: _Answer) -> None:
        """Keep the connection for another request if all of the answer was read."""
        origin = origin_of(answer.url)
        if answer.response.isclosed() and not answer.response.will_close and answer.connection.sock is not None:
            with self._lock:
                self._idle.setdefault(origin, []).append(answer.connection)
        else:
            self._drop(answer.connection, answer.response)

    def _count(self, n_bytes: int) -> None:
        with self._lock:
            self.n_bytes += n_bytes
        if self._progress is not None:
            self._progress(n_bytes)

    # -- connections ------------------------------------------------------------------------------------------

    def _take(self, origin: Origin) -> http.client.HTTPConnection | None:
        with self._lock:
            kept = self._idle.get(origin)
            return kept.pop() if kept else None

    def _connect(self, origin: Origin, *, is_named: bool, proxy: str | None) -> http.client.HTTPConnection:
        to = origin if proxy is None else origin_of(_without_user(proxy))
        connection: http.client.HTTPConnection
        if origin.scheme == "https":
            connection = http.client.HTTPSConnection(to.host, to.port, timeout=TIMEOUT_S, context=self._tls())
            if proxy is not None:
                connection.set_tunnel(origin.host, origin.port, headers=_proxy_headers(proxy))
        else:
            connection = http.client.HTTPConnection(to.host, to.port, timeout=TIMEOUT_S)

        def dial(address: tuple[str, int], timeout: float, source: object = None) -> socket.socket:
            made = _dial(address, timeout, anywhere=is_named or proxy is not None)
            self._open[connection].append(made)
            return made

        connection._create_connection = dial  # type: ignore[attr-defined]
        with self._lock:
            self._open[connection] = []
            if self._started is None:
                self._started, self._n_bytes_before = time.monotonic(), self.n_bytes
                self._wait(self._patience_s)
        return connection

    def _tls(self) -> ssl.SSLContext:
        with self._lock:
            if self._context is None:
                self._context = ssl.create_default_context(cafile=self._environ.get("REQUESTS_CA_BUNDLE") or None)
            return self._context

    def _proxy(self, origin: Origin) -> str | None:
        if proxy_bypass(origin.host):
            return None
        found = getproxies()
        proxy = found.get(origin.scheme) or found.get("all")
        if proxy is None:
            return None
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        if not proxy.startswith("http://"):
            raise RemoteError(
                f"a proxy of {printable(proxy.partition(':')[0], 20)}, which autofit does not speak",
                hint="name one of http in HTTPS_PROXY, or the host in NO_PROXY",
            )
        return proxy

    def _drop(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse | None = None) -> None:
        with self._lock:
            dialed = self._open.pop(connection, [])
        connection.close()
        if response is not None:
            response.close()  # it holds the socket alone where the server ends the connection
        for made in dialed:
            if made.fileno() >= 0:  # an answer of a proxy that was refused holds it still
                os.close(made.detach())

    # -- time -------------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        """Look after so many seconds whether time is up. With the lock."""
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True
        self._timer.start()

    def _expire(self) -> None:
        """Whatever is waited for ends when time is up: a server that sends a byte now and then would go on for ever."""
        with self._lock:
            left = self._left_s()
            if left is None:
                return
            if left > 0:
                self._wait(left)
                return
            idle = [one for several in self._idle.values() for one in several]
            is_waiting = len(idle) < len(self._open)
            if not is_waiting:  # what comes next has time of its own
                self._idle.clear()
                self._started = self._timer = None
        if is_waiting:
            self._shut()
            return
        for connection in idle:
            self._drop(connection)

    def _shut(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            if connection.sock is not None:
                with suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _left_s(self) -> float | None:
        """Seconds until time is up; `None` while nothing was asked for."""
        if self._started is None:
            return None
        earned = (self.n_bytes - self._n_bytes_before) / PATIENT_BYTES_PER_S
        return self._started + min(self._patience_s + earned, DEADLINE_S) - time.monotonic()

    def _check_time(self, url: str) -> None:
        left, started = self._left_s(), self._started
        if left is not None and started is not None and left <= 0:
            n_bytes, passed = self.n_bytes - self._n_bytes_before, time.monotonic() - started
            raise RemoteError(
                f"{shown(url)}: too slow: {n_bytes} bytes came in {passed:.0f} s", hint="the network is slow: try again"
            )

    def _pause(self, seconds: float, url: str) -> None:
        time.sleep(seconds)
        self._check_time(url)


def _dial(address: tuple[str, int], timeout: float, *, anywhere: bool) -> socket.socket:
    """A connection; to public addresses alone, unless `anywhere`: the name of a foreign server may lead home."""
    failure: OSError | None = None
    ends = time.monotonic() + timeout
    for family, kind, proto, _, where in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        if not anywhere and not is_public(str(where[0])):
            raise RemoteError(
                f"{printable(address[0], 80)}: a redirect leads to {where[0]}, an address of this machine or network",
                hint="it is refused, since only the server wants it",
            )
        if failure is not None and time.monotonic() >= ends:
            break  # a name may have any number of addresses
        made = socket.socket(family, kind, proto)
        made.settimeout(timeout)
        try:
            made.connect(where)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made
        except OSError as error:
            failure = error
            made.close()
    raise failure or OSError("the name has no address")


def _unpacked(data: bytes, limit: int, url: str) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, limit)
    except zlib.error as error:
        raise RemoteError(f"{shown(url)}: the answer is said to be gzip, and is not") from error


def _without_user(proxy: str) -> str:
    parts = urlsplit(proxy)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _proxy_headers(proxy: str) -> dict[str, str]:
    user = urlsplit(proxy).netloc.rpartition("@")[0]
    if not user:
        return {}
    from base64 import b64encode

    return {"Proxy-Authorization": "Basic " + b64encode(unquote(user).encode()).decode("ascii")}


def _is_from_behind(error: Exception) -> bool:
    """Whether what went wrong is at the server that a proxy has reached."""
    return isinstance(error, (ssl.SSLError, http.client.HTTPException)) and not isinstance(error, ConnectionError)


def _words(error: Exception) -> str:
    """The cause in words of ours or of the system; never those of a server."""
    if tunnel := re.match(r"Tunnel connection failed: (\d{3})\b", str(error), re.ASCII):
        return f"it answers {tunnel[1]}"
    if isinstance(error, socket.gaierror):
        return "the name of the server has no address"
    if isinstance(error, TimeoutError):
        return f"nothing came for {TIMEOUT_S:.0f} s"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {printable(getattr(error, 'verify_message', '') or error.reason or 'TLS', 100)}"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return "what it sends is not HTTP"
    return printable(str(getattr(error, "strerror", None) or type(error).__name__), 100)
