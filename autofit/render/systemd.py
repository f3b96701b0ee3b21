"""A systemd unit. Source: systemd.service(5), systemd.exec(5) and systemd.syntax(7) of systemd 257."""

from __future__ import annotations

import re

from autofit.domain.machine import HOST_POOL
from autofit.domain.plan import Plan
from autofit.render.container import MIB, at_home, check_one_machine, checked, commented, deployment_of

_PLAIN = re.compile(r"[A-Za-z0-9@+=:,./_-]+")


def render(plan: Plan) -> str:
    """`[Service]` with the command, its paths absolute; the program is looked for on systemd's own path.

    Raises:
        UsageError: a word that a unit cannot hold, or a plan for several machines.
    """
    check_one_machine(plan)
    words = at_home(plan.argv, deployment_of(plan).paths)
    ram = next((pool for pool in plan.memory.pools if pool.id == HOST_POOL), None)
    rows = [
        "[Unit]",
        f"Description={plan.backend} server",
        "After=network-online.target",
        "Wants=network-online.target",
        "",
        "[Service]",
        *(f"Environment={_word(f'{name}={value}', expands=False)}" for name, value in sorted(plan.env.items())),
        "ExecStart=" + " ".join(_word(word, expands=True) for word in words),
        "Restart=on-failure",
        "RestartSec=5",
        *([f"# RAM in use: {-(-ram.used_bytes // MIB)} MiB"] if ram is not None and ram.used_bytes else []),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return commented(plan, "\n".join(rows))


def _word(word: str, *, expands: bool) -> str:
    """A word of a unit: in quotes where it needs them, `%` doubled, and `$` where it would name a variable."""
    text = checked(word).replace("%", "%%")
    text = text.replace("$", "$$") if expands else text
    if _PLAIN.fullmatch(text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
