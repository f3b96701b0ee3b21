"""What an engine's plugin does. Hooks register it; the work is methods of this class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from autofit.domain.machine import Machine
from autofit.domain.model import ModelSpec
from autofit.domain.plan import Plan
from autofit.domain.request import Request
from autofit.domain.values import dataclass
from autofit.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCommand:
    """An engine's command line, taken apart as the engine would.

    `model` is the reference it names (path, directory or repository), `companions` the other models it loads by
    role (`mmproj`, `draft`, `lora`); `settings` is the backend's own frozen value.
    """

    program: tuple[str, ...]
    model: str | None
    companions: Mapping[str, str]
    settings: Any


class Backend(ABC):
    """One serving engine: what it accepts, what it costs, how it is started.

    A backend is pure but for `find_engine` and `dry_run`: it reads no file, no clock and no environment.
    """

    name: ClassVar[str]  #: the word on autofit's command line
    programs: ClassVar[tuple[str, ...]]  #: programs whose commands `check` and `run` give to this backend
    formats: ClassVar[tuple[str, ...]]  #: model formats it serves

    @abstractmethod
    def parse(
        self, argv: Sequence[str], env: Mapping[str, str] | None = None, *, version: str | None = None
    ) -> ParsedCommand:
        """Take a command of this engine apart, with its own spellings, aliases and defaults.

        `argv` starts with the program word(s), or with a flag. `env` holds the engine's own variables; `version`
        is the engine's, the newest known if not given.

        Raises:
            UsageError: a flag or value that this version of the engine refuses.
        """

    def settings_files(self, environ: Mapping[str, str]) -> tuple[str, ...]:
        """Paths of files, whether they exist or not, that this engine takes settings from beside its command line.

        Their texts come to `parse` and in `Request.engine_env` by path, beside the variables by name.
        """
        return ()

    @abstractmethod
    def plan(self, model: ModelSpec, machine: Machine, request: Request) -> Plan:
        """The best plan that keeps `request.engine_args` exactly and fits.

        Nothing that fits is an answer too: a plan with `fits` false, the nearest one, and an error finding with
        the shortfall.

        Raises:
            UsageError, EngineRefusalError, UnsupportedModelError
        """

    @abstractmethod
    def check(self, command: ParsedCommand, model: ModelSpec, machine: Machine, **facts: Any) -> Plan:
        """What this command takes as it stands; nothing is changed.

        Raises:
            EngineRefusalError: the engine would refuse to start with these arguments.
        """

    def find_engine(self) -> str | None:
        """The version of the installed engine, or `None`. Never imports it."""
        return None

    def dry_run(self, plan: Plan) -> Mapping[str, object]:
        """Ask an installed engine what it would allocate.

        Raises:
            EngineError: the engine is not installed or has no dry run.
        """
        raise EngineError(f"{self.name}: no dry run is available")
