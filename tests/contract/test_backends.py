"""Both backends keep the contract that `autofit.testing` states for everybody's."""

from __future__ import annotations

from pathlib import Path

import pytest
from autofit.testing import BackendContract, tiny_checkpoint


class TestLlama(BackendContract):
    backend = "llama"


class TestVllm(BackendContract):
    backend = "vllm"

    @pytest.fixture(autouse=True)
    def checkpoint(self, tmp_path: Path) -> None:
        self.model = tiny_checkpoint(tmp_path / "tiny")  # type: ignore[misc]
