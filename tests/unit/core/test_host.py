from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy
import pytest
from autofit import hookspecs
from autofit.domain.machine import Host as HostFacts
from autofit.domain.machine import Machine
from autofit.domain.memory import Memory
from autofit.domain.plan import Plan
from autofit.errors import PluginError, UsageError
from autofit.hookspecs import PROJECT_NAME, BackendRef, RendererRef, hookimpl
from autofit.host import AUTOLOAD_OFF, BUILTINS, Host, resolve


@pytest.fixture
def quiet_host() -> Host:
    return Host({AUTOLOAD_OFF: "1"})


def add(host: Host, name: str, **hooks: Any) -> None:
    plugin = ModuleType(name)
    for hook, function in hooks.items():
        setattr(plugin, hook, hookimpl(function))
    host._load(name, lambda: plugin)


def record(host: Host, name: str) -> Any:
    return next(record for record in host.records if record.name == name)


def test_the_builtins_offer_both_engines(quiet_host: Host) -> None:
    assert list(quiet_host.backends())[:2] == ["llama", "vllm"]
    assert not [record for record in quiet_host.records if record.error]


@pytest.mark.parametrize("name", BUILTINS)
def test_the_builtins_are_plugins_as_anybodys_are(name: str) -> None:
    """The host calls their hooks itself: pluggy would find nothing wrong with them, and call them alike."""
    module = import_module(name)
    manager = pluggy.PluginManager(PROJECT_NAME)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    manager.check_pending()
    callers = manager.get_hookcallers(module) or []
    assert callers and sorted(caller.name for caller in callers) == [h for h in dir(module) if h.startswith("autofit_")]
    for caller in callers:
        (implementation,) = caller.get_hookimpls()
        assert caller.spec is not None and implementation.argnames == caller.spec.argnames
        assert not implementation.wrapper and not implementation.hookwrapper


def test_a_marker_takes_the_options_of_pluggy(quiet_host: Host) -> None:
    plugin = ModuleType("late")
    calls = []

    @hookimpl(trylast=True)
    def autofit_register_renderers() -> Iterable[RendererRef]:
        calls.append("asked")
        return [RendererRef("late", "y", "module:function")]

    plugin.autofit_register_renderers = autofit_register_renderers  # type: ignore[attr-defined]
    quiet_host._load("late", lambda: plugin)
    assert "late" in quiet_host.renderers() and calls == ["asked"]


def test_a_plugin_that_raises_on_load_is_recorded_and_the_rest_works(quiet_host: Host) -> None:
    def load() -> object:
        raise RuntimeError("no\nluck")

    quiet_host._load("unlucky", load, distribution="unlucky-dist", version="1")
    assert record(quiet_host, "unlucky").error == "RuntimeError: no luck"
    assert record(quiet_host, "unlucky").distribution == "unlucky-dist"
    assert "llama" in quiet_host.backends()


def test_a_plugin_that_raises_in_a_hook_is_recorded_and_the_rest_works(quiet_host: Host) -> None:
    def broken() -> Iterable[BackendRef]:
        raise ValueError("boom")

    add(quiet_host, "broken", autofit_register_backends=broken)
    assert "llama" in quiet_host.backends()
    assert "boom" in record(quiet_host, "broken").error


def test_a_plugin_may_not_take_a_name_that_is_taken(quiet_host: Host) -> None:
    add(quiet_host, "thief", autofit_register_backends=lambda: (BackendRef("llama", "mine", "x:y"),))
    assert quiet_host.backends()["llama"].factory != "x:y"
    assert "already taken" in record(quiet_host, "thief").error


def test_a_plugin_that_returns_the_wrong_thing_is_recorded(quiet_host: Host) -> None:
    add(quiet_host, "wrong", autofit_register_backends=lambda: ("llama2",))
    assert "llama2" not in quiet_host.backends()
    assert "BackendRef" in record(quiet_host, "wrong").error


def test_an_unknown_hook_is_an_error_of_that_plugin(quiet_host: Host) -> None:
    add(quiet_host, "typo", autofit_register_backend=lambda: ())
    assert "autofit_register_backend" in record(quiet_host, "typo").error


def test_a_machine_is_adjusted_by_every_plugin_in_order(quiet_host: Host) -> None:
    def rename(suffix: str) -> Any:
        def adjust(machine: Machine, backend_name: str) -> Machine:
            return Machine(host=machine.host, name=f"{machine.name}{suffix}")

        return adjust

    add(quiet_host, "first", autofit_adjust_machine=rename("a"))
    add(quiet_host, "second", autofit_adjust_machine=rename("b"))
    machine = Machine(host=HostFacts(total_bytes=1, available_bytes=1), name="m")
    assert quiet_host.adjust_machine(machine, "llama").name == "mab"


def test_an_unknown_backend_or_program_is_a_usage_error(quiet_host: Host) -> None:
    with pytest.raises(UsageError, match="no backend"):
        quiet_host.backend("nope")
    with pytest.raises(UsageError, match="understands the command"):
        quiet_host.backend_of_program(("./serve.sh",))


def test_a_factory_that_cannot_be_imported_is_a_plugin_error() -> None:
    with pytest.raises(PluginError):
        resolve("autofit.nothing:here")


def test_an_installed_distribution_is_found_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "autofit_extra-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: autofit-extra\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[autofit]\nextra = autofit_extra_plugin\n")
    (tmp_path / "autofit_extra_plugin.py").write_text(
        "from autofit.hookspecs import RendererRef, hookimpl\n"
        "@hookimpl\ndef autofit_register_renderers():\n    return (RendererRef('extra', 'more', 'x:y'),)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    host = Host({})
    assert "extra" in host.renderers()
    found = record(host, "extra")
    assert (found.distribution, found.version, found.error) == ("autofit-extra", "1.2", None)
    assert "extra" not in Host({AUTOLOAD_OFF: "1"}).renderers()


def test_a_plugin_that_ends_the_process_is_recorded_and_the_rest_works(quiet_host: Host) -> None:
    def leave() -> Any:
        raise SystemExit("no license")

    quiet_host._load("on load", leave)
    add(quiet_host, "in a hook", autofit_register_backends=leave)
    assert "llama" in quiet_host.backends()
    assert record(quiet_host, "on load").error == record(quiet_host, "in a hook").error == "SystemExit: no license"


def test_of_a_plugin_that_breaks_halfway_nothing_is_taken(quiet_host: Host) -> None:
    def half() -> Iterable[RendererRef]:
        yield RendererRef("half", "x", "x:y")
        raise RuntimeError("on the way")

    add(quiet_host, "half", autofit_register_renderers=half)
    assert "half" not in quiet_host.renderers()


@pytest.mark.parametrize(
    ("hook", "result"),
    [
        ("autofit_register_renderers", [RendererRef(5, None, "x:y")]),  # type: ignore[arg-type]
        ("autofit_register_renderers", 7),
        ("autofit_register_profile_dirs", [None]),
        ("autofit_register_profile_dirs", "/usr/share/profiles"),
        ("autofit_adjust_machine", "a machine"),
        ("autofit_review_plan", ["a finding"]),
    ],
)
def test_what_a_hook_returns_is_checked(quiet_host: Host, hook: str, result: object) -> None:
    add(quiet_host, "wrong", **{hook: lambda: result})
    machine = Machine(host=HostFacts(total_bytes=1, available_bytes=1))
    plan = Plan(backend="x", fits=True, argv=(), memory=Memory(pools=()))
    asked = (
        quiet_host.renderers(),
        quiet_host.profile_dirs(),
        quiet_host.adjust_machine(machine, "llama"),
        quiet_host.review_plan(plan, None, machine),  # type: ignore[arg-type]
    )
    assert asked == (Host({AUTOLOAD_OFF: "1"}).renderers(), (), machine, plan)
    assert record(quiet_host, "wrong").error


def test_a_plugin_does_not_take_another_of_its_name_down(quiet_host: Host) -> None:
    quiet_host._load("autofit_llama.plugin", lambda: ModuleType("other"), distribution="other-dist")
    assert "llama" in quiet_host.backends()
    assert "another plugin" in record(quiet_host, "other-dist: autofit_llama.plugin").error
    assert record(quiet_host, "autofit_llama.plugin").error is None


@pytest.mark.parametrize("factory", ["autofit_absent:Backend", "fractions:Fraction", "json:loads"])
def test_a_factory_that_makes_no_backend_is_a_plugin_error(quiet_host: Host, factory: str) -> None:
    add(quiet_host, "odd", autofit_register_backends=lambda: [BackendRef("odd", "x", factory)])
    with pytest.raises(PluginError, match=factory.partition(":")[0]):
        quiet_host.backend("odd")
