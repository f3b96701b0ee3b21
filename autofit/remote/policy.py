"""Who may be asked: which redirects are followed, which addresses are connected to, and who is told a secret."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urljoin, urlsplit

from autofit.domain.text import printable
from autofit.domain.values import NamedTuple
from autofit.errors import RemoteError, UsageError

PORTS = {"http": 80, "https": 443}
MAX_URL = 8192  #: characters; signed addresses have up to 2,000


class Origin(NamedTuple):
    scheme: str
    host: str
    port: int


def origin_of(url: str) -> Origin:
    """Scheme, host and port of a URL.

    Raises:
        UsageError: it is none of http or https, has no host, or carries a user's name or password.
    """
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise UsageError(f"{shown(url)}: not a URL") from error
    if parts.scheme not in PORTS or not host or len(url) > MAX_URL or not url.isprintable() or " " in url:
        raise UsageError(f"{shown(url)}: not a URL of http or https")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"{shown(url)}: a name or password in a URL would be seen by others", hint="use a token: HF_TOKEN"
        )
    return Origin(parts.scheme, host, port or PORTS[parts.scheme])


def shown(url: str) -> str:
    """A URL for messages: without user, query and fragment, where secrets are."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        return printable(SplitResult(parts.scheme, host, parts.path, "", "").geturl(), 120)
    except ValueError:
        return "a malformed URL"


def redirected(url: str, location: str, named: Origin) -> str:
    """The URL that a redirect leads to. `named` is what the user asked for, or trusts by a setting.

    Raises:
        RemoteError: it leads away from encryption, or to an address of this machine or its network.
    """
    try:
        target = urljoin(url, location) if location else ""
        to = origin_of(target)
    except (ValueError, UsageError) as error:
        raise RemoteError(
            f"{shown(url)}: redirects to {printable(location, 80)}, which is not a URL",
            hint="ask who runs the server",
        ) from error
    if to.scheme == "http" and urlsplit(url).scheme == "https":
        raise RemoteError(
            f"{shown(url)}: redirects from https to http, which is refused", hint="ask who runs the server"
        )
    if to.host != named.host and is_local_name(to.host):
        raise RemoteError(
            f"{shown(url)}: redirects to {printable(to.host, 80)}, an address of this machine or its network",
            hint="it is refused, since only the server wants it; name it yourself if it is right",
        )
    return target


def is_local_name(host: str) -> bool:
    """Whether a host's name says by itself that it is here: a private address, or `localhost`."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith((".localhost", ".local", ".internal", ".home.arpa")):
        return True
    try:
        return not is_public(name)
    except ValueError:
        # numbers that only some resolvers take for an address: 127.1, 0x7f000001
        return name.replace(".", "").isdigit() or name.startswith("0x")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network.

    Raises:
        ValueError: no address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (mapped is None or is_public(str(mapped)))


def may_have_secret(origin: Origin, first: Origin) -> bool:
    """Whether a secret for `first` may be sent to `origin`: to it alone, and not in the clear over a network."""
    if origin != first:
        return False
    if origin.scheme == "https":
        return True
    try:
        return ipaddress.ip_address(origin.host).is_loopback
    except ValueError:
        return origin.host == "localhost"
