"""`autofit hardware`: what people paste into bug reports."""

from __future__ import annotations

import json
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from autofit.cli.main import main
from autofit.domain.machine import Host, Machine
from autofit.domain.units import GIB
from autofit.errors import HardwareError
from autofit.hardware import calibrate, detect, load_machine, machine_from_dict
from autofit.hardware.report import describe

from support.recorded_machines import detect as detected
from support.recorded_machines import machine, runner

MEASURED = calibrate.Calibration(ram_bandwidth_bytes_per_s=10**10, n_threads=2, passes=(10**10,))


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path / "user"))
    return tmp_path / "user"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a recorded machine in the place of this one."""

    def put(name: str, **changes: Any) -> None:
        found = detected(machine(name, tmp_path / "m", **changes))
        monkeypatch.setattr("autofit.machines.detect_machine", lambda: found)

    return put


def out(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["hardware", *argv]) == 0
    return capsys.readouterr().out


class TestReport:
    def test_what_was_found_what_is_free_and_who_holds_the_rest(
        self, here: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        here("rtx-3090-desktop")
        text = out(capsys)
        assert "GPU0    NVIDIA GeForce RTX 3090 · 18.00 GiB free of 24.00 GiB, the driver keeps 441.0 MiB" in text
        assert "held by llama-server (pid 4242, an engine of yours): 5.08 GiB" in text
        assert "held by Xorg (pid 1203): 350.0 MiB" in text
        assert "cuda, compute capability 8.6 · 82 SMs · 936 GB/s" in text
        assert text.startswith("autofit ")

    def test_what_is_unknown_and_how_to_state_it(self, here: Any, capsys: pytest.CaptureFixture[str]) -> None:
        here("nvml-without-permission")
        text = out(capsys)
        assert "free memory unknown" in text
        assert "GPU0, free memory: state it with --on rtx-3090:SIZE" in text or "--on NAME:SIZE" in text
        assert "`autofit hardware calibrate` measures it" in text

    def test_variables_that_change_the_answer_are_shown(
        self, here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,\x1b[31m")
        here("cpu-only")
        text = out(capsys)
        assert "CUDA_VISIBLE_DEVICES=0,\\x1b[31m" in text
        assert "no GPU" in text

    def test_a_limit_is_said_with_its_size(self, here: Any, capsys: pytest.CaptureFixture[str]) -> None:
        here("cgroup-v2-4gib")
        text = out(capsys)
        assert "3.49 GiB available of 64.00 GiB" in text
        assert "limited to 4.00 GiB by a cgroup" in text

    def test_a_unified_machine_says_where_its_memory_comes_from(
        self, here: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        here("dgx-spark")
        assert "out of RAM" in out(capsys)

    @pytest.mark.parametrize(
        "name",
        ["four-a100-nvswitch", "h100-mig-container", "strix-halo-gtt", "arc-b580-and-uhd", "empty-root"],
    )
    def test_nothing_from_outside_reaches_the_terminal_raw(self, tmp_path: Path, name: str) -> None:
        assert describe(detected(machine(name, tmp_path))).replace("\n", "").isprintable()

    def test_json_is_a_machine_for_on(self, here: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        here("rtx-3090-desktop")
        text = out(capsys, "detect", "--format", "json")
        path = tmp_path / "box.json"
        path.write_text(text)
        assert load_machine(str(path)) == replace(machine_from_dict(json.loads(text)), origin="file")
        assert "GPU0" in out(capsys, "--on", str(path))


class TestProfiles:
    def test_list(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = out(capsys, "list").splitlines()
        assert len(lines) >= 70
        assert any(line.startswith("rtx-3090 ") and "936 GB/s" in line for line in lines)
        assert len(out(capsys, "list", "4090").splitlines()) == 2

    def test_list_as_json_holds_the_sources(self, capsys: pytest.CaptureFixture[str]) -> None:
        (row,) = json.loads(out(capsys, "list", "rtx-5090", "--format", "json"))[:1]
        assert row["id"] == "rtx-5090"
        assert row["source"]

    def test_show_prints_where_each_figure_comes_from(self, capsys: pytest.CaptureFixture[str]) -> None:
        text = out(capsys, "show", "RTX 3090", "--ram", "64GiB")
        assert "GPU0.bandwidth_bytes_per_s: exact:" in text
        assert "GPU0.reserved_bytes: measured:" in text

    @pytest.mark.parametrize(
        ("argv", "code"),
        [
            (["show"], 2),
            (["save"], 2),
            (["detect", "x"], 2),
            (["list", "zzz"], 2),
            (["save", "../evil"], 2),
            (["show", "rtx-9999"], 2),
            (["calibrate", "--on", "t4"], 2),
            (["--ram", "64GiB"], 2),
        ],
    )
    def test_mistakes(self, argv: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["hardware", *argv]) == code
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err

    def test_save_edit_by_hand_save_again_load(self, here: Any, capsys: pytest.CaptureFixture[str], user: Path) -> None:
        here("rtx-3090-desktop")
        path = Path(out(capsys, "save", "lab").strip())
        assert path == user / "hardware" / "lab.toml"
        text = path.read_text().replace(
            "[host]", "# the box under the desk\n[host]\nbandwidth_bytes_per_s = 80_000_000_000 # measured"
        )
        path.write_text(text)
        found = load_machine("lab")
        assert found.host.bandwidth_bytes_per_s == 80_000_000_000
        assert found.devices[0].uuid == "GPU-4fb6ac9a-29e1-b611-4af7-b61a99e3b92d"
        out(capsys, "save", "lab")
        assert "# the box under the desk" in path.read_text()
        assert "80_000_000_000 # measured" in path.read_text()

    def test_save_what_on_describes(self, capsys: pytest.CaptureFixture[str]) -> None:
        out(capsys, "save", "two", "--on", "rtx-3090", "--on", "t4", "--ram", "64GiB")
        found = load_machine("two")
        assert [d.profile for d in found.devices] == ["rtx-3090", "t4"]
        assert found.host.total_bytes == 64 * GIB


class TestCalibrate:
    def test_memory_is_measured_and_detection_uses_it(
        self, here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, user: Path
    ) -> None:
        here("cpu-only")
        monkeypatch.setattr(
            calibrate,
            "measure_ram",
            lambda m: calibrate.Calibration(
                ram_bandwidth_bytes_per_s=20 * 10**9, n_threads=2, passes=(19 * 10**9, 20 * 10**9)
            ),
        )
        assert "20.0 GB/s" in out(capsys, "calibrate")
        assert load_machine("this-machine").host.bandwidth_bytes_per_s == 20 * 10**9
        host, sources = detect._calibrated(detect_system(), Host(total_bytes=1, available_bytes=1))
        assert host.bandwidth_bytes_per_s == 20 * 10**9
        assert sources == {"host.bandwidth_bytes_per_s": "measured: hardware calibrate"}

    def test_a_broken_profile_of_this_machine_is_a_note_not_a_crash(self, user: Path) -> None:
        (user / "hardware").mkdir(parents=True)
        (user / "hardware" / "this-machine.toml").write_text("schema = 3\n")
        host, _ = detect._calibrated(detect_system(), Host(total_bytes=1, available_bytes=1))
        assert "schema" in host.notes[0]

    def test_a_real_measurement_is_plausible(self) -> None:
        result = calibrate.measure_ram(
            Machine(host=Host(total_bytes=None, available_bytes=None)), seconds=0, buffer_bytes=8 << 20
        )
        assert 10**8 < result.ram_bandwidth_bytes_per_s < 10**13
        assert result.n_threads == 1

    def test_too_little_memory(self) -> None:
        with pytest.raises(HardwareError, match="too little memory"):
            calibrate.measure_ram(Machine(host=Host(total_bytes=GIB, available_bytes=GIB // 8, n_cores_physical=4)))

    def test_an_engine_s_benchmark_is_run_and_kept(
        self, here: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, user: Path, tmp_path: Path
    ) -> None:
        here("cpu-only")
        monkeypatch.setattr(calibrate, "measure_ram", lambda m: MEASURED)
        rows = [{"model_type": "llama 8B Q4_K", "n_prompt": 0, "n_gen": 64, "avg_ts": 101.5, "n_gpu_layers": 99}]
        program = tmp_path / "bin" / "llama-bench"
        program.parent.mkdir()
        program.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(rows)}\nEND\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        assert "tg64         101.5 tokens/s  llama 8B Q4_K" in out(capsys, "calibrate", "--model", "m.gguf")
        table = tomllib.loads((user / "hardware" / "this-machine.toml").read_text())
        assert table["calibration"]["benchmark"][0]["tokens_per_s"] == 101.5

    def test_an_engine_that_is_not_there(
        self, here: Any, monkeypatch: pytest.MonkeyPatch, user: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        here("cpu-only")
        monkeypatch.setattr(calibrate, "measure_ram", lambda m: MEASURED)
        monkeypatch.setenv("PATH", "/nowhere")
        assert main(["hardware", "calibrate", "--model", "m.gguf"]) == 1
        assert "without --model only RAM is measured" in capsys.readouterr().err

    def test_the_table_is_a_profile_s(self) -> None:
        from autofit.hardware import schema

        rows = ({"model": "x", "test": "tg64", "tokens_per_s": 1.5, "n_gpu_layers": 99},)
        table = calibrate.Calibration(ram_bandwidth_bytes_per_s=10**10, n_threads=4, benchmark=rows).to_table(
            "2026-01-01"
        )
        schema.check({"schema": 1, "kind": "machine", "name": "x", "calibration": table}, "x")


def detect_system() -> Any:
    from autofit.hardware.system import this_system

    return this_system()


def test_a_tool_that_hangs_costs_its_time_out_and_is_killed(tmp_path: Path) -> None:
    import sys

    from autofit.hardware.output import run_tool
    from autofit.hardware.programs import ToolError

    with pytest.raises(ToolError, match=r"no answer within 0\.2 s"):
        run_tool([sys.executable, "-c", "import time; time.sleep(20)"], 0.2)


def test_a_tool_that_fails_says_its_first_line() -> None:
    import sys

    from autofit.hardware.output import run_tool
    from autofit.hardware.programs import ToolError

    with pytest.raises(ToolError, match="exit code 3: no device"):
        run_tool([sys.executable, "-c", "import sys; sys.stderr.write('no device\\nmore'); sys.exit(3)"], 20)
    with pytest.raises(ToolError, match="not installed"):
        run_tool(["no-such-program-here"], 1)


def test_the_recorder_s_programs_hang_as_told() -> None:
    from autofit.hardware.programs import ToolError

    with pytest.raises(ToolError, match="no answer"):
        runner([[["slow"], {"stdout": "", "seconds": 9}]])(["slow"], 0.01)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_what_a_hanging_tool_has_started_ends_with_it(tmp_path: Path) -> None:
    from autofit.hardware.output import run_tool
    from autofit.hardware.programs import ToolTimeoutError

    tool, child = tmp_path / "tool", tmp_path / "child"
    tool.write_text(f"#!/bin/sh\nsleep 60 &\necho $! > {child}\nwait\n")
    tool.chmod(0o755)
    with pytest.raises(ToolTimeoutError, match="no answer within 1 s"):
        run_tool([str(tool)], 1)
    command = Path(f"/proc/{child.read_text().strip()}/cmdline")
    for _ in range(100):  # of a process that has ended nothing is left, or an empty line
        if not command.exists() or not command.read_bytes():
            return
        time.sleep(0.02)
    pytest.fail("still running")


def test_equal_devices_of_a_machine_are_listed_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOFIT_PROFILES", str(tmp_path))
    assert main(["hardware", "save", "box", "--on", "rtx-3090", "--on", "t4", "--on", "rtx-3090", "--ram", "8GiB"]) == 0
    capsys.readouterr()
    assert main(["hardware", "list", "box"]) == 0
    assert capsys.readouterr().out == "box  box: 2 x rtx-3090, 1 x t4, 8.00 GiB of RAM\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_without_time_only_installed_tools_are_missed(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from autofit.hardware.programs import ToolError, ToolTimeoutError
    from autofit.hardware.system import this_system

    system = this_system({"AUTOFIT_DETECT_SECONDS": seconds})
    with pytest.raises(ToolError, match="no-such-program-here: not installed"):
        system.tool("no-such-program-here")
    if seconds != "nan":
        with pytest.raises(ToolTimeoutError, match="no time left"):
            system.tool("sh", "-c", "true")
    else:
        assert system.seconds == this_system({}).seconds
