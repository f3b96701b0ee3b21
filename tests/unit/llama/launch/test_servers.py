"""RPC servers asked over their own protocol: every version, and answers of whoever else listens there."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from autofit.errors import UsageError

from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.launch.servers import ServerError, ask, check_version, offers, protocol_of

GIB = 1 << 30
Talk = Callable[[socket.socket], None]


@contextmanager
def server(*talks: Talk) -> Iterator[str]:
    """A server that leads one of these talks with each client, the last one again and again."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    ended = threading.Event()

    def serve() -> None:
        at = 0
        while not ended.is_set():
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            client.settimeout(5)
            with client, suppress(OSError):
                talks[min(at, len(talks) - 1)](client)
            at += 1

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        thread.join(6)
        listener.close()


def received(client: socket.socket, n_bytes: int) -> bytes:
    found = b""
    while len(found) < n_bytes:
        part = client.recv(n_bytes - len(found))
        if not part:
            raise OSError
        found += part
    return found


def speaks(
    major: int, *devices: tuple[int, int], alignment: int = 32, count: int | None = None, asked: list[int] | None = None
) -> Talk:
    """What `rpc_serve_client` does, for the read-only commands of a protocol."""

    def talk(client: socket.socket) -> None:
        while True:
            command = received(client, 1)[0]
            (size,) = struct.unpack("<Q", received(client, 8))
            data = received(client, size)
            if asked is not None:
                asked.append(command)
            if command == 14:
                if size != (24 if major >= 4 else 0):
                    return
                answer = bytes((major, 1, 2)) + (bytes(25) if major >= 4 else b"")
            elif command == 15 and major >= 3:
                answer = struct.pack("<I", len(devices) if count is None else count)
            elif command in (1, 11):
                assert size == (4 if major >= 3 else 0)
                at = struct.unpack("<I", data)[0] if data else 0
                answer = struct.pack("<Q", alignment) if command == 1 else struct.pack("<QQ", *devices[at])
            else:
                return
            client.sendall(struct.pack("<Q", len(answer)) + answer)

    return talk


@pytest.mark.parametrize("major", [2, 3, 4, 7, 9])
def test_each_protocol_is_understood(major: int) -> None:
    devices = ((20 * GIB, 24 * GIB), (7 * GIB, 8 * GIB))[: 2 if major >= 3 else 1]
    with server(speaks(major, *devices, alignment=128)) as address:
        answer = ask(address, seconds=5)
    assert answer.version == (major, 1, 2) and answer.latency_s > 0
    assert [(one.free_bytes, one.total_bytes, one.alignment) for one in answer.devices] == [(*d, 128) for d in devices]


def test_nothing_is_asked_that_changes_anything() -> None:
    asked: list[int] = []
    with server(speaks(7, (GIB, GIB), asked=asked)) as address:
        ask(address, seconds=5)
    assert set(asked) == {14, 15, 11, 1}  # HELLO, DEVICE_COUNT, GET_DEVICE_MEMORY, GET_ALIGNMENT


def says(data: bytes) -> Talk:
    """The same whatever it is asked, until the client has enough of it."""

    def talk(client: socket.socket) -> None:
        client.sendall(data)
        while client.recv(4096):
            pass

    return talk


def hangs_up(data: bytes) -> Talk:
    def talk(client: socket.socket) -> None:
        client.recv(4096)
        client.sendall(data)

    return talk


def waits(client: socket.socket) -> None:
    client.recv(4096)
    client.recv(4096)


def trickles(client: socket.socket) -> None:
    for byte in struct.pack("<Q", 28) + bytes(28):
        client.sendall(bytes((byte,)))
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "does not answer as"),
        (says(struct.pack("<Q", 1 << 63)), "does not answer as"),
        (hangs_up(b""), "hangs up"),
        (hangs_up(struct.pack("<Q", 28) + b"\7"), "hangs up"),
        (speaks(1), "hangs up|older than any"),
        (speaks(7, (GIB, GIB), count=0), "0 devices"),
        (speaks(7, (GIB, GIB), count=4_000_000_000), "4000000000 devices"),
        (speaks(7, (2 * GIB, GIB)), "bytes are free"),
        (speaks(7, (0, 0)), "bytes are free"),
        (speaks(7, (1 << 63, 1 << 63)), "bytes are free"),
        (speaks(7, (GIB, GIB), alignment=3), "aligned to 3"),
        (speaks(7, (GIB, GIB), alignment=0), "aligned to 0"),
        (trickles, "no answer in time"),
        (waits, "another client holds"),
    ],
)
def test_what_is_no_server_is_refused_in_time(talk: Talk, words: str) -> None:
    with server(talk) as address, pytest.raises(ServerError, match=words):
        ask(address, seconds=0.5)


def test_one_after_the_other_comes_in_the_order_asked() -> None:
    with server(speaks(7, (GIB, 2 * GIB))) as one, server(hangs_up(b"")) as other:
        found = offers([other, one], seconds=2)
    assert [offer.node.name for offer in found] == [other, one]
    assert found[0].problem is not None and not found[0].devices
    device = found[1].devices[0]
    assert (device.api, device.node, device.free_bytes, device.behind) == ("rpc", one, GIB, None)
    assert found[1].node.latency_s is not None


def test_buffers_tell_a_cuda_device() -> None:
    with server(speaks(7, (GIB, 2 * GIB), alignment=128)) as address:
        assert offers([address], seconds=2)[0].devices[0].behind == "cuda"


@pytest.mark.parametrize("address", ["", "host", "host:0", "host:70000", "-x:1", "a b:1", "host:1\x1b[2J", "[::1]:5"])
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(UsageError, match="not an address"):
        offers([address])


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert "not reached" in (offers([f"127.0.0.1:{port}"], seconds=1)[0].problem or "")


def test_protocols_of_builds() -> None:
    assert [protocol_of(build) for build in (5590, 6122, 9703, 9900, 10502, 11311)] == [2, 2, 4, 4, 5, 7]
    assert protocol_of(8000) is None and protocol_of(10800) is None and protocol_of(12000) is None
    check_version((7, 0, 0), LATEST)
    check_version((5, 0, 0), Version(build=10800))  # either may be right
    with pytest.raises(ServerError, match="speaks protocol 5"):
        check_version((5, 0, 0), LATEST)
