"""Models of a hub by requests of a browser: the same model, the same refusals, as by sockets."""

from __future__ import annotations

import sys
import types
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.errors import ModelNotFoundError, RemoteError
from autofit.remote import files, session
from autofit.remote.browser import BrowserClient

from support import ggufs
from support.hub_server import Hub, content_of, serve


class JsError(Exception):
    """How Python sees what the browser throws."""


class Buffer:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def to_py(self) -> memoryview:
        return memoryview(self.data)


class Request:
    """`XMLHttpRequest` as far as a worker uses it; redirects are followed by who sends."""

    @classmethod
    def new(cls) -> Request:
        return cls()

    def open(self, method: str, url: str, is_async: bool) -> None:
        assert (method, is_async) == ("GET", False)
        self.url, self.headers = url, {}

    def setRequestHeader(self, name: str, value: str) -> None:
        self.headers[name] = value

    def send(self) -> None:
        try:
            answer = urllib.request.urlopen(urllib.request.Request(self.url, headers=self.headers), timeout=10)
        except urllib.error.HTTPError as error:
            answer = error
        except OSError as error:
            raise JsError("NetworkError") from error
        with answer:
            self.status, self.responseURL, self.answer = answer.status, answer.url, answer.headers
            self.response = Buffer(answer.read())

    def getResponseHeader(self, name: str) -> str | None:
        found: str | None = self.answer.get(name)
        return found


@pytest.fixture(autouse=True)
def in_a_browser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ffi = types.ModuleType("pyodide.ffi")
    ffi.JsException = JsError  # type: ignore[attr-defined]
    js = types.ModuleType("js")
    js.XMLHttpRequest = Request  # type: ignore[attr-defined]
    for name, module in {"js": js, "pyodide": types.ModuleType("pyodide"), "pyodide.ffi": ffi}.items():
        monkeypatch.setitem(sys.modules, name, module)

    def new_client(*, progress: Callable[[int], None], done: Callable[[], None], environ: object) -> BrowserClient:
        return BrowserClient(progress=progress, done=done)

    monkeypatch.setattr(session, "new_client", new_client)
    monkeypatch.setattr(files, "HAS_THREADS", False)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def test_a_model_is_read_from_its_header(hub: Hub, tmp_path: Path) -> None:
    path = ggufs.write_llama(tmp_path / "model-Q4_K_M.gguf", n_layer=8, n_embd=4096)
    hub.repositories["org/repo"] = {"model-Q4_K_M.gguf": content_of(path)}
    assert autofit.read_model("org/repo").tensors == autofit.read_model(path).tensors
    assert hub.sent_bytes < path.stat().st_size / 10
    assert all(request.range for request in hub.requests if "/xet/" in request.path)


def test_shards_are_read_one_after_the_other(hub: Hub, tmp_path: Path) -> None:
    model = ggufs.llama(n_layer=6)
    paths = ggufs.write_split(tmp_path, "model", model, 3)
    hub.repositories["org/repo"] = {path.name: content_of(path) for path in paths}
    assert autofit.read_model("org/repo").tensors == autofit.read_model(paths[0]).tensors


def test_the_shards_of_an_address_are_read_too(hub: Hub, tmp_path: Path) -> None:
    paths = ggufs.write_split(tmp_path, "model", ggufs.llama(n_layer=6), 3)
    hub.plain |= {f"folder/{path.name}": content_of(path) for path in paths}
    found = autofit.read_model(f"{hub.url}/folder/{paths[0].name}")
    assert found.tensors == autofit.read_model(paths[0]).tensors


def test_a_token_goes_to_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "hf_secret"
    hub.repositories["org/repo"] = {"m.gguf": content_of(ggufs.write_llama(tmp_path / "m.gguf"))}
    with pytest.raises(RemoteError, match=r"not found, or not public \(401\)"):
        autofit.read_model("hf:org/repo")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert autofit.read_model("hf:org/repo").architecture == "llama"


def test_refusals_are_those_of_sockets(hub: Hub) -> None:
    with pytest.raises(ModelNotFoundError, match=r"not found \(404\)"):
        autofit.read_model("hf:org/none")


def test_no_answer_names_what_a_browser_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RemoteError, match="the browser got no answer") as caught:
        autofit.read_model("hf:org/repo")
    assert "CORS" in str(caught.value.hint)


def test_a_server_that_sends_another_part_is_refused(hub: Hub, tmp_path: Path) -> None:
    content = content_of(ggufs.write_llama(tmp_path / "m.gguf"))
    hub.repositories["org/repo"] = {"m.gguf": content}

    def another_part(handler: Any) -> bool:
        handler.reply(206, b"x" * 10, {"Content-Range": f"bytes 5-14/{content.size}"})
        return True

    hub.when("/xet/", another_part)
    with pytest.raises(RemoteError, match="asked for bytes 0 to"):
        autofit.read_model("hf:org/repo")


def test_a_list_of_files_that_has_no_end_is_refused(hub: Hub) -> None:
    hub.documents["/api/models/org/repo/tree/main"] = b"[" + b" " * (1 << 25) + b"]"
    with pytest.raises(RemoteError, match="which is no list of files"):
        autofit.read_model("hf:org/repo")


def test_an_answer_that_is_shorter_than_it_says_is_refused(hub: Hub) -> None:
    def half(handler: Any) -> bool:
        handler.reply(206, b"0123", {"Content-Range": "bytes 0-9/10"})
        return True

    hub.when("/file", half)
    with pytest.raises(RemoteError, match="it sends 0 to 9 of 10"):
        BrowserClient().piece(f"{hub.url}/file", 0, 10)
