"""All sources asked at once, and what they say joined into one machine."""

from __future__ import annotations

from autofit.domain.machine import Machine
from autofit.hardware.host import read_host
from autofit.hardware.system import System


def detect(system: System) -> Machine:
    """The machine behind `system`."""
    facts = read_host(system)
    return Machine(host=facts.host, origin="detected", sources=facts.sources)
