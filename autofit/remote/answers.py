"""What a server's answer says, whoever has fetched it: which part of a file it is, or why it is none."""

from __future__ import annotations

import re
import time
from typing import Protocol, overload

from autofit.domain.patterns import lazy_pattern
from autofit.domain.values import NamedTuple
from autofit.errors import ModelNotFoundError, RemoteError
from autofit.remote.policy import shown

MAX_SIZE_BYTES = 1 << 50  #: of a file that a server may claim to have
_CONTENT_RANGE = lazy_pattern(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.ASCII)


class Response(Protocol):
    """The head of an answer: `length` bytes follow, if that is known."""

    status: int
    length: int | None

    @overload
    def getheader(self, name: str, /) -> str | None: ...
    @overload
    def getheader(self, name: str, default: str, /) -> str: ...


class Piece(NamedTuple):
    """A part of a file, or all of a small one.

    `url` is where redirects led; `etag` names the content there, `linked_etag` the content that a redirect promised.
    """

    data: bytes
    total_bytes: int
    url: str
    etag: str | None = None
    linked_etag: str | None = None


def claimed(response: Response, start: int, n_bytes: int, url: str) -> tuple[int, int]:
    """(bytes that follow, size of the file) of an answer to a range.

    Raises:
        RemoteError: it answers something else.
    """
    if response.getheader("Content-Encoding", "identity").lower() not in ("", "identity"):
        raise RemoteError(f"{shown(url)}: the server packs what it sends, so no part of the file can be read")
    length = response.length
    if response.status == 416:
        match = re.fullmatch(r"bytes \*/(\d{1,18})", response.getheader("Content-Range", ""), re.ASCII)
        if match is None or int(match[1]) > start:
            raise RemoteError(
                f"{shown(url)}: the server refuses bytes {start} to {start + n_bytes - 1} of the file (416)"
            )
        return 0, int(match[1])
    if response.status == 200:
        if start or length is None or length > n_bytes:
            raise RemoteError(
                f"{shown(url)}: the server cannot send a part of a file (it ignores Range), and its header alone is "
                "wanted",
                hint="download the file and give its path",
            )
        return length, length
    match = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
    if match is None:
        raise RemoteError(f"{shown(url)}: the server does not say which part of the file it sends")
    first, last, total = (int(part) for part in match.groups())
    sound = first == start <= last < total <= MAX_SIZE_BYTES and last < start + n_bytes
    if not sound or (last < start + n_bytes - 1 and last != total - 1) or length not in (None, last - first + 1):
        raise RemoteError(
            f"{shown(url)}: asked for bytes {start} to {start + n_bytes - 1}, "
            f"the server says it sends {first} to {last} of {total}"
        )
    return last - first + 1, total


def refusal(
    where: str, response: Response, pause_s: float | None, *, has_token: bool
) -> RemoteError | ModelNotFoundError:
    """The error for a status; texts of the server are not repeated."""
    status, code = response.status, response.getheader("X-Error-Code", "")
    login = "set HF_TOKEN to a token of an account that may read it" if not has_token else "the token may not read it"
    if code == "GatedRepo" or (status == 403 and not code):
        return RemoteError(
            f"{where}: access is refused ({status})",
            hint=f"{login}: access is asked for on the repository's page",
            is_refusal=True,
        )
    if code == "RevisionNotFound":
        return ModelNotFoundError(f"{where}: no such revision")
    if status == 401:
        return RemoteError(
            f"{where}: not found, or not public (401)",
            hint=f"check the name; if it is right, {login}",
            is_refusal=True,
        )
    if status in (404, 410):
        return ModelNotFoundError(f"{where}: not found ({status})", hint="check the name")
    if status == 429:
        when = "" if pause_s is None else f" for {pause_s:.0f} s"
        more = "" if has_token else "; with a token (HF_TOKEN) the limit is higher"
        return RemoteError(f"{where}: too many requests: the server asks for a pause{when} (429)", hint=f"wait{more}")
    if status >= 500:
        return RemoteError(f"{where}: the server has trouble ({status})", hint="try again later")
    return RemoteError(f"{where}: the server answers {status}")


def pause_of(response: Response) -> float | None:
    """Seconds that a server asks to wait: 0 where it says nothing, `None` where it says something else."""
    text = response.getheader("Retry-After")
    if text is None:
        return 0.0
    if re.fullmatch(r"\d{1,6}", text.strip(), re.ASCII):
        return float(text)
    from email.utils import parsedate_to_datetime

    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError, TypeError):
        return None
