"""What a plugin registers is really asked: readers, sources, and directories of profiles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.domain.model import ModelSpec
from autofit.errors import ModelNotFoundError, PluginError
from autofit.hookspecs import ModelReaderRef, ModelSourceRef, hookimpl
from autofit.host import AUTOLOAD_OFF, Host

from support import ROOT

TINY = ROOT / "autofit/_models/tiny.gguf"
CARD = autofit.load_machine("rtx-3090", ram="64GiB")


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Adds a plugin with these hooks to the process's host."""
    host = Host({AUTOLOAD_OFF: "1"})
    for module in (
        "autofit.pipeline",
        "autofit.machines",
        "autofit.validation",
        "autofit.cli.hardware",
        "autofit.cli.plan",
        "autofit.host",
    ):
        monkeypatch.setattr(f"{module}.host", lambda: host, raising=False)

    def add(**hooks: Any) -> None:
        plugin = ModuleType("extra")
        for hook, result in hooks.items():
            setattr(plugin, hook, hookimpl(lambda result=result: result))
        host._load("extra", lambda: plugin)
        assert not [record for record in host.records if record.error]

    return add


def shelf(reference: str) -> str | None:
    return str(TINY) if reference == "shelf:tiny" else None


def renamed(paths: tuple[str, ...]) -> ModelSpec:
    return replace(autofit.read_model(TINY), name=f"read from {Path(paths[0]).name}")


def no_model(paths: tuple[str, ...]) -> str:
    return paths[0]


def test_a_source_of_a_plugin_is_asked_for_its_scheme(plugins: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plugins(autofit_register_model_sources=[ModelSourceRef("shelf", "x", f"{__name__}:shelf", ("shelf",))])
    assert autofit.read_model("shelf:tiny") == autofit.read_model(TINY)
    assert autofit.plan("llama", "shelf:tiny", CARD).argv[2] == str(TINY)
    assert main(["llama", "shelf:tiny", "--on", "rtx-3090", "--ram", "64GiB", "-q"]) == 0
    assert str(TINY) in capsys.readouterr().out
    with pytest.raises(ModelNotFoundError, match="shelf:other"):
        autofit.read_model("shelf:other")


def test_a_reader_of_a_plugin_is_chosen_by_suffix_and_by_first_bytes(plugins: Any, tmp_path: Path) -> None:
    refs = [
        ModelReaderRef("odd", "x", f"{__name__}:renamed", (".odd",)),
        ModelReaderRef("magic", "x", f"{__name__}:renamed", (), b"ODD!"),
        ModelReaderRef("wrong", "x", f"{__name__}:no_model", (".wrong",)),
    ]
    plugins(autofit_register_model_readers=refs)
    for name, start in (("m.odd", b""), ("m", b"ODD!...")):
        (tmp_path / name).write_bytes(start)
        assert autofit.read_model(tmp_path / name).name == f"read from {name}"
    with pytest.raises(PluginError, match="ModelSpec"):
        autofit.read_model(tmp_path / "m.wrong")


def test_profiles_of_a_plugin_are_listed_and_known(
    plugins: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hardware").mkdir()
    text = (ROOT / "profiles/hardware/rtx-3090.toml").read_text().partition("aliases")[0]
    (tmp_path / "hardware/zx-1.toml").write_text(text)
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/short.toml").write_text('summary = "x"\ncontext = 256\n')
    plugins(autofit_register_profile_dirs=[str(tmp_path)])
    assert main(["hardware", "list", "zx-1"]) == 0
    assert capsys.readouterr().out.startswith("zx-1 ")
    assert autofit.load_machine("zx-1", ram="8GiB").devices[0].profile == "zx-1"
    assert autofit.plan("llama", TINY, CARD, preset="short").context_tokens == 256


@pytest.mark.parametrize("reference", ["example:tiny", TINY.as_uri()])
def test_a_command_names_the_file_and_not_the_reference(reference: str) -> None:
    assert autofit.plan("llama", reference, CARD).argv[2] == str(TINY)


def test_the_home_directory_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(TINY.parent))
    assert autofit.plan("llama", "~/tiny.gguf", CARD).argv[2] == str(TINY)


def test_a_preset_named_by_a_variable_counts_in_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = autofit.plan("llama", "example:mixtral-8x7b-q4_k_m", CARD, preset="low-memory")
    monkeypatch.setenv("AUTOFIT_PRESET", "low-memory")
    assert autofit.plan("llama", "example:mixtral-8x7b-q4_k_m", CARD).argv == asked.argv
