"""The dry run of any build of llama.cpp from b7698 on, with the device that only counts.

Leaves `oracle` and `libfakecuda.so` of tests/engine/oracle, made for that source, with the libraries that they load.
Only what a dry run calls is compiled, without optimization; a call to anything else would end the program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from follow.engine_source import FollowError
from follow.joined import listing

ROOT = Path(__file__).resolve().parents[2]
ORACLE = ROOT / "tests" / "engine" / "oracle"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O0 -DNDEBUG",
    "-DCMAKE_C_FLAGS_RELEASE=-O0 -DNDEBUG",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DBUILD_SHARED_LIBS=ON",
    *(f"-DGGML_{name}=ON" for name in ("AVX2", "FMA", "F16C")),
    *(f"-DGGML_{name}=OFF" for name in ("NATIVE", "LLAMAFILE", "OPENMP")),
    *(
        f"-DLLAMA_{name}=OFF"
        for name in (
            "BUILD_UI", "BUILD_WEBUI", "USE_PREBUILT_UI", "OPENSSL", "CURL", "BUILD_EXAMPLES", "BUILD_TESTS",
            "BUILD_TOOLS", "BUILD_SERVER", "ALL_WARNINGS",
        )
    ),
)  # fmt: skip
#: where the object files of a library are -> its name, in the order in which they need each other
LIBRARIES = {
    "ggml/src/CMakeFiles/ggml-base": "ggml-base",
    "ggml/src/CMakeFiles/ggml-cpu": "ggml-cpu",
    "ggml/src/CMakeFiles/ggml": "ggml",
    "src/CMakeFiles/llama": "llama",
}
#: files of common/ that a dry run calls, where a build has them
COMMON = ("arg", "common", "log", "speculative", "sampling", "json", "preset", "hf-cache", "download", "build-info")
#: what computes, quantizes or writes is never called
KERNELS = ("ggml-cpu/arch/", "ggml-cpu/tiled/", "ggml-cpu/simd", "ggml-cpu/quants")
UNUSED = ("ops", "unary-ops", "binary-ops", "mmq", "llama-grammar", "llama-quant", "llama-model-saver")
INCLUDES = ("include", "ggml/include", "ggml/src", "common", "src", "vendor")
PROGRAMS = ("oracle", "libfakecuda.so")
#: what the device that counts is made of
DEVICE = Path("ggml", "src", "ggml-cuda", "ggml-cuda.cu")


class CompileError(FollowError):
    """A step of the build failed; the last lines of its log."""


def build(
    tree: Path, out: Path, *, jobs: int = 2, tools: Path | None = None, say: Callable[[str], None] = print
) -> Path:
    """Compile the dry run of the source at `tree` into `out`; what was compiled before is kept.

    Raises:
        FollowError: no CMake, Ninja or C++ compiler, or no CUDA code in the source; or the last lines of what they
            printed.
    """
    if all((out / name).is_file() for name in PROGRAMS):
        return out
    environ = dict(os.environ)
    if tools is not None:
        environ["PATH"] = f"{tools}{os.pathsep}{environ.get('PATH', '')}"
    for name, remedy in (("cmake", "pip install cmake"), ("ninja", "pip install ninja"), ("g++", "a C++ compiler")):
        if shutil.which(name, path=environ["PATH"]) is None:
            raise FollowError(f"{name} is not on the PATH; needed: {remedy}")
    if not (tree / DEVICE).is_file():
        raise FollowError(
            f"{tree} has no {DEVICE.as_posix()}, of which the device that counts is made; sdists of the package index "
            "before b9760 leave it out. A source that has it: --source TREE"
        )
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    _compile_engine(tree, work, jobs, environ, say)
    say("compiling the dry run and the device that counts")
    _link(work, out, environ)
    _compile_programs(tree, work, out, environ)
    shutil.rmtree(work)
    return out


def _compile_engine(tree: Path, work: Path, jobs: int, environ: dict[str, str], say: Callable[[str], None]) -> None:
    options = list(OPTIONS)
    if shutil.which("ccache", path=environ["PATH"]):
        environ["CCACHE_BASEDIR"] = str(tree)
        options += [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX")]
    joined = work / "joined.cmake"
    joined.write_text(listing(tree, UNUSED), encoding="utf-8")
    try:
        _compile(tree, work, jobs, [*options, f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={joined}"], environ, say)
    except CompileError as error:
        if "unity_" not in str(error) or "error:" not in str(error):
            raise
        say("joined files do not compile; compiling each by itself")
        _compile(tree, work, jobs, [*options, "-UCMAKE_PROJECT_llama.cpp_INCLUDE"], environ, say)


def _compile(
    tree: Path, work: Path, jobs: int, options: Sequence[str], environ: dict[str, str], say: Callable[[str], None]
) -> None:
    say(f"configuring {tree}")
    _step(["cmake", "-S", str(tree), "-B", str(work), "-G", "Ninja", *options], work / "cmake.log", environ)
    listed = subprocess.run(
        ["ninja", "-C", str(work), "-t", "targets", "all"], env=environ, capture_output=True, text=True, check=True
    )
    made = [line.split(":")[0] for line in listed.stdout.splitlines()]
    needed = [each for each in made if each.endswith(".o") and library_of(each)]
    say(f"compiling {len(needed)} files of ggml, llama and common")
    _step(["ninja", "-C", str(work), f"-j{jobs}", *needed], work / "ninja.log", environ)


def library_of(made: str) -> str | None:
    """The library that an object file goes to; `None` where a dry run does without.

    >>> library_of("src/CMakeFiles/llama.dir/llama-context.cpp.o")
    'llama'
    >>> library_of("ggml/src/CMakeFiles/ggml-cpu.dir/ggml-cpu/arch/x86/quants.c.o")
    """
    folder, _, file = made.partition(".dir/")
    name = Path(file).name.removesuffix(".o").rpartition(".")[0]
    if folder.startswith("common/"):
        return "engine-common" if name in COMMON else None
    library = LIBRARIES.get(folder)
    return None if library is None or name in UNUSED or file.startswith(KERNELS) else library


def _link(work: Path, out: Path, environ: dict[str, str]) -> None:
    objects: dict[str, list[str]] = {}
    for path in sorted(work.rglob("*.o")):
        library = library_of(path.relative_to(work).as_posix())
        if library is not None:
            objects.setdefault(library, []).append(str(path))
    log, linked = work / "link.log", list[str]()
    for library in (*LIBRARIES.values(), "engine-common"):
        for path in objects[library]:  # so that what they name and no library has is nothing, in place of an error
            _step(["objcopy", "--weaken", path], log, environ)
        target = ["-o", str(out / f"lib{library}.so"), f"-Wl,-soname,lib{library}.so"]
        _step(["g++", "-shared", *target, *objects[library], f"-L{out}", *linked, "-Wl,-rpath,$ORIGIN"], log, environ)
        linked.append(f"-l{library}")


def _compile_programs(tree: Path, work: Path, out: Path, environ: dict[str, str]) -> None:
    log = work / "programs.log"
    includes = [f"-I{tree / name}" for name in INCLUDES]
    cxx = ["g++", "-std=c++17", "-w", "-fPIC"]
    names = [f"-l{library}" for library in reversed((*LIBRARIES.values(), "engine-common"))]
    libs = [f"-L{out}", "-Wl,--no-as-needed", *names, "-Wl,-rpath,$ORIGIN", "-ldl", "-lpthread"]
    made = work / "made"
    made.mkdir(exist_ok=True)
    for script, name in (("engine_header.py", "engine.h"), ("gen_fakecuda.py", "fakecuda.cpp")):
        with (made / name).open("wb") as file:
            done = subprocess.run(
                [sys.executable, str(ORACLE / script), str(tree)], stdout=file, stderr=subprocess.PIPE, check=False
            )
        if done.returncode:
            raise FollowError(f"{script} does not understand this source: {done.stderr.decode()[-600:]}")
        (out / f"{script}.log").write_bytes(done.stderr)
    _step(
        [*cxx, "-O1", "-o", str(out / "oracle"), str(ORACLE / "oracle.cpp"), f"-I{made}", *includes, *libs],
        log,
        environ,
    )
    device = [*cxx, "-O1", "-shared", "-o", str(out / "libfakecuda.so"), str(made / "fakecuda.cpp"), *includes]
    _step([*device, *libs], log, environ)


def _step(command: Sequence[str], log: Path, environ: dict[str, str], seconds: int = 3 * 3600) -> None:
    try:
        with log.open("wb") as file:
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, env=environ, timeout=seconds, check=False
            )
    except subprocess.TimeoutExpired:
        raise FollowError(f"not done after {seconds} s: {' '.join(command)}") from None
    if done.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        wrong = [line for line in lines if "error" in line.lower()][:8]
        shown = "\n".join(f"    {line[:200]}" for line in (wrong or []) + lines[-12:])
        raise CompileError(f"{command[0]} failed with exit code {done.returncode}; of {log}:\n{shown}")
