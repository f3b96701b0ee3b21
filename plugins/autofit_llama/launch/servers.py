"""What RPC servers offer, asked over their own protocol: version, devices, memory. Nothing is allocated or changed.

A server talks with one client at a time, and others wait. Its answers are not trusted: their sizes are those of the
protocol, and all of it has to come in time.

Source: ggml-rpc.cpp:negotiate_hello, rpc_serve_client.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from autofit.domain.machine import Api, Device, Node, Offered
from autofit.domain.servers import check_address
from autofit.domain.values import NamedTuple

from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.graph.devices import CUDA, RPC

SECONDS = 3.0  #: for all that one server is asked
MAX_DEVICES = 64
MAX_BYTES = 1 << 50  #: that one device may have
_HELLO, _DEVICE_COUNT, _GET_ALIGNMENT, _GET_DEVICE_MEMORY = 14, 15, 1, 11
_CAPS = bytes(24)  #: what a client can do beside TCP: nothing (transport.h:RPC_CONN_CAPS_SIZE)
_NEW_HELLO_BYTES, _OLD_HELLO_BYTES = 28, 3
_SIZE = struct.Struct("<Q")
_RESET = struct.pack("ii", 1, 0)
_ROUNDS = 4  #: of the shortest question, to learn the latency
MANY_DEVICES = 3  #: the first protocol whose servers have several devices
#: builds and the protocol that their clients speak: releases of llama-cpp-python 0.3.16 to 0.3.36 (ggml-rpc.h)
PROTOCOLS = ((6122, 2), (9703, 4), (9843, 4), (10000, 4), (10502, 5), (11311, 7))


class ServerError(Exception):
    """A server that cannot be used, in words."""


class Memory(NamedTuple):
    """One device: what it has free and in all, and how its buffers are aligned."""

    free_bytes: int
    total_bytes: int
    alignment: int


class Answer(NamedTuple):
    """What a server says of itself."""

    version: tuple[int, int, int]
    devices: tuple[Memory, ...]
    latency_s: float


def offers(servers: Sequence[str], version: Version = LATEST, *, seconds: float = SECONDS) -> tuple[Offered, ...]:
    """What these servers (HOST:PORT) offer, in their order, asked at the same time.

    Raises:
        UsageError: an address that is none.
    """
    found: list[Offered | None] = [None] * len(servers)

    def learn(at: int, server: str) -> None:
        found[at] = _offer(server, version, seconds)

    for server in servers:
        check_address(server)
    threads = [threading.Thread(target=learn, args=pair, daemon=True) for pair in enumerate(servers)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 2 * seconds  # a name may take the resolver as long as it likes
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    late = "its name is not resolved in time"
    return tuple(one or Offered(node=_node(server), problem=late) for one, server in zip(found, servers, strict=True))


def _node(server: str, latency_s: float | None = None) -> Node:
    return Node(name=server, address=server, latency_s=latency_s)


def _offer(server: str, version: Version, seconds: float) -> Offered:
    try:
        answer = ask(server, seconds=seconds)
        check_version(answer.version, version)
    except ServerError as error:
        return Offered(node=_node(server), problem=str(error))
    devices = tuple(
        Device(
            id=f"{server}/{at}",
            index=at,
            name=server,
            api="rpc",
            total_bytes=one.total_bytes,
            free_bytes=one.free_bytes,
            uuid=f"{server}/{at}",
            node=server,
            behind=_behind(one),
        )
        for at, one in enumerate(answer.devices)
    )
    return Offered(node=_node(server, _rounded(answer.latency_s)), devices=devices)


def _rounded(latency_s: float) -> float:
    """The next of 25, 50, 100 ... microseconds: plans for the same servers are the same."""
    step = 25e-6
    while step < latency_s:
        step *= 2
    return step


def _behind(found: Memory) -> Api | None:
    """What drives the device, as far as its buffers tell: CUDA's rules are those of its HIP builds too."""
    return "cuda" if found.alignment == CUDA.alignment else None


def ask(server: str, *, seconds: float = SECONDS) -> Answer:
    """One server's own words. A server of before b9703 hangs up on the newer greeting, and is greeted again.

    Raises:
        ServerError: nobody answers, too late, or not as a server of this protocol does.
    """
    until = time.monotonic() + seconds
    try:
        with _Talk(server, until) as talk:
            hello = talk.ask(_HELLO, _CAPS, (_NEW_HELLO_BYTES,))
            return _learn(talk, hello)
    except _HungUp:
        pass
    try:
        with _Talk(server, until) as talk:
            hello = talk.ask(_HELLO, b"", (_OLD_HELLO_BYTES, _NEW_HELLO_BYTES))
            return _learn(talk, hello)
    except _HungUp:
        raise ServerError("it hangs up: no RPC server of llama.cpp, or one older than protocol 2") from None


def _learn(talk: _Talk, hello: bytes) -> Answer:
    major, minor, patch = hello[0], hello[1], hello[2]
    if major < 2:
        raise ServerError(f"it speaks protocol {major}.{minor}.{patch}, which is older than any that is known")
    several = major >= MANY_DEVICES
    n_devices = struct.unpack("<I", talk.ask(_DEVICE_COUNT, b"", (4,)))[0] if several else 1
    if not 0 < n_devices <= MAX_DEVICES:
        raise ServerError(f"it says that it has {n_devices} devices")
    which = [struct.pack("<I", at) if several else b"" for at in range(n_devices)]
    devices = tuple(_memory(talk, one) for one in which)
    waited = []
    for _ in range(_ROUNDS):
        start = time.monotonic()
        talk.ask(_GET_ALIGNMENT, which[0], (8,))
        waited.append(time.monotonic() - start)
    return Answer((major, minor, patch), devices, min(waited) / 2)


def _memory(talk: _Talk, which: bytes) -> Memory:
    free, total = struct.unpack("<QQ", talk.ask(_GET_DEVICE_MEMORY, which, (16,)))
    (alignment,) = struct.unpack("<Q", talk.ask(_GET_ALIGNMENT, which, (8,)))
    if not 0 < total <= MAX_BYTES or free > total:
        raise ServerError(f"it says that {free} of {total} bytes are free")
    if not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ServerError(f"it says that its buffers are aligned to {alignment} bytes")
    return Memory(free, total, max(alignment, RPC.alignment))


class _HungUp(Exception):
    """The connection was closed instead of an answer."""


class _Talk:
    """A connection with one server, in which everything has to be done by a moment.

    A request is a byte for the command, the size of what follows, and that; an answer is a size, and that.
    """

    def __init__(self, server: str, until: float) -> None:
        host, _, port = server.partition(":")
        self._until = until
        self._socket: socket.socket = _tried(lambda: socket.create_connection((host, int(port)), self._left()))

    def __enter__(self) -> _Talk:
        return self

    def __exit__(self, failed: object, *_: object) -> None:
        if failed is not None:  # a reset: a server that answers a client that went away is killed by SIGPIPE
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._socket.close()

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def ask(self, command: int, data: bytes, sizes: tuple[int, ...]) -> bytes:
        """The answer to a command, of one of these sizes."""
        _tried(lambda: self._send(bytes((command,)) + _SIZE.pack(len(data)) + data))
        (n_bytes,) = _SIZE.unpack(self._receive(_SIZE.size))
        if n_bytes not in sizes:
            raise ServerError("it does not answer as an RPC server of llama.cpp does")
        return self._receive(int(n_bytes))

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._left())
        self._socket.sendall(data)

    def _receive(self, n_bytes: int) -> bytes:
        found = b""
        while len(found) < n_bytes:
            self._socket.settimeout(max(0.001, self._until - time.monotonic()))
            part: bytes = _tried(partial(self._take, n_bytes - len(found)))
            if not part:
                raise _HungUp
            found += part
        return found

    def _take(self, n_bytes: int) -> bytes:
        self._left()
        return self._socket.recv(n_bytes)


def _tried(action: Callable[[], Any]) -> Any:
    """The result, or what is in the way in words."""
    try:
        return action()
    except TimeoutError:
        raise ServerError("no answer in time; a server that another client holds makes others wait") from None
    except (ConnectionResetError, BrokenPipeError):
        raise _HungUp from None
    except OSError as error:
        raise ServerError(f"it is not reached: {error.strerror or error}") from None


def protocol_of(build: int) -> int | None:
    """The protocol that a build's client speaks; `None` where it is not known."""
    before = [major for known, major in PROTOCOLS if known <= build]
    after = [major for known, major in PROTOCOLS if known >= build]
    if not before:
        return after[0]
    return before[-1] if after and before[-1] == after[0] else None


def check_version(server: tuple[int, int, int], version: Version) -> None:
    """Refuse a server that the client hangs up on (ggml-rpc.cpp:negotiate_hello).

    Raises:
        ServerError
    """
    own = protocol_of(version.asked or version.build) if version.fork is None else None
    if own is not None and server[0] != own:
        spoken = ".".join(map(str, server))
        raise ServerError(f"it speaks protocol {spoken}, and {version.name} speaks {own}: start it from the same build")
