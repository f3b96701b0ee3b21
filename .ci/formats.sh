#!/usr/bin/env bash
# Builds environments with Ray Serve and the models of KServe, which read what `--format` writes for them, and with the
# router that plans start, and with Helm's own library: some 1.2 GB and two minutes; a second run takes none.
#   .ci/formats.sh DIR     leaves DIR/{ray,kserve,router,helm}/bin/python; the tests take DIR as AUTOFIT_FORMATS
set -euo pipefail
ray=2.60.0
kserve=0.21.0
router=0.1.17
helm=0.2.2 # of helm-python-sdk, which carries Helm 4.2.3
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -f "$dir/built-$ray-$kserve-$router-$helm" ]; then echo "formats: $dir is current"; exit 0; fi
python3 -m venv --clear "$dir/ray"
"$dir/ray/bin/pip" install -q "ray[serve]==$ray" pyarrow fsspec pyyaml # the models of ray[llm], without vLLM
python3 -m venv --clear "$dir/kserve"
"$dir/kserve/bin/pip" install -q "kserve==$kserve" pyyaml
python3 -m venv --clear "$dir/router"
"$dir/router/bin/pip" install -q "vllm-router==$router"
python3 -m venv --clear "$dir/helm"
"$dir/helm/bin/pip" install -q "helm-python-sdk==$helm"
touch "$dir/built-$ray-$kserve-$router-$helm"
echo "formats: built in $dir"
