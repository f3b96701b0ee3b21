"""Shims: engines of scripts pass through autofit, and nothing breaks where that cannot be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from autofit.hardware.programs import find_program
from autofit.launch.shims import own_folder, shim_texts

from support.fake_engines import TINY, Engines, write_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
SERVER = f"llama-server -m {TINY}"


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


@pytest.fixture
def shims(engines: Engines) -> Path:
    """A folder of shims that is first in PATH."""
    folder = engines.folder / "shims"
    done = engines.run("shims", str(folder))
    assert done.returncode == 0 and done.stdout == f'PATH={folder}:"$PATH"\n', done.stderr
    engines.environ["PATH"] = f"{folder}:{engines.environ['PATH']}"
    return folder


def sh(engines: Engines, script: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script, "script", *words],
        env={**engines.environ, **env},
        cwd=engines.folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def shims_of(python: Path | str, folder: Path) -> None:
    """Shims that start another Python."""
    texts = shim_texts(str(python), "", {"llama-server": ["--version"]}, ["vllm.entrypoints.openai.api_server"])
    for name, text in texts.items():
        write_program(folder / name, text)


def test_engines_of_a_script_pass_through(engines: Engines) -> None:
    script = write_program(engines.folder / "start.sh", f"#!/bin/bash\nset -e\n{SERVER} --port 9 &\nwait $!\nexit 5\n")
    done = engines.run("run", "-c", "512", "--", "./start.sh")
    assert (done.returncode, done.stdout) == (5, "")
    assert engines.said["argv"][:6] == ["-m", TINY, "--port", "9", "-c", "512"]
    assert engines.said["program"] == str(engines.bin / "llama-server")
    assert "autofit: adds -c 512" in done.stderr and script.exists()
    again = engines.run("run", "-q", "--", "bash", "-c", f"exec {SERVER}")
    assert again.returncode == 0 and "-np" in engines.said["argv"]


def test_the_exit_status_and_signals_are_the_engines(engines: Engines, shims: Path) -> None:
    assert sh(engines, SERVER, FAKE_DOES="sys.exit(9)").returncode == 9
    process = subprocess.Popen(["bash", "-c", f"exec {SERVER}"], env={**engines.environ, "FAKE_DOES": "signal.pause()"})
    engines.says.unlink()
    assert engines.wait_for_engine()["pid"] == process.pid
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM


def test_a_command_that_does_not_fit_is_not_started(engines: Engines, shims: Path) -> None:
    done = sh(engines, f"{SERVER} -c 2000000000; echo $?")
    assert done.stdout == "3\n" and "not started: does not fit" in done.stderr
    assert not engines.says.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-m /nowhere.gguf --alias", "is started as it is"),
        (f"-m {TINY} --frobnicate", "is started as it is: llama-server refuses '--frobnicate'"),
        ("--models-dir x", "is started as it is"),
    ],
)
def test_what_autofit_cannot_plan_is_started_untouched(flags: str, message: str, engines: Engines, shims: Path) -> None:
    done = sh(engines, f'llama-server {flags} "$@"', "", "a b", "*", "'\"\n$x\\", "-é")
    assert done.returncode == 0 and message in done.stderr
    assert engines.said["argv"] == [*flags.split(), "", "a b", "*", "'\"\n$x\\", "-é"]


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("/nowhere/python", "autofit: not there any more: llama-server is started as it is"),
        (f'#!/bin/sh\nexec {sys.executable} -S "$@"\n', "autofit: cannot be used (ModuleNotFoundError"),
    ],
)
def test_without_autofit_the_engine_is_started_untouched(python: str, message: str, engines: Engines) -> None:
    if python.startswith("#!"):
        python = str(write_program(engines.folder / "python-without-it", python))
    shims_of(python, engines.folder / "shims")
    path = f"{engines.folder / 'shims'}:{engines.environ['PATH']}"
    done = sh(engines, f'{SERVER} "$@"', "a b", PATH=path)
    assert done.returncode == 0 and message in done.stderr
    assert engines.said["argv"] == ["-m", TINY, "a b"]


@pytest.mark.parametrize("off", ["AUTOFIT_SHIMS=0", "AUTOFIT_SHIMS=off"])
def test_one_variable_turns_them_off(off: str, engines: Engines, shims: Path) -> None:
    assert sh(engines, f"{off} {SERVER}").stderr == ""
    assert engines.said["argv"] == ["-m", TINY]


def test_what_loads_no_model_does_not_even_start_python(engines: Engines) -> None:
    loud = write_program(engines.folder / "loud", "#!/bin/sh\necho started >&2\n")
    shims_of(loud, engines.folder / "shims")
    for name in ("python", "python3"):
        write_program(engines.bin / name, '#!/bin/sh\necho "$0 $@"\n')
    path = f"{engines.folder / 'shims'}:{engines.environ['PATH']}"
    quiet = [
        "llama-server --version", "llama-server -m x --version", "python3 -c 'import x' -m vllm.entrypoints.x",
        "python3 x.py -m vllm.entrypoints.openai.api_server", "python3 -m http.server", "python3", "python3 -",
        "python3 -W ignore x.py", "python3 -W", "python -m", "python --version", "python -X dev -um pip",
        "python3 -Wm vllm.entrypoints.openai.api_server",
    ]  # fmt: skip
    done = sh(engines, "\n".join(quiet), PATH=path)
    assert done.stderr == "", done.stderr
    assert f"{engines.bin}/python3 -c import x -m vllm.entrypoints.x\n" in done.stdout
    engine = "vllm.entrypoints.openai.api_server --model x"
    loud_ones = [f"python3 -m {engine}", f"python -u -X dev -W ignore -um {engine}", "llama-server -m x"]
    assert sh(engines, "\n".join(loud_ones), PATH=path).stderr == "started\n" * len(loud_ones)


def test_programs_without_a_plan_are_started_and_say_why(engines: Engines, shims: Path) -> None:
    write_program(engines.bin / "llama-perplexity", '#!/bin/sh\necho "started $*"\n')
    done = sh(engines, f"llama-perplexity -m {TINY} 'a b'")
    assert done.stdout == f"started -m {TINY} a b\n"
    assert done.stderr.startswith("autofit: llama-perplexity is started as it is: it keeps the logits")
    assert sh(engines, "llama-perplexity --help").stderr == ""
    assert sh(engines, "llama-perplexity", AUTOFIT_SHIMS="0").stderr == ""


def test_shims_never_find_themselves_or_each_other(engines: Engines, shims: Path) -> None:
    """Two folders, one also by a link, by a relative path and with a slash at its end."""
    other, link = engines.folder / "other", engines.folder / "link"
    assert engines.run("shims", str(other)).returncode == 0
    link.symlink_to(shims)
    path = f"link:{link}:{shims}/:{other}:{link}/.:{engines.environ['PATH']}"
    assert sh(engines, SERVER, PATH=path).returncode == 0
    assert engines.said["program"] == str(engines.bin / "llama-server")
    assert find_program("llama-server", {"PATH": path}) == str(engines.bin / "llama-server")
    nothing = sh(engines, SERVER, PATH=f"{other}:{shims}:/usr/bin:/bin")
    assert nothing.returncode == 127 and "not found" in nothing.stderr


def test_an_engine_that_starts_engines_by_name_is_followed(engines: Engines, shims: Path) -> None:
    """A wrapper behind the shim: what it starts passes through as well, and ends."""
    wrapper = engines.folder / "wrapper"
    write_program(wrapper / "llama-server", f'#!/bin/sh\nPATH={engines.environ["PATH"]}\nexec llama-server "$@" -v\n')
    done = sh(engines, SERVER, PATH=f"{shims}:{wrapper}:{engines.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert engines.said["argv"][-1] == "-v" or "-v" in engines.said["argv"]


def test_other_programs_are_not_overwritten(engines: Engines, shims: Path) -> None:
    assert engines.run("shims", str(shims)).returncode == 0  # over its own
    done = engines.run("shims", str(engines.bin))
    assert done.returncode == 2 and "there is another program of this name" in done.stderr
    assert sh(engines, SERVER).returncode == 0
    file = engines.folder / "file"
    file.write_text("x", encoding="utf-8")
    assert engines.run("shims", str(file)).returncode == 2


def test_the_folder_of_a_run_is_the_users_alone(tmp_path: Path) -> None:
    texts = {"llama-server": "#!/bin/sh\n# autofit shim\n"}
    first = own_folder([None, tmp_path / "a"], texts)
    assert first == own_folder([tmp_path / "a"], texts) and os.access(first / "llama-server", os.X_OK)
    first.chmod(0o777)
    second = own_folder([tmp_path / "a", tmp_path / "b"], texts)
    assert second.parent == tmp_path / "b"
    assert own_folder([tmp_path / "b"], {**texts, "vllm": "x"}) != second


def test_what_a_command_says_comes_before_the_options_of_the_script(engines: Engines) -> None:
    script = f"{SERVER} -c 256; llama-cli -m {TINY}"
    done = engines.run("run", "-c", "512", "--margin", "1GiB", "--", "bash", "-c", f"{script}")
    assert done.returncode == 0 and "-c 256 contradicts --context 512: the command counts" in done.stderr
    assert "-np" in engines.said["argv"] and engines.said["argv"][2:4] == ["-c", "512"]
    alone = engines.run("run", "-q", "-c", "512", "--", "bash", "-c", f"{SERVER} -c 256")
    assert alone.returncode == 0 and engines.said["argv"][:4] == ["-m", TINY, "-c", "256"]
    assert "-np" in engines.said["argv"]


# -- runners of containers -------------------------------------------------------------------------------

IMAGE = "ghcr.io/ggml-org/llama.cpp:server-b11311"


def runner(engines: Engines, *names: str) -> Engines:
    for name in names:
        write_program(engines.bin / name, f'#!/bin/sh\n[ "$1" = image ] || echo "{name} $*"\n')
    return engines


def test_containers_of_a_script_pass_through(engines: Engines) -> None:
    start = f"docker run --rm -v {Path(TINY).parent}:/m {IMAGE} -m /m/tiny.gguf"
    done = runner(engines, "docker").run("run", "-c", "512", "--", "sh", "-c", start)
    assert done.returncode == 0 and done.stdout.startswith(f"{start} -c 512 "), done.stderr
    assert "autofit: adds -c 512" in done.stderr
    large = engines.run("run", "--", "sh", "-c", f"{start} -c 2000000000; echo $?")
    assert large.stdout == "3\n" and "not started: does not fit" in large.stderr
    checked = engines.run("check", "--", "sh", "-c", f"docker ps; {start}; docker run x y")
    assert checked.returncode == 0 and checked.stdout == f"fits: {start}\n"
    assert "docker ps\n" in checked.stderr and "docker run x y\n" in checked.stderr


@pytest.mark.parametrize(
    "command",
    [
        "docker ps -a", f"docker pull {IMAGE}", "docker run --rm postgres:17 -c shared_buffers=1GB", "docker",
        "docker build -t vllm/vllm-openai .", "docker container run postgres-vllm", "docker run my/llama.cpp:server",
    ],
)  # fmt: skip
def test_other_commands_of_runners_do_not_even_start_python(command: str, engines: Engines) -> None:
    loud = write_program(engines.folder / "loud", "#!/bin/sh\necho started >&2\n")
    images = ["ggml-org/llama.cpp", "vllm/vllm-openai"]
    texts = shim_texts(str(loud), "", {"llama-server": [], "vllm": []}, [], runners=["docker"], images=images)
    write_program(engines.folder / "shims/docker", texts["docker"])
    path = f"{engines.folder / 'shims'}:{runner(engines, 'docker').environ['PATH']}"
    done = sh(engines, command, PATH=path)
    assert (done.stdout, done.stderr) == (f"docker {command.partition(' ')[2]}\n", "")
    for engine in (
        IMAGE,
        "x/vllm/vllm-openai@sha256:0",
        "vllm/vllm-openai",
        "mine:1 vllm serve",
        "mine /a/llama-server",
    ):
        passed = sh(engines, f"docker run {engine} -m x", PATH=path)
        assert passed.stderr == ("started\n" if not engine.startswith("mine /a") else ""), engine


def test_a_runner_that_is_not_installed_does_not_seem_to_be(engines: Engines) -> None:
    script = "for x in docker podman nerdctl; do command -v $x >/dev/null && echo $x; done; true"
    runner(engines, "podman")
    engines.environ["PATH"] = (
        f"{engines.bin}:/bin" if Path("/bin").resolve() != Path("/usr/bin") else engines.environ["PATH"]
    )
    alone = sh(engines, script)
    assert "podman\n" in alone.stdout
    assert engines.run("run", "--", "sh", "-c", script).stdout == alone.stdout
