from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from autofit.domain.machine import Host as HostFacts
from autofit.domain.machine import Machine
from autofit.errors import PluginError, UsageError
from autofit.hookspecs import BackendRef, hookimpl
from autofit.host import AUTOLOAD_OFF, Host, resolve


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


def test_an_installed_distribution_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
