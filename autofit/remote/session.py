"""What a source needs to ask elsewhere: whether it may, a client, and the documents that are kept."""

from __future__ import annotations

import json
import os
import sys
import time
from _thread import allocate_lock  # threading itself takes long to import
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from autofit.errors import CorruptModelError, RemoteError
from autofit.remote.files import Listed, RemoteStorage
from autofit.remote.store import Store, default_store

if TYPE_CHECKING:
    from autofit.remote.browser import BrowserClient
    from autofit.remote.http import Client

FRESH_S = 3600.0  #: how long a list of files counts without being asked for again
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "LLAMA_ARG_OFFLINE")
_MAX_ITEMS = 1 << 20


class Session:
    """One name's questions to one server. `notes` are facts that a plan should tell."""

    def __init__(self, what: str, environ: Mapping[str, str] | None = None, *, store: Store | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self.store = default_store(self.environ) if store is None else store
        self.is_offline = any(self.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in _OFFLINE)
        self.notes: list[str] = []
        self._what = what
        self._client: Client | BrowserClient | None = None
        self._lock = allocate_lock()
        self._is_progress_wanted = not self.environ.get("HF_HUB_DISABLE_PROGRESS_BARS")

    @property
    def client(self) -> Client | BrowserClient:
        """The connections of this session; HTTP is imported by the first one that needs it."""
        with self._lock:
            if self._client is None:
                from autofit.remote.progress import Progress

                progress = Progress(self._what, is_wanted=self._is_progress_wanted)
                self._client = new_client(progress=progress.add, done=progress.done, environ=self.environ)
            return self._client

    def remembered(self, key: str, ask: Callable[[], Any], *, fresh_s: float = FRESH_S) -> Any:
        """What `ask` answers, JSON values; from before, while that is fresh or where nobody answers now.

        Raises:
            RemoteError, ModelNotFoundError: as `ask`, or nothing is kept and nobody may be asked.
        """
        kept = self._kept(key)
        if kept is not None and 0 <= time.time() - kept[0] <= fresh_s:
            return kept[1]
        if self.is_offline:
            if kept is None:
                raise RemoteError(
                    f"{self._what}: not on this machine, and nobody may be asked (HF_HUB_OFFLINE)",
                    hint="unset HF_HUB_OFFLINE, or download the model",
                )
            return kept[1]
        try:
            found = ask()
        except RemoteError as error:
            self.close()
            if kept is None or error.is_refusal:
                raise
            self.notes.append(f"nobody answers ({error.message}): the list of files is of {_date(kept[0])}")
            return kept[1]
        self.store.put(key, json.dumps([time.time(), found]).encode())
        return found

    def storage(
        self, root: str, files: Mapping[str, Listed], authorization: Callable[[], str | None] | None = None
    ) -> RemoteStorage:
        """These files of a server."""
        return RemoteStorage(
            root,
            files,
            connect=lambda: self.client,
            disconnect=self.close,
            store=self.store,
            authorization=authorization,
            may_ask=not self.is_offline,
        )

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # else a storage goes on with the connections, and ends them
            self.close()

    def close(self) -> None:
        """End the connections, if there are any."""
        if self._client is not None:
            self._client.close()

    def _kept(self, key: str) -> tuple[float, Any] | None:
        data = self.store.get(key)
        try:
            when, found = json.loads(data) if data is not None else (None, None)
            return None if when is None else (float(when), found)
        except (ValueError, TypeError, RecursionError):
            return None


def new_client(
    *, progress: Callable[[int], None], done: Callable[[], None], environ: Mapping[str, str]
) -> Client | BrowserClient:
    """HTTP of the standard library; in a browser's worker, the browser's."""
    if sys.platform == "emscripten":
        from autofit.remote.browser import BrowserClient

        return BrowserClient(progress=progress, done=done)
    from autofit.remote.http import Client

    return Client(progress=progress, done=done, environ=environ)


def parse_document(raw: bytes, what: str) -> Any:
    """JSON of a server.

    Raises:
        CorruptModelError: it is none, or longer than any list of files.
    """
    if raw.count(b",") > _MAX_ITEMS:
        raise CorruptModelError(
            what, f"the server's answer has more than {_MAX_ITEMS:,} items, which is no list of files"
        )
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CorruptModelError(what, "the server's answer is not JSON") from error


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(min(max(seconds, 0.0), 1e11)))
