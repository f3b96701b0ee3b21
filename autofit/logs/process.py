"""How a process ended, in the words of the kernel, of shells and of container runtimes."""

from __future__ import annotations

import re

from autofit.domain.units import KIB
from autofit.logs.messages import Message
from autofit.logs.notes import Notes

SIGKILL = 9
#: exit statuses of Windows for lack of memory: STATUS_NO_MEMORY, STATUS_COMMITMENT_LIMIT, as they are and signed
_NO_MEMORY = frozenset({0xC0000017, 0xC000012D, 0xC0000017 - (1 << 32), 0xC000012D - (1 << 32)})


def ended(notes: Notes, exit_code: int) -> None:
    """Note an exit status that tells of memory. 137 and -9 are SIGKILL, which the kernel sends when RAM runs out."""
    if exit_code in _NO_MEMORY:
        notes.fail("RAM", f"exit status 0x{exit_code & 0xFFFFFFFF:08X}: no memory", is_certain=True)
    elif exit_code in (-SIGKILL, 128 + SIGKILL) and notes.failure is None:
        notes.fail("killed", f"killed (exit status {exit_code})", is_certain=False)


def _oom_killer(notes: Notes, match: re.Match[str]) -> None:
    resident = sum(int(n) for n in re.findall(r"(?:anon|file|shmem)-rss:(\d{1,15})kB", match[0]))
    notes.fail(
        "RAM",
        match[0],
        place="host",
        total_bytes=None,
        requested_bytes=None,
    )
    notes.fact("killed.process", match["name"])
    if resident:
        notes.fact("killed.resident_bytes", resident * KIB)
    if "cgroup" in match[0]:
        notes.fact("killed.in_cgroup", True)


def _killed(notes: Notes, match: re.Match[str]) -> None:
    notes.fail("RAM", match[0], place="host")


def _maybe_killed(notes: Notes, match: re.Match[str]) -> None:
    if notes.n_lines:
        notes.fail("killed", match[0], is_certain=False)


MESSAGES = (
    Message(
        "Killed process",
        r"(?:[Mm]emory cgroup out of memory|[Oo]ut of memory): Killed process \d{1,9} \((?P<name>[^)]{0,40})\).{0,300}",
        _oom_killer,
        "Linux, mm/oom_kill.c:__oom_kill_process",
    ),
    Message("OOMKilled", r"\bOOMKilled\b(?!\"?:\s*false)", _killed, "Kubernetes and Docker: reason of a container"),
    Message("oom-kill", r"Failed with result 'oom-kill'", _killed, "systemd, src/core/unit.c"),
    Message("exited with code 137", r"exited with code 137", _maybe_killed, "docker compose: the end of a container"),
    Message("Killed", r"^(?:\S+: line \d+:\s+\d+ |\[\d+\]\+?\s+)?Killed\b.{0,80}$", _maybe_killed, "bash, jobs.c"),
)
