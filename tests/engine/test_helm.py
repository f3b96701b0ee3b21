"""Values for the vLLM production stack, rendered by Helm's own library (`.ci/formats.sh`).

`AUTOFIT_CHART` is the folder of the real chart (`helm/` of vllm-project/production-stack). Without it a small one is
rendered that hands the same values on in the same ways: what is tested then is what Helm makes of them.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from autofit.cli.main import main

from support import ROOT

FOLDER = os.environ.get("AUTOFIT_FORMATS", "")
MODEL = ROOT / "tests/data/vllm/configs/qwen3-0.6b"
pytestmark = [pytest.mark.engine, pytest.mark.skipif(not FOLDER, reason="needs AUTOFIT_FORMATS")]
NAMED = {
    "maxModelLen": "--max-model-len",
    "dtype": "--dtype",
    "tensorParallelSize": "--tensor-parallel-size",
    "maxNumSeqs": "--max-num-seqs",
    "gpuMemoryUtilization": "--gpu_memory_utilization",
}
_FLAGS = "".join(
    f'{{{{- if hasKey $c "{name}" }}}}\n          - "{flag}"\n          - {{{{ $c.{name} | quote }}}}\n{{{{- end }}}}\n'
    for name, flag in NAMED.items()
)
TEMPLATE = (
    """\
{{- $spec := .Values.servingEngineSpec }}
{{- $m := index $spec.modelSpec 0 }}
{{- $c := $m.vllmConfig }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ printf "%s-%s" .Release.Name $m.name | quote }}
spec:
  replicas: {{ $m.replicaCount }}
  strategy:
    {{- toYaml $spec.strategy | nindent 4 }}
  selector:
    matchLabels: {app: one}
  template:
    metadata:
      labels: {app: one}
    spec:
      containers:
      - name: {{ $m.name | quote }}
        image: {{ printf "%s:%s" $m.repository $m.tag | quote }}
        command:
          - "vllm"
          - "serve"
          - {{ $m.modelURL | quote }}
          - "--port"
          - {{ $spec.containerPort | quote }}
          - {{ ternary "--enable-prefix-caching" "--no-enable-prefix-caching" $c.enablePrefixCaching | quote }}
"""
    + _FLAGS
    + """
{{- range $c.extraArgs }}
          - {{ . | quote }}
{{- end }}
        resources: {{ toYaml $m.resources | nindent 10 }}
        volumeMounts:
          - name: shm
            mountPath: /dev/shm
          {{- toYaml $m.extraVolumeMounts | nindent 10 }}
{{- range $name := list "startupProbe" "livenessProbe" "readinessProbe" }}
        {{ $name }}: {{ toYaml (get $spec $name) | nindent 10 }}
{{- end }}
      volumes:
        - name: shm
          emptyDir: {medium: Memory, sizeLimit: {{ default "20Gi" $m.shmSize }}}
        {{- toYaml $m.extraVolumes | nindent 8 }}
"""
)


def small_chart(folder: Path) -> Path:
    (folder / "templates").mkdir(parents=True)
    (folder / "Chart.yaml").write_text("apiVersion: v2\nname: small\nversion: 0.1.0\n")
    (folder / "templates/deployment.yaml").write_text(TEMPLATE)
    return folder


@pytest.fixture(params=["small", "real"])
def chart(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "small":
        return small_chart(tmp_path / "small")
    if "AUTOFIT_CHART" not in os.environ:
        pytest.skip("needs AUTOFIT_CHART")
    return Path(os.environ["AUTOFIT_CHART"])


def rendered(chart: Path, text: str, folder: Path) -> list[dict[str, Any]]:
    (folder / "values.json").write_text(json.dumps(yaml.safe_load(text)))
    words = [str(ROOT / "tests/engine/render_chart.py"), str(chart), str(folder / "values.json"), "one"]
    done = subprocess.run(
        [f"{FOLDER}/helm/bin/python", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [one for one in yaml.safe_load_all(done.stdout) if one]


@pytest.mark.parametrize(
    "engine",
    [
        "-tp 2 --port 9000 --no-enable-prefix-caching --max-num-seqs 64",
        '--max-model-len 2097152 --hf-overrides {"max_position_embeddings":2097152} --seed 12345678 -tp 2',
        "--served-model-name a$(b)$$c$d --allowed-media-domains a {{.Values}} --gpu-memory-utilization 0.875 -tp 2",
    ],
)
def test_helm_makes_the_command_of_the_plan(
    engine: str, chart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    wishes = ["vllm", str(MODEL), "--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format"]
    assert main([*wishes, "json", "--", *engine.split()]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert main([*wishes, "helm", "--", *engine.split()]) == 0
    objects = rendered(chart, capsys.readouterr().out, tmp_path)
    for one in objects:
        if one["kind"] != "Secret":  # the real chart's has no data, of no secrets
            validator.validate(one, "1.34", strict=True)
    (pod,) = [
        one["spec"]["template"]["spec"]
        for one in objects
        if one["kind"] == "Deployment" and "vllm/vllm-openai" in json.dumps(one)
    ]
    (container,) = pod["containers"]
    command = [as_kubernetes(word) for word in container["command"]]
    options = ["--on", "2xa100-80gb", "--ram", "64GiB", "-q", "--format", "json"]
    command[2] = str(MODEL)
    assert main(["check", *options, "--", *command]) == 0
    checked = json.loads(capsys.readouterr().out)
    kinds = ("id", "weights_bytes", "cache_bytes", "compute_bytes")
    assert [[pool[kind] for kind in kinds] for pool in checked["pools"]] == [
        [pool[kind] for kind in kinds] for pool in plan["pools"]
    ]
    for flag in ("--max-model-len", "--served-model-name", "--seed"):
        if flag in engine:
            words = engine.split()
            assert command[command.index(flag) + 1] == words[words.index(flag) + 1]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "2"
    (shm,) = [one["emptyDir"] for one in pod["volumes"] if "emptyDir" in one]
    assert shm == {"medium": "Memory", "sizeLimit": "2048Mi"}


def as_kubernetes(word: str) -> str:
    """A word as the cluster hands it on, where none of its variables is there."""
    return word.replace("$$", "$")
