from __future__ import annotations

import pytest
from autofit.errors import UsageError

from autofit_llama.command.presets import MAX_MODELS, commands


def test_a_section_called_as_a_model_of_the_cache_has_it() -> None:
    text = "[*]\nc = 8192\n[org/name-GGUF:Q4_K_M]\nngl = 5\n[org/other]\nhf = org/b\n[own]\nmodel = a/b.gguf\n[a/b/c]\n"
    assert [(line, argv[1:]) for line, argv in commands(text)] == [
        (3, ("-hf", "org/name-GGUF:Q4_K_M", "--ctx-size", "8192", "--n-gpu-layers", "5")),
        (5, ("--ctx-size", "8192", "--hf-repo", "org/b")),
        (7, ("--ctx-size", "8192", "--model", "a/b.gguf")),
        (9, ("--ctx-size", "8192")),
    ]


def test_more_sections_than_any_machine_serves_are_refused() -> None:
    with pytest.raises(UsageError, match=f"more than {MAX_MODELS} models"):
        commands("".join(f"[m{n}]\n" for n in range(2 * MAX_MODELS)))
