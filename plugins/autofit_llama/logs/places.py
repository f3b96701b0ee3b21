"""Names of llama.cpp's buffers, and where each of them lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from autofit.domain.observed import ReportedDevice

#: buffer types of ggml that lie in RAM: plain, mapped, repacked, pinned by a device's driver
_HOST = re.compile(r"(?:CPU|Host|AMX|BLAS|ACCEL|KLEIDIAI|SpacemiT|zDNN)(?:_\w+)?|\w+_Host|\w+_Pinned")
#: what the names of a device's further buffer types end in
_KINDS = re.compile(r"_(?:Mapped|Split|Private|Shared)$")
#: the address in the buffers' names of a remote device, where the device has a number (ggml-rpc.cpp; builds
#: before them know it by the address alone)
_ADDRESS = re.compile(r"(?<=\d)\[[^\[\]]{1,80}\]$")


def is_host(place: str) -> bool:
    """Whether a buffer of this name lies in RAM (what `ggml_backend_buft_name` gives)."""
    return _HOST.fullmatch(place) is not None


def place_of(name: str, devices: Mapping[str, ReportedDevice] = MappingProxyType({})) -> str:
    """The device of a buffer: `MTL0_Mapped` is `MTL0`; one in RAM keeps its name.

    `RPC1[HOST:PORT]` is the second device of that server, whatever its number among all: the second of `devices` that
    was listed with its address, or else `RPC1`.
    """
    if is_host(name):
        return name
    address = _ADDRESS.search(name)
    if address is None:
        return _KINDS.sub("", name)
    of_server = [device.place for device in devices.values() if device.name == address[0][1:-1]]
    number = int(re.sub(r"\D", "", name[: address.start()])[-4:])
    return of_server[number] if number < len(of_server) else name[: address.start()]
