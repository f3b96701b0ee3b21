#!/usr/bin/env bash
# Builds a real llama.cpp (the source inside the llama-cpp-python sdist) with its CPU and RPC back ends, and the
# measuring tools of tests/engine/oracle. About 12 minutes on two cores; a second run takes seconds.
#   .ci/llama-cpp.sh DIR     leaves the programs in DIR/bin
set -euo pipefail
version=0.3.36
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$dir"
stamp=$(cat "$here/.ci/llama-cpp.sh" "$here"/tests/engine/oracle/* | sha256sum | cut -c1-16)
if [ -f "built-$stamp" ]; then echo "llama.cpp: $dir/bin is current"; exit 0; fi
python3 -m venv tools && tools/bin/pip install -q cmake ninja
export PATH="$dir/tools/bin:$PATH"
src=$dir/llama_cpp_python-$version/vendor/llama.cpp
if [ ! -d "$src" ]; then
  tools/bin/pip download -q --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" -d sdist
  tar xzf sdist/llama_cpp_python-$version.tar.gz
fi
cmake -S "$src" -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_RPC=ON -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_ALL_WARNINGS=OFF >cmake.log 2>&1
ninja -C build llama-fit-params llama-server llama-completion llama-quantize ggml-rpc-server test-llama-archs >ninja.log 2>&1 \
  || { tail -n 40 ninja.log; exit 1; }
bin=$dir/build/bin
inc="-I$src/include -I$src/ggml/include -I$src/ggml/src -I$src/common -I$src/src -I$src/vendor"
libs="-L$bin -lllama-common -lllama -lggml -lggml-base -lggml-cpu -Wl,-rpath,$bin"
python3 "$here/tests/engine/oracle/engine_header.py" "$src" >engine.h
# shellcheck disable=SC2086  # the include paths and libraries are lists
g++ -std=c++17 -O1 -I"$dir" -o "$bin/oracle" "$here/tests/engine/oracle/oracle.cpp" $inc $libs
gcc -shared -fPIC -O1 -o "$bin/memshim.so" "$here/tests/engine/oracle/memshim.c" -ldl
python3 "$here/tests/engine/oracle/gen_fakecuda.py" "$src" >fakecuda.cpp
# shellcheck disable=SC2086
g++ -std=c++17 -O1 -shared -fPIC -w -o "$bin/libfakecuda.so" fakecuda.cpp $inc -L"$bin" -lggml -lggml-base -lggml-cpu -Wl,-rpath,"$bin"
ln -sfn build/bin bin
rm -f built-* && touch "built-$stamp"
echo "llama.cpp: built in $dir/bin"
