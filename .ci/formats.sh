#!/usr/bin/env bash
# Builds environments with Ray Serve and the models of KServe, which read what `--format` writes for them, and with the
# router that plans start: some 950 MB and two minutes; a second run takes none.
#   .ci/formats.sh DIR     leaves DIR/{ray,kserve,router}/bin/python; the tests take DIR as AUTOFIT_FORMATS
set -euo pipefail
ray=2.60.0
kserve=0.21.0
router=0.1.17
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -f "$dir/built-$ray-$kserve-$router" ]; then echo "formats: $dir is current"; exit 0; fi
python3 -m venv --clear "$dir/ray"
"$dir/ray/bin/pip" install -q "ray[serve]==$ray" pyarrow fsspec pyyaml # the models of ray[llm], without vLLM
python3 -m venv --clear "$dir/kserve"
"$dir/kserve/bin/pip" install -q "kserve==$kserve" pyyaml
python3 -m venv --clear "$dir/router"
"$dir/router/bin/pip" install -q "vllm-router==$router"
touch "$dir/built-$ray-$kserve-$router"
echo "formats: built in $dir"
