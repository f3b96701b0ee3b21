"""The laws of every backend, and the engine's own bytes."""

import autofit
import pytest
from autofit.testing import BackendContract, gpu_machine, tiny_checkpoint


class TestHearth(BackendContract):
    backend = "hearth"

    @pytest.fixture(autouse=True)
    def checkpoint(self, tmp_path):
        self.model = tiny_checkpoint(tmp_path / "tiny")

    def test_bytes_of_a_command(self):
        """2 layers of 2 KV heads of 16: 256 bytes a token; 100 tokens take 128."""
        command = ["hearth-serve", "--model", self.model, "--context", "100", "--slots", "3"]
        used = autofit.check(command, gpu_machine(), settings=None).memory.pool("GPU0")
        assert used.sum_bytes("cache") == 3 * 128 * 256
        assert used.sum_bytes("compute") == 512 * 2 * 64 * 2 + 3 * 256 * 4

    @pytest.mark.parametrize("flags", ["--contxt 1", "--context", "--context x", "--slots 0", "--gpu 0 --gpu 0"])
    def test_a_flag_that_the_engine_has_not_is_refused(self, flags):
        with pytest.raises(autofit.UsageError):
            self.plan(engine_args=flags.split())

    def test_the_longest_context_fits_and_one_more_step_does_not(self):
        machine = gpu_machine((256 << 20) + (1 << 20))
        plan = self.plan(machine)
        assert plan.fits and plan.context_tokens % 64 == 0
        assert not self.plan(machine, context=plan.context_tokens + 1).fits
