#!/usr/bin/env bash
# Makes an environment with a real llama-cpp-python and its server, from the sources and libraries that
# .ci/llama-cpp.sh has left in LLAMA: less than a minute; a second run takes none.
#   .ci/llama-python.sh DIR LLAMA     leaves DIR/bin/python; give its path to the tests as AUTOFIT_LLAMA_PYTHON
set -euo pipefail
version=0.3.36
llama=$(cd "$2" && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
stamp=built-$version-$(printf %s "$llama" | sha256sum | cut -c1-8)
if [ -f "$dir/$stamp" ]; then echo "llama-cpp-python: $dir is current"; exit 0; fi
python3 -m venv --clear "$dir"
"$dir/bin/pip" install -q numpy jinja2 diskcache typing_extensions fastapi uvicorn pydantic-settings sse-starlette \
  starlette-context pluggy tomlkit PyYAML
site=$("$dir/bin/python" -c 'import site; print(site.getsitepackages()[0])')
cp -r "$llama/llama_cpp_python-$version/llama_cpp" "$site/llama_cpp"
mkdir -p "$site/llama_cpp/lib" "$site/llama_cpp_python-$version.dist-info"
ln -sf "$llama"/bin/lib*.so* "$site/llama_cpp/lib/"
rm -f "$site/llama_cpp/lib/libfakecuda.so" # plays a GPU, for the tests that ask for it
printf 'Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: %s\n' "$version" \
  >"$site/llama_cpp_python-$version.dist-info/METADATA"
"$dir/bin/python" -c 'import llama_cpp.server.app'
touch "$dir/$stamp"
echo "llama-cpp-python: made in $dir"
