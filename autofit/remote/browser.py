"""The same requests from a browser's worker, where Python has no sockets: the browser asks, follows and decides.

Who may be asked is the browser's rule (CORS): the server must let pages of others read. The browser follows redirects,
keeps secrets to the origin that they are for, and refuses to leave https.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from autofit.errors import RemoteError
from autofit.remote.answers import Piece, claimed, pause_of, refusal
from autofit.remote.policy import may_have_secret, origin_of, shown

TIMEOUT_MS = 30_000


class _Response:
    """An answer of `XMLHttpRequest`, as `autofit.remote.answers` reads one."""

    def __init__(self, request: Any) -> None:
        self.status = int(request.status)
        self.url = str(request.responseURL)
        self.data = b"" if request.response is None else bytes(request.response.to_py())
        self.length: int | None = len(self.data)
        self._request = request

    def getheader(self, name: str, default: Any = None) -> Any:
        """`Content-Encoding` is none: what the browser hands over is unpacked."""
        found = None if name == "Content-Encoding" else self._request.getResponseHeader(name)
        return default if found is None else str(found)


class BrowserClient:
    """What `autofit.remote.http.Client` does, by requests that wait, which a browser lets its workers make."""

    def __init__(
        self,
        *,
        progress: Callable[[int], None] | None = None,
        done: Callable[[], None] | None = None,
    ) -> None:
        self.n_requests = 0
        self.n_bytes = 0
        self._progress = progress
        self._done = done

    def close(self) -> None:
        if self._done is not None:
            self._done()

    def abort(self) -> None:
        return None  # nothing is on its way while others run

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
        """As `Client.piece`. Where redirects led is asked for anew: a browser does not show their heads.

        Raises:
            RemoteError, ModelNotFoundError
        """
        response = self._ask(url, {"Range": f"bytes={start}-{start + n_bytes - 1}"}, authorization, (200, 206, 416))
        length, total = claimed(response, start, n_bytes, url)
        if total_bytes is not None and total != total_bytes:
            raise RemoteError(
                f"{shown(url)}: has {total} bytes, its listing says {total_bytes}",
                hint="the repository may have changed meanwhile: try again",
            )
        return Piece(response.data[:length], total, url, response.getheader("ETag"))

    def document(
        self,
        url: str,
        limit_bytes: int,
        *,
        authorization: str | None = None,
        accept: str = "application/json",
        label: str | None = None,
    ) -> tuple[bytes, Mapping[str, str]]:
        """As `Client.document`. Raises: RemoteError, ModelNotFoundError"""
        response = self._ask(url, {"Accept": accept}, authorization, (200,), label)
        if len(response.data) > limit_bytes:
            raise RemoteError(f"{shown(url)}: the answer has more than {limit_bytes} bytes, which is no list of files")
        return response.data, {name.lower(): value for name in ("Link",) if (value := response.getheader(name))}

    def _ask(
        self,
        url: str,
        headers: Mapping[str, str],
        authorization: str | None,
        wanted: tuple[int, ...],
        label: str | None = None,
    ) -> _Response:
        from js import XMLHttpRequest
        from pyodide.ffi import JsException

        origin = origin_of(url)
        request = XMLHttpRequest.new()
        request.open("GET", url, False)
        request.responseType = "arraybuffer"
        request.timeout = TIMEOUT_MS
        for name, value in headers.items():
            request.setRequestHeader(name, value)
        if authorization is not None and may_have_secret(origin, origin):
            request.setRequestHeader("Authorization", authorization)
        self.n_requests += 1
        try:
            request.send()
        except JsException as error:
            raise RemoteError(
                f"{label or shown(url)}: the browser got no answer",
                hint="check the network, and whether the server lets pages of other sites read (CORS)",
            ) from error
        response = _Response(request)
        self.n_bytes += len(response.data)
        if self._progress is not None:
            self._progress(len(response.data))
        if response.status not in wanted:
            has_token = authorization is not None
            raise refusal(label or shown(url), response, pause_of(response), has_token=has_token)
        return response
