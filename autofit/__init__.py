"""autofit: launch arguments that fit a language model into your hardware, exact to the byte.

The public names below are loaded on first use, so that `import autofit` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from autofit.domain.fleet import Fleet as Fleet
    from autofit.domain.fleet import FleetPlan as FleetPlan
    from autofit.domain.machine import Machine as Machine
    from autofit.domain.model import ModelSpec as ModelSpec
    from autofit.domain.plan import Plan as Plan
    from autofit.errors import AutofitError as AutofitError
    from autofit.errors import CorruptModelError as CorruptModelError
    from autofit.errors import EngineError as EngineError
    from autofit.errors import EngineRefusalError as EngineRefusalError
    from autofit.errors import HardwareError as HardwareError
    from autofit.errors import IncompleteModelError as IncompleteModelError
    from autofit.errors import ModelError as ModelError
    from autofit.errors import ModelNotFoundError as ModelNotFoundError
    from autofit.errors import NoFitError as NoFitError
    from autofit.errors import PluginError as PluginError
    from autofit.errors import RemoteError as RemoteError
    from autofit.errors import UnknownHardwareError as UnknownHardwareError
    from autofit.errors import UnsupportedModelError as UnsupportedModelError
    from autofit.errors import UsageError as UsageError
    from autofit.fleets.api import fleet as fleet
    from autofit.machines import detect_machine as detect_machine
    from autofit.machines import load_machine as load_machine
    from autofit.pipeline import check as check
    from autofit.pipeline import plan as plan
    from autofit.pipeline import read_model as read_model
    from autofit.quants import made_to_measure as made_to_measure
    from autofit.quants import quantizations as quantizations
    from autofit.settings.layers import Surroundings as Surroundings
    from autofit.tuning import tune as tune

_HOMES = {
    "Fleet": "autofit.domain.fleet",
    "FleetPlan": "autofit.domain.fleet",
    "Machine": "autofit.domain.machine",
    "ModelSpec": "autofit.domain.model",
    "Plan": "autofit.domain.plan",
    "AutofitError": "autofit.errors",
    "CorruptModelError": "autofit.errors",
    "EngineError": "autofit.errors",
    "EngineRefusalError": "autofit.errors",
    "HardwareError": "autofit.errors",
    "IncompleteModelError": "autofit.errors",
    "ModelError": "autofit.errors",
    "ModelNotFoundError": "autofit.errors",
    "NoFitError": "autofit.errors",
    "PluginError": "autofit.errors",
    "RemoteError": "autofit.errors",
    "UnknownHardwareError": "autofit.errors",
    "UnsupportedModelError": "autofit.errors",
    "UsageError": "autofit.errors",
    "Surroundings": "autofit.settings.layers",
    "check": "autofit.pipeline",
    "fleet": "autofit.fleets.api",
    "detect_machine": "autofit.machines",
    "load_machine": "autofit.machines",
    "plan": "autofit.pipeline",
    "made_to_measure": "autofit.quants",
    "quantizations": "autofit.quants",
    "read_model": "autofit.pipeline",
    "tune": "autofit.tuning",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'autofit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
