"""`autofit run --retries`: where memory runs out while an engine starts, it is planned again; all else is passed on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import autofit
import pytest
from autofit.cli.watched import LEAST_BYTES, Follower, learnt
from autofit.domain.observed import Failure
from autofit.domain.units import GIB
from autofit.host import host
from autofit.planning.compare import Difference

from support import DATA
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
    if (autofit.detect_machine().host.available_bytes or 0) < 14 * GIB:
        pytest.skip("the first plan would do without the prompt cache, which these starts give up")
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
    assert any("planning again, for" in line and "on host at most" in line for line in lines)
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
    stubborn = RUNS_OUT.replace('"-cram" not in argv', "True").replace("n - (4 << 30)", "1 << 20")
    done = engines.run("run", "--retries", "5", *SERVER, does=stubborn)
    assert done.returncode == 3 and "not started: does not fit" in done.stderr
    assert len(starts(engines)) == 1


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


KV = (
    "(EngineCore_DP0 pid=9) ERROR [core.py:700] ValueError: To serve at least one request with the models's max seq "
    "len (40960), (4.38 GiB KV cache is needed, which is larger than the available KV cache memory (2.10 GiB). Based "
    "on the available memory, the estimated maximum model length is 19648. Try increasing\n"
)
SHARE = (
    "ValueError: Free memory on device cuda:0 (8.00/11.66 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 10.49 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.\n"
)
FAILS_ONCE = """
with open(place + ".starts", "a") as file: file.write(json.dumps(argv) + "\\n")
if len(open(place + ".starts").readlines()) == 1:
    sys.stderr.write({words!r})
    sys.exit(1)
print("INFO:     Application startup complete.", file=sys.stderr)
sys.exit(9)
"""


@pytest.mark.slow_but("words0-*", "words3-*")
@pytest.mark.parametrize(
    ("words", "given", "flags"),
    [
        (KV, (), ("--max-model-len", "19648")),
        (SHARE, (), ("--gpu-memory-utilization", "0.68")),
        (KV, ("--max-model-len", "40960"), ()),
        (SHARE, ("--gpu-memory-utilization", "0.9"), ()),
    ],
)
def test_what_lacks_in_an_engines_own_budget_is_not_less_free_memory(
    words: str, given: tuple[str, ...], flags: tuple[str, ...], tmp_path: Path
) -> None:
    """vLLM's account of its share of the card names what helps, and a smaller share does not; what the command states
    is kept, and its end passed on."""
    engines, config = Engines(tmp_path), str(DATA / "vllm" / "configs" / "qwen3-0.6b")
    own = ("run", "--retries", "2", "--on", "rtx-3060-12gb", "--ram", "64GiB", "--", "vllm", "serve", config, *given)
    done = engines.run(*own, does=FAILS_ONCE.format(words=words))
    found = starts(engines)
    assert (done.returncode, len(found)) == ((9, 2) if flags else (1, 1)), done.stderr
    if flags:
        before, after = (float(argv[argv.index("--gpu-memory-utilization") + 1]) for argv in found)
        at = found[1].index(flags[0])
        assert tuple(found[1][at : at + 2]) == flags and found[1].count(flags[0]) == 1
        assert after >= before or flags[0] == "--gpu-memory-utilization"
        assert f"autofit: planning again, with {' '.join(flags)} (" in done.stderr


def test_nothing_is_read_of_an_engine_that_serves() -> None:
    machine = autofit.load_machine("rtx-3090", ram="64GiB")
    plan = autofit.plan("llama", TINY, machine, context="4096")
    watch = host().backend("llama").watch()
    assert watch is not None
    follower = Follower(watch, plan, {}, is_quiet=True)
    follower.feed(b"load_tensors: CPU model buffer size = 1 MiB\nmain: server is listening on http://x\n")
    before = watch.observed
    follower.feed(b"load_tensors: CPU model buffer size = 2 MiB\n" * 10)
    assert follower.was_ready and watch.observed == before
    assert follower.failure(9, was_killed=True) is None


def test_what_a_failure_teaches() -> None:
    """What was taken before the allocation, and one byte less than it: there is no more, whatever is free."""
    machine = autofit.load_machine("rtx-3090", ram="64GiB")
    plan = autofit.plan("llama", TINY, machine, context="4096")
    device = plan.memory.pools[0]
    runtime, weights, cache = (device.sum_bytes(kind) for kind in ("runtime", "weights", "cache"))

    def taught(**facts: Any) -> dict[str, int]:
        failure = Failure(**{"cause": "device memory", "stage": "compute", "words": "x", "place": "CUDA0", **facts})
        return learnt(failure, plan, {"CUDA0": "GPU0"}, differences)

    differences: tuple[Difference, ...] = ()
    least = device.used_bytes - max(LEAST_BYTES, device.used_bytes // 8)
    at_start = device.used_bytes - device.sum_bytes("transient")
    unknown = at_start - max(LEAST_BYTES, at_start // 8)
    n = 1 << 20
    assert taught() == {"GPU0": unknown} and unknown < least
    assert taught(requested_bytes=n) == {"GPU0": min(least, runtime + weights + cache + n - 1)}
    assert taught(requested_bytes=n, stage="cache") == {"GPU0": min(least, runtime + weights + n - 1)}
    assert taught(requested_bytes=n, stage="weights", free_bytes=7) == {"GPU0": min(least, runtime + 7)}
    assert taught(requested_bytes=n, stage="start") == {"GPU0": unknown}  # nobody knows how much was taken
    assert taught(requested_bytes=cache, stage="start") == {"GPU0": min(least, runtime + weights + cache - 1)}
    assert taught(requested_bytes=n, place="CUDA0[10.0.0.1:1]").keys() == {"GPU0"}
    assert taught(requested_bytes=1 << 40) == {"GPU0": least} and taught(place=None, requested_bytes=n) == taught()
    assert taught(cause="RAM", requested_bytes=n).keys() == taught(cause="killed").keys() == {"host"}
    ram = plan.memory.pool("host")
    later = ram.sum_bytes("transient")  # the prompt cache, which fills while it serves: giving that up helps no start
    assert later > 1 << 30 and taught(cause="killed")["host"] <= ram.used_bytes - later - LEAST_BYTES
    differences = (Difference(pool="GPU0", kind="compute", predicted_bytes=5, reported_bytes=1005),)
    assert taught() == {"GPU0": unknown - 1000}
