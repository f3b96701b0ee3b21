"""The generator of the tables by build: what it reads from a source tree, and that it reads its own tables back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from support import ROOT

ARG = """
    add_opt(common_arg(
        {"-c", "--ctx-size"}, "N",
        "size (a) of it",
        [](common_params & params, int value) { params.n_ctx = value; }
    ).set_env("LLAMA_ARG_CTX_SIZE"));
    add_opt(common_arg(
        {"--shiny"}, {"--no-shiny"}, "words",
        [](common_params & params, bool value) { params.shiny = value; }
    ).set_examples({LLAMA_EXAMPLE_SERVER}));
"""
HEADER = """
enum llama_example { LLAMA_EXAMPLE_COMMON, LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_CLI };
struct common_params {
    int32_t n_ctx = 0; // words
    int32_t cache_ram_mib = 512;
    enum llama_flash_attn_type flash_attn_type = LLAMA_FLASH_ATTN_TYPE_AUTO;
};
"""
BENCH = """
static cmd_params parse_cmd_params(int argc, char ** argv) {
        if (arg == "-h" || arg == "--help") { print_usage(); }
        else if (arg == "-p" || arg == "--n-prompt") { if (++i >= argc) { } auto p = list(argv[i]); }
    // set defaults
"""


@pytest.fixture(scope="module")
def generator() -> Iterator[ModuleType]:
    folder = str(ROOT / "tools" / "gen")
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        import llama_builds

        yield llama_builds
    finally:
        sys.path[:] = before


def tree(tmp_path: Path) -> Path:
    files = {
        "CMakeLists.txt": "set(LLAMA_VERSION_MAJOR 9)\nset(LLAMA_VERSION_MINOR 1)\nset(LLAMA_VERSION_PATCH 2)\n",
        "common/arg.cpp": ARG,
        "common/common.h": HEADER,
        "src/llama.cpp": "",
        "src/llama-model.cpp": "    /*.n_gpu_layers =*/ -1,\n",
        "src/llama-arch.cpp": 'LLM_ARCH_NAMES = {\n { LLM_ARCH_A, "aaa" },\n { LLM_ARCH_U, "(unknown)" },\n};\n',
        "tools/server/server.cpp": "params.n_parallel = 6;\n",
        "tools/llama-bench/llama-bench.cpp": BENCH,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_source_tree(tmp_path: Path, generator: ModuleType) -> None:
    build = generator.read_tree(tree(tmp_path))
    assert build.version == "9.1.2"
    assert build.architectures == ("aaa",)
    assert build.facts["cache_ram_mib"] == "512"
    assert (build.facts["server_slots"], build.facts["all_layers"], build.facts["flash_attn"]) == ("6", "on", "auto")
    lines = [row._replace(key="").line().strip() for row in build.rows]
    assert lines == [
        "int sc LLAMA_ARG_CTX_SIZE -c,--ctx-size",
        "bool s - --shiny --no-shiny",
        "switch b - -h,--help",
        "text b - -p,--n-prompt",
    ]


def test_the_tables_are_read_back_as_they_were_written(generator: ModuleType) -> None:
    builds = generator.read_tables()
    assert generator.flags_text(generator.named(builds)) == generator.FLAGS.read_text()
    assert generator.builds_text(generator.named(builds)) == generator.BUILDS.read_text()


def test_a_build_is_added_without_the_trees_of_the_others(tmp_path: Path, generator: ModuleType) -> None:
    """Keys stay those of the others; what only the new build has begins with it, what it lacks ends before it."""
    newest = max(generator.read_tables())
    builds = generator.named({**generator.read_tables(), newest + 9: generator.read_tree(tree(tmp_path))})
    lines = generator.flags_text(builds).splitlines()
    assert f"{newest + 9}- shiny bool s - --shiny --no-shiny" in lines
    assert any(line.startswith(f"5590-{newest} spm-infill ") for line in lines)
    assert f"5590-7347,{newest + 9}- ctx-size int sc LLAMA_ARG_CTX_SIZE -c,--ctx-size" in lines  # as it was long ago
    assert f"{newest + 9}- aaa" in generator.builds_text(builds).splitlines()


def test_the_day_of_a_build_is_its_own(tmp_path: Path, generator: ModuleType) -> None:
    """The sdist of llama-cpp-python, whose build is the one that is followed, has one made-up time for all files."""
    builds = generator.read_tables()
    newest = max(builds)
    old = generator.read_tree(tree(tmp_path))._replace(day="2022-11-09")
    assert generator.dated(newest, old, builds).day == builds[newest].day
    with pytest.raises(SystemExit, match=f"b{newest + 9}: CMakeLists.txt is of 2022-11-09, and b{newest} of "):
        generator.dated(newest + 9, old, builds)
    later = old._replace(day="2999-01-01")
    assert generator.dated(newest + 9, later, builds) == later
