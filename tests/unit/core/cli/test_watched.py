"""`autofit run --retries`: where memory runs out while an engine starts, it is planned again; all else is passed on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from support.fake_engines import TINY, Engines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes as Linux has them")
SERVER = ("--", "llama-server", "-m", TINY)
#: runs out of RAM as llama.cpp says it, unless the context was made shorter or the prompt cache smaller
RUNS_OUT = """
n = [int(line.split()[1]) << 10 for line in open("/proc/meminfo") if line.startswith("MemAvailable")][0]
with open(place + ".starts", "a") as file: file.write(json.dumps(argv) + "\\n")
if "-cram" not in argv:
    print("load_tensors: loading model tensors, this can take a while...", file=sys.stderr)
    where = "ggml_backend_cpu_buffer_type_alloc_buffer"
    print(f"{where}: failed to allocate buffer of size {n - (4 << 30)}", file=sys.stderr)
    print("llama_model_load: error loading model: unable to allocate CPU buffer", file=sys.stderr)
    sys.exit(1)
print("main: server is listening on http://127.0.0.1:8080", file=sys.stderr)
sys.exit(9)
"""


@pytest.fixture
def engines(tmp_path: Path) -> Engines:
    return Engines(tmp_path)


def starts(engines: Engines) -> list[list[str]]:
    lines = Path(f"{engines.says}.starts").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_it_is_planned_again_with_less(engines: Engines) -> None:
    done = engines.run("run", "--retries", "2", *SERVER, does=RUNS_OUT)
    assert done.returncode == 9, done.stderr
    first, second = starts(engines)
    assert "-cram" not in first and "-cram" in second and second[:2] == ["-m", TINY]
    lines = [line for line in done.stderr.splitlines() if line.startswith("autofit: ")]
    assert any(line.startswith("autofit: out of memory while loading weights: ggml_backend_cpu") for line in lines)
    assert any("planning again, with" in line and "less on host than are free" in line for line in lines)
    assert any(line.startswith("autofit: changes: -cram ") for line in lines)
    assert any(line.startswith("autofit: ready after ") for line in lines)
    assert "a start ran out of memory" in done.stderr


def test_no_more_often_than_it_was_told(engines: Engines) -> None:
    done = engines.run("run", "--retries", "0", *SERVER, does=RUNS_OUT)
    assert (done.returncode, len(starts(engines))) == (1, 1) and "out of memory" in done.stderr
    Path(f"{engines.says}.starts").unlink()
    stubborn = RUNS_OUT.replace('"-cram" not in argv', "True")
    done = engines.run("run", "--retries", "1", *SERVER, does=stubborn)
    assert (done.returncode, len(starts(engines))) == (1, 2)


def test_a_plan_that_does_not_fit_then_is_not_started(engines: Engines) -> None:
    stubborn = RUNS_OUT.replace('"-cram" not in argv', "True").replace("n - (4 << 30)", "n - (1 << 20)")
    done = engines.run("run", "--retries", "5", *SERVER, does=stubborn)
    assert done.returncode == 3 and "not started: does not fit" in done.stderr
    assert len(starts(engines)) < 5


@pytest.mark.parametrize(
    ("does", "code"),
    [
        ("print('error: invalid argument: --x', file=sys.stderr); sys.exit(1)", 1),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11),
        (
            RUNS_OUT.replace(
                'if "-cram" not in argv:', "print('main: server is listening on x', file=sys.stderr)\nif 1:"
            ),
            1,
        ),
    ],
    ids=["another error", "killed by somebody", "a crash", "after it was ready"],
)
def test_other_ends_are_passed_on(does: str, code: int, engines: Engines) -> None:
    count = "\nwith open(place + '.starts', 'a') as file: file.write('[]\\n')\n" if ".starts" not in does else ""
    done = engines.run("run", "-q", "--retries", "3", *SERVER, does=count + does)
    assert (done.returncode, len(starts(engines))) == (code, 1), done.stderr
    assert "planning again" not in done.stderr


@pytest.mark.parametrize("text", ["-1", "x", "10", ""])
def test_numbers_of_retries(text: str, engines: Engines) -> None:
    done = engines.run("run", f"--retries={text}", *SERVER)
    assert done.returncode == 2 and "not a number of retries" in done.stderr


def test_messages_stand_on_lines_of_their_own(engines: Engines) -> None:
    parts = ("main: server ", "is listening on x", " y\n", "z\n")
    does = f"\nfor part in {parts}: os.write(2, part.encode()); time.sleep(0.2)"
    done = engines.run("run", "--watch", *SERVER, does=does)
    lines = done.stderr.splitlines()
    at = lines.index("main: server is listening on x y")
    assert lines[at + 1].startswith("autofit: ready after ")
