#!/usr/bin/env bash
# Makes an environment with a real Ray, and what autofit needs to run in it: about 400 MB; a second run takes none.
#   .ci/ray.sh DIR     leaves DIR/bin/python; give its path to the tests as AUTOFIT_RAY_PYTHON
set -euo pipefail
version=2.60.0
mkdir -p "$1"
dir=$(cd "$1" && pwd)
if [ -f "$dir/built-$version" ]; then echo "ray: $dir is current"; exit 0; fi
python3 -m venv --clear "$dir"
"$dir/bin/pip" install -q "ray==$version" pluggy tomlkit pyyaml nvidia-ml-py
touch "$dir/built-$version"
echo "ray: made in $dir"
