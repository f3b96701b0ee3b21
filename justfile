# The commands of this project; `just` lists them. Needs an environment with .[dev], which brings just itself:
#   python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/just

export PATH := justfile_directory() / (if os_family() == "windows" { ".venv/Scripts;" } else { ".venv/bin:" }) + env("PATH")
set positional-arguments

llama_cpp := env("AUTOFIT_CI_CACHE", home_directory() / ".cache/autofit-ci") / "llama.cpp-0.3.36"

[private]
default:
    @just --list --unsorted

# The tests that take a moment each, under two minutes on two cores; arguments go to pytest
test *args:
    python -m pytest -n auto "$@"

# Those that take seconds of a processor each: pages as they are printed, long properties
slow *args:
    python -m pytest -n auto -m slow "$@"

# Everything a change must pass but the tests: style, types, import contracts, workflows, changelog
lint:
    ruff check .
    ruff format --check .
    mypy
    lint-imports
    check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml .github/workflows/follow.yml
    check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/wrong-bytes.yml .github/ISSUE_TEMPLATE/wrong-speed.yml .github/ISSUE_TEMPLATE/new-architecture.yml
    check-jsonschema --builtin-schema vendor.github-actions action.yml
    pre-commit validate-manifest .pre-commit-hooks.yaml
    towncrier build --draft --version next

# Mend style where that can be done by a tool
fix:
    ruff check --fix .
    ruff format .

# Rewrite what is generated from this source: pages of docs/, ggml's type table, the tiny model
gen: docs
    python tools/gen/dtypes.py
    python tools/gen/tiny.py
    python tools/gen/page_types.py
    python tools/gen/fleets.py

# Add a build of llama.cpp to the tables of flags, defaults and architectures, from its source: just gen-build 11434 TREE
gen-build build tree:
    python tools/gen/llama_builds.py "$1=$2"

# Rewrite what docs/ generates: pages, transcripts, pictures
docs:
    python tools/gen/docs.py
    python tools/gen/transcripts.py
    python tools/gen/pictures.py

# Build the site of docs/ into build/site: no warning, and nothing of it comes from another server
site:
    NO_MKDOCS_2_WARNING=1 mkdocs build --quiet --strict
    python tools/site/offline.py build/site

# What a newer source of an engine (llama or vllm) changed of the functions that our rules cite
sources engine tree:
    python tools/check_sources.py "$1" "$2"

# What a build of an engine does otherwise than those recorded, and whether we say so: `just follow llama.cpp 11434`
follow engine build *args:
    python tools/follow "$@"

# Build the page that plans in a browser into web/dist, which any static host serves
web *args:
    npm ci --prefix web --no-audit --no-fund
    python tools/build_web.py "$@"

# Build the real engines that the engine tests start: once, some minutes
engines:
    bash .ci/llama-cpp.sh "{{ llama_cpp }}"
    bash .ci/llama-python.sh "{{ parent_directory(llama_cpp) }}/llama-python" "{{ llama_cpp }}"

# Record what a real llama.cpp says about model files: arguments as for tools/truth/dry_runs.py
truth *args:
    AUTOFIT_LLAMA_BIN="{{ llama_cpp }}/bin" python tools/truth/dry_runs.py "$@"

# Every recorded row of both engines, compared: the tables of README.md
accuracy:
    python tools/accuracy/llama_memory.py
    python tools/accuracy/vllm_memory.py

# Replay report files (`autofit report`): what they said, and what is said today
report +files:
    python tools/accuracy/reports.py "$@"

# The one file that needs no installation: dist/autofit.pyz, or another name
archive *output:
    python tools/archive/build.py "$@"

# Cold starts beside a bare interpreter; arguments as for bench/startup.py
bench *args:
    python bench/startup.py "$@"

# Coverage of what counts bytes, with its floor; without the compute graphs, which a tracer slows down, and the long tail
coverage:
    python -m pytest -n 2 tests/golden tests/unit/llama/memory tests/unit/vllm --deselect tests/golden/test_compute_buffers.py --cov --cov-report=
    coverage report

# The whole gate as CI runs it: a fresh environment, then the tests that start real engines
ci:
    .ci/run
