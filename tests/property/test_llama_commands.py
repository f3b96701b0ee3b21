"""Commands taken apart and written again, for every version; and commands that no one would write."""

from __future__ import annotations

from autofit.errors import AutofitError
from hypothesis import given, settings
from hypothesis import strategies as st

from autofit_llama.command.parse import settings_of
from autofit_llama.command.reading import read
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import POOLING, SPEC_TYPES
from autofit_llama.command.write import render
from autofit_llama.engine.versions import LATEST, Version
from autofit_llama.engine.vocabulary import KV_TYPES
from autofit_llama.launch.defaults import launch_of

WORD = st.from_regex(r"[A-Za-z0-9_.*+()-]{1,12}", fullmatch=True).filter(lambda word: not word.startswith("-"))
COUNT = st.integers(0, 4096).map(str)


def flag(*names: str) -> st.SearchStrategy[tuple[str, ...]]:
    return st.sampled_from(names).map(lambda name: (name,))


def valued(names: tuple[str, ...], values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.tuples(st.sampled_from(names), values)


def some(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(values, min_size=1, max_size=4).map(",".join)


FLAGS = st.one_of(
    flag(
        "-kvu", "-no-kvu", "-kvo", "-nkvo", "--swa-full", "-nr", "--repack", "--no-host", "-cmoe", "--embedding",
        "--rerank", "--op-offload", "--no-op-offload", "--no-mmproj", "--mmproj-offload", "--no-mmproj-offload",
        "--spec-default", "--gpt-oss-20b-default", "-bs", "--fim-qwen-3b-default", "-cmoed",
    ),
    valued(("-c", "-ub", "-cram", "-fitc", "-t", "-ctxcp", "-cms", "-mg", "--kv-unified-per-slot"), COUNT),
    valued(("-b", "-np"), st.integers(1, 512).map(str)),
    valued(("-ncmoe", "-ncffn", "-ncmoed", "--spec-draft-n-max", "-tb"), COUNT),
    valued(("-ngl", "--n-gpu-layers", "-ngld"), st.one_of(COUNT, st.sampled_from(["auto", "all", "-1", "-9"]))),
    valued(("-ctk", "-ctv", "-ctkd", "-ctvd"), st.sampled_from(KV_TYPES)),
    valued(("-fa",), st.sampled_from(["on", "off", "auto", "0", "1", "true"])),
    valued(("-sm",), st.sampled_from(["none", "layer", "row", "tensor"])),
    valued(("-lm",), st.sampled_from(["auto", "none", "mmap", "mlock", "mmap+mlock", "dio"])),
    valued(("-lzm",), st.sampled_from(["on", "off", "auto"])),
    valued(("-fit",), st.sampled_from(["on", "off", "0", "1"])),
    valued(("-fitt",), some(COUNT)),
    valued(("-ts",), some(st.floats(0.001, 1e6).map(lambda x: f"{x:.6g}"))),
    valued(("-dev", "-devd"), st.one_of(st.just("none"), some(st.sampled_from(["CUDA0", "CUDA1", "RPC0"])))),
    valued(("-mmdev",), st.sampled_from(["none", "CUDA0"])),
    valued(("-ot", "-otd"), some(st.tuples(WORD, st.sampled_from(["CPU", "CUDA0"])).map("=".join))),
    valued(("--pooling",), st.sampled_from(list(POOLING))),
    valued(("--spec-type",), some(st.sampled_from(SPEC_TYPES))),
    valued(("-m", "-md", "-mm", "-hf", "--lora", "--control-vector", "--rpc"), WORD),
    valued(("--override-kv",), WORD.map(lambda key: f"{key}=int:5")),
)  # fmt: skip
COMMANDS = st.lists(FLAGS, max_size=12).map(lambda flags: [word for words in flags for word in words])


@settings(max_examples=400, deadline=None)
@given(COMMANDS)
def test_what_is_written_again_says_the_same(argv: list[str]) -> None:
    said = settings_of(read(argv))
    written = render(said)
    assert settings_of(read(written)) == said
    assert render(settings_of(read(written))) == written
    launch_of(said, "llama-server")


@settings(max_examples=200, deadline=None)
@given(
    COMMANDS, st.sampled_from([7549, 8000, 8121, 8864, 9297, 10068, 10361, 10434, 10867, 10875, 11434, LATEST.build])
)
def test_every_version_reads_what_is_written_for_it(argv: list[str], build: int) -> None:
    said = settings_of(read(argv))
    version = Version(build=build)
    try:
        written = render(said, version=version)
    except AutofitError:
        return  # this version cannot say it
    again = settings_of(read(written, version=version))
    assert again.overrides == said.overrides
    assert (again.n_ctx, again.tensor_split, again.devices) == (said.n_ctx, said.tensor_split, said.devices)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(WORD, st.sampled_from(["-c", "-ngl", "-ts", "-ot", "--x", "-np", "", "\0", "-fa", "é"])), max_size=8
    )
)
def test_nonsense_is_taken_apart_or_refused_in_one_line(argv: list[str]) -> None:
    try:
        reading = read(argv)
        settings_of(reading)
    except AutofitError as error:
        assert error.message
        assert "\n" not in error.message
        assert "\0" not in error.message
    else:
        kept = len(reading.unknown) + sum(1 + flag.option.n_values for flag in reading.flags)
        assert kept == len(argv) - len(reading.words)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([
    "LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_N_GPU_LAYERS", "LLAMA_ARG_NO_KV_OFFLOAD", "LLAMA_ARG_KV_OFFLOAD",
    "LLAMA_ARG_CPU_MOE", "LLAMA_ARG_TENSOR_SPLIT", "LLAMA_ARG_OVERRIDE_TENSOR", "LLAMA_ARG_FLASH_ATTN",
]), st.text(max_size=6)))  # fmt: skip
def test_any_environment(env: dict[str, str]) -> None:
    try:
        settings_of(read([], env))
    except AutofitError as error:
        assert "\n" not in error.message
        assert any(name in error.message for name in env)


def test_nothing_said_is_nothing_written() -> None:
    assert render(LlamaSettings()) == ()
    assert settings_of(read([])) == LlamaSettings()
