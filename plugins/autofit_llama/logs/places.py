"""Names of llama.cpp's buffers, and where each of them lies."""

from __future__ import annotations

import re

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


def place_of(name: str) -> str:
    """The device of a buffer: `MTL0_Mapped` is `MTL0`, `RPC0[HOST:PORT]` is `RPC0`; one in RAM keeps its name."""
    return name if is_host(name) else _ADDRESS.sub("", _KINDS.sub("", name))
