"""`autofit run`: what is missing is filled in, what is given is kept, and the process becomes the engine."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import autofit
import pytest
from autofit.cli.main import main

from support.fake_engines import TINY, Engines, write_program
from support.vllm_truth import DATA

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
QWEN = str(DATA / "configs" / "qwen3-0.6b")
ON = ("--on", "rtx-3090", "--ram", "64GiB")
SERVER = ("llama-server", "-m", TINY)


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


def test_the_process_becomes_the_engine(engines: Engines) -> None:
    """Same process, absolute path, arguments filled in; no child, descriptor, thread or signal of ours stays."""
    reads, writes = os.pipe()
    process = engines.start("run", "--", *SERVER, "--port", "9", pass_fds=[writes], stdout=-1, stderr=-1)
    out, err = process.communicate(timeout=60)
    os.close(reads)
    os.close(writes)
    said = engines.said
    assert (said["pid"], process.returncode) == (process.pid, 0)
    assert said["program"] == str(engines.bin / "llama-server")
    assert said["argv"][:4] == ["-m", TINY, "--port", "9"]
    assert {"-c", "-np", "-fit"} <= set(said["argv"])
    assert out == "" and "autofit: adds -c 4096" in err
    assert said["fds"][:-1] == [0, 1, 2, writes] and said["fds"][-1] >= 100  # the last holds its reservation
    assert (said["children"], said["threads"], int(said["blocked"], 16)) == ([], "1", 0)
    assert said["env"] == {**engines.environ, "FAKE_DOES": ""}


def test_it_is_the_plan_of_the_command_line(engines: Engines) -> None:
    """One composition: what `run` starts is what `autofit llama` prints for the same flags."""
    flags = ["-m", TINY, "-ngl", "1", "--temp", "0.5"]
    assert engines.run("run", "-q", *ON, "-c", "512", "--", "llama-server", *flags).returncode == 0
    printed = engines.run("llama", "-q", *ON, "-c", "512", "--", *flags).stdout
    assert ["llama-server", *engines.said["argv"]] == shlex.split(printed)


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["vllm", "serve", QWEN, "--port", "9"], [QWEN, "--port", "9", "--max-model-len"]),
        (["vllm", "serve", "--port", "9", "--model", QWEN], ["--port", "9", "--model", QWEN, "--max-model-len"]),
        (["python3", "-m", "vllm.entrypoints.openai.api_server", "--model", QWEN], ["--model", QWEN]),
        (["python", "-m", "vllm.entrypoints.cli.main", "serve", QWEN], [QWEN, "--max-model-len"]),
    ],
)
def test_commands_of_vllm(command: list[str], kept: list[str], engines: Engines) -> None:
    """The model is named once, where the command names it."""
    for name in ("python", "python3"):
        write_program(engines.bin / name, (engines.bin / "vllm").read_text(encoding="utf-8"))
    done = engines.run("run", "-q", *ON, "--", *command)
    assert done.returncode == 0, done.stderr
    argv = [command[0], *engines.said["argv"]]
    n = len(command) - len([word for word in command if word in (QWEN, "--port", "9", "--model")])
    assert argv[:n] == command[:n]
    assert argv[n : n + len(kept)] == kept
    assert sum(QWEN in word for word in argv) == 1


def test_nothing_is_started_that_does_not_fit(engines: Engines) -> None:
    done = engines.run("run", "--", *SERVER, "-c", "2000000000", "-ctk", "f16")
    assert (done.returncode, done.stdout, engines.says.exists()) == (3, "", False)
    assert "autofit: not started: does not fit: host RAM needs" in done.stderr and "would fit" in done.stderr
    quiet = engines.run("run", "-q", "--", *SERVER, "-c", "2000000000")
    assert quiet.returncode == 3 and "not started" in quiet.stderr and "would fit" in quiet.stderr
    forced = engines.run("run", "-q", "--force", "--", *SERVER, "-c", "2000000000")
    assert forced.returncode == 0 and "2000000000" in engines.said["argv"]


def config_file(engines: Engines, *contexts: int) -> list[str]:
    """A command of llama-cpp-python's server, with a file of models of these contexts."""
    models = ",\n".join(json.dumps({"model": TINY, "model_alias": f"m{n}", "n_ctx": n}) for n in contexts)
    (engines.folder / "models.json").write_text(f'{{"models": [\n{models}\n]}}\n')
    write_program(engines.bin / "python", (engines.bin / "vllm").read_text(encoding="utf-8"))
    return ["python", "-m", "llama_cpp.server", "--config_file", "models.json"]


@pytest.mark.slow
def test_each_model_that_a_server_swaps_in_has_to_fit(engines: Engines) -> None:
    """llama-cpp-python's server loads the first of a file, and others in its place: largest is what is reserved."""
    command = config_file(engines, 512, 2048)
    stays = "print(open(os.environ['XDG_RUNTIME_DIR'] + '/autofit/' + next(n for n in os.listdir(os.environ["
    stays += "'XDG_RUNTIME_DIR'] + '/autofit') if n.endswith('.json'))).read())"
    done = engines.run("run", "--", *command, does=stays)
    assert done.returncode == 0 and "models.json:3: fits: host" in done.stderr, done.stderr
    assert engines.said["argv"] == command[1:]
    alone = engines.run("check", "--format", "json", "--", *command[:3], "--model", TINY, "--n_ctx", "2048")
    pools = {pool["id"]: pool["used_bytes"] for pool in json.loads(alone.stdout)["pools"]}
    claims = json.loads(done.stdout)["claims"]
    assert {name: claim["bytes"] for name, claim in claims.items()} == {name: n for name, n in pools.items() if n}

    command = config_file(engines, 512, 2_000_000_000)
    engines.says.unlink()
    for own in (["run"], ["run", "-q"], ["run", "--watch"]):
        done = engines.run(*own, "--", *command)
        assert (done.returncode, engines.says.exists()) == (3, False), done.stderr
        assert "autofit: not started: models.json:3: does not fit: host RAM needs" in done.stderr
    dry = engines.run("run", "-n", "--", *command)
    assert dry.returncode == 3 and "models.json:3: does not fit" in dry.stderr
    checked = engines.run("check", "--", *command)
    assert checked.returncode == 3 and [line[:14] for line in checked.stdout.splitlines()] == [
        "models.json:2:",
        "models.json:3:",
    ]
    assert engines.run("run", "-q", "--force", "--", *command).returncode == 0
    shims = engines.folder / "shims"
    assert engines.run("shims", str(shims)).returncode == 0
    engines.says.unlink()
    path = {**engines.environ, "PATH": f"{shims}:{engines.environ['PATH']}"}
    shim = subprocess.run(command, env=path, cwd=engines.folder, capture_output=True, text=True, check=False)
    assert (shim.returncode, engines.says.exists()) == (3, False) and "models.json:3: does not fit" in shim.stderr


def test_a_model_that_is_not_there_keeps_no_server_from_starting(engines: Engines) -> None:
    command = config_file(engines, 512)
    (engines.folder / "models.json").write_text(json.dumps({"models": [{"model": TINY}, {"model": "gone.gguf"}]}))
    done = engines.run("run", "--", *command)
    assert done.returncode == 0 and "models.json:1: not checked: gone.gguf" in done.stderr, done.stderr


def test_a_router_behind_a_shim_is_started_as_it_is(engines: Engines) -> None:
    (engines.folder / "models.ini").write_text(f"[one]\nmodel = {TINY}\n")
    shims = engines.folder / "shims"
    assert engines.run("shims", str(shims)).returncode == 0
    for words, env in (
        (["--models-preset", "models.ini"], {}),
        ([], {"LLAMA_ARG_MODELS_PRESET": "models.ini"}),
    ):
        path = {**engines.environ, "PATH": f"{shims}:{engines.environ['PATH']}", **env}
        command = ["llama-server", *words]
        shim = subprocess.run(command, env=path, cwd=engines.folder, capture_output=True, text=True, check=False)
        assert shim.returncode == 0 and "it starts its models by itself" in shim.stderr, shim.stderr
        assert engines.said["argv"] == words
        checked = engines.run("check", "--", *command, env=env)
        assert checked.returncode == 0 and checked.stdout.startswith("models.ini:1: fits"), checked.stderr


@pytest.mark.parametrize("command", [("llama-server", "--version"), ("vllm", "--help"), ("vllm", "collect-env")])
def test_what_loads_no_model_is_started_as_it_is(command: tuple[str, ...], engines: Engines) -> None:
    done = engines.run("run", "--", *command)
    assert done.returncode == 0 and "adds" not in done.stderr
    if "--version" not in command:
        assert engines.said["argv"] == list(command[1:])
        assert engines.said["env"]["PATH"] == engines.environ["PATH"]


def test_dry_run_prints_and_starts_nothing(engines: Engines) -> None:
    done = engines.run("run", "-n", *ON, "--", "A=1", "nice", "-n", "5", *SERVER, "-c", "512")
    assert (done.returncode, engines.says.exists()) == (0, False)
    assert shlex.split(done.stdout)[:9] == ["A=1", "nice", "-n", "5", "llama-server", "-m", TINY, "-c", "512"]
    assert "GPU0" in done.stderr
    refused = engines.run("run", "--dry-run", "-q", *ON, "--", *SERVER, "-c", "2000000000")
    assert (refused.returncode, refused.stdout) == (3, "false\n")
    other = engines.run("run", "--dry-run", "--", "ls", "-l")
    assert (other.returncode, other.stdout) == (0, "ls -l\n")
    assert other.stderr.startswith("autofit: ls is no engine: it is started as it is")


def test_launchers_start_it_and_it_measures_behind_them(engines: Engines) -> None:
    """The engine's process is the launcher's, with its variables, priority and processors."""
    words = ["env", "-u", "HOME", "B=2", "nice", "-n", "7", "taskset", "-c", "0", "stdbuf", "-oL", "exec", *SERVER]
    process = engines.start("run", "-q", "--", "A=1", *words)
    assert process.wait(60) == 0
    said = engines.said
    assert (said["pid"], said["nice"]) == (process.pid, min(19, os.getpriority(os.PRIO_PROCESS, 0) + 7))
    assert said["env"]["A"] == "1" and said["env"]["B"] == "2" and "HOME" not in said["env"]
    assert said["argv"][said["argv"].index("-t") + 1] == "1"  # one processor is left to it


def test_a_launcher_that_finds_the_program_itself_is_given_its_path(engines: Engines) -> None:
    """systemd-run looks on the caller's PATH for what it starts with another one."""
    write_program(
        engines.bin / "systemd-run", '#!/bin/sh\nshift 1\nFAKE_SAYS=$FAKE_SAYS PATH=/usr/bin:/bin exec "$@"\n'
    )
    for before in (["systemd-run", "--wait"], ["env", "B=2", "systemd-run", "-P"], ["exec", "systemd-run", "-P"]):
        done = engines.run("run", "-q", "-c", "512", "--", *before, *SERVER)
        assert done.returncode == 0, done.stderr
        assert engines.said["argv"][:4] == [*SERVER[1:], "-c", "512"]
        assert engines.said["program"] == str(engines.bin / "llama-server")
        engines.says.unlink()


def test_options_in_variables_outlive_launchers_that_clear_them(engines: Engines) -> None:
    command = ["env", "-i", f"PATH={engines.environ['PATH']}", f"FAKE_SAYS={engines.says}", *SERVER]
    done = engines.run("run", "-q", "--", *command, env={"AUTOFIT_CONTEXT": "512"})
    assert done.returncode == 0, done.stderr
    assert engines.said["argv"][2:4] == ["-c", "512"]
    assert "AUTOFIT_CONTEXT" not in engines.said["env"]


def test_time_is_a_word_of_bash_where_there_is_no_such_program(engines: Engines) -> None:
    for name in ("bash", "sh"):
        (engines.bin / name).symlink_to(f"/bin/{name}")
    done = engines.run("run", "-q", "--", "time", "-p", *SERVER, env={"PATH": str(engines.bin)})
    assert done.returncode == 0 and "real" in done.stderr, done.stderr


@pytest.mark.parametrize("does", ["sys.exit(7)", "os.kill(os.getpid(), signal.SIGTERM)", "os.abort()"])
def test_exit_status(does: str, engines: Engines) -> None:
    code = engines.run("run", "-q", "--", *SERVER, does=does).returncode
    assert code == {"s": 7, "o": -signal.SIGTERM}.get(does[0] if "abort" not in does else "", -signal.SIGABRT)


def test_stdin_is_the_engines(engines: Engines) -> None:
    done = engines.run(
        "run", "-q", "--", *SERVER, does="print(sys.stdin.read())", stdin=None, input="every word\nof it"
    )
    assert done.stdout == "every word\nof it\n"


def test_a_closed_pipe_ends_the_engine_as_without_autofit(engines: Engines) -> None:
    """Python ignores SIGPIPE; what it starts must not."""
    script = '"$0" -P -m autofit run -q -- sh -c "yes; echo \\$? >&2" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", script, sys.executable], env=engines.environ, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "y\n" and done.stderr == f"{128 + signal.SIGPIPE}\n"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "no command"),
        (["llama-sever", "-m", TINY], 127, "did you mean llama-server?"),
        (["numactI", *SERVER], 127, "numactI: PATH has no such program"),
        (["./llama-server", "-m", TINY], 127, "no such file"),
        (["bin/notes", "-m", TINY], 127, "may not be executed"),
        (["ollama", "serve"], 2, "ollama is Ollama"),
        (["llama-server"], 2, "no model is named"),
        (["python3", "-u", "-m", "llama_cpp.server", "--model", TINY, "-c", "5"], 2, "llama_cpp.server refuses '-c'"),
        (["llama-server", "-m", "/nowhere.gguf"], 2, "no such file"),
        (["llama-server", "-m", TINY, "--frobnicate"], 2, "refuses '--frobnicate'"),
        (["nice", "-n"], 2, "a value is expected"),
        (["bin/broken", "-m", TINY], 127, "the interpreter that its first line names"),
        (["bin/binary", "-m", TINY], 126, ""),
    ],
)
def test_what_cannot_be_started(words: list[str], code: int, message: str, engines: Engines) -> None:
    (engines.bin / "notes").write_text("no program", encoding="utf-8")
    write_program(engines.bin / "broken", "#!/nowhere/sh\n")
    write_program(engines.bin / "binary", "\x7fELF\0broken")
    done = engines.run("run", "--", *words)
    assert done.returncode == code and message in done.stderr, (done.returncode, done.stderr)
    assert not engines.says.exists() and "known: " not in done.stderr  # all programs of engines are no remedy


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("llama-perplexity", "-m", TINY, "-f", "x"), "it keeps the logits of whole texts"),
        (("llama", "perplexity", "-m", TINY), "it keeps the logits of whole texts"),
        (("llama-mtmd-cli", "-m", TINY), "llama-cli --mmproj is planned"),
        (("llama-quantize", TINY, "q4_0"), "it runs no model"),
        (("llama-perplexity", "--help"), ""),
        (("llama", "version"), ""),
    ],
)
def test_other_programs_of_an_engine_say_why_they_are_not_planned(
    words: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    engines = Engines(tmp_path, words[0])
    done = engines.run("run", "--", *words)
    assert done.returncode == 0 and engines.said["argv"] == list(words[1:])
    assert (f"autofit: {words[0]} is started as it is: " in done.stderr) is bool(why) and why in done.stderr
    if why and words[0] != "llama":
        checked = engines.run("check", "--", *words)
        assert checked.returncode == 2 and why in checked.stderr
    dry = engines.run("run", "-n", "--", *words)
    assert dry.returncode == 0 and (why in dry.stderr) and dry.stdout.startswith(words[0])


def test_a_program_of_the_current_directory_is_not_found(engines: Engines) -> None:
    write_program(engines.folder / "llama-server", "#!/bin/sh\necho wrong")
    path = f"::.:{engines.environ['PATH']}"
    assert engines.run("run", "-q", "--", *SERVER, env={"PATH": path}).stdout == ""
    assert engines.said["program"] == str(engines.bin / "llama-server")


def test_a_script_without_a_first_line_is_started_as_shells_do(engines: Engines) -> None:
    write_program(engines.bin / "llama-cli", 'echo "$@"\n')
    assert engines.run("run", "-q", *ON, "--", "llama-cli", "-m", TINY).stdout.startswith(f"-m {TINY} ")


def test_modules_of_the_current_directory_are_not_ours(engines: Engines) -> None:
    """Behind launchers autofit starts itself again: by `-P`, whatever lies in the directory."""
    (engines.folder / "autofit").mkdir()
    (engines.folder / "autofit" / "__main__.py").write_text("print('wrong')", encoding="utf-8")
    assert engines.run("run", "-q", "--", "nice", *SERVER).stdout == ""
    assert engines.said["argv"][0] == "-m"


def test_wrapped_flags_say_where_they_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-n", *ON, "--explain", "--", "llama-server", "-m", TINY, "-c", "512"]) == 0
    assert "-c 512" in (err := capsys.readouterr().err)
    assert "[wrapped command] kept as given" in err


def test_backends_say_which_programs_are_theirs() -> None:
    from autofit.host import host

    for ref in host().backends().values():
        backend = host().backend(ref.name)
        assert set(backend.wrapped) <= set(ref.programs) == set(backend.programs)
        assert backend.program_in(("something-else", "-m", "x")) == ()
    assert autofit.__version__


def test_two_at_once_do_not_count_on_the_same_memory(engines: Engines) -> None:
    """What the first was planned for and has not taken is left out for a second, and for plans; not when it is gone."""
    first = engines.start("run", "-q", "--", *SERVER, "-cram", "2000", does="signal.pause()")
    said = engines.wait_for_engine()
    engines.says.unlink()
    notice = f"are reserved for llama-server (process {said['pid']})"
    try:
        planned = engines.run("llama", TINY)
        assert planned.returncode == 0 and "note: RAM: 2.0" in planned.stderr and notice in planned.stderr
        second = engines.run("run", "--", *SERVER)
        assert second.returncode == 0 and notice in second.stderr
        alone = engines.run("llama", TINY, env={"AUTOFIT_RESERVATIONS": "0"})
        assert notice not in alone.stderr
        assert notice not in engines.run("llama", TINY, *ON).stderr  # other hardware
    finally:
        first.kill()
        first.wait(30)
    assert notice not in engines.run("llama", TINY).stderr


def test_a_reservation_that_cannot_be_made_is_told(engines: Engines) -> None:
    (engines.folder / "runtime" / "autofit").write_text("a file", encoding="utf-8")
    done = engines.run("run", "-q", "--", *SERVER)
    assert done.returncode == 0 and "another launch may count on the same memory" in done.stderr
    assert engines.said["argv"][0] == "-m"


IMAGE = "ghcr.io/ggml-org/llama.cpp:server-b9549"


def test_containers_are_filled_in(engines: Engines) -> None:
    """`docker run IMAGE FLAGS` becomes the runner; what is added stands behind the engine's flags."""
    write_program(engines.bin / "docker", (engines.bin / "llama-server").read_text(encoding="utf-8"))
    folder = str(Path(TINY).parent)
    command = ["docker", "run", "--rm", "-m", "4g", "-v", f"{folder}:/models:ro", IMAGE, "-m", "/models/tiny.gguf"]
    done = engines.run("run", "--", *command, "-c", "512")
    assert done.returncode == 0, done.stderr
    argv = engines.said["argv"]
    assert argv[: len(command)] == [*command[1:], "-c"] and "-fit" in argv and "/models/tiny.gguf" in argv
    assert engines.said["program"] == str(engines.bin / "docker")
    assert argv[argv.index("-cram") + 1] < "4096"  # within the container's 4 GiB
    printed = engines.run("run", "-n", "-q", "--", *command, "-c", "512")
    assert shlex.split(printed.stdout) == ["docker", *argv]
    refused = engines.run("run", "-q", "--", *command, "-c", "200000000")
    assert refused.returncode == 3
    other = engines.run("run", "-q", "--", "docker", "run", "alpine", "ls")
    assert other.returncode == 2 and "no backend understands" in other.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_signal_at_any_stage_leaves_nothing_behind(number: int, engines: Engines) -> None:
    """While it is loaded, looks at the machine, plans, reserves, or is the engine."""
    for tenths in (0.2, 1, 2, 4):
        process = engines.start("run", "-q", "--", *SERVER, does="signal.pause()", stderr=subprocess.DEVNULL)
        time.sleep(tenths / 10)
        process.send_signal(number)
        # Python turns SIGINT into an exit code: 1 while it starts, ours then
        assert process.wait(30) in ((-number, 130, 1) if number == signal.SIGINT else (-number,))
    assert not list((engines.folder / "runtime" / "autofit").glob("*.new"))
    assert "reserved for" not in engines.run("llama", TINY).stderr


def test_an_engine_whose_device_is_gone_fails_as_it_would(engines: Engines) -> None:
    """Between the plan and the start a GPU vanishes: the engine says so, and its end is passed on."""
    does = "print('error: invalid device: CUDA0', file=sys.stderr); sys.exit(1)"
    for own in ((), ("--retries", "3")):
        done = engines.run("run", "-q", *ON, *own, "--", *SERVER, does=does)
        assert (done.returncode, done.stderr) == (1, "error: invalid device: CUDA0\n")
