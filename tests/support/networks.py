"""Network namespaces of Linux as machines: each with an address of its own, behind a cable that can be slow or cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from autofit.domain.values import dataclass

RATE = "burst 64kbit latency 400ms"  #: of a slow cable's queue


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One namespace, its address, and this machine's end of the cable to it."""

    name: str
    address: str
    cable: str

    @property
    def prefix(self) -> list[str]:
        """Words before a command that is to run there."""
        return ["ip", "netns", "exec", self.name]

    def slow(self, rate: str) -> None:
        """So much goes through the cable in either direction: `200mbit`."""
        words = f"root tbf rate {rate} {RATE}".split()
        _run("tc", "qdisc", "replace", "dev", self.cable, *words)
        _run("tc", "-n", self.name, "qdisc", "replace", "dev", "eth0", *words)

    def cut(self) -> None:
        _run("ip", "link", "set", self.cable, "down")


def possible() -> bool:
    """Whether this process may make namespaces."""
    if os.name != "posix" or not shutil.which("ip") or not shutil.which("tc") or os.geteuid():
        return False
    name = f"autofit-{os.getpid()}-try"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if done.returncode == 0:
        _run("ip", "netns", "delete", name)
    return done.returncode == 0


@contextmanager
def places(n: int) -> Iterator[list[Place]]:
    """`n` namespaces, gone afterwards."""
    made: list[Place] = []
    number = os.getpid() % 200
    try:
        for at in range(n):
            place = Place(name=f"autofit-{os.getpid()}-{at}", address=f"10.{number}.{at}.2", cable=f"af{number}x{at}")
            _run("ip", "netns", "add", place.name)
            made.append(place)
            ends = ("type", "veth", "peer", "name", "eth0", "netns", place.name)
            _run("ip", "link", "add", place.cable, *ends)
            _run("ip", "address", "add", f"10.{number}.{at}.1/30", "dev", place.cable)
            _run("ip", "link", "set", place.cable, "up")
            _run("ip", "-n", place.name, "address", "add", f"{place.address}/30", "dev", "eth0")
            _run("ip", "-n", place.name, "link", "set", "eth0", "up")
        yield made
    finally:
        for place in made:
            for words in (("link", "delete", place.cable), ("netns", "delete", place.name)):
                with suppress(subprocess.CalledProcessError):
                    _run("ip", *words)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
