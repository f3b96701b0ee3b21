"""Real RPC servers of llama.cpp that have little memory, and a model that no one of them holds."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support import ggufs
from support.dryrun import engine_folder, rpc_servers
from support.networks import Place

MIB = 1 << 20
CLAIMED_MIB = 96  #: of each server
SLACK_MIB = 48  #: that a server's process takes beside the buffers it hands out


def write_experts(path: Path) -> Path:
    """About 190 MiB."""
    model = ggufs.llama(
        n_layer=6, n_embd=512, n_head=8, n_ff=2048, n_vocab=32000, n_expert=8, weight_type="q8_0", output_type="q8_0",
        metadata=ggufs.byte_vocabulary(32000),
    )  # fmt: skip
    return ggufs.write_with_weights(path, model)


@contextmanager
def limited_servers(n: int, places: Sequence[Place] = ()) -> Iterator[list[str]]:
    """Servers, here or each in a place of its own, that say they have CLAIMED_MIB, and cannot have much more."""
    folder = engine_folder()
    assert folder is not None
    with rpc_servers(folder, [CLAIMED_MIB] * n, places) as addresses:
        for address in addresses:
            pid = _listener(int(address.split(":")[1]))
            idle = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
            limit = idle + (CLAIMED_MIB + SLACK_MIB) * MIB
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
        yield addresses


def _listener(port: int) -> int:
    """The process that was started with this port."""
    for found in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = found.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"ggml-rpc-server") and str(port).encode() in words:
            return int(found.parent.name)
    raise AssertionError(port)
