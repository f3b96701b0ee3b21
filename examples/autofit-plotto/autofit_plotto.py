"""Plotto, an invented engine: `plotto FILE` copies a GGUF file to the first GPU, and has no flags."""

from autofit.backend import Backend, ParsedCommand
from autofit.domain.memory import MemoryItem
from autofit.domain.plan import Plan
from autofit.domain.request import NOTHING_ASKED
from autofit.errors import EngineRefusalError, UsageError
from autofit.hookspecs import BackendRef, hookimpl
from autofit.planning.accounting import DeviceUse, account
from autofit.planning.findings import does_not_fit


@hookimpl
def autofit_register_backends():
    return [BackendRef("plotto", "plan a plotto command for a GGUF model", "autofit_plotto:Plotto", ("plotto",))]


class Plotto(Backend):
    name, engine, programs, formats = "plotto", "Plotto", ("plotto",), ("gguf",)
    supports = frozenset()  # none of autofit's options; one that is set is refused

    def parse(self, argv, env=None, *, version=None, model=None):
        program, *words = argv
        if len(words) > 1 or "".join(words).startswith("-"):
            raise UsageError("plotto takes one file and no flags")
        return ParsedCommand(program=(program,), model=words[0] if words else None, companions={}, settings=None)

    def plan(self, command, model, machine, request):
        argv = (*command.program, command.model or request.model_reference or model.name)
        if not machine.devices:
            raise EngineRefusalError("plotto needs a GPU")
        gpu = machine.devices[0]
        items = (
            MemoryItem(kind="weights", n_bytes=model.weights_bytes, basis="exact", label="weights"),
            MemoryItem(kind="runtime", n_bytes=gpu.runtime_bytes or 300 << 20, basis="assumed", label="CUDA context"),
        )
        use = DeviceUse(device=gpu, items=items, total_bytes=gpu.total_bytes, free_bytes=gpu.free_bytes)
        memory = account([use], [], machine)
        findings = () if memory.fits else (does_not_fit(memory),)
        return Plan(backend=self.name, fits=memory.fits, argv=argv, memory=memory, findings=findings)

    def check(self, command, model, machine, request=NOTHING_ASKED):
        return self.plan(command, model, machine, request)
