"""Pieces of files from a server that does as it should, and from one that does not."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from autofit.errors import AutofitError, ModelNotFoundError, RemoteError
from autofit.remote import http as module
from autofit.remote.http import Client

from support.hub_server import Content, Handler, Hub, serve

DATA = bytes(range(256)) * 40
FILE = Content(DATA, 100_000)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(plain={"f": FILE, "empty": Content(b"", 0)})) as hub:
        yield hub


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(module, "MAX_WAIT_S", 1.0)
    client = Client(patience_s=20)
    yield client
    client.close()


def answering(status: int, body: bytes = b"", headers: Mapping[str, str] | None = None, times: int = 99) -> Any:
    """A behavior that answers so, for a number of times."""
    left = [times]

    def behave(handler: Handler) -> bool:
        left[0] -= 1
        if left[0] < 0:
            return False
        handler.reply(status, body, headers)
        return True

    return behave


def test_pieces(hub: Hub, client: Client) -> None:
    first = client.piece(f"{hub.url}/f", 0, 100)
    assert (first.data, first.total_bytes) == (DATA[:100], FILE.size)
    assert client.piece(f"{hub.url}/f", 100, 400, total_bytes=FILE.size).data == DATA[100:500]
    assert client.piece(f"{hub.url}/f", FILE.size - 10, 100).data == bytes(10)
    assert client.piece(f"{hub.url}/f", FILE.size, 100).data == b""
    assert client.piece(f"{hub.url}/empty", 0, 100).total_bytes == 0
    assert client.n_bytes == 510 == hub.sent_bytes
    assert client.n_requests == len(hub.requests) == 5


def test_a_connection_serves_again_and_one_that_was_ended_is_no_failure(hub: Hub, client: Client) -> None:
    ports = []
    hub.when("f", lambda handler: bool(ports.append(handler.client_address[1])))
    for _ in range(3):
        client.piece(f"{hub.url}/f", 0, 10)
    assert len(set(ports)) == 1

    def end(handler: Handler) -> bool:
        handler.close_connection = True
        return False

    hub.when("f", end)
    for _ in range(3):
        assert client.piece(f"{hub.url}/f", 0, 10).data == DATA[:10]


def test_what_breaks_off_is_gone_on_with_and_no_byte_comes_twice(hub: Hub, client: Client) -> None:
    cuts = [0]

    def cut(handler: Handler) -> bool:
        cuts[0] += 1
        if cuts[0] > 2:
            return False
        start = int(handler.headers["Range"][6:].partition("-")[0])
        sent = {"Content-Range": f"bytes {start}-999/{FILE.size}", "Content-Length": str(1000 - start)}
        handler.reply(206, DATA[start : start + 300], sent)
        handler.close_connection = True
        return True

    hub.when("f", cut)
    assert client.piece(f"{hub.url}/f", 0, 1000).data == DATA[:1000]
    assert [request.range for request in hub.requests] == ["bytes=0-999", "bytes=300-999", "bytes=600-999"]
    assert hub.sent_bytes == 1000


def test_what_always_breaks_off_is_given_up(hub: Hub, client: Client) -> None:
    headers = {"Content-Range": f"bytes 0-999/{FILE.size}", "Content-Length": "1000", "Connection": "close"}
    hub.when("f", answering(206, b"", headers))
    with pytest.raises(RemoteError, match="broke off"):
        client.piece(f"{hub.url}/f", 0, 1000)


@pytest.mark.parametrize(
    ("status", "headers", "cause"),
    [
        (206, {}, "does not say which part"),
        (206, {"Content-Range": "bytes 1-100/100000"}, "says it sends 1 to 100"),
        (206, {"Content-Range": "bytes 0-199/100000"}, "says it sends 0 to 199"),
        (206, {"Content-Range": "bytes 0-9/100000"}, "says it sends 0 to 9"),
        (206, {"Content-Range": "bytes 0-99/50"}, "says it sends 0 to 99"),
        (206, {"Content-Range": "bytes 0-99/*"}, "does not say which part"),
        (206, {"Content-Range": "bytes 0-99/" + "9" * 18}, "says it sends"),
        (206, {"Content-Range": "bytes 0-99/100000", "Content-Length": "50"}, "says it sends"),
        (206, {"Content-Type": "multipart/byteranges; boundary=x"}, "does not say which part"),
        (206, {"Content-Range": "bytes 0-99/100000", "Content-Encoding": "gzip"}, "packs what it sends"),
        (200, {}, "cannot send a part"),
        (200, {"Content-Length": "999999999999"}, "cannot send a part"),
        (200, {"Transfer-Encoding": "chunked"}, "cannot send a part"),
        (416, {}, "refuses bytes 0 to 99"),
        (416, {"Content-Range": "bytes */500"}, "refuses bytes 0 to 99"),
        (418, {}, "answers 418"),
        (204, {}, "answers 204"),
    ],
)
def test_answers_that_are_refused(
    hub: Hub, client: Client, status: int, headers: Mapping[str, str], cause: str
) -> None:
    length = {} if "Transfer-Encoding" not in headers else {"Content-Length": "0"}
    hub.when("f", answering(status, bytes(101), {**length, **headers}))
    started = time.monotonic()
    with pytest.raises(RemoteError, match=cause):
        client.piece(f"{hub.url}/f", 0, 100)
    assert time.monotonic() - started < 5 and client.n_bytes == 0


def test_a_small_file_may_come_whole(hub: Hub, client: Client) -> None:
    hub.when("f", answering(200, b"all"))
    assert client.piece(f"{hub.url}/f", 0, 100)[:2] == (b"all", 3)


def test_a_size_that_the_listing_contradicts(hub: Hub, client: Client) -> None:
    with pytest.raises(RemoteError, match="its listing says 7"):
        client.piece(f"{hub.url}/f", 0, 5, total_bytes=7)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "cause"),
    [
        (401, {}, RemoteError, "not found, or not public"),
        (403, {}, RemoteError, "access is refused"),
        (403, {"X-Error-Code": "GatedRepo"}, RemoteError, "access is refused"),
        (404, {}, ModelNotFoundError, "not found"),
        (404, {"X-Error-Code": "RevisionNotFound"}, ModelNotFoundError, "no such revision"),
        (429, {"Retry-After": "3600"}, RemoteError, "asks for a pause for 3600 s"),
        (429, {"Retry-After": "\x80"}, RemoteError, "asks for a pause"),
        (503, {}, RemoteError, "has trouble"),
    ],
)
def test_refusals_say_what_to_do(
    hub: Hub, client: Client, status: int, headers: Mapping[str, str], kind: type[AutofitError], cause: str
) -> None:
    hub.when("f", answering(status, b"<script>\x1b[2J server's words", headers))
    with pytest.raises(kind, match=cause) as caught:
        client.piece(f"{hub.url}/f?X-Signature=secret", 0, 100, authorization="Bearer hf_secret")
    text = f"{caught.value.message} {caught.value.hint}"
    assert caught.value.hint or "revision" in text
    assert ("the token may not read it" in text) is (status in (401, 403))
    assert "secret" not in text and "words" not in text and text.isprintable()


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "0"}, {"Retry-After": "1"}])
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(
    hub: Hub, client: Client, status: int, headers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    hub.when("f", answering(status, b"", headers, times=2))
    assert client.piece(f"{hub.url}/f", 0, 10).data == DATA[:10]
    assert len(hub.requests) == 3


def test_redirects(hub: Hub, client: Client) -> None:
    hub.when("/r", answering(302, b"", {"Location": "/f", "X-Linked-ETag": '"abc"'}))
    found = client.piece(f"{hub.url}/r", 0, 10)
    assert (found.data, found.url, found.linked_etag) == (DATA[:10], f"{hub.url}/f", '"abc"')
    again = client.piece(f"{hub.url}/r", 10, 10, at=found.url)
    assert again.data == DATA[10:20] and hub.requests[-1].path == "/f"
    hub.when("/loop", answering(302, b"", {"Location": "/loop"}))
    with pytest.raises(RemoteError, match="redirects"):
        client.piece(f"{hub.url}/loop", 0, 10)
    for location in ("", "http://[", "http://10.0.0.1/", "http://localhost:1/", "http://a\x80b/"):
        hub.when("/bad", answering(302, b"", {"Location": location}, times=1))
        with pytest.raises(RemoteError):
            client.piece(f"{hub.url}/bad", 0, 10)


def test_a_name_that_leads_home_is_not_connected_to(monkeypatch: pytest.MonkeyPatch, client: Client, hub: Hub) -> None:
    """DNS is the attacker's: a public name with a private address."""
    port = int(hub.url.rpartition(":")[2])
    real = module.socket.getaddrinfo

    def lie(host: str, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "cdn.org" else host, *args, **options)

    monkeypatch.setattr(module.socket, "getaddrinfo", lie)
    hub.when("/r", answering(302, b"", {"Location": f"http://cdn.org:{port}/f"}))
    with pytest.raises(RemoteError, match="address of this machine"):
        client.piece(f"{hub.url}/r", 0, 10)
    assert [request.path for request in hub.requests] == ["/r"]


def test_secrets_stay_with_the_server_that_they_are_for(hub: Hub, client: Client) -> None:
    with serve(Hub(plain={"f": FILE})) as other:
        hub.when("/r", answering(302, b"", {"Location": f"{other.url}/f"}))
        client.piece(f"{hub.url}/r", 0, 10, authorization="Bearer hf_secret")
        assert hub.requests[0].authorization == "Bearer hf_secret"
        assert other.requests[0].authorization is None


def test_documents(hub: Hub, client: Client) -> None:
    hub.documents["/d"] = b"[1]"
    assert client.document(f"{hub.url}/d", 100)[0] == b"[1]"
    with pytest.raises(RemoteError, match="more than 2 bytes"):
        client.document(f"{hub.url}/d", 2)
    hub.when("/z", answering(200, gzip.compress(b"[2]"), {"Content-Encoding": "gzip"}))
    assert client.document(f"{hub.url}/z", 100)[0] == b"[2]"
    hub.when("/bomb", answering(200, gzip.compress(bytes(1 << 24)), {"Content-Encoding": "gzip"}))
    with pytest.raises(RemoteError, match="more than 100000 bytes"):
        client.document(f"{hub.url}/bomb", 100_000)
    hub.when("/no", answering(200, b"no gzip", {"Content-Encoding": "gzip"}))
    with pytest.raises(RemoteError, match="is said to be gzip"):
        client.document(f"{hub.url}/no", 100)


def test_nobody_is_there(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with serve() as gone:
        url = gone.url
    with pytest.raises(RemoteError, match="no answer") as caught:
        client.piece(f"{url}/f", 0, 10)
    assert caught.value.hint


def test_time_is_bounded(hub: Hub) -> None:
    """A byte now and then keeps a connection alive, and does not help."""

    def drip(handler: Handler) -> bool:
        handler.send_response(206)
        for _ in range(200):
            handler.wfile.write(b"X")
            handler.wfile.flush()
            time.sleep(0.05)
        return True

    hub.when("f", drip)
    client = Client(patience_s=0.5)
    started = time.monotonic()
    with pytest.raises(RemoteError):
        client.piece(f"{hub.url}/f", 0, 10)
    assert time.monotonic() - started < 5
    client.close()


def test_a_slow_line_is_waited_for(hub: Hub) -> None:
    """Bytes buy time: an answer that takes longer than the patience for silence, at a good rate, arrives."""
    size = 20 * module.PATIENT_BYTES_PER_S

    def flow(handler: Handler) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{size - 1}/{size}")
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        for _ in range(10):
            handler.wfile.write(bytes(size // 10))
            handler.wfile.flush()
            time.sleep(0.08)
        return True

    hub.when("f", flow)
    client = Client(patience_s=0.5)
    assert len(client.piece(f"{hub.url}/f", 0, size).data) == size
    client.close()


def test_connections_that_nobody_uses_end_and_the_next_request_has_time_of_its_own(hub: Hub) -> None:
    client = Client(patience_s=0.2)
    client.piece(f"{hub.url}/f", 0, 10)
    ends = time.monotonic() + 10
    while client._open and time.monotonic() < ends:
        time.sleep(0.02)
    assert not client._open and not any(client._idle.values())
    assert client.piece(f"{hub.url}/f", 0, 10).data == DATA[:10]
    client.close()


def test_aborted(hub: Hub) -> None:
    """What is on its way fails at once when it is wanted no more, and the client serves again afterwards."""
    released = threading.Event()

    def hang(handler: Handler) -> bool:
        released.wait(20)
        return True

    hub.when("hang", hang)
    client, failures = Client(), []

    def ask() -> None:
        try:
            client.piece(f"{hub.url}/hang", 0, 10)
        except RemoteError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not hub.requests:
        time.sleep(0.01)
    started = time.monotonic()
    client.abort()
    thread.join(10)
    assert failures and time.monotonic() - started < 5
    released.set()
    client.close()
    assert client.piece(f"{hub.url}/f", 0, 10).data == DATA[:10]
    client.close()


def test_endless_headers(hub: Hub, client: Client) -> None:
    def flood(handler: Handler) -> bool:
        handler.send_response(200)
        for number in range(1000):
            handler.send_header(f"X-{number}", "x" * 1000)
        handler.end_headers()
        return True

    hub.when("f", flood)
    with pytest.raises(RemoteError, match="not HTTP"):
        client.piece(f"{hub.url}/f", 0, 10)


def test_a_proxy_that_refuses_is_named(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the server behind it, and not the user's name and password there."""
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    with serve() as gone:
        where = gone.url.removeprefix("http://")
    with serve() as refusing:
        refusing.when(".", answering(407))
        deny = refusing.url.removeprefix("http://")
        for proxy in (where, deny):
            monkeypatch.setenv("https_proxy", f"http://user:secret@{proxy}")
            with pytest.raises(RemoteError, match=f"no answer from the proxy {proxy}") as caught:
                client.piece("https://hub.example.org/f", 0, 10)
            assert "secret" not in str(caught.value) + (caught.value.hint or "")
            assert "HTTPS_PROXY" in (caught.value.hint or "")


def test_a_proxy_is_used_and_told_no_token(hub: Hub, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain HTTP through a proxy: the whole URL is asked of it."""
    monkeypatch.setenv("http_proxy", hub.url.replace("http://", "http://user:pass@"))
    hub.when("^http://", answering(206, DATA[:10], {"Content-Range": f"bytes 0-9/{FILE.size}"}))
    found = client.piece("http://mirror.example.org/f", 0, 10, authorization="Bearer hf_secret")
    assert found.data == DATA[:10]
    assert (hub.requests[0].path, hub.requests[0].authorization) == ("http://mirror.example.org/f", None)
    monkeypatch.setenv("http_proxy", "socks5://x:1")
    with pytest.raises(RemoteError, match="a proxy of socks5"):
        client.piece("http://other.example.org/f", 0, 10)
