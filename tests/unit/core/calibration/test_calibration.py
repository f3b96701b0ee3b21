"""Measured starts: the rule, the database that nothing can break a plan with, and what is shared."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import autofit
import pytest
from autofit.calibration import store
from autofit.calibration.apply import build_of, calibrated, key_of, record
from autofit.calibration.exchange import from_json, to_json
from autofit.calibration.rule import (
    LEAST_STARTS,
    MOST_BACK_BYTES,
    MOST_MORE_BYTES,
    Entry,
    Key,
    first_start,
    moved_bytes,
)
from autofit.calibration.store import MAX_ENTRIES, CalibrationError, add, entries, forget, put, read
from autofit.cli.main import main
from autofit.domain.machine import HOST_POOL, Device, Host, Machine
from autofit.domain.observed import Observed, ReportedDevice
from autofit.domain.units import GIB, MIB
from autofit.domain.values import replace
from autofit.errors import UsageError
from autofit.planning.compare import Difference
from autofit.verify import Verified, learn
from hypothesis import given
from hypothesis import strategies as st

KEY = Key(engine="llama", build="11311", api="cuda", device="rtx-3090", architecture="qwen3")
CARD = Device(
    id="GPU0",
    index=0,
    name="GeForce RTX 3090",
    api="cuda",
    total_bytes=24 * GIB,
    free_bytes=20 * GIB,
    profile="rtx-3090",
)
MACHINE = Machine(host=Host(total_bytes=None, available_bytes=None), devices=(CARD,))


def entry(*starts: int, key: Key = KEY, imported: bool = False) -> Entry:
    found = first_start(key, starts[0])
    for one in starts[1:]:
        found = found.with_start(one)
    return replace(found, imported=imported)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AUTOFIT_CALIBRATION": str(tmp_path / "deep" / "starts.sqlite3")}


# -- the rule ---------------------------------------------------------------------------------------------


def test_one_start_that_took_more_counts_at_once() -> None:
    assert moved_bytes(entry(300 * MIB), "11311") == 300 * MIB


def test_with_more_starts_the_spread_is_kept_free_too() -> None:
    moved = moved_bytes(entry(*[100 * MIB] * LEAST_STARTS), "11311")
    assert moved == 100 * MIB + 3 * 16 * MIB
    wide = moved_bytes(entry(0, 200 * MIB, 0, 200 * MIB, 100 * MIB), "11311")
    assert wide > 100 * MIB + 3 * 80 * MIB


def test_less_is_given_back_only_from_enough_starts_of_this_build_measured_here() -> None:
    starts = [-300 * MIB] * LEAST_STARTS
    assert moved_bytes(entry(*starts), "11311") == -MOST_BACK_BYTES
    assert moved_bytes(entry(*starts[1:]), "11311") == 0
    assert moved_bytes(entry(*starts), "11312") == 0
    assert moved_bytes(entry(*starts), "") == 0
    assert moved_bytes(entry(*starts, imported=True), "11311") == 0
    # near what was planned, the spread leaves nothing to give
    assert moved_bytes(entry(*[-40 * MIB] * 9), "11311") == 0


@given(st.lists(st.integers(-GIB, GIB), min_size=1, max_size=40), st.booleans(), st.sampled_from(["11311", "1", ""]))
def test_no_entry_makes_a_plan_less_safe_than_its_spread(starts: list[int], imported: bool, build: str) -> None:
    found = entry(*starts, imported=imported)
    moved = moved_bytes(found, build)
    assert -MOST_BACK_BYTES <= moved <= MOST_MORE_BYTES
    assert moved >= min(max(starts), MOST_MORE_BYTES) or moved >= 0
    if moved < 0:
        assert not imported
        assert max(starts) <= moved
        assert len(starts) >= LEAST_STARTS
        assert sum(starts) / len(starts) + 3 * found.spread_bytes <= moved + 1
    if max(starts) > 0:
        assert moved >= max(starts)


def test_builds_are_one_whatever_they_are_written_in() -> None:
    assert {build_of(text) for text in ("b9284", "version: 9284 (afcda09d1)", "9284")} == {"9284"}
    assert build_of("0.26.1rc1.dev608") == "0.26.1rc1.dev608"
    assert build_of(None) == build_of("nightly") == ""


# -- the database -----------------------------------------------------------------------------------------


def test_starts_are_counted(environ: dict[str, str]) -> None:
    for n_bytes in (10 * MIB, 20 * MIB, 30 * MIB):
        add(environ, KEY, n_bytes)
    (found,) = read(environ)
    assert (found.key, found.n_starts, found.mean_bytes, found.most_bytes) == (KEY, 3, 20 * MIB, 30 * MIB)
    assert (found.squares / 2) ** 0.5 == pytest.approx(10 * MIB)
    assert forget(environ) == 1
    assert read(environ) == ()
    assert forget(environ) == 0


def test_many_at_once_lose_none(environ: dict[str, str]) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: add(environ, KEY, n), range(64)))
    assert entries(environ)[0].n_starts == 64


def test_one_that_is_busy_is_not_to_be_removed(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    add(environ, KEY, 5)
    monkeypatch.setattr(store, "WRITE_SECONDS", 0.1)
    other = sqlite3.connect(environ["AUTOFIT_CALIBRATION"], isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(CalibrationError, match="locked") as raised:
            add(environ, KEY, 5)
        assert raised.value.hint == "another process is writing to it: try again"
        assert entries(environ)[0].n_starts == 1  # who only reads does not wait
    finally:
        other.close()


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 100])
def test_a_damaged_file_is_no_entries(environ: dict[str, str], content: bytes) -> None:
    path = Path(environ["AUTOFIT_CALIBRATION"])
    path.parent.mkdir()
    path.write_bytes(content)
    assert entries(environ) == ()
    assert calibrated(MACHINE, "llama", "b11311", "qwen3", environ) == (MACHINE, ())
    forget(environ)
    add(environ, KEY, 1)
    assert len(read(environ)) == 1


def test_a_file_of_a_newer_autofit_is_left_alone(environ: dict[str, str]) -> None:
    add(environ, KEY, MIB)
    path = environ["AUTOFIT_CALIBRATION"]
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    before = Path(path).read_bytes()
    assert entries(environ) == ()
    with pytest.raises(CalibrationError, match="newer autofit"):
        add(environ, KEY, MIB)
    assert Path(path).read_bytes() == before


@pytest.mark.parametrize(
    "values",
    [
        "n = -1",
        "n = 'x'",
        "mean = 'x'",
        "mean = 9e300",
        "squares = -1.0",
        "most = 1 << 62",
        "mean = 5e9, most = 0",
        "device = x'00'",
    ],
)
def test_rows_that_nobody_of_ours_wrote_are_no_entries(environ: dict[str, str], values: str) -> None:
    add(environ, KEY, MIB)
    with sqlite3.connect(environ["AUTOFIT_CALIBRATION"]) as database:
        database.execute(f"UPDATE starts SET {values}")
    database.close()
    assert read(environ) == ()


def test_it_does_not_grow_without_end(environ: dict[str, str]) -> None:
    put(environ, tuple(first_start(replace(KEY, device=f"d{n}"), n) for n in range(MAX_ENTRIES)))
    add(environ, KEY, MIB)
    assert len(read(environ)) == MAX_ENTRIES


def test_it_can_be_turned_off_and_may_have_no_place(tmp_path: Path) -> None:
    for environ in ({"AUTOFIT_CALIBRATION": "off"}, {}):
        assert entries(environ) == ()
        with pytest.raises(CalibrationError):
            add(environ, KEY, 1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CalibrationError):
        add({"AUTOFIT_CALIBRATION": str(blocked / "x")}, KEY, 1)


def test_a_start_without_a_database_imports_no_sqlite(tmp_path: Path) -> None:
    code = (
        "import sys, autofit; from autofit.cli.main import main;"
        "main(['llama', 'example:llama-3.1-8b-q4_k_m', '--on', 'cpu', '--ram', '32GiB', '-q']);"
        "sys.exit('sqlite3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


# -- in plans ---------------------------------------------------------------------------------------------


def difference(kind: str, over: int) -> Difference:
    return Difference(pool="GPU0", kind=kind, predicted_bytes=GIB, reported_bytes=GIB + over)  # type: ignore[arg-type]


def test_a_watched_start_is_kept_and_the_next_plan_has_less(environ: dict[str, str]) -> None:
    observed = Observed(engine="llama.cpp", version="b11311", facts={"architecture": "qwen3"})
    parts = (difference("weights", 0), difference("compute", 200 * MIB))
    assert record("llama", MACHINE, observed, parts, {"weights": 1, "compute": 1}, environ) == 1
    machine, findings = calibrated(MACHINE, "llama", "b11311", "qwen3", environ)
    assert machine.devices[0].free_bytes == 20 * GIB - 200 * MIB
    assert [finding.code for finding in findings] == ["calibration"]
    assert "200.0 MiB are kept free on GPU0: 1 starts of qwen3, measured here" in findings[0].message
    for other in (("vllm", "b11311", "qwen3"), ("llama", "b11311", "llama")):
        assert calibrated(MACHINE, *other, environ) == (MACHINE, ())
    # another build took as much: more is kept, for nobody knows better
    assert calibrated(MACHINE, "llama", "b9000", "qwen3", environ)[0] == machine


def test_less_left_for_a_cache_is_more_taken(environ: dict[str, str]) -> None:
    observed = Observed(engine="vLLM", version="0.33.0", facts={"architecture": "Qwen3ForCausalLM"})
    record("vllm", MACHINE, observed, (difference("cache", -GIB),), {"cache": -1}, environ)
    assert entries(environ)[0].mean_bytes == GIB


def test_only_machines_that_were_looked_at_count(environ: dict[str, str]) -> None:
    observed = Observed(engine="llama.cpp", facts={"architecture": "qwen3"})
    stated = replace(MACHINE, origin="profile")
    assert record("llama", stated, observed, (difference("compute", 1),), {"compute": 1}, environ) == 0
    add(environ, KEY, GIB)
    assert calibrated(stated, "llama", "b11311", "qwen3", environ) == (stated, ())


def test_nothing_is_given_back_where_another_entry_says_more(environ: dict[str, str]) -> None:
    put(environ, (entry(*[-300 * MIB] * 9), entry(50 * MIB, key=replace(KEY, build="9000"))))
    machine, _ = calibrated(MACHINE, "llama", "11311", "qwen3", environ)
    assert machine.devices[0].free_bytes == 20 * GIB - 50 * MIB
    put(environ, (entry(*[-300 * MIB] * 9), entry(-MIB, key=replace(KEY, build="9000"))))
    machine, _ = calibrated(MACHINE, "llama", "11311", "qwen3", environ)
    assert machine.devices[0].free_bytes == 20 * GIB + MOST_BACK_BYTES


# -- what is shared ---------------------------------------------------------------------------------------


def test_an_export_comes_back_as_imported(
    environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOFIT_CALIBRATION", environ["AUTOFIT_CALIBRATION"])
    put(environ, (entry(100 * MIB, 120 * MIB), entry(1, key=replace(KEY, device="/home/me/card"))))
    path = tmp_path / "starts.json"
    assert main(["calibration", "export", str(path)]) == 0
    text = path.read_text()
    assert "/home" not in text
    assert len(json.loads(text)["starts"]) == 1
    assert main(["calibration", "forget"]) == 0
    assert main(["calibration", "import", str(path)]) == 0
    (found,) = read(environ)
    assert (found.imported, found.n_starts, found.mean_bytes, found.most_bytes) == (True, 2, 110 * MIB, 120 * MIB)
    assert main(["calibration", "list"]) == 0
    assert to_json(read(environ)) == to_json(())  # nobody's measurements are passed on as one's own


ROW = {
    "engine": "llama", "build": "11311", "api": "cuda", "device": "rtx-3090", "architecture": "qwen3", "n": 3,
    "mean_bytes": 5, "spread_bytes": 1, "most_bytes": 9,
}  # fmt: skip


def document(**changed: object) -> str:
    return json.dumps({"schema": 1, "starts": [{**ROW, **changed}]})


@pytest.mark.parametrize("action", ["list", "forget"])
def test_an_entry_is_not_forgotten_by_name(
    action: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All would go, and not the one that was named."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    add(environ, KEY, 5 * MIB)
    assert main(["calibration", action, "llama.cpp"]) == 2
    assert "it takes no file" in capsys.readouterr().err
    assert len(entries(environ)) == 1


def test_the_row_itself_is_taken() -> None:
    assert from_json(document())[0].imported


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[" * 100_000, '{"schema": 2, "starts": []}', '{"schema": 1, "starts": {}}', '{"schema": 1, "starts": [1]}',
        json.dumps({"schema": 1, "starts": [ROW] * 1001}),
        *(document(**{name: value}) for name, value in (
            ("engine", "../x"), ("engine", ""), ("build", "\x1b[31m"), ("device", "/home/me"), ("device", 7), ("architecture", ""),
            ("n", 0), ("n", -1), ("n", 10**9), ("n", 1.5), ("n", True), ("mean_bytes", 1 << 60), ("mean_bytes", None),
            ("spread_bytes", -1), ("most_bytes", 4), ("most_bytes", "9"), ("api", "x" * 50),
        )),
    ],
)  # fmt: skip
def test_what_is_no_shared_file_is_refused_whole(text: str) -> None:
    with pytest.raises(UsageError):
        from_json(text)


@given(
    st.text(max_size=200)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda x: st.lists(x) | st.dictionaries(st.text(max_size=8), x)
    ).map(json.dumps)
)
def test_anything_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        from_json(text)


def test_keys_have_no_owner() -> None:
    assert key_of("llama", "b11311", CARD, "qwen3") == KEY


# -- RAM that a device shares, and logs -------------------------------------------------------------------


def test_a_device_that_shares_ram_keeps_more_of_it_free_and_gives_nothing_back(environ: dict[str, str]) -> None:
    shared = replace(MACHINE.devices[0], pool=HOST_POOL, integrated=True, free_bytes=None)
    host = replace(MACHINE.host, available_bytes=30 * GIB)
    machine = replace(MACHINE, devices=(shared, replace(shared, id="GPU1", index=1)), host=host)
    observed = Observed(engine="llama.cpp", version="b11311", facts={"architecture": "qwen3"})

    def part(over: int) -> Difference:
        return Difference(pool=HOST_POOL, kind="compute", predicted_bytes=GIB, reported_bytes=GIB + over)

    for _ in range(6):
        assert record("llama", machine, observed, [part(-300 * MIB)], {"compute": 1}, environ) == 1
    assert calibrated(machine, "llama", "b11311", "qwen3", environ) == (machine, ())
    forget(environ)
    assert record("llama", machine, observed, [part(200 * MIB)], {"compute": 1}, environ) == 1
    found, findings = calibrated(machine, "llama", "b11311", "qwen3", environ)
    assert found.host.available_bytes == 30 * GIB - 200 * MIB and found.devices == machine.devices
    assert "200.0 MiB are kept free on GPU0" in findings[0].message


def verified(over: int, device: Device) -> Verified:
    known = ReportedDevice(place="CUDA0", name=device.name, total_bytes=device.total_bytes)
    observed = Observed(
        engine="llama.cpp", version="b11311", facts={"architecture": "qwen3", "devices.used": ("CUDA0",)},
        devices=(known,),
    )  # fmt: skip
    part = Difference(pool="CUDA0", kind="compute", predicted_bytes=GIB, reported_bytes=GIB + over)
    plan = autofit.plan("llama", "example:tiny", autofit.load_machine("cpu", ram="8GiB"), settings=None)
    return Verified(backend="llama", source="the log", plan=plan, observed=observed, differences=(part,))


def test_a_log_of_this_machine_teaches_more_and_never_less(environ: dict[str, str]) -> None:
    device = MACHINE.devices[0]
    assert learn(verified(-200 * MIB, device), MACHINE, environ) == 0
    assert entries(environ) == ()
    assert learn(verified(100 * MIB, device), MACHINE, environ) == 1
    assert entries(environ)[0].mean_bytes == 100 * MIB
    for other in (replace(device, name="NVIDIA T4"), replace(device, total_bytes=2 * (device.total_bytes or GIB))):
        with pytest.raises(UsageError, match="not this machine's"):
            learn(verified(100 * MIB, other), MACHINE, environ)
