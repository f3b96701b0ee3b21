"""Between autofit's values and the engine's arithmetic."""

from autofit.backend import Backend, ParsedCommand
from autofit.domain.plan import Plan
from autofit.domain.request import NOTHING_ASKED
from autofit.planning.accounting import account
from autofit.planning.decisions import argument, arguments, origin_of
from autofit.planning.findings import COMMON, does_not_fit, tell

from autofit_hearth import engine


class Hearth(Backend):
    name, engine, programs, formats = "hearth", "Hearth", ("hearth-serve",), ("safetensors",)
    supports = frozenset({"context", "margin", "device"})

    def parse(self, argv, env=None, *, version=None, model=None):
        flags = engine.read_flags(argv[1:])
        return ParsedCommand(program=argv[:1], model=flags.get("--model"), companions={}, settings=(argv, flags))

    def check(self, command, model, machine, request=NOTHING_ASKED):
        argv, flags = command.settings
        return plan_of(argv, engine.DEFAULTS | flags, [], model, machine, request)

    def plan(self, command, model, machine, request):
        argv, pinned = command.settings
        flags = engine.settle(pinned, model, machine, request)
        of_gpu = origin_of(request, "device", bool(request.device))
        of_context = origin_of(request, "context", bool(request.context))
        decisions = [
            argument("--model", [request.model_reference or model.name], "user", "as given", topic="model"),
            argument("--gpu", [str(flags["--gpu"])], of_gpu, "holds it all", topic="placement"),
            argument("--context", [str(flags["--context"])], of_context, "tokens of each slot", topic="context"),
        ]
        decisions = [decision for decision in decisions if decision.setting not in pinned]
        return plan_of((*argv, *arguments(decisions)), flags, decisions, model, machine, request)


def plan_of(argv, flags, decisions, model, machine, request):
    """The plan of a command whose flags are all settled."""
    use = engine.use_of(model, machine, flags, request)
    memory = account([use], engine.host_items(), machine)
    findings = [] if memory.fits else [does_not_fit(memory)]
    if findings and (longest := engine.longest_context(model, flags, use)):
        findings.append(tell(COMMON, "would-fit", f"--context {longest} fits"))
    return Plan(
        backend="hearth",
        fits=memory.fits,
        argv=argv,
        memory=memory,
        speed=engine.speed_of(model, machine, flags, use.device),
        context_tokens=flags["--context"],
        decisions=tuple(decisions),
        findings=tuple(findings),
    )
