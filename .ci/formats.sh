#!/usr/bin/env bash
# Builds environments with Ray Serve and the models of KServe, which read what `--format` writes for them: some 900 MB
# and two minutes; a second run takes none.
#   .ci/formats.sh DIR     leaves DIR/{ray,kserve}/bin/python; the tests take DIR as AUTOFIT_FORMATS
set -euo pipefail
ray=2.60.0
kserve=0.21.0
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -f "$dir/built-$ray-$kserve" ]; then echo "formats: $dir is current"; exit 0; fi
python3 -m venv --clear "$dir/ray"
"$dir/ray/bin/pip" install -q "ray[serve]==$ray" pyarrow fsspec pyyaml # the models of ray[llm], without vLLM
python3 -m venv --clear "$dir/kserve"
"$dir/kserve/bin/pip" install -q "kserve==$kserve" pyyaml
touch "$dir/built-$ray-$kserve"
echo "formats: built in $dir"
