"""What flags pin, what each program makes of the rest, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
from autofit.errors import EngineRefusalError, UsageError

from autofit_llama.command.llama_bench import bench_runs, parse_range, what_differs
from autofit_llama.command.options import Program
from autofit_llama.command.parse import settings_of
from autofit_llama.command.python_class import python_arguments
from autofit_llama.command.reading import read
from autofit_llama.command.settings import LlamaSettings
from autofit_llama.command.values import parse_override
from autofit_llama.command.write import render
from autofit_llama.engine.naming import find_version
from autofit_llama.engine.versions import LATEST, NEWEST, Version
from autofit_llama.engine.vocabulary import Override
from autofit_llama.launch.defaults import Launch, check_launch, check_stands_alone, chosen, launch_of
from autofit_llama.model.context import ContextParams
from autofit_llama.model.metadata import overridden
from autofit_llama.model.resolve import resolve_context
from support.commands import model_of


def settings(*argv: str, env: dict[str, str] | None = None, version: Version = LATEST) -> LlamaSettings:
    return settings_of(read(argv, env, version=version))


def launch(*argv: str, program: Program = "llama-server") -> Launch:
    return launch_of(settings(program, *argv), program)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("-c 0", {"n_ctx": 0}),
        ("-ngl auto", {"n_gpu_layers": -1}),
        ("-ngl all", {"n_gpu_layers": -2}),
        ("-ngl -7", {"n_gpu_layers": -2}),
        ("-ngl 20 -ngl 3", {"n_gpu_layers": 3}),
        ("-ts 3,1/0.5", {"tensor_split": (3.0, 1.0, 0.5)}),
        ("-dev CUDA0,RPC1", {"devices": ("CUDA0", "RPC1")}),
        ("-dev none", {"devices": ()}),
        ("-fa 1", {"flash_attn": "on"}),
        ("-fa disabled", {"flash_attn": "off"}),
        ("-fa -1", {"flash_attn": "auto"}),
        ("-fit off -fitt 512,1024", {"fit": False, "fit_target_mib": (512, 1024)}),
        ("--rerank", {"embedding": True, "pooling": "rank"}),
        ("-mmdev none", {"mmproj_offload": False}),
        ("-mmdev CUDA1", {"mmproj_offload": True, "mmproj_device": "CUDA1"}),
        ("--rpc a:1,b:2 --rpc c:3", {"rpc": ("a:1", "b:2", "c:3")}),
        (
            "--spec-type draft-mtp,ngram-mod --spec-type none",
            {"spec_types": ("draft-mtp", "ngram-mod")},
        ),
        ('--lora "a,b.gguf",c.gguf', {"loras": ("a,b.gguf", "c.gguf")}),
        ("--lora-scaled a.gguf:0.5", {"loras": ("a.gguf",)}),
        ("-lm mmap+mlock -lzm on", {"load_mode": "mmap+mlock", "lazy_mode": "on"}),
        (
            "--gpt-oss-20b-default -c 4096",
            {"n_ubatch": 2048, "n_batch": 32768, "n_parallel": 2, "n_ctx": 4096},
        ),
    ],
)
def test_values(argv: str, expected: dict[str, Any]) -> None:
    pinned = settings(*argv.split()).pinned()
    assert {name: pinned.get(name) for name in expected} == expected


def test_overrides_keep_their_order() -> None:
    found = settings("-ot", r"a=CPU,b\.=CUDA0", "-ncmoe", "3", "-cmoe", "-ot", "x=y=CPU", "-ncffn", "0").overrides
    assert found == (
        Override(kind="pattern", pattern="a", buffer="CPU"),
        Override(kind="pattern", pattern=r"b\.", buffer="CUDA0"),
        Override(kind="n_cpu_moe", n_blocks=3),
        Override(kind="cpu_moe"),
        Override(kind="pattern", pattern="x", buffer="y=CPU"),
        Override(kind="n_cpu_ffn", n_blocks=0),
    )


def test_variables_add_to_lists_and_give_way_elsewhere() -> None:
    found = settings("-ot", "b=CPU", "-c", "1", env={"LLAMA_ARG_OVERRIDE_TENSOR": "a=CPU", "LLAMA_ARG_CTX_SIZE": "9"})
    assert [one.pattern for one in found.overrides] == ["a", "b"]
    assert found.n_ctx == 1


@pytest.mark.parametrize(
    "argv",
    [
        "-ngl x", "-ts 1,,x", "-ts " + ",".join("1" * 16),
        "-sm rows", "-fa maybe", "-ctk q6_K", "-lm fast", "-lzm 1",
        "-ot nothing", "-ncmoe -1", "-ncffn -1", "-np 0", "-dev CUDA0,", "-fit maybe", "-fitt x", "-cms -1",
        "--pooling max", "--numa all", "--spec-type draft", "--spec-draft-n-max -1", "-mmdev CUDA0,CUDA1",
        "--override-kv a=b", "--override-kv a=int", "--lora-scaled a.gguf", "--spec-ngram-mod-n-max 2000",
        "--rope-scaling cubic", "--rope-freq-base x", "-ctkd q6_K",
    ],
)  # fmt: skip
def test_bad_values_are_named(argv: str) -> None:
    flag = argv.split()[0]
    with pytest.raises(UsageError, match=f"llama-server refuses {flag}"):
        settings(*argv.split())


@pytest.mark.parametrize("argv", [("-c", "-5"), ("-b", "0"), ("-ub", "-1")])
def test_numbers_that_no_program_takes(argv: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=f"{argv[0]} {argv[1]}"):
        launch(*argv)


def test_server_slots_are_four_and_share_their_cache() -> None:
    context = launch("-no-kvu").context
    assert (context.n_seq_max, context.kv_unified, context.n_outputs_max) == (4, True, 4)


def test_slots_that_are_said_have_caches_of_their_own() -> None:
    context = launch("-np", "3").context
    assert (context.n_seq_max, context.kv_unified, context.n_outputs_max) == (3, False, 3)


def test_other_programs_have_one_slot_and_the_whole_batch_of_logits() -> None:
    context = launch(program="llama-fit-params").context
    assert (context.n_seq_max, context.kv_unified, context.n_outputs_max) == (1, False, 0)
    assert launch(program="llama-cli").context.n_outputs_max == 1


def test_embeddings_need_the_batch_at_once() -> None:
    context = launch("--embedding", "-ub", "256").context
    assert (context.n_batch, context.n_outputs_max, context.embeddings) == (256, 256, True)


@pytest.mark.parametrize(
    ("argv", "n_outputs"),
    [
        ("--spec-type draft-mtp", 16),
        ("--spec-type draft-mtp --spec-draft-n-max 7", 32),
        ("--spec-type ngram-simple", 4 * 49),
        ("--spec-default", 4 * 65),
        ("--spec-type ngram-cache -np 1", 9),
        ("--spec-type ngram-mod -b 64", 64),
        ("--spec-type none", 4),
    ],
)
def test_drafted_tokens_are_verified_at_once(argv: str, n_outputs: int) -> None:
    assert launch(*argv.split()).context.n_outputs_max == n_outputs


def test_a_pool_for_all_slots() -> None:
    assert launch("--kv-unified-per-slot", "8192").context.n_ctx == 32768
    assert launch("--kv-unified-per-slot", "8192", "-np", "2").context.n_ctx == 16384
    assert launch("--kv-unified-per-slot", "8192", "-c", "4096").context.n_ctx == 4096
    assert launch("--kv-unified-per-slot", "8192", "-c", "0").context.n_ctx == 0


def test_a_context_of_zero_is_not_the_same_as_none() -> None:
    assert launch("-c", "0").keep_context
    assert not launch().keep_context


def test_a_draft_head_runs_on_the_models_weights() -> None:
    found = launch("--spec-type", "draft-mtp", "-ctk", "q8_0", "-ctkd", "q4_0", "-np", "2")
    assert found.load_mtp
    assert found.draft is not None
    assert not found.draft.has_model
    assert found.context.n_rs_seq == 3
    _, hp = model_of("models", "llama-3.1-8b-Q4_K_M")
    context = found.draft.context(found.context, resolve_context(hp, found.context))
    assert (context.type_k, context.n_outputs_max, context.n_rs_seq, context.mtp) == ("q4_0", 2, 0, True)
    assert context.n_ctx == resolve_context(hp, found.context).n_ctx


def test_a_draft_model_has_settings_of_its_own() -> None:
    argv = "-md d.gguf -ngld 5 -devd CUDA1 -otd a=CPU -cmoed -sm row --spec-type draft-simple"
    draft = launch(*argv.split()).draft
    assert draft is not None
    assert (draft.has_model, draft.n_gpu_layers, draft.devices, draft.split_mode) == (
        True,
        5,
        ("CUDA1",),
        "layer",
    )
    assert [one.kind for one in draft.overrides] == ["pattern", "cpu_moe"]


def test_a_block_drafter_keeps_every_position() -> None:
    found = launch("-md", "d.gguf", "--spec-type", "draft-dflash", "--spec-draft-n-max", "7", "-np", "2")
    assert found.draft is not None
    assert found.draft.n_outputs_max == 16


def test_programs_without_slots_do_not_draft() -> None:
    assert launch("-c", "512", program="llama-fit-params").draft is None


def test_load_modes() -> None:
    assert [launch("-lm", mode).maps_file() for mode in ("auto", "none", "mmap", "mlock", "dio")] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert not launch().maps_file(devices_map=False)
    assert launch("-lm", "mlock").locks_memory


@pytest.mark.parametrize(
    ("argv", "mode"),
    [
        ("--no-mmap", "none"),
        ("--mlock", "mmap+mlock"),
        ("--no-mmap --mlock", "mlock"),
        ("--mmap", "mmap"),
        ("-dio --no-mmap", "dio"),
    ],
)
def test_load_modes_of_older_builds(argv: str, mode: str) -> None:
    assert settings(*argv.split(), version=Version(build=8000)).load_mode == mode


def test_llama_bench_runs_every_combination_with_the_tokens_of_its_largest_test() -> None:
    argv = "-m a -p 512,4096 -n 64 -d 0,1024 -ngl 10-30+10 -ts 1/1,3/1 -nkvo 0,1 -ngl 10".split()
    found = bench_runs(read(["llama-bench", *argv]))
    assert [(one.n_gpu_layers, one.tensor_split, one.kv_offload) for one in found] == [
        (layers, split, keeps) for layers in (10, 20, 30) for split in ((1, 1), (3, 1)) for keeps in (True, False)
    ]
    assert {one.n_ctx for one in found} == {5120}
    assert what_differs(found[1], found) == "-ngl 10 -ts 1,1 -nkvo"
    assert launch_of(found[0], "llama-bench").fit_target_mib == (0,)
    assert settings("llama-bench").n_ctx == 512


@pytest.mark.parametrize(
    ("argv", "message"),
    [("-m a,b", "several models"), ("-m a -m b", "several models"), ("-ngl 0-99 -m a", "100 combinations")],
)
def test_llama_bench_runs_that_are_not_one(argv: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settings("llama-bench", *argv.split())


def test_llama_bench_overrides() -> None:
    reading = read(["llama-bench", "-ot", "a=CPU;b=CUDA0,c=CPU", "-ncmoe", "4,0", "-dev", "CUDA0/CUDA1"])
    found = [[(one.pattern, one.n_blocks) for one in run.overrides] for run in bench_runs(reading)]
    both, other = [("a", 0), ("b", 0)], [("c", 0)]
    assert found == [[*both, ("", 4)], both, [*other, ("", 4)], other]
    assert bench_runs(reading)[0].devices == ("CUDA0", "CUDA1")


@pytest.mark.parametrize(
    ("text", "found"), [("5", (5,)), ("1-8*2", (1, 2, 4, 8)), ("3,1-5+2", (3, 1, 3, 5)), ("-1", (-1,))]
)
def test_ranges(text: str, found: tuple[int, ...]) -> None:
    assert parse_range(text) == found


@pytest.mark.parametrize("text", ["", "x", "1-9+0", "1-9*1", "1-999999999", "5,,6"])
def test_bad_ranges(text: str) -> None:
    with pytest.raises(ValueError, match="range"):
        parse_range(text)


def test_python_defaults() -> None:
    found = launch_of(LlamaSettings(), "llama-cpp-python")
    context = found.context
    assert (context.n_ctx, context.n_batch, context.n_outputs_max, found.n_gpu_layers) == (512, 512, 0, 0)
    assert (context.flash_attn, context.swa_full, found.load_mode) == ("off", True, "mmap")
    embedding = launch_of(LlamaSettings(embedding=True), "llama-cpp-python").context
    assert (embedding.n_seq_max, embedding.kv_unified) == (256, True)


def test_python_arguments() -> None:
    given = LlamaSettings(
        model="m.gguf", n_gpu_layers=-2, type_k="q8_0", flash_attn="on", load_mode="none", split_mode="none"
    )
    assert python_arguments(given) == {
        "model_path": "m.gguf", "n_gpu_layers": -1, "type_k": 8, "flash_attn": True, "use_mmap": False,
        "use_mlock": False, "split_mode": 0,
    }  # fmt: skip
    with pytest.raises(UsageError, match="n_parallel"):
        python_arguments(LlamaSettings(n_parallel=2))
    with pytest.raises(UsageError, match="not auto"):
        python_arguments(LlamaSettings(flash_attn="auto"))


def test_settings_complete_each_other() -> None:
    both = LlamaSettings(n_ctx=5).or_else(LlamaSettings(n_ctx=6, n_batch=7))
    assert (both.n_ctx, both.n_batch) == (5, 7)


def test_rendering_uses_the_shortest_spelling() -> None:
    given = LlamaSettings(
        model="m.gguf",
        n_gpu_layers=-2,
        n_ctx=4096,
        kv_offload=False,
        tensor_split=(3, 1.5),
        devices=(),
        load_mode="none",
        overrides=tuple(Override(kind="pattern", pattern=name, buffer="CPU") for name in "ab"),
    )
    expected = "-m m.gguf -dev none -ngl all -ts 3,1.5 -ot a=CPU,b=CPU -c 4096 -nkvo -lm none"
    assert " ".join(render(given)) == expected


def test_rendering_for_older_builds() -> None:
    given = LlamaSettings(n_gpu_layers=-2, flash_attn="on", load_mode="mlock", draft_n_max=5, fit=False)
    assert render(given, version=Version(build=6000)) == (
        "-ngl", "999", "-fa", "--no-mmap", "--mlock", "--draft-max", "5",
    )  # fmt: skip
    with pytest.raises(UsageError, match="b6000 has no"):
        render(LlamaSettings(cache_ram_mib=0), version=Version(build=6000))


def test_a_pattern_that_a_command_cannot_hold() -> None:
    with pytest.raises(UsageError, match="cannot hold a comma"):
        render(LlamaSettings(overrides=(Override(kind="pattern", pattern="a,b", buffer="CPU"),)))


@pytest.mark.parametrize(
    ("text", "build", "codes"),
    [
        (None, LATEST.build, []),
        ("b8864", 8864, []),
        ("8000", 8000, []),
        ("b7697", 7697, ["engine-version-older"]),
        ("b5000", 5000, ["engine-version-older"]),
        ("version: 10989 (abcdef)", 10989, []),
        ("0.4.1-dev (build 10989)", 10989, []),
        ("version: 10989 (abcdef)\nbuilt with GNU 14.2.0 for Linux x86_64", 10989, []),
        ("version: 0.5.0-dev (build 11311, commit 1234567)", 11311, []),
        ("version: 0.5.0 (build 0, commit unknown)", 11149, []),
        ("0.5.0", 11149, []),
        ("v0.4.0", 10807, []),
        ("llama.cpp 0.5.0", 11149, []),
        ("ghcr.io/ggml-org/llama.cpp:server-v0.5.0", 11149, []),
        ("0.3.0", 10606, ["engine-version-uncertain"]),
        ("0.4.1", 10951, ["engine-version-uncertain"]),
        ("0.0.6641", 6641, ["engine-version-older"]),
        ("8064+dfsg-1", 8064, []),
        ("llama-cpp-7698", 7698, []),
        ("ghcr.io/ggml-org/llama.cpp:server-cuda-b8121", 8121, []),
        ("b11434", 11434, []),
        ("llama-cpp-python 0.3.36", 11311, []),
        ("llama-cpp-python 0.3.33", 9843, ["engine-version-uncertain"]),
        ("llama_cpp_python==0.3.17", 8391, ["engine-version-uncertain"]),
        ("b11549", 11549, []),
        ("b99999", NEWEST, ["engine-version-newer"]),
        ("1.0", NEWEST, ["engine-version-newer"]),
    ],
)
def test_versions(text: str | None, build: int, codes: list[str]) -> None:
    version, findings = find_version(text)
    assert version.build == build
    assert [finding.code for finding in findings] == codes


@pytest.mark.parametrize(
    "text",
    [
        *("newest", "", "b", "1", "ghcr.io/ggml-org/llama.cpp:server-cuda", "version: 0 (x)"),
        *("ls (GNU coreutils) 9.1", "vllm/vllm-openai:v0.11.0", "Python 3.13.2"),
    ],
)
def test_not_a_version(text: str) -> None:
    with pytest.raises(UsageError, match="not a version"):
        find_version(text)


@pytest.mark.parametrize(
    ("argv", "apis", "message"),
    [
        ("-sm row", ("cuda", "cuda"), "split buffers"),
        ("-sm none -mg 2", ("cuda", "cuda"), "main_gpu: 2"),
        ("-sm tensor", (), "needs >= 1 devices"),
        ("-sm tensor -fa off", ("cuda",), "requires flash_attn"),
    ],
)
def test_loading_refuses(argv: str, apis: tuple[str, ...], message: str) -> None:
    _, hp = model_of("models", "llama-3.1-8b-Q4_K_M")
    with pytest.raises(EngineRefusalError, match=message):
        check_launch(launch(*argv.split()), hp, apis)


def test_tensor_parallelism_is_not_for_every_architecture() -> None:
    _, hp = model_of("tiny", "mamba2-dense")
    with pytest.raises(EngineRefusalError, match="not implemented for architecture 'mamba2'"):
        check_launch(launch("-sm", "tensor"), hp, ("cuda",))


def test_one_device_of_several() -> None:
    assert chosen(launch("-sm", "none", "-mg", "1"), 3) == (1,)
    assert chosen(launch("-sm", "none", "-mg", "-1"), 3) == ()
    assert chosen(launch(), 3) == (0, 1, 2)


def test_a_draft_model_does_not_stand_alone() -> None:
    _, hp = model_of("models", "llama-3.1-8b-Q4_K_M")
    check_stands_alone(hp, ())


def test_metadata_is_overridden() -> None:
    model, hp = model_of("models", "llama-3.1-8b-Q4_K_M")
    changed = overridden(model, ("llama.context_length=int:4096x", "new.key=str:a", "llama.block_count=float:3"))
    assert changed.metadata["llama.context_length"] == 4096
    assert changed.metadata["new.key"] == "a"
    assert changed.metadata["llama.block_count"] == hp.n_layer_all
    assert overridden(model, ()) is model
    assert parse_override("a=bool:true") == ("a", True)
    assert parse_override("a=float:1.5x") == ("a", 1.5)


def test_contexts_of_recorded_defaults() -> None:
    assert launch(program="llama-fit-params").context == ContextParams()
