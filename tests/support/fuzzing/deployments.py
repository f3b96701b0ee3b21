"""Files that commands of engines are written in, of every kind, with pieces of each other and of no sense in them."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

from autofit.cli.check_files import _is_engine, _readers
from autofit.deployments.reading import read_commands
from autofit.deployments.written import MAX_COMMANDS
from autofit.errors import UsageError

SHELL = """#!/bin/bash
set -a; . ./env; set +a
M=${M:-~/m.gguf} ARGS=(-ngl 99 "a b")
if [ -z "$C" ]; then C=1; elif [[ -n $D && $E == x ]]; then C=2; else C=3; exit 1; fi
while [ $# -gt 0 ]; do case "$1" in -m) M="$2"; shift 2;; (a|b) C=4;; *) shift;; esac; done
start() { llama-server -m "$M" -c "$1" "${ARGS[@]}"; }
for p in 1 2; do start "$p" > log 2>&1 & done
[ -n "$M" ] && C=5 || { C=6; }
cat <<EOF | bash -c 'vllm serve "$X"'
llama-server -m no
EOF
exec nice -n 5 env A=1 llama-server -m $M -c `nproc` \\
  --alias $(basename "$M") $'x\\ty'
"""
DOCKERFILE = """ARG V=1
FROM vllm/vllm-openai:${V:-2} AS base
ENV A="b c" D=$V
RUN <<EOF
x
EOF
FROM base
WORKDIR /x
ENTRYPOINT ["vllm", "serve"]
CMD ["m", "--max-model-len", "5"]
"""
COMPOSE = """services:
  a: &a
    image: ${I:-ghcr.io/ggml-org/llama.cpp:server-cuda}
    command: ["-m", "/m/x.gguf", "-c", "${C:-5}"]
    environment: {A: b, C: 5}
    env_file: [.env, {path: x, required: false}]
    volumes: ["./m:/m", {type: bind, source: /a, target: /b}]
    deploy: {resources: {reservations: {devices: [{capabilities: [gpu], device_ids: ["0"]}]}}}
  b:
    <<: *a
    build: .
    command: sh -c 'llama-server -m x'
"""
KUBERNETES = """apiVersion: v1
spec:
  volumes: [{name: a, hostPath: {path: /m}}]
  containers:
  - image: vllm/vllm-openai
    command: [/bin/sh, -c]
    args: ["vllm serve $(A)"]
    env: [{name: A, value: m}, {name: B, valueFrom: {x: y}}]
    resources: {limits: {nvidia.com/gpu: 2}}
    volumeMounts: [{name: a, mountPath: /m}]
"""
SWAP = """macros: {a: "llama-server --port ${PORT}", b: "${a} -c 5"}
models:
  x:
    cmd: |
      ${b}
      # no
      -m ${env.HOME}/x.gguf
    env: ["A=b"]
"""
UNIT = """[Service]
Environment="A=b c" D=e
EnvironmentFile=-/etc/none
WorkingDirectory=%h/x
ExecStart=/bin/bash -c 'llama-server -m $$M' \\
# no
  -x
ExecStart=-llama-server -m ${A} $D
"""
PRESET = "[*]\nc = 5\nngl = 99\n\n[x]\nmodel = x.gguf\n"
PROCFILE = "web: llama-server -m x.gguf\nother: bash -c 'vllm serve m'\n"
FILES = {
    "start.sh": SHELL,
    "Dockerfile": DOCKERFILE,
    "compose.yaml": COMPOSE,
    "pod.yaml": KUBERNETES,
    "swap.yaml": SWAP,
    "a.service": UNIT,
    "a.ini": PRESET,
    "Procfile": PROCFILE,
}
PIECES = (
    "'", '"', '`', '$(', '${', ')', '}', '(', '{', '\\', '\\\n', '\n', '\r\n', ' ', '\t', '\xa0', '\x0b',
    '\x0c', '\x1c', '\x85', '\u2028', '\ufeff', '$', '$$', '$1', '$#', '${a:-${b}}', '<<EOF', '<(', '[[', ']]',
    'if ', 'fi\n', 'then ', 'else\n', 'case x in ', ';;', 'esac\n', 'do\n', 'done\n', 'while ', 'for x in ',
    'llama-server ', 'vllm serve ', 'docker run ', 'bash -c ', '&&', '||', '|', '&', ';', '#', '=', ':', '- ',
    '[', ']', ',', '*a', '&b ', '<<: ', '%h', '%', '\u0663', '\U0001f600', 'null', '[Service]\n', 'ENV ',
    'FROM ', 'ARG ', 'CMD ', '-m', '\x1b[2J', '~', 'function f ', 'f() ', 'exit ', 'unset ', 'cd ',
    '999999999999999999999999999999',
)  # fmt: skip


def make(rng: random.Random) -> Any:
    name = rng.choice(list(FILES))
    text = FILES[name]
    for _ in range(rng.choice((0, 1, 1, 2, 4, 9))):
        at = rng.randrange(len(text) + 1)
        other = rng.choice(list(FILES.values()))
        start = rng.randrange(len(other))
        piece = rng.choice((*PIECES, other[start : start + rng.choice((3, 30))]))
        text = text[:at] + piece * rng.choice((1, 1, 1, 2, 40)) + text[at + rng.choice((0, 0, 1, 20)) :]
    return {"name": name, "text": text}


def run(given: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, given["name"])
        path.write_bytes(given["text"].encode("utf-8", "surrogateescape"))
        try:
            found = read_commands(str(path), _is_engine, {"HOME": "/h"}, [("/m", folder)], _readers())
        except UsageError as error:
            assert error.message.isprintable()
            return
    assert len(found) <= MAX_COMMANDS
    for one in found:
        assert one.argv and 0 <= one.line <= len(given["text"].splitlines()) + 1  # YAML breaks lines where Python does
        assert one.unknown is None or one.unknown.isprintable()
