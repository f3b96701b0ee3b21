"""What has been read so far, while a log goes on: bounded whatever the log says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autofit.domain.memory import Kind
from autofit.domain.observed import Cause, Failure, Observed, ReportedDevice, ReportedPart, Stage
from autofit.domain.text import printable
from autofit.domain.values import replace

MAX_PARTS = 1024
MAX_DEVICES = 256
MAX_FACTS = 8192
MAX_RECOVERED = 16
MAX_WORDS = 300
MAX_BYTES = 1 << 60
#: lines that one failure may be told over: layers of the engine, or a traceback, say it again and again
NEAR_LINES = 12
NOTHING: Mapping[str, object] = {}
#: what an allocation is for that fails at a stage, where nothing says it
LIKELY: Mapping[Stage, Kind] = {"weights": "weights", "cache": "cache", "compute": "compute", "ready": "transient"}


class Notes:
    """The run of which lines come in now. A parser calls its methods; `observed` is the frozen value."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.line = 0
        self.n_lines = 0
        self.n_runs = 1
        self.last_failed: Observed | None = None
        self._reset()

    def _reset(self) -> None:
        self.version: str | None = None
        self.stage: Stage = "start"
        self.devices: dict[str, ReportedDevice] = {}
        self.parts: dict[tuple[str, str, str], ReportedPart] = {}
        self.facts: dict[str, object] = {}
        self.failure: Failure | None = None
        self.recovered: list[Failure] = []
        self.command: tuple[str, ...] = ()
        self.counts: dict[str, int] = {}

    # -- what lines say -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """A process starts. If one had come to something before, it has ended: this is another one."""
        if self.failure is None and self.stage != "ready":
            return
        if self.failure is not None:
            self.last_failed = self.observed()
        known = self.version, dict(self.devices), self.command
        self._reset()
        self.version, self.devices, self.command = known
        self.n_runs += 1

    def at(self, stage: Stage) -> None:
        self.stage = stage

    def fact(self, name: str, value: Any) -> None:
        """Note a fact; the last value of a name counts."""
        if name in self.facts or len(self.facts) < MAX_FACTS:
            self.facts[name] = value

    def count(self, name: str) -> int:
        """How often this was said before, from 0: the number of a model or a context."""
        n = self.counts.get(name, 0)
        self.counts[name] = n + 1
        return n

    def device(self, place: str, name: str = "", **known: Any) -> None:
        """Note a device, or more of one that is known."""
        before = self.devices.get(place)
        if before is None and len(self.devices) >= MAX_DEVICES:
            return
        before = before or ReportedDevice(place=place, name="")
        told = {key: value for key, value in known.items() if value is not None}
        self.devices[place] = replace(before, name=printable(name, 100) or before.name, **told)

    def part(
        self, place: str, kind: Kind, n_bytes: int | None, label: str, *,
        group: str = "", adds: bool = False, rounding_bytes: int = 0, is_host: bool = False, mapped: bool = False,
    ) -> None:  # fmt: skip
        """Note a buffer. `adds`: several of one label are several buffers; else the last one counts."""
        if n_bytes is None or not -MAX_BYTES < n_bytes < MAX_BYTES:
            return
        key = (group, place, label)
        before = self.parts.get(key)
        if before is None and len(self.parts) >= MAX_PARTS:
            return
        if adds and before is not None:
            n_bytes, rounding_bytes = n_bytes + before.n_bytes, rounding_bytes + before.rounding_bytes
        self.parts[key] = ReportedPart(
            place=place,
            kind=kind,
            n_bytes=n_bytes,
            label=label,
            group=group,
            rounding_bytes=rounding_bytes,
            is_host=is_host,
            mapped=mapped,
        )

    def fail(
        self, cause: Cause, words: str, *,
        is_certain: bool = True, near: int = NEAR_LINES, exact: Mapping[str, object] = NOTHING, **known: Any,
    ) -> None:  # fmt: skip
        """Note a failure. The first one counts; lines close behind it may know more about the same one.

        `known` are fields of `Failure` for as long as nothing better is told, `exact` those that nothing else tells
        better.
        """
        known = {**known, **exact}
        told = {key: value for key, value in known.items() if value is not None}
        before = self.failure
        if before is None:
            self.failure = Failure(
                cause=cause,
                stage=told.pop("stage", self.stage),
                words=printable(words.strip(), MAX_WORDS),
                line=self.line,
                is_certain=is_certain,
                **told,
            )
            return
        if before.cause == "other" and cause != "other":  # a consequence may be printed before what led to it
            self.failure = None
            self.fail(cause, words, is_certain=is_certain, exact=exact, **known)
            return
        if self.line - before.line <= near and cause in {before.cause, "other"}:
            more = {key: value for key, value in told.items() if getattr(before, key) is None or key in exact}
            self.failure = replace(before, **more)

    def recover(self) -> None:
        """The engine got over what failed last."""
        if self.failure is not None:
            if len(self.recovered) < MAX_RECOVERED:
                self.recovered.append(self.failure)
            self.failure = None

    # -- the value ----------------------------------------------------------------------------------------

    def observed(self, exit_code: int | None = None) -> Observed:
        """What is known now, of the run that goes on."""
        failure = self.failure
        if failure is not None and failure.kind is None and failure.cause not in {"other", "killed"}:
            failure = replace(failure, kind=LIKELY.get(failure.stage))
        return Observed(
            engine=self.engine,
            version=self.version,
            stage=self.stage,
            devices=tuple(self.devices.values()),
            parts=tuple(self.parts.values()),
            facts=dict(self.facts),
            failure=failure,
            recovered=tuple(self.recovered),
            command=self.command,
            exit_code=exit_code,
            n_lines=self.n_lines,
            n_runs=self.n_runs,
        )
