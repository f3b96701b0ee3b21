"""Loads plugins, keeps a broken one from stopping the rest, and forwards each hook.

Built-ins are listed by module name, so their order is fixed and a checkout works without package metadata; third
parties come through the entry-point group `autofit`. Their plugins are checked and called by pluggy, which nothing else
touches and which is loaded when there is one: the built-ins are known to be right (a test registers them with it).
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock  # threading itself takes long to import
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, cached_property, partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from autofit import hookspecs
from autofit.domain.text import printable
from autofit.domain.values import dataclass, replace
from autofit.errors import AutofitError, PluginError, UsageError
from autofit.text.programs import n_module_words

if TYPE_CHECKING:
    import pluggy

    from autofit.backend import Backend
    from autofit.domain.machine import Machine
    from autofit.domain.model import ModelSpec
    from autofit.domain.plan import Plan

BUILTINS = ("autofit.builtin", "autofit_llama.plugin", "autofit_vllm.plugin")
AUTOLOAD_OFF = "AUTOFIT_DISABLE_PLUGIN_AUTOLOAD"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """One plugin as `autofit plugins` shows it; `error` is why it is not in use."""

    name: str
    distribution: str | None = None
    version: str | None = None
    hooks: tuple[str, ...] = ()
    error: str | None = None


class Host:
    """The plugins of this process and what they offer."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._plugins: dict[str, object] = {}
        self.records: list[PluginRecord] = []
        for module in BUILTINS:
            self._load(module, partial(import_module, module))
        if environ.get(AUTOLOAD_OFF, "") in {"", "0"}:
            self._load_entry_points()

    # -- loading ------------------------------------------------------------------------------------------

    def _load_entry_points(self) -> None:
        if not any(_offers_plugins(path) for path in sys.path):
            return
        from importlib.metadata import entry_points

        for point in sorted(entry_points(group=hookspecs.PROJECT_NAME), key=lambda point: point.name):
            if point.module in BUILTINS:
                continue
            distribution = point.dist
            self._load(
                point.name,
                point.load,
                distribution=distribution.name if distribution else None,
                version=distribution.version if distribution else None,
            )

    def _load(
        self, name: str, load: Callable[[], Any], distribution: str | None = None, version: str | None = None
    ) -> None:
        try:
            with off_stdout():
                plugin = load()
            hash(plugin)  # pluggy keeps plugins in sets
            if name in self._plugins:
                raise PluginError(f"another plugin is called {name!r}")
            self._plugins[name] = plugin
            if name not in BUILTINS:
                self._manager.register(plugin, name=name)
            hooks = tuple(hook for hook in dir(plugin) if hook.startswith("autofit_") and _implements(plugin, hook))
            unknown = [hook for hook in hooks if not hasattr(hookspecs, hook)]
            if unknown:
                raise PluginError(f"no such hook: {', '.join(unknown)}")
            record = PluginRecord(name=name, distribution=distribution, version=version, hooks=hooks)
            self.records.append(record)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # any failure of a plugin is the plugin's: record it and go on
            taken = any(record.name == name for record in self.records)
            self._disable(f"{distribution}: {name}" if taken else name, error, distribution, version)

    @cached_property
    def _manager(self) -> pluggy.PluginManager:
        """What checks and calls the plugins of others."""
        import pluggy

        manager = pluggy.PluginManager(hookspecs.PROJECT_NAME)
        manager.add_hookspecs(hookspecs)
        return manager

    def _disable(
        self, name: str, error: BaseException, distribution: str | None = None, version: str | None = None
    ) -> None:
        if self._plugins.pop(name, None) is not None and name not in BUILTINS and self._manager.has_plugin(name):
            self._manager.unregister(name=name)
        known = next((record for record in self.records if record.name == name), None)
        self.records = [record for record in self.records if record.name != name]
        self.records.append(
            PluginRecord(
                name=name,
                distribution=distribution or (known.distribution if known else None),
                version=version or (known.version if known else None),
                error=_one_line(error),
            )
        )

    # -- forwarding ---------------------------------------------------------------------------------------

    def _offering(self, hook: str) -> list[tuple[str, object]]:
        """The plugins that implement this hook, first registered first."""
        return [(name, plugin) for name, plugin in self._plugins.items() if hasattr(plugin, hook)]

    def _call(self, name: str, plugin: object, hook: str, **arguments: object) -> list[Any]:
        """Call one plugin alone, so that its result and its exception have an owner."""
        try:
            with off_stdout():
                if name in BUILTINS:
                    return [getattr(plugin, hook)(**arguments)]  # as its hookspec has it: nothing to leave out
                others = [other for other in self._manager.get_plugins() if other is not plugin]
                return list(self._manager.subset_hook_caller(hook, others)(**arguments))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # it must not stop the host
            self._disable(name, error)
            return []

    def _each(self, hook: str, kind: type[Any], **arguments: object) -> Iterable[tuple[str, list[Any]]]:
        """What each plugin offers, all of it of this kind: a plugin that offers anything else offers nothing."""
        for name, plugin in self._offering(hook):
            for offered in self._call(name, plugin, hook, **arguments):
                try:
                    with off_stdout():
                        items = _all_of(kind, offered, hook)
                except KeyboardInterrupt:
                    raise
                except BaseException as error:  # the same
                    self._disable(name, error)
                else:
                    yield name, items

    def _refs(self, hook: str, kind: type[Any]) -> dict[str, Any]:
        refs: dict[str, Any] = {}
        for plugin, offered in self._each(hook, kind):
            taken = next((ref.name for ref in offered if ref.name in refs), None)
            if taken is not None:
                self._disable(plugin, PluginError(f"{taken!r} is already taken"))
                continue
            refs |= {ref.name: ref for ref in offered}
        return refs

    def backends(self) -> dict[str, hookspecs.BackendRef]:
        return self._refs("autofit_register_backends", hookspecs.BackendRef)

    def model_readers(self) -> dict[str, hookspecs.ModelReaderRef]:
        return self._refs("autofit_register_model_readers", hookspecs.ModelReaderRef)

    def model_sources(self) -> dict[str, hookspecs.ModelSourceRef]:
        return self._refs("autofit_register_model_sources", hookspecs.ModelSourceRef)

    def hardware_sources(self) -> dict[str, hookspecs.HardwareSourceRef]:
        return self._refs("autofit_register_hardware_sources", hookspecs.HardwareSourceRef)

    def renderers(self) -> dict[str, hookspecs.RendererRef]:
        return self._refs("autofit_register_renderers", hookspecs.RendererRef)

    def commands(self) -> dict[str, hookspecs.CommandRef]:
        return self._refs("autofit_register_commands", hookspecs.CommandRef)

    def profile_dirs(self) -> tuple[str, ...]:
        return tuple(path for _, offered in self._each("autofit_register_profile_dirs", str) for path in offered)

    def backend(self, name: str) -> Backend:
        """The backend of this name.

        Raises:
            UsageError: nobody offers it.
            PluginError: its factory fails.
        """
        refs = self.backends()
        if name not in refs:
            raise UsageError(f"no backend {name!r}", hint=f"known: {', '.join(sorted(refs))}; see `autofit plugins`")
        from autofit.backend import Backend

        factory = resolve(refs[name].factory)
        with blamed(refs[name].factory):
            backend = factory()
            if not isinstance(backend, Backend):
                made = type(backend).__name__
                raise PluginError(
                    f"{refs[name].factory} must make a Backend, not {made}",
                    hint=f"class {made:.60}(autofit.backend.Backend): docs/hooks.md has a whole plugin",
                )
            return backend

    def backend_of_program(self, argv: tuple[str, ...]) -> Backend:
        """The backend that understands this command, by its program's name; of `python -m` by the package's.

        Raises:
            UsageError: no backend does.
        """
        program = os.path.basename(argv[0]) if argv else ""  # noqa: PTH119 - a word, not a path of this machine
        program = program.removesuffix(".exe")
        if n := n_module_words(argv):
            program = argv[n - 1].partition(".")[0]
        for ref in self.backends().values():
            if program in ref.programs:
                return self.backend(ref.name)
        known = sorted(word for ref in self.backends().values() for word in ref.programs)
        raise UsageError(f"no backend understands the command {program!r}", hint=f"known programs: {', '.join(known)}")

    def backend_of_image(self, image: str) -> Backend | None:
        """The backend whose engine a container image holds, by the image's name."""
        from autofit.text.containers import repository_of

        repository = f"/{repository_of(image)}"
        for ref in self.backends().values():
            if any(repository.endswith(f"/{name}") for name in ref.images):
                return self.backend(ref.name)
        return None

    def adjust_machine(self, machine: Machine, backend_name: str) -> Machine:
        """Fold the plugins' corrections, each over the one before."""
        hook, kind = "autofit_adjust_machine", type(machine)
        for name, plugin in self._offering(hook):
            for adjusted in self._call(name, plugin, hook, machine=machine, backend_name=backend_name):
                if isinstance(adjusted, kind):
                    machine = adjusted
                else:
                    self._disable(name, PluginError(_wrong_kind(hook, kind, adjusted)))
        return machine

    def review_plan(self, plan: Plan, model: ModelSpec, machine: Machine) -> Plan:
        from autofit.domain.plan import Finding

        reviews = self._each("autofit_review_plan", Finding, plan=plan, model=model, machine=machine)
        found = [finding for _, findings in reviews for finding in findings]
        return replace(plan, findings=(*plan.findings, *found))


@cache
def host() -> Host:
    """The host of this process."""
    return Host()


def resolve(reference: str) -> Any:
    """The object that `package.module:attribute` names.

    Raises:
        PluginError: it cannot be imported.
    """
    module, _, attribute = reference.partition(":")
    with blamed(reference):
        found: Any = import_module(module)
        return getattr(found, attribute) if attribute else found


@contextmanager
def blamed(reference: str, *, prints: bool = False) -> Iterator[None]:
    """What goes wrong inside is the fault of what `reference` names; what it prints is no product, unless it `prints`.

    Raises:
        PluginError: anything that is no error of ours.
    """
    try:
        with nullcontext() if prints else off_stdout():
            yield
    except (AutofitError, KeyboardInterrupt, BrokenPipeError):
        raise
    except BaseException as error:  # a module that finds no license may well call sys.exit()
        raise PluginError(f"{reference}: {_one_line(error)}", hint="see `autofit plugins`") from error


class _Stdout:
    """Whether stdout carries the product of a command, and how many calls of plugins are kept off it now."""

    is_product = False
    n_calls = 0
    kept: Any = None
    lock = allocate_lock()


@contextmanager
def product_on_stdout() -> Iterator[None]:
    """Meanwhile what plugins print goes to stderr: stdout is the command's. Programs keep theirs as it is."""
    _Stdout.is_product = True
    try:
        yield
    finally:
        _Stdout.is_product = False


@contextmanager
def off_stdout() -> Iterator[None]:
    """Prints go to stderr meanwhile, in every thread: hardware is asked in several."""
    if not _Stdout.is_product:
        yield
        return
    with _Stdout.lock:
        if not _Stdout.n_calls:
            _Stdout.kept, sys.stdout = sys.stdout, sys.stderr
        _Stdout.n_calls += 1
    try:
        yield
    finally:
        with _Stdout.lock:
            _Stdout.n_calls -= 1
            if not _Stdout.n_calls:
                sys.stdout, _Stdout.kept = _Stdout.kept, None


def _implements(plugin: object, hook: str) -> bool:
    """Whether a plugin has marked this as a hook of ours."""
    return hasattr(getattr(plugin, hook), f"{hookspecs.PROJECT_NAME}_impl")


def _all_of(kind: type[Any], offered: Iterable[Any], hook: str) -> list[Any]:
    """The items of a hook's result.

    Raises:
        PluginError: one is of another kind, or a reference without words.
    """
    if isinstance(offered, str):
        raise PluginError(f"{hook} must return a list of {kind.__name__}, not a string")
    items = list(offered)
    for item in items:
        if not isinstance(item, kind):
            raise PluginError(_wrong_kind(hook, kind, item))
        if hasattr(item, "factory") and not all(isinstance(word, str) and word for word in item[:3]):
            raise PluginError(f"{hook}: name, summary and factory of {kind.__name__} are text")
    return items


def _wrong_kind(hook: str, kind: type[Any], given: object) -> str:
    return f"{hook} must return {kind.__name__}, not {type(given).__name__}"


def _offers_plugins(directory: str) -> bool:
    """Whether a distribution installed here names our entry-point group.

    importlib.metadata answers the same, but takes a fifth of a start to be imported.
    """
    try:
        with os.scandir(directory or ".") as entries:
            infos = [entry.path for entry in entries if entry.name.endswith((".dist-info", ".egg-info"))]
    except OSError:
        return False
    for info in infos:
        try:
            with open(os.path.join(info, "entry_points.txt"), encoding="utf-8", errors="replace") as file:  # noqa: PTH118, PTH123 - pathlib costs more than the scan
                if f"[{hookspecs.PROJECT_NAME}]" in file.read(1 << 20):
                    return True
        except OSError:
            continue
    return False


def _one_line(error: BaseException) -> str:
    text = error.message if isinstance(error, AutofitError) else f"{type(error).__name__}: {error}"
    return printable(" ".join(text.split()), 300)


def is_debug(word: str) -> bool:
    """Whether `AUTOFIT_DEBUG` asks for this (`traceback`, `plugins`)."""
    return word in os.environ.get("AUTOFIT_DEBUG", "").split(",")


def warn_broken(records: Iterable[PluginRecord]) -> None:
    """One line per broken third-party plugin on stderr."""
    for record in records:
        if record.error:
            print(f"autofit: plugin {printable(record.name)} is not in use: {record.error}", file=sys.stderr)
