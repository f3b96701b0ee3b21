"""What a plugin may offer. Registering hooks return light references and do no work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from autofit.domain.values import NamedTuple

if TYPE_CHECKING:
    import pluggy

    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Finding, Plan

PROJECT_NAME = "autofit"  #: pluggy's project name and the entry-point group

if TYPE_CHECKING:
    hookspec = pluggy.HookspecMarker(PROJECT_NAME)
    hookimpl = pluggy.HookimplMarker(PROJECT_NAME)
else:
    # pluggy's markers, without pluggy: it takes a tenth of a cold start, and is needed for the plugins of others alone

    def hookspec(function: Callable[..., Any]) -> Callable[..., Any]:
        function.autofit_spec = {}
        return function

    def hookimpl(function: Callable[..., Any] | None = None, **options: Any) -> Any:
        """Marks a function as one of the hooks below; options are those of pluggy."""
        if options or function is None:
            import pluggy

            return pluggy.HookimplMarker(PROJECT_NAME)(function, **options)
        function.autofit_impl = {}
        return function


class BackendRef(NamedTuple):
    """An engine: `name` is the word on the command line, `factory` a dotted `package.module:Class`.

    `images` are the ends of the names of its container images, without a tag: `vllm-openai`, `ggml-org/llama.cpp`."""

    name: str
    summary: str
    factory: str
    programs: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


class ModelReaderRef(NamedTuple):
    """A file format. `factory` is `module:function(paths) -> ModelSpec`; chosen by suffix (`/`: directories), then by
    first bytes; an empty suffix takes what is left.

    For files that are not on this disk it is called `function(paths, storage)`: `storage.open(path)` reads pieces of
    them (`autofit.domain.model.Storage`)."""

    name: str
    summary: str
    factory: str
    suffixes: tuple[str, ...] = ()
    magic: bytes = b""


class ModelSourceRef(NamedTuple):
    """A way to name a model. `factory` is `module:function(reference)`, which returns paths, `ModelFiles` or `None`;
    the empty scheme is that of names without one.

    `stored` is `module:function(environ)`, which yields a `StoredModel` for each model that lies on this machine."""

    name: str
    summary: str
    factory: str
    schemes: tuple[str, ...] = ()
    stored: str = ""


class HardwareSourceRef(NamedTuple):
    """Something that knows devices. `factory` is `module:function(system, host) -> Facts` (`autofit.hardware.facts`);
    `system` is the only door to files and programs, and keeps the time.

    `library`: a driver's library, by the name that the loader finds it by, or a path that is there where it is: then
    a child process loads it.
    `unanswered` is `module:function(system, why) -> Facts`: what is known where the library gave no answer in time.
    One that `fills_gaps` is asked only where the others leave a device, or its free memory, unknown.
    `signs`: paths, libraries (with `.so`) and programs of which one is there wherever it could know a device; where
    none is, it is not loaded. Without any it is always asked."""

    name: str
    summary: str
    factory: str
    library: str = ""
    unanswered: str = ""
    fills_gaps: bool = False
    signs: tuple[str, ...] = ()


class RendererRef(NamedTuple):
    """A word of `--format`. `factory` is `module:function(plan) -> str`.

    `no_fit` is what a format of commands prints for a plan that does not fit, which must not look like success to a
    shell; a format without it renders such plans as well. `fleet` is `module:function(fleet) -> files`, of a format
    that can say the plan of a fleet (`autofit.domain.fleet`). `words_only`: of the plan it reads the words and
    variables of the command, and nothing of what a container or a unit needs (`Plan.deployment`), which is not looked
    up. `wraps`: its function takes `columns` too, the width of the terminal that shows it, and `None` elsewhere.
    """

    name: str
    summary: str
    factory: str
    no_fit: str = ""
    fleet: str = ""
    words_only: bool = False
    wraps: bool = False


class CommandRef(NamedTuple):
    """A subcommand. `factory` is a module with `add_arguments(parser)` and `run(args) -> int`."""

    name: str
    summary: str
    factory: str


@hookspec
def autofit_register_backends() -> Iterable[BackendRef]:  # type: ignore[empty-body]
    """Offer serving engines. Called once, before arguments are parsed; a name already taken is an error."""


@hookspec
def autofit_register_model_readers() -> Iterable[ModelReaderRef]:  # type: ignore[empty-body]
    """Offer file formats. The first that has a file's suffix reads it, else the first that has its first bytes."""


@hookspec
def autofit_register_model_sources() -> Iterable[ModelSourceRef]:  # type: ignore[empty-body]
    """Offer ways to name a model, `SCHEME:NAME`. The first that knows a name of its scheme finds the files."""


@hookspec
def autofit_register_hardware_sources() -> Iterable[HardwareSourceRef]:  # type: ignore[empty-body]
    """Offer sources of device facts; all are asked, results are merged by device."""


@hookspec
def autofit_register_renderers() -> Iterable[RendererRef]:  # type: ignore[empty-body]
    """Offer output formats."""


@hookspec
def autofit_register_commands() -> Iterable[CommandRef]:  # type: ignore[empty-body]
    """Offer subcommands."""


@hookspec
def autofit_register_profile_dirs() -> Iterable[str]:  # type: ignore[empty-body]
    """Offer directories with `hardware/*.toml` and `presets/*.toml`."""


@hookspec
def autofit_adjust_machine(machine: Machine, backend_name: str) -> Machine | None:
    """Correct what was detected. Folded over all plugins, built-ins first; `None` changes nothing."""


@hookspec
def autofit_review_plan(plan: Plan, model: ModelSpec, machine: Machine) -> Iterable[Finding]:  # type: ignore[empty-body]
    """Add findings to a plan; it cannot be changed."""
