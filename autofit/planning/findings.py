"""Codes of findings: stable, with one severity and one meaning each; one fact has one code, whatever the engine."""

from __future__ import annotations

from collections.abc import Mapping

from autofit.domain.memory import DeviceLimit, Memory, PoolUse
from autofit.domain.plan import Code, Finding
from autofit.domain.text import printable
from autofit.domain.units import format_bytes

COMMON: Mapping[str, Code] = {
    "machine": Code(
        "info",
        "what a source of the machine's figures adds to them",
        "`--ram` and `--on NAME:SIZE` state other figures",
    ),
    "model-source": Code(
        "info",
        "where the model was found, which of several was taken, and why",
        "name the file or the quantization where another is meant",
    ),
    "server-left-out": Code(
        "warning", "a server on another machine that is not used, and why", "start it, or leave it out of the command"
    ),
    "incomplete-files": Code(
        "warning",
        "files of the model are missing or cut off; the plan is for the whole model",
        "download them to their end before the start",
    ),
    "engine-not-told": Code(
        "warning", "the installed engine does not say which version it is", "`--engine-version` names it"
    ),
    "calibration": Code(
        "info",
        "memory kept free, or given back, for what earlier starts took beside their plans",
        "`autofit calibration` shows the starts that it comes from",
    ),
    "unknown-memory": Code(
        "warning", "free memory of a pool is unknown, so it is not checked", "state it: `--on NAME:SIZE`, `--ram`"
    ),
    "settings-file": Code(
        "info", "settings that a file sets, and the file", "an option on the command line takes precedence"
    ),
    "settings-not-trusted": Code(
        "warning",
        "settings of a directory's autofit.toml, ignored until the user trusts it",
        "read the file, then `autofit trust DIR`",
    ),
    "does-not-fit": Code(
        "error",
        "a pool needs more memory: which, and how much",
        "take what `would-fit` names, or look for hardware: `autofit advise MODEL`",
    ),
    "too-slow": Code(
        "error",
        "a rate or a time to the first token that was asked for is not reached",
        "ask for less with `--min-tps` or `--max-ttft`, or look for hardware: `autofit advise MODEL`",
    ),
    "slow-decoding": Code(
        "warning",
        "weights in RAM make decoding less than half as fast as people read, and no rate was asked for",
        "a smaller quantization (`autofit quants MODEL`), more memory (`autofit advise MODEL`), or `--min-tps`",
    ),
    "would-fit": Code("info", "the nearest value with which the plan would fit", "repeat the command with it"),
    "gpus-needed": Code("info", "how many such GPUs would be enough", "plan for them: `--on COUNTxNAME`"),
    "weights-in-ram": Code(
        "info",
        "weights stay in RAM, which limits the decode rate",
        "a smaller quantization (`autofit quants MODEL`), a shorter `-c`, or more memory (`autofit advise MODEL`)",
    ),
    "lossy-cache": Code(
        "info",
        "the KV cache is quantized and loses some precision",
        "`--kv` with the type that the message names keeps all precision",
    ),
    "context-beyond-training": Code(
        "warning",
        "the context is longer than the model was trained for",
        "a shorter `-c`, or the RoPE scaling that the publisher of the model names",
    ),
    "unknown-architecture": Code(
        "warning",
        "the model's architecture is unknown: figures are upper bounds",
        "a newer autofit, or [add it](add-an-architecture.md)",
    ),
}


def codes(own: Mapping[str, Code]) -> Mapping[str, Code]:
    """The codes of a backend: the common ones and its own.

    Raises:
        ValueError: a code of its own is a common one.
    """
    taken = sorted(COMMON.keys() & own.keys())
    if taken:
        raise ValueError(f"common codes need no definition: {', '.join(taken)}")
    return {**COMMON, **own}


def tell(known: Mapping[str, Code], code: str, message: str) -> Finding:
    """A finding with the severity of its code.

    Raises:
        KeyError: a code that is not defined.
    """
    return Finding(severity=known[code].severity, code=code, message=message)


def does_not_fit(memory: Memory) -> Finding:
    """The pool that lacks most to the byte; where the engine does not even start, the one that lacks most for that."""
    if memory.starts:
        worst = max(memory.pools, key=lambda pool: pool.shortfall_bytes)
        return tell(COMMON, "does-not-fit", f"does not fit: {_lacks(worst, worst.tightest, worst.shortfall_bytes)}")
    worst = max(memory.pools, key=lambda pool: pool.start_shortfall_bytes)
    tightest, to_start = worst.tightest_at_start, worst.start_shortfall_bytes
    lacking = to_start + tightest.used_bytes - tightest.start_bytes
    part = f", {format_bytes(to_start)} of it to start" if to_start < lacking else ""
    return tell(COMMON, "does-not-fit", f"does not fit: {_lacks(worst, tightest, lacking)}{part}")


def _lacks(pool: PoolUse, tightest: PoolUse | DeviceLimit, n_bytes: int) -> str:
    """Pool and amount, in the words of the summary; a device's own limit where that is what is passed."""
    amount, name = f"{format_bytes(n_bytes)} ({n_bytes} bytes) more", printable(pool.name, 40)
    if isinstance(tightest, DeviceLimit):
        device = f"{tightest.id} {printable(tightest.name, 40)}"
        return f"{device} needs {amount} of the {format_bytes(tightest.limit_bytes)} that it can use of {name}"
    return f"{pool.id} {name} needs {amount}"
