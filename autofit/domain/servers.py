"""Servers on other machines that lend their devices, and the network to them, as people write them."""

from __future__ import annotations

from autofit.domain.patterns import lazy_pattern
from autofit.domain.units import parse_size
from autofit.domain.values import dataclass
from autofit.errors import UsageError

MAX_SERVERS = 64
_ADDRESS = lazy_pattern(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?:([0-9]{1,5})")
_RATE = lazy_pattern(r"\s*([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*(G|M)(bit|bps|be|b/s|B)(?:/s)?\s*")
_HINT = "write HOST:PORT,HOST:PORT; =CARD behind one says what it is (=rtx-3090), :SIZE what is free there (:20GiB)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server: where it listens, and what its devices are and have free, where somebody says so."""

    address: str  #: HOST:PORT
    card: str | None = None
    free_bytes: int | None = None


def parse_servers(text: str) -> tuple[Server, ...]:
    """`HOST:PORT`, `HOST:PORT=CARD`, each with `:SIZE` behind it, in a list with commas.

    Raises:
        UsageError: an address that is none, one that is named twice, more than are planned for.
    """
    servers = tuple(_server(part.strip()) for part in text.split(","))
    addresses = [server.address for server in servers]
    twice = next((one for at, one in enumerate(addresses) if one in addresses[:at]), None)
    if twice is not None:
        raise UsageError(f"{twice} is named twice", hint="a server lends each of its devices once")
    if len(servers) > MAX_SERVERS:
        raise UsageError(f"{len(servers)} servers; at most {MAX_SERVERS} are planned for")
    return servers


def check_address(text: str) -> str:
    """The address, if it is one: a name or an IPv4 address, and a port.

    Raises:
        UsageError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or not 0 < int(found[1]) < 65536:
        raise UsageError(f"not an address of a server: {text[:60]!r}", hint=_HINT)
    return text


def _server(text: str) -> Server:
    place, equals, card = text.partition("=")
    host, _, rest = place.partition(":")
    port, colon, size = rest.partition(":")
    if equals:
        card, colon, size = card.partition(":")
        if not card.strip():
            raise UsageError(f"no card after {place[:60]!r}=", hint=_HINT)
    free = parse_size(size) if colon else None
    if free == 0:
        raise UsageError(f"{text[:60]!r}: no memory is left", hint=_HINT)
    address = check_address(f"{host}:{port}" if colon and not equals else place)
    return Server(address=address, card=card.strip() or None, free_bytes=free)


def parse_links(text: str) -> tuple[int, ...]:
    """Bytes per second of `10Gbit` or `1.2GB/s`; several, one for each server or node, with commas.

    Raises:
        UsageError: a speed that is none, or none at all.
    """
    return tuple(map(_rate, text.split(",")))


def _rate(text: str) -> int:
    found = _RATE.fullmatch(text)
    rate = 0
    if found is not None:
        scale = 10**9 if found[2] == "G" else 10**6
        rate = int(float(found[1]) * scale / (1 if found[3] == "B" else 8))
    if rate <= 0:
        raise UsageError(f"not the speed of a network: {text[:40]!r}", hint="write 10Gbit, 2.5Gbit or 1.2GB/s")
    return rate


def format_link(bytes_per_s: int) -> str:
    """`10 Gbit/s`, `250 Mbit/s`."""
    bits = 8 * bytes_per_s
    return f"{bits / 1e9:.4g} Gbit/s" if bits >= 10**9 else f"{bits / 1e6:.4g} Mbit/s"
