"""Which device a line of vLLM is about: workers put their rank before what they print."""

from __future__ import annotations

import re

from autofit.logs.notes import Notes

#: `(Worker_PP1_TP0 pid=7)`, `(EngineCore_DP1 pid=7)`, `(VllmWorker rank=1 pid=7)`, `(VllmWorker TP1 pid=7)`
_WORKER = re.compile(r"\((?:Vllm)?Worker[^)\n]{0,60}?\bpid=\d{1,10}\)|\(EngineCore\w{0,20} pid=\d{1,10}\)")
_NUMBER = re.compile(r"(DP|PP|TP|rank=)(\d{1,4})")


def place_of(notes: Notes, line: str) -> str:
    """The device of the process that wrote `line`: its rank over data, pipeline and tensor parallel groups."""
    found = _WORKER.search(line)
    parts = dict(_NUMBER.findall(found[0])) if found else {}
    if "rank=" in parts:
        return f"cuda:{int(parts['rank='])}"
    tp, pp = size_of(notes, "tensor_parallel_size"), size_of(notes, "pipeline_parallel_size")
    rank = (int(parts.get("DP", 0)) * pp + int(parts.get("PP", 0))) * tp + int(parts.get("TP", 0))
    return f"cuda:{rank}"


def size_of(notes: Notes, name: str) -> int:
    """The size of a parallel group as the log tells it, 1 where it does not."""
    value = notes.facts.get(name, 1)
    return value if isinstance(value, int) and 0 < value < 1 << 16 else 1
