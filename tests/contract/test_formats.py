"""Formats of files, each read back by what reads it: the same command, the same bytes."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.main import main
from autofit.domain.values import replace
from autofit.host import host, resolve

from support import ROOT

MODELS = {"llama": ROOT / "autofit/_models/tiny.gguf", "vllm": ROOT / "tests/data/vllm/configs/qwen3-0.6b"}
ON = {"llama": ("--on", "rtx-3090", "--on", "rtx-3090", "--ram", "64GiB"), "vllm": ("--on", "a100-80gb")}
#: format -> the name of a file of its kind
FILES = {
    "systemd": "engine.service",
    "dockerfile": "Dockerfile",
    "compose": "compose.yaml",
    "kubernetes": "deployment.yaml",
    "llama-swap": "config.yaml",
}
BOTH = [(backend, name) for backend in MODELS for name in FILES]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models whose name needs quotes, and is one of the files' own characters."""
    folder = tmp_path / "my $models 100%"
    folder.mkdir()
    shutil.copyfile(MODELS["llama"], folder / "model.gguf")
    shutil.copytree(MODELS["vllm"], folder / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")
    return folder


def model_of(backend: str, folder: Path) -> str:
    return str(folder / ("model.gguf" if backend == "llama" else "model"))


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    assert main(list(words)) == code, capsys.readouterr().err
    return capsys.readouterr().out


def sizes(plan: dict[str, Any]) -> list[tuple[str, int, int, int]]:
    return [(pool["id"], pool["weights_bytes"], pool["cache_bytes"], pool["compute_bytes"]) for pool in plan["pools"]]


@pytest.mark.parametrize(("backend", "form"), BOTH)
def test_a_file_starts_what_was_planned(
    backend: str, form: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_of(backend, here)
    planned = json.loads(printed(capsys, backend, model, *ON[backend], "-c", "2k", "--format", "json", "-q"))
    text = printed(capsys, backend, model, *ON[backend], "-c", "2k", "--format", form, "-q")
    Path(FILES[form]).write_text(text)
    moved = ("--map", f"/models={here if backend == 'llama' else model}") if form == "dockerfile" else ()
    checked = printed(capsys, "check", *ON[backend], "--from", FILES[form], "--format", "json", *moved)
    (one,) = json.loads(checked)["commands"]
    assert one["error"] is None
    assert sizes(one["plan"]) == sizes(planned)


def test_presets_of_llama_server(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here.parent / "models"
    here.rename(folder)
    wishes = ("llama", str(folder / "model.gguf"), *ON["llama"], "-q", "--format")
    engine = ("--", "--no-kv-offload", "-ctk", "q8_0", "--port", "9000")
    planned = json.loads(printed(capsys, *wishes, "json", *engine))
    text = printed(capsys, *wishes, "llama-presets", *engine)
    assert "\n[model]\n" in text
    assert "\nno-kv-offload = true\n" in text
    assert "port" not in text
    Path("models.ini").write_text(f"version = 1\n[*]\nthreads = 4 ; of all\n\n{text}\nload-on-startup = true\n")
    (one,) = json.loads(printed(capsys, "check", *ON["llama"], "--from", "models.ini", "--format", "json"))["commands"]
    assert one["line"] == 8
    assert one["argv"][1:3] == ["--threads", "4"]
    assert sizes(one["plan"]) == sizes(planned)


@pytest.mark.parametrize(
    ("text", "cause"),
    [("[x]\nnot a pair\n", "line 2: 'not a pair' is neither"), ("[x]\nmodel = m.gguf\nno-such = 1\n", "--no-such")],
)
def test_presets_that_llama_server_refuses(
    text: str, cause: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.ini").write_text(text)
    assert main(["check", "--on", "cpu", "--from", "bad.ini"]) == 2
    said = capsys.readouterr()
    assert cause in said.out + said.err


def test_settings_of_vllm(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wishes = ("vllm", model_of("vllm", here), *ON["vllm"], "-q", "--format")
    engine = ("--", "--enforce-eager", "--compilation-config", '{"mode": 0}')
    planned = json.loads(printed(capsys, *wishes, "json", *engine))
    Path("vllm.yaml").write_text(printed(capsys, *wishes, "vllm-config", *engine))
    checked = printed(
        capsys, "check", *ON["vllm"], "-q", "--format", "json", "--", "vllm", "serve", "--config", "vllm.yaml"
    )
    assert sizes(json.loads(checked)) == sizes(planned)


@pytest.mark.parametrize("backend", MODELS)
def test_a_preset_plans_the_same_again(
    backend: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(here.parent / "profiles"))
    wishes = (backend, model_of(backend, here), *ON[backend], "-q", "--format")
    planned = json.loads(printed(capsys, *wishes, "json", "-c", "3k"))
    (here.parent / "profiles/presets").mkdir(parents=True)
    Path("profiles/presets/mine.toml").write_text(printed(capsys, *wishes, "toml", "-c", "3k"))
    again = json.loads(printed(capsys, *wishes, "json", "--preset", "mine"))
    assert sizes(again) == sizes(planned)
    assert again["context_tokens"] == planned["context_tokens"] == 3072 if backend == "llama" else True


@pytest.mark.parametrize("backend", MODELS)
def test_keyword_arguments(backend: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wishes = (backend, model_of(backend, here), "--on", "rtx-3090", "--ram", "64GiB", "-q", "--format")
    planned = json.loads(printed(capsys, *wishes, "json"))
    assert ast.literal_eval(printed(capsys, *wishes, "kwargs")) == planned["kwargs"] != {}


@pytest.mark.parametrize("form", [*FILES, "llama-presets", "toml", "kwargs"])
def test_a_plan_that_does_not_fit_is_not_printed(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(
        capsys,
        "llama",
        "example:mixtral-8x22b-q4_k_m",
        "--on",
        "rtx-3090",
        "--ram",
        "8GiB",
        "-q",
        "--format",
        form,
        code=3,
    )
    assert out in ("# it does not fit\n", "; it does not fit\n", "{}\n")


@pytest.mark.parametrize("form", [*FILES, "llama-presets", "toml"])
def test_words_that_a_file_cannot_hold_are_refused(form: str) -> None:
    plan = autofit.plan("llama", str(MODELS["llama"]), on=["rtx-3090"], ram="64GiB", settings=None)
    deployed = plan.deployment
    assert deployed is not None
    for word in ("a\nb", "a\udcff", "a\x1b[0m"):
        bad = replace(
            plan,
            argv=(*plan.argv, "--chat-template", word),
            deployment=replace(deployed, words=(*deployed.words, "--chat-template", word)),
        )
        with pytest.raises(autofit.UsageError):
            resolve(host().renderers()[form].factory)(bad)


def test_a_pod_has_room_beyond_the_plan_and_shared_memory_where_processes_share(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    pods = {}
    for backend, card in (("llama", "rtx-3090"), ("vllm", "a100-80gb")):
        wishes = (backend, model_of(backend, here), "--on", f"2x{card}", "--ram", "64GiB", "-q", "--format")
        engine = ("--", "-sm", "layer", "-ts", "1,1", "-ngl", "99") if backend == "llama" else ("--", "-tp", "2")
        planned = json.loads(printed(capsys, *wishes, "json", *engine))
        deployment, _ = yaml.safe_load_all(printed(capsys, *wishes, "kubernetes", *engine))
        pods[backend] = deployment["spec"]["template"]["spec"]
        given = pods[backend]["containers"][0]["resources"]
        assert given["requests"] == given["limits"]
        assert given["limits"]["nvidia.com/gpu"] == "2"
        used = next(pool["used_bytes"] for pool in planned["pools"] if pool["id"] == "host")
        spare = (int(given["limits"]["memory"].removesuffix("Mi")) << 20) - used
        assert spare >= (256 << 20)
    shared = {backend: [v["name"] for v in pod["volumes"] if "emptyDir" in v] for backend, pod in pods.items()}
    assert shared == {"llama": [], "vllm": ["shm"]}


def test_devices_without_an_image(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("llama", str(MODELS["llama"]), "--on", "m4-max:64GiB", "-q", "--format", "compose", "--", "-ngl", "99")
    assert main([*words]) == 2
    assert "no container image of llama b11311 on metal devices is known" in capsys.readouterr().err


def test_a_checked_command_has_no_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--", "llama-server", "-m", str(MODELS["llama"]))
    assert main(["check", "--on", "cpu", "--ram", "8GiB", "--format", "systemd", *command]) == 2
    assert "for plans, not for commands that are checked" in capsys.readouterr().err


# -- by the tools that read them -------------------------------------------------------------------


@pytest.mark.parametrize("backend", MODELS)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit(backend: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, backend, model_of(backend, here), *ON[backend], "--format", "systemd", "-q")
    program = {"llama": "llama-server", "vllm": "vllm"}[backend]
    fake = here.parent / program
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    unit = here.parent / "x.service"
    unit.write_text(text.replace(f"ExecStart={program} ", f"ExecStart={fake} "))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("backend", MODELS)
def test_the_schema_of_compose_takes_the_file(backend: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("check_jsonschema")
    Path("compose.yaml").write_text(
        printed(capsys, backend, model_of(backend, here), *ON[backend], "--format", "compose", "-q")
    )
    words = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("backend", MODELS)
def test_the_schema_of_kubernetes_takes_the_objects(
    backend: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    import yaml

    text = printed(capsys, backend, model_of(backend, here), *ON[backend], "--format", "kubernetes", "-q")
    objects = list(yaml.safe_load_all(text))
    assert [one["kind"] for one in objects] == ["Deployment", "Service"]
    for one in objects:
        validator.validate(one, "1.34", strict=True)


def test_every_format_is_on_the_page() -> None:
    page = (ROOT / "docs/formats.md").read_text()
    assert [name for name in host().renderers() if f"`{name}`" not in page] == []
