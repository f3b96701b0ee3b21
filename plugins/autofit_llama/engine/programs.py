"""The programs whose commands the backend takes; imported before anything else, so nothing is imported here."""

from __future__ import annotations

PROGRAMS = (
    "llama-server",
    "llama-cli",
    "llama-fit-params",
    "llama-bench",
    "llama-completion",
    "llama",
    # engines made from llama.cpp, whose commands are refused by name
    "llamafile",
    "koboldcpp",
    "ollama",
    "lms",
)
"""What commands begin with that are this backend's."""
