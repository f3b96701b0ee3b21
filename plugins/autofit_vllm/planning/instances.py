"""Several instances of one model behind a router: copies, or some that read prompts for others that decode.

An instance has a machine of its own, and is planned as on that machine alone. NixlConnector hands the KV cache over
between them: it registers the cache where it lies and copies page by page, so that neither side takes memory of a GPU
for it (distributed/kv_transfer/kv_connector/v1/nixl/base_worker.py:register_kv_caches; what NIXL itself takes is not
known). Both sides agree in their types of numbers and cache and in their attention backends, and decode no pipeline
stages (kv_connector/v1/nixl/metadata.py:compute_nixl_compatibility_hash). Router: vllm-router 0.1.17.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from autofit.backend import Backend
from autofit.domain.machine import HOST_POOL, Machine, Node
from autofit.domain.memory import Memory, PoolUse
from autofit.domain.plan import Finding, NodeCommand, Plan, Role
from autofit.domain.request import Request
from autofit.domain.servers import format_link
from autofit.domain.units import format_bytes, format_rate
from autofit.domain.values import NamedTuple, dataclass, replace
from autofit.errors import EngineRefusalError, UsageError
from autofit.speed.network import NODE_BYTES_PER_S

from autofit_vllm.command.flags import flag_of
from autofit_vllm.command.settings import VllmSettings
from autofit_vllm.config.cluster import groups_of
from autofit_vllm.planning.codes import finding

if TYPE_CHECKING:
    from autofit_vllm.planning.report import InstancesDocument

ROUTER, ROUTER_PORT = "vllm-router", 30000
SIDE_CHANNEL = "VLLM_NIXL_SIDE_CHANNEL_HOST"  #: where the other side asks for what is registered
#: what both sides of a transfer have alike, by its name in the report
_ALIKE = ("dtype", "kv_cache_dtype", "attention_backends")
_OWN = ("nnodes", "node_rank", "headless", "data_parallel_size_local", "data_parallel_rank")
Make = Callable[[Machine, Request], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A machine's plan, and where it is reached."""

    name: str
    address: str
    plan: Plan
    link_bytes_per_s: int | None
    port: int = Backend.port

    @property
    def rate(self) -> int:
        """Bytes per second over the network, one way."""
        return self.link_bytes_per_s or NODE_BYTES_PER_S

    @property
    def figures(self) -> Mapping[str, Any]:
        return self.plan.engine_report


def wishes_instances(request: Request) -> bool:
    return request.replicas is not None or request.disaggregate is not None


def plan_instances(machine: Machine, settings: VllmSettings, request: Request, make: Make) -> Plan:
    """The plan of all instances: their pools, their commands and the router's, and what they serve together.

    `make` plans on the machine that it is given.

    Raises:
        UsageError: too few machines, flags that say where ranks are, or machines whose plans do not go together.
        EngineRefusalError: vLLM would refuse an instance.
    """
    _check(settings, request)
    machines = _machines(machine, request)
    asked = request if request.disaggregate is None else _of_requests(request, *request.disaggregate)
    made: dict[object, tuple[Machine, Plan]] = {}
    found: list[Instance] = []
    for node, alone in machines:
        kind = _kind(alone)
        if kind not in made:
            made[kind] = (alone, make(alone, asked))
        first, plan = made[kind]
        if not plan.fits:
            return plan
        port = settings.given.get("port")
        found.append(
            Instance(
                name=node.name,
                address=node.address or node.name,
                plan=_moved(plan, first, alone),
                link_bytes_per_s=node.link_bytes_per_s,
                port=port if isinstance(port, int) else Backend.port,
            )
        )
    _check_alike(found, request)
    return _copies(found, machine) if request.disaggregate is None else _split(found, *request.disaggregate)


def _check(settings: VllmSettings, request: Request) -> None:
    option = "--replicas" if request.disaggregate is None else "--disaggregate"
    if request.replicas is not None and request.disaggregate is not None:
        raise UsageError("--replicas and --disaggregate contradict each other", hint="name one")
    given = next((name for name in _OWN if settings.pins(name)), None)
    if given is not None:
        raise UsageError(f"{flag_of(given)} says where the ranks of one copy are, and {option} starts several")
    if request.disaggregate is not None and settings.pins("kv_transfer_config"):
        raise UsageError("--disaggregate says itself how instances hand over their caches", hint="leave one out")


def _machines(machine: Machine, request: Request) -> list[tuple[Node, Machine]]:
    """Each machine as if there were no others, and what it is called."""
    groups = groups_of(machine)
    count = request.replicas or len(groups)
    if len(groups) < 2 or count < 2:
        raise UsageError(
            "instances behind a router need two machines or more",
            hint="describe them: --nodes 4, or --on several times; on one machine replicas are -- -dp N",
        )
    if count > len(groups):
        raise EngineRefusalError(f"{count} replicas are asked for, and {len(groups)} machines with GPUs are described")
    link = next((node.link_bytes_per_s for node in machine.nodes if node.link_bytes_per_s), None)
    found = []
    for node, devices in groups[:count]:
        ids = {device.id for device in devices}
        host = machine.host if node is None or node.host is None else node.host
        alone = replace(
            machine,
            host=host,
            devices=tuple(replace(device, node="") for device in devices),
            links=tuple(one for one in machine.links if one.a in ids and one.b in ids),
            nodes=(),
            node=None,
        )
        own = node or machine.node or Node(name="node0")
        found.append((replace(own, link_bytes_per_s=own.link_bytes_per_s or link), alone))
    return found


def _of_requests(request: Request, prompt: int, output: int) -> Request:
    """Every instance holds such a request, and caches hold one that is half answered on average."""
    least = max(request.min_context or 1, prompt + output)
    return replace(request, min_context=least, mean_tokens=prompt + output // 2)


def _kind(alone: Machine) -> object:
    """Machines of one kind have one plan."""
    return tuple(replace(one, id="", pool="", uuid=None) for one in alone.devices), alone.host


def _moved(plan: Plan, first: Machine, there: Machine) -> Plan:
    """A plan of one machine on another of its kind."""
    names = dict(zip((one.id for one in first.devices), (one.id for one in there.devices), strict=True))

    def there_of(pool: PoolUse) -> PoolUse:
        limits = tuple(replace(limit, id=names.get(limit.id, limit.id)) for limit in pool.limits)
        return replace(pool, id=names.get(pool.id, pool.id), limits=limits)

    return replace(plan, memory=Memory(pools=tuple(map(there_of, plan.memory.pools))))


def _check_alike(found: Sequence[Instance], request: Request) -> None:
    """A router sends any request anywhere, and a cache is read as it was written.

    Raises:
        UsageError
    """
    names = ("max_model_len",) if request.disaggregate is None else ("max_model_len", *_ALIKE)
    for name in names:
        first, other = found[0], next((one for one in found if one.figures[name] != found[0].figures[name]), None)
        if other is not None:
            hint = "-c states a context that all have" if name == "max_model_len" else "--kv and -- --dtype state them"
            raise UsageError(
                f"{first.name} and {other.name} would have {name} {first.figures[name]} and {other.figures[name]}",
                hint=hint,
            )
    staged = next((one for one in found if one.figures["pipeline_parallel_size"] > 1), None)
    if request.disaggregate is not None and staged is not None:
        n = staged.figures["pipeline_parallel_size"]
        raise UsageError(
            f"{staged.name} would have {n} pipeline stages, and NixlConnector takes none where it decodes",
            hint="state a size that the heads allow: -- -tp N -pp 1",
        )


def _copies(found: Sequence[Instance], machine: Machine) -> Plan:
    """All alike: any request goes to any."""
    rates = [float(one.figures.get("total_tokens_per_s") or 0) for one in found]
    total = math.fsum(rates) if all(rates) else None
    message = f"{len(found)} copies behind a router, each on a machine of its own"
    if total is not None:
        message += f": ~{format_rate(total)} tokens/s in all where it shares requests evenly"
    left = len(groups_of(machine)) - len(found)
    findings = [finding("instances", message)]
    if left:
        findings.append(
            finding("idle-nodes", f"{left} of {left + len(found)} machines {'is' if left == 1 else 'are'} not used")
        )
    report: InstancesDocument = {
        "replicas": len(found),
        "total_tokens_per_s": None if total is None else round(total, 1),
    }
    urls = [_url(one) for one in found]
    nodes = [_command(one, "replica") for one in found]
    return _joined(found, [*nodes, _router(found, ("--worker-urls", *urls))], findings, report)


def _split(found: Sequence[Instance], prompt: int, answer: int) -> Plan:
    """As many that read prompts as let most requests through: first those that are best at it beside decoding."""
    rates = {one.name: _rates(one, answer) for one in found}
    order = sorted(found, key=lambda one: -rates[one.name].prompts / rates[one.name].answers)
    splits = [_throughput(rates, order[:n], order[n:]) for n in range(1, len(order))]
    best = max(splits, key=lambda one: one["requests_per_s"])
    readers, writers = (sorted(side, key=found.index) for side in (order[: best["prefill"]], order[best["prefill"] :]))
    n_bytes = max(one.figures["kv_bytes_per_prompt"] for one in writers)
    seconds = n_bytes / min(one.rate for one in found)
    report: InstancesDocument = {
        **best,
        "kv_bytes_per_prompt": n_bytes,
        "kv_seconds_per_prompt": round(seconds, 4),
        "first_token_seconds": round(max(one.figures["prompt_seconds"] for one in readers) + seconds, 3),
        "requests_per_s_as_copies": round(math.fsum(1 / (1 / r.prompts + 1 / r.answers) for r in rates.values()), 6),
    }
    urls = [("--prefill", _url(one)) for one in readers] + [("--decode", _url(one)) for one in writers]
    router = ("--vllm-pd-disaggregation", "--kv-connector", "nixl", *(word for pair in urls for word in pair))
    nodes = [_command(one, "prefill") for one in readers] + [_command(one, "decode") for one in writers]
    told = [finding("instances", _told(report, prompt, answer, found))]
    return _joined([*readers, *writers], [*nodes, _router(found, router)], told, report)


class Rates(NamedTuple):
    """Requests per second of an instance that does one thing."""

    prompts: float
    answers: float
    transfers: float


def _rates(one: Instance, answer: int) -> Rates:
    prompts, tokens = one.figures.get("prompts_per_s"), one.figures.get("total_tokens_per_s")
    if not prompts or not tokens:
        raise UsageError(
            f"the rates of {one.name} are not known, from which follows how many read prompts",
            hint="--replicas plans copies that do both",
        )
    return Rates(prompts, tokens / answer, one.rate / max(1, one.figures["kv_bytes_per_prompt"]))


def _throughput(
    rates: Mapping[str, Rates], readers: Sequence[Instance], writers: Sequence[Instance]
) -> InstancesDocument:
    """Requests per second that each part lets through: the slowest decides."""
    prompts = math.fsum(rates[one.name].prompts for one in readers)
    answers = math.fsum(rates[one.name].answers for one in writers)
    transfers = min(math.fsum(rates[one.name].transfers for one in side) for side in (readers, writers))
    return {
        "prefill": len(readers),
        "decode": len(writers),
        "requests_per_s": round(min(prompts, answers, transfers), 6),
        "prompts_per_s": round(prompts, 6),
        "answers_per_s": round(answers, 6),
        "transfers_per_s": round(transfers, 6),
    }


def _told(report: InstancesDocument, prompt: int, answer: int, found: Sequence[Instance]) -> str:
    n, m = report["prefill"], report["decode"]
    parts = ", ".join(f"{name} ~{report[key]:.3g}" for name, key in _PARTS)
    message = f"{n} machine{'s read' if n > 1 else ' reads'} prompts, {m} decode{'s' if m == 1 else ''}: of requests of"
    message += f" {prompt:,} + {answer:,} tokens ~{report['requests_per_s']:.3g} a second ({parts})"
    message += f"; each hands over {format_bytes(report['kv_bytes_per_prompt'])} of KV cache in"
    message += f" ~{report['kv_seconds_per_prompt']:.2g} s at {format_link(min(one.rate for one in found))}"
    message += " (assumed: --link states it)" if any(one.link_bytes_per_s is None for one in found) else ""
    message += f"; first token after ~{report['first_token_seconds']:.2g} s; {len(found)} copies that do both answer"
    return f"{message} ~{report['requests_per_s_as_copies']:.3g} a second. No such run stands behind these rates"


_PARTS: Sequence[tuple[str, Literal["prompts_per_s", "answers_per_s", "transfers_per_s"]]] = (
    ("prompts", "prompts_per_s"),
    ("answers", "answers_per_s"),
    ("network", "transfers_per_s"),
)
_ROLES: Mapping[Role, str] = {"prefill": "kv_producer", "decode": "kv_consumer"}


def _command(one: Instance, role: Role) -> NodeCommand:
    """What a machine starts for its instance."""
    argv, env = one.plan.argv, one.plan.env
    if role in _ROLES:
        own = ("--kv-transfer-config.kv_connector", "NixlConnector", "--kv-transfer-config.kv_role", _ROLES[role])
        argv, env = (*argv, *own), {SIDE_CHANNEL: one.address, **env}
    n_devices = sum(pool.id != HOST_POOL for pool in one.plan.memory.pools) or 1
    return NodeCommand(node=one.name, role=role, commands=(argv,), env=env, n_devices=n_devices)


def _url(one: Instance) -> str:
    host = f"[{one.address}]" if ":" in one.address else one.address
    return f"http://{host}:{one.port}"


def _router(found: Sequence[Instance], words: Sequence[str]) -> NodeCommand:
    """On any machine that reaches the others: it needs no GPU."""
    name = "router"
    while name in {one.name for one in found}:
        name += "-"
    command = (ROUTER, "--host", "0.0.0.0", "--port", str(ROUTER_PORT), *words)  # noqa: S104 - what it starts with
    return NodeCommand(node=name, role="router", commands=(command,))


def _joined(
    found: Sequence[Instance], nodes: Sequence[NodeCommand], findings: Sequence[Finding], report: InstancesDocument
) -> Plan:
    """The first instance's plan, with the pools of all: RAM is that of the machine with least left."""
    first = found[0].plan
    pools = [pool for one in found for pool in one.plan.memory.pools if pool.id != HOST_POOL]
    hosts = [replace(one.plan.memory.pool(HOST_POOL), id=f"{one.name}/{HOST_POOL}") for one in found]
    if any(host.limits for host in hosts):  # GPUs of this memory: each machine's is shown
        pools += hosts[1:]
        last = hosts[0]
    else:
        last = min(hosts, key=lambda host: math.inf if host.room_bytes is None else host.room_bytes)
    told = [one for one in first.findings if one.code not in ("idle-nodes", "nodes")]
    return replace(
        first,
        argv=nodes[0].commands[-1],
        env=nodes[0].env,
        memory=Memory(pools=(*pools, replace(last, id=HOST_POOL))),
        nodes=tuple(nodes),
        findings=(*findings, *told),
        engine_report={**first.engine_report, "instances": report},
    )
