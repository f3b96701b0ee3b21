"""Rows of a build: each case asked of its own dry run, on devices that only count."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from follow.cases import SERVER, Case
from follow.engine_source import FollowError
from follow.model_files import write

KINDS = ("model", "context", "compute")
SECONDS = 120
#: why a build refuses a file whose tensors are not those that it knows, and so says nothing about memory
UNLIKE_TENSORS = ("wrong number of tensors", "missing tensor")
UNKNOWN_ARCHITECTURE = "unknown model architecture"


def record(folder: Path, models: Path, asked: Iterable[Case]) -> list[dict[str, Any]]:
    """A row for each case, with `error` where the build refuses or dies; `folder` has its programs.

    A tiny model with other tensors than the build knows is asked again without those that no model needs, and left out
    if that says no more.
    """
    found = []
    for case in asked:
        made = row(folder, write(case.part, case.name, models), case)
        if case.part not in ("models", "later") and any(reason in made.get("error", "") for reason in UNLIKE_TENSORS):
            plain = case._replace(file=f"plain/{case.name}.gguf")
            made = row(folder, write(plain.part, plain.name, models), plain)
            if "error" in made and UNKNOWN_ARCHITECTURE not in made["error"]:
                continue
        found.append(made)
    return found


def row(folder: Path, file: Path, case: Case) -> dict[str, Any]:
    told = {
        "id": case.id, "model": case.name, "file": case.file, "arch": case.arch, "program": case.program,
        "args": list(case.args), "device_memory_mib": list(case.device_memory_mib),
    }  # fmt: skip
    environ = {**os.environ, "LD_PRELOAD": str(folder / "libfakecuda.so"), "GGML_NO_BACKTRACE": "1"}
    environ["FAKECUDA_MEM"] = ",".join(map(str, case.device_memory_mib))
    environ.pop("ORACLE_AS", None)
    if case.program == SERVER:
        environ["ORACLE_AS"] = "server"
    command = [str(folder / "oracle"), "-m", str(file), *case.args]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {**told, "error": f"no answer within {SECONDS} s"}
    said = parse(done.stdout, done.stderr, done.returncode)
    if "error" in said:
        return {**told, "error": said["error"].replace(str(file), case.file)[:300]}
    if not said["devices"]:
        raise FollowError(f"{command[0]} sees no device: {environ['LD_PRELOAD']} was not made, or not loaded")
    devices = [{key: device[key] for key in ("name", *KINDS)} for device in said["devices"]]
    return {
        **told,
        "devices": devices,
        "host_all": said["host_all"],
        "n_ctx": said["n_ctx"],
        "n_ctx_seq": said["n_ctx_seq"],
    }


def parse(stdout: str, stderr: str, code: int) -> dict[str, Any]:
    """What a dry run printed; `error` with its reason where it has no figures."""
    line = stdout.strip().splitlines()[-1] if stdout.strip() else ""
    if not line.startswith("{"):
        reasons = [
            text
            for text in stderr.splitlines()
            if "GGML_ASSERT" in text or "GGML_ABORT" in text or "error" in text.lower()
        ]
        if not reasons and code < 0:
            return {"error": f"ended by signal {-code}"}
        return {"error": " ".join((reasons or stderr.splitlines() or [""])[-1].split()) or f"exit code {code}"}
    said: dict[str, Any] = json.loads(line)
    if "error" in said:
        log = [
            text for text in said.get("log", "").splitlines() if text.strip() and "dummy tokens" not in text
        ] or stderr.splitlines()
        reasons = [text for text in log if re.search(r"error|unknown|not support|failed|requires|invalid", text)]
        said["error"] = " ".join(f"{said['error']}: {(reasons or log or [''])[0]}".split())
    return said


def save(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """One row a line, compressed, the same bytes for the same rows."""
    text = "".join(json.dumps(each, separators=(",", ":")) + "\n" for each in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def load(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that `save` wrote.

    Raises:
        FollowError: there is no such file.
    """
    if not path.is_file():
        raise FollowError(f"no rows are recorded in {path}; --from names a build that has them")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
