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

from support import ROOT, ggufs

MODELS = {"llama": ROOT / "autofit/_models/tiny.gguf", "vllm": ROOT / "tests/data/vllm/configs/qwen3-0.6b"}
ON = {
    "llama": ("--on", "rtx-3090", "--on", "rtx-3090", "--ram", "64GiB"),
    "vllm": ("--on", "a100-80gb", "--ram", "64GiB"),
}
#: format -> the name of a file of its kind
FILES = {
    "systemd": "engine.service",
    "dockerfile": "Dockerfile",
    "compose": "compose.yaml",
    "kubernetes": "deployment.yaml",
    "kserve": "service.yaml",
    "llama-swap": "config.yaml",
}
ROUTED = ("--disaggregate", "3000:500")
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


@pytest.mark.slow_but("compose", "kwargs", "kserve")
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


@pytest.mark.parametrize("name", [name for name, ref in host().renderers().items() if ref.words_only])
def test_formats_of_words_need_nothing_of_a_deployment(name: str) -> None:
    plan = autofit.plan("llama", str(MODELS["llama"]), on=["rtx-3090"], ram="64GiB", settings=None)
    render = resolve(host().renderers()[name].factory)
    assert plan.deployment is not None
    assert render(replace(plan, deployment=None)) == render(plan)


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


# -- devices and files beside the model ------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "engine", "renamed"),
    [
        ("llama", "-dev CUDA1 -ngl 99", ["-dev", "CUDA0"]),
        ("llama", "-dev CUDA3,CUDA1 -ngl 99 -ot blk\\.0\\.ffn_up=CUDA1", ["-dev", "CUDA1,CUDA0"]),
        ("vllm", "--device-ids 1,3 -tp 2", ["--device-ids", "0,1"]),
        ("vllm", "--device-ids=3,1 -tp 2", ["--device-ids=1,0"]),
    ],
)
def test_a_container_is_given_the_cards_that_the_command_names(
    backend: str, engine: str, renamed: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    card = "rtx-3090" if backend == "llama" else "a100-80gb"
    on = ("--on", f"4x{card}", "--ram", "64GiB")
    wishes = (backend, model_of(backend, here), *on, "-q", "--format")
    planned = json.loads(printed(capsys, *wishes, "json", "--", *engine.split()))
    text = printed(capsys, *wishes, "compose", "--", *engine.split())
    service = yaml.safe_load(text)["services"][backend]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    n = len(device["device_ids"])
    assert device["device_ids"] == (["1"] if n == 1 else ["1", "3"])
    at = service["command"].index(renamed[0])
    assert service["command"][at : at + len(renamed)] == renamed
    pod, _ = yaml.safe_load_all(printed(capsys, *wishes, "kubernetes", "--", *engine.split()))
    limits = pod["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == str(n)
    assert ("--gpus '\"device=" + ",".join(device["device_ids"])) in printed(
        capsys, *wishes, "dockerfile", "--", *engine.split()
    )
    Path("compose.yaml").write_text(text)
    (one,) = json.loads(printed(capsys, "check", *on, "--from", "compose.yaml", "--format", "json"))["commands"]
    assert sorted(sizes(one["plan"])) == sorted(size for size in sizes(planned) if any(size[1:]) or size[0] == "host")


def test_cards_that_the_command_does_not_name_are_all_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    wishes = ("llama", model_of("llama", here), "--on", "2xrtx-3090", "--ram", "64GiB", "-q", "--format", "compose")
    for engine in ("-ngl 99 -ts 0,1", "-ngl 99 -dev CUDA0,CUDA1", "-ngl 99 -sm none -mg 1"):
        service = yaml.safe_load(printed(capsys, *wishes, "--", *engine.split()))["services"]["llama"]
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 2


def test_machines_behind_a_network_have_no_image(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on = ("--on", "rtx-3090", "--on", "generic-rpc:24GiB", "--ram", "64GiB", "-q", "--format", "kubernetes")
    engine = ("--", "--rpc", "10.0.0.1:50052", "-ngl", "99", "-ts", "1,1")
    assert main(["llama", model_of("llama", here), *on, *engine]) == 2
    assert "no container image of llama b11311 on cuda and rpc devices is known" in capsys.readouterr().err
    unit = printed(capsys, "llama", model_of("llama", here), *on[:-1], "systemd", *engine)
    assert "--rpc 10.0.0.1:50052" in unit


def beside(here: Path) -> tuple[str, ...]:
    """Flags of files in folders of their own: a projector, a draft model, adapters in a list, a template."""
    for name in ("draft", "eyes", "more models"):
        (here.parent / name).mkdir()
    shutil.copyfile(MODELS["llama"], here.parent / "draft/small.gguf")
    vision = {"general.architecture": "clip", "general.type": "mmproj"}
    tensors = [ggufs.Tensor("v.blk.0.attn_q.weight", (64, 64)), ggufs.Tensor("mm.0.weight", (64, 64))]
    ggufs.Gguf(metadata=vision, tensors=tensors).write(here.parent / "eyes/mmproj.gguf")
    (here.parent / "more models/t.jinja").write_text("{{ messages }}")
    return (
        *("-md", "draft/small.gguf", "-mm", "eyes/mmproj.gguf"),
        *("--chat-template-file", "more models/t.jinja", "-ngl", "99"),
    )


@pytest.mark.parametrize("form", FILES)
def test_files_beside_the_model_come_along(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = beside(here)
    wishes = ("llama", model_of("llama", here), *ON["llama"], "-q", "--format")
    planned = json.loads(printed(capsys, *wishes, "json", "--", *engine))
    text = printed(capsys, *wishes, form, "--", *engine)
    folder = here.parent
    for name in ("draft", "eyes", "more models"):
        assert str(folder / name) in text
    if form == "dockerfile":
        return  # its folders are mounted by whoever starts it
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / FILES[form]).write_text(text)
    checked = printed(capsys, "check", *ON["llama"], "--from", str(elsewhere / FILES[form]), "--format", "json")
    (one,) = json.loads(checked)["commands"]
    assert one["error"] is None
    assert [figures for _, *figures in sizes(one["plan"])] == [figures for _, *figures in sizes(planned)]


@pytest.mark.parametrize("form", FILES)
def test_all_parts_of_a_split_model_come_along(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = ggufs.llama()
    for n, part in enumerate(ggufs.split(whole, 3), 1):
        part.write(here.parent / f"m-0000{n}-of-00003.gguf")
    wishes = ("llama", "m-00001-of-00003.gguf", *ON["llama"], "-q", "--format")
    planned = json.loads(printed(capsys, *wishes, "json", "-c", "512"))
    text = printed(capsys, *wishes, form, "-c", "512")
    elsewhere = here.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / FILES[form]).write_text(text)
    moved = ("--map", f"/models={here.parent}") if form == "dockerfile" else ()
    checked = printed(capsys, "check", *ON["llama"], "--from", str(elsewhere / FILES[form]), "--format", "json", *moved)
    (one,) = json.loads(checked)["commands"]
    assert sizes(one["plan"]) == sizes(planned)


@pytest.mark.parametrize("form", ["compose", "kubernetes", "kserve", "systemd", "vllm-config"])
def test_a_draft_model_inside_of_json_comes_along(form: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(MODELS["vllm"], here.parent / 'dr"aft')
    draft = json.dumps({"model": 'dr"aft', "num_speculative_tokens": 2, "method": "draft_model"})
    wishes = ("vllm", model_of("vllm", here), *ON["vllm"], "--ram", "64GiB", "-q", "--format")
    engine = ("--", "--speculative-config", draft)
    planned = json.loads(printed(capsys, *wishes, "json", *engine))
    text = printed(capsys, *wishes, form, *engine)
    on = ("check", *ON["vllm"], "--ram", "64GiB", "--format", "json")
    if form == "vllm-config":
        (here / "v.yaml").write_text(text)
        found = json.loads(printed(capsys, *on, "-q", "--", "vllm", "serve", "--config", str(here / "v.yaml")))
    else:
        (here / FILES[form]).write_text(text)
        (one,) = json.loads(printed(capsys, *on, "--from", str(here / FILES[form])))["commands"]
        assert one["error"] is None
        found = one["plan"]
    assert sizes(found) == sizes(planned)


# -- several machines ------------------------------------------------------------------------------


def test_a_set_of_pods_starts_a_plan_for_several_machines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    wishes = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format")
    engine = ("--", "-tp", "2", "-pp", "3", "--nnodes", "3", "--max-num-seqs", "1", "--seed", "0")
    planned = json.loads(printed(capsys, *wishes, "json", *engine))
    text = printed(capsys, *wishes, "lws", *engine)
    group, service = yaml.safe_load_all(text)
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 3
    leader, worker = (template[name]["spec"]["containers"][0]["args"] for name in ("leaderTemplate", "workerTemplate"))
    assert leader[-4:] == ["--node-rank", "0", "--master-addr", "$(LWS_LEADER_ADDRESS)"]
    assert worker[-5:] == ["--node-rank", "$(LWS_WORKER_INDEX)", "--master-addr", "$(LWS_LEADER_ADDRESS)", "--headless"]
    assert service["spec"]["selector"] == template["leaderTemplate"]["metadata"]["labels"]
    Path("group.yaml").write_text(text)
    options = ("--on", "2xa100-80gb", "--ram", "64GiB")
    checked = json.loads(printed(capsys, "check", *options, "--from", "group.yaml", "--format", "json"))["commands"]
    assert [one["error"] for one in checked] == [None, None]
    assert [sizes(one["plan"]) for one in checked] == [sizes(planned), sizes(planned)]


def test_a_compose_file_has_a_service_for_each_machine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    wishes = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format")
    engine = ("--", "-tp", "2", "-pp", "3", "--nnodes", "3", "--max-num-seqs", "1")
    planned = json.loads(printed(capsys, *wishes, "json", *engine))
    text = printed(capsys, *wishes, "compose", *engine)
    services = yaml.safe_load(text)["services"]
    assert [(name, one["profiles"], one["network_mode"]) for name, one in services.items()] == [
        (f"node{at}", [f"node{at}"], "host") for at in range(3)
    ]
    for node, one in zip(planned["nodes"], services.values(), strict=True):
        words = ["HEAD_ADDRESS" if word == "${HEAD_ADDRESS:?}" else word for word in one["command"]]
        assert words[1:] == node["commands"][0][3:] and "ports" not in one
    assert "HEAD_ADDRESS=... docker compose --profile node0 up -d" in text
    stated = printed(capsys, *wishes, "compose", *engine, "--master-addr", "10.0.0.1")
    Path("compose.yaml").write_text(stated)
    options = ("--on", "2xa100-80gb", "--ram", "64GiB")
    checked = json.loads(printed(capsys, "check", *options, "--from", "compose.yaml", "--format", "json"))["commands"]
    assert [one["error"] for one in checked] == [None] * 3
    assert [sizes(one["plan"]) for one in checked] == [sizes(planned)] * 3


def test_a_compose_file_has_instances_and_says_how_their_router_starts(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import yaml

    wishes = ("vllm", model_of("vllm", here), "--on", "a100-80gb", "--ram", "64GiB", "--nodes", "3", "-q", "--format")
    text = printed(capsys, *wishes, "compose", "--disaggregate", "3000:500", "--link", "100Gbit")
    services = yaml.safe_load(text)["services"]
    assert {one["environment"]["VLLM_NIXL_SIDE_CHANNEL_HOST"] for one in services.values()} == set(services)
    assert sum("kv_consumer" in one["command"] for one in services.values()) in (1, 2)
    (line,) = (line for line in text.splitlines() if "vllm-router" in line)
    assert line.startswith("# then, on any: vllm-router --host 0.0.0.0") and line.count("http://node") == 3
    assert main([*wishes, "lws", "--replicas", "2"]) == 2
    assert "the plan is for several copies" in capsys.readouterr().err


RAY_SERVICE = {"serveConfigV2", "rayClusterConfig"}
#: names of raycluster_types.go, and those that must be there
RAY_CLUSTER = {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
RAY_WORKERS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


@pytest.mark.parametrize(("engine", "n_pods"), [("-tp 2", 1), ("-tp 2 -pp 3 --distributed-executor-backend ray", 3)])
def test_a_ray_service_has_the_application_and_a_pod_for_each_machine(
    engine: str, n_pods: int, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    import yaml

    wishes = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "--engine-version", "0.29.0")
    service = yaml.safe_load(printed(capsys, *wishes, "-q", "--format", "kuberay", "--", *engine.split()))
    served = yaml.safe_load(printed(capsys, *wishes, "-q", "--format", "ray-serve", "--", *engine.split()))
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    spec = service["spec"]
    assert set(spec) == RAY_SERVICE and set(spec["rayClusterConfig"]) == RAY_CLUSTER
    application = yaml.safe_load(spec["serveConfigV2"])
    (model,) = application["applications"][0]["args"]["llm_configs"]
    assert model["model_loading_config"]["model_source"] == "/models"
    model["model_loading_config"]["model_source"] = str(here / "model")
    assert application == served
    (workers,) = spec["rayClusterConfig"]["workerGroupSpecs"]
    assert set(workers) == RAY_WORKERS and workers["replicas"] == workers["maxReplicas"] == n_pods
    for group in (spec["rayClusterConfig"]["headGroupSpec"], workers):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": group["template"]["spec"]}
        validator.validate(pod, "1.34", strict=True)
    (container,) = workers["template"]["spec"]["containers"]
    assert container["image"] == "rayproject/ray-llm:2.60.0-py312-cu130"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2" and "args" not in container


@pytest.mark.parametrize(
    ("form", "engine", "cause"),
    [
        ("lws", "-tp 2", "the plan is for one machine"),
        ("lws", "-tp 2 -pp 2 --distributed-executor-backend ray", "--format ray-serve and kuberay"),
        ("compose", "-tp 2 -pp 2 --distributed-executor-backend ray", "--format ray-serve and kuberay"),
        ("kuberay", "-tp 2", "vLLM 0.29.0, and the plan is for 0.33.0"),
        ("kuberay", "-tp 2 -pp 2 --nnodes 2", "leave --nnodes out"),
        ("systemd", "-tp 2 -pp 2 --nnodes 2", "for 2 machines"),
        ("llama-swap", "-tp 2 -pp 2 --nnodes 2", "for 2 machines"),
        ("kubernetes", "-tp 2 -pp 2 --nnodes 2", "for 2 machines"),
        ("helm", "-tp 2 -pp 2 --nnodes 2", "for 2 machines"),
        ("ray-serve", "-tp 2 -pp 2 --nnodes 2", "leave --nnodes out"),
        ("ray-serve", "-tp 2 --distributed-executor-backend mp", "leave it out"),
        ("ray-serve", "-tp 2 --served-model-name one two", "several names"),
        ("helm", "--api-server-count 2", "leave --api-server-count out"),
        ("vllm-config", "--middleware a.b --middleware c.d", "more than once"),
    ],
)
def test_what_a_format_cannot_start_is_refused(
    form: str, engine: str, cause: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format", form)
    assert main([*words, "--", *engine.split()]) == 2
    said = capsys.readouterr()
    assert (said.out, cause in said.err) == ("", True), said.err


@pytest.mark.parametrize("form", ["helm", "kuberay", "ray-serve", "vllm-config"])
def test_formats_of_one_engine_are_not_for_plans_of_another(
    form: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["llama", model_of("llama", here), *ON["llama"], "-q", "--format", form]) == 2
    assert "this format is for plans of vLLM, and the plan is one of llama" in capsys.readouterr().err


# -- formats of vLLM alone -------------------------------------------------------------------------

#: a command of every kind of flag: aliases, opposites, levels, JSON, several values, speculation in parts
FLAGS = (
    *("-tp", "2", "--no-enable-prefix-caching", "-O1", "--compilation-config.cudagraph_capture_sizes", "[1,2,4]"),
    *("--allowed-media-domains", "a.example", "b.example", "--max-num-seqs=64", "--kv-cache-dtype", "fp8"),
    *("--spec-method", "ngram", "--spec-tokens", "3", "--served-model-name", "me", "--port", "9000"),
)


def vllm_plans(here: Path, capsys: pytest.CaptureFixture[str], form: str) -> tuple[dict[str, Any], str]:
    """The plan of a command with all those flags, and its text in a format."""
    wishes = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format")
    planned = json.loads(printed(capsys, *wishes, "json", "--", *FLAGS))
    return planned, printed(capsys, *wishes, form, "--", *FLAGS)


def checked_again(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    options = ("--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format", "json")
    found: dict[str, Any] = json.loads(printed(capsys, "check", *options, "--", *command))
    return found


def test_a_settings_file_says_every_kind_of_flag(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned, text = vllm_plans(here, capsys, "vllm-config")
    Path("vllm.yaml").write_text(text)
    assert sizes(checked_again(capsys, "vllm", "serve", "--config", "vllm.yaml")) == sizes(planned)
    assert "\nenable-prefix-caching: false\n" in text
    assert "\ntensor-parallel-size: 2\n" in text


def test_values_of_the_chart_come_to_the_same_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    planned, text = vllm_plans(here, capsys, "helm")
    spec = yaml.safe_load(text)["servingEngineSpec"]
    (model,) = spec["modelSpec"]
    assert spec["containerPort"] == spec["startupProbe"]["httpGet"]["port"] == 9000
    assert (model["repository"], model["tag"]) == ("vllm/vllm-openai", "v0.33.0")
    assert model["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert model["extraVolumes"][0]["hostPath"]["path"] == model_of("vllm", here)
    command = chart_command(model, 9000)
    assert command.count("--tensor-parallel-size") == 1
    command[2] = model["extraVolumes"][0]["hostPath"]["path"]
    assert sizes(checked_again(capsys, *command)) == sizes(planned)


#: What values.schema.json of vllm-stack 0.1.12 says of the names that are written: types of JSON.
CHART_SPEC = {
    "containerPort": int, "livenessProbe": dict, "modelSpec": list, "readinessProbe": dict, "runtimeClassName": str,
    "startupProbe": dict, "strategy": dict,
}  # fmt: skip
CHART_MODEL = {
    "env": list, "extraVolumeMounts": list, "extraVolumes": list, "modelRevision": str, "modelURL": str, "name": str,
    "replicaCount": int, "repository": str, "resources": dict, "shmSize": str, "tag": str, "vllmConfig": dict,
}  # fmt: skip
CHART_VLLM = {
    "dtype": str, "enablePrefixCaching": bool, "extraArgs": list, "gpuMemoryUtilization": (int, float, str),
    "maxModelLen": int, "maxNumSeqs": int, "tensorParallelSize": int,
}  # fmt: skip


def test_values_have_the_names_and_types_of_the_chart(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that the schema does not have would be left out by the templates without a word."""
    import yaml

    _, text = vllm_plans(here, capsys, "helm")
    spec = yaml.safe_load(text)["servingEngineSpec"]
    (model,) = spec["modelSpec"]
    for values, known in ((spec, CHART_SPEC), (model, CHART_MODEL), (model["vllmConfig"], CHART_VLLM)):
        assert values.keys() <= known.keys()
        for name, value in values.items():
            assert isinstance(value, known[name]) and (known[name] is bool or not isinstance(value, bool)), name
    assert all(isinstance(word, str) for word in model["vllmConfig"].get("extraArgs", []))


def test_numbers_of_the_chart_are_none_that_helm_rounds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Helm reads numbers as floating point and writes a million as 1e+06: they are words of the command instead."""
    import yaml

    wishes = (
        "vllm",
        model_of("vllm", here),
        "--on",
        "2xa100-80gb",
        "--ram",
        "64GiB",
        "-q",
        "--format",
        "helm",
    )
    far = ("--hf-overrides", '{"max_position_embeddings": 4194304}', "--max-model-len", "2097152", "--seed", "5000000")
    text = printed(capsys, *wishes, "--", *far, "--served-model-name", "a$(b)$$c")
    (model,) = yaml.safe_load(text)["servingEngineSpec"]["modelSpec"]
    numbers = [value for value in model["vllmConfig"].values() if isinstance(value, int)]
    assert numbers and all(abs(number) < 1_000_000 for number in numbers)
    command = chart_command(model, 8000)
    for flag, value in (("--max-model-len", "2097152"), ("--seed", "5000000"), ("--served-model-name", "a$$(b)$$$$c")):
        assert command[command.index(flag) + 1] == value


@pytest.mark.parametrize("word", ["a", "$HOME", "$(HOME)", "$$(HOME)", "$$", "a$$b", "$$$(X)$", "x$"])
def test_words_of_a_pod_come_out_of_the_cluster_as_they_went_in(
    word: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(
        capsys, "llama", model_of("llama", here), *ON["llama"], "-q", "--format", "kubernetes", "--", "--alias", word
    )
    Path("deployment.yaml").write_text(text)
    checked = printed(capsys, "check", *ON["llama"], "--from", "deployment.yaml", "--format", "json")
    argv = json.loads(checked)["commands"][0]["argv"]
    assert argv[argv.index("--alias") + 1] == word


def chart_command(model: dict[str, Any], port: int) -> list[str]:
    """The command that the chart's deployment-vllm-multi.yaml makes of a model (vllm-stack 0.1.12)."""
    config = model["vllmConfig"]
    command = ["vllm", "serve", model["modelURL"], "--host", "0.0.0.0", "--port", str(port)]
    command.append("--enable-prefix-caching" if config["enablePrefixCaching"] else "--no-enable-prefix-caching")
    named = {
        "maxModelLen": "--max-model-len",
        "dtype": "--dtype",
        "tensorParallelSize": "--tensor-parallel-size",
        "maxNumSeqs": "--max-num-seqs",
        "gpuMemoryUtilization": "--gpu_memory_utilization",
    }
    for key, flag in named.items():
        if key in config:
            command += [flag, str(config[key])]
    assert set(config) <= {*named, "enablePrefixCaching", "extraArgs"}
    return [*command, *config.get("extraArgs", [])]


def test_an_application_of_ray_has_the_plan(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    planned, text = vllm_plans(here, capsys, "ray-serve")
    (application,) = yaml.safe_load(text)["applications"]
    assert application["import_path"] == "ray.serve.llm:build_openai_app"
    (model,) = application["args"]["llm_configs"]
    assert model["model_loading_config"] == {"model_id": "me", "model_source": model_of("vllm", here)}
    settings = model["engine_kwargs"]
    assert "port" not in settings
    assert settings["enable_prefix_caching"] is False
    assert settings["spec_tokens"] == 3
    Path("settings.yaml").write_text(yaml.safe_dump({key.replace("_", "-"): value for key, value in settings.items()}))
    command = ("vllm", "serve", model_of("vllm", here), "--config", "settings.yaml")
    assert sizes(checked_again(capsys, *command)) == sizes(planned)


def test_replicas_in_ray_are_one_engine(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    wishes = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format")
    text = printed(capsys, *wishes, "ray-serve", "--", "-dp", "2", "--disable-log-stats")
    (application,) = yaml.safe_load(text)["applications"]
    assert application["import_path"] == "ray.serve.llm:build_dp_openai_app"
    model = application["args"]["llm_config"]
    assert model["engine_kwargs"]["data_parallel_size"] == 2
    assert model["log_engine_metrics"] is False


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


@pytest.mark.parametrize(
    ("backend", "more"),
    [("llama", ()), ("vllm", ()), ("vllm", ("--", "--nnodes", "2", "-pp", "2")), ("vllm", ("--nodes", "2", *ROUTED))],
)
def test_the_schema_of_compose_takes_the_file(
    backend: str, more: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("check_jsonschema")
    Path("compose.yaml").write_text(
        printed(capsys, backend, model_of(backend, here), *ON[backend], "--format", "compose", "-q", *more)
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


@pytest.mark.parametrize("form", ["kserve", "lws", "helm"])
def test_the_schema_of_kubernetes_takes_the_pods_of_others(
    form: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    import yaml

    engine = ("--", "-tp", "2", *(("-pp", "2", "--nnodes", "2") if form == "lws" else ()))
    wishes = ("vllm", model_of("vllm", here), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format", form)
    first, *_ = yaml.safe_load_all(printed(capsys, *wishes, *engine))
    for spec in pods_of(form, first):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": spec}
        validator.validate(pod, "1.34", strict=True)


def pods_of(form: str, whole: dict[str, Any]) -> list[dict[str, Any]]:
    """The specifications of pods in an object, or those that a chart makes of its values."""
    if form == "lws":
        template = whole["spec"]["leaderWorkerTemplate"]
        return [template[name]["spec"] for name in ("leaderTemplate", "workerTemplate")]
    if form == "kserve":
        predictor = whole["spec"]["predictor"]
        return [{key: predictor[key] for key in ("containers", "volumes")}]
    spec = whole["servingEngineSpec"]
    (model,) = spec["modelSpec"]
    one = {"name": "vllm", "image": "x", "resources": model["resources"], "volumeMounts": model["extraVolumeMounts"]}
    probes = {name: spec[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    return [{"containers": [{**one, **probes}], "volumes": model["extraVolumes"]}]


def test_every_format_is_on_the_page() -> None:
    page = (ROOT / "docs/formats.md").read_text()
    assert [name for name in host().renderers() if f"`{name}`" not in page] == []
