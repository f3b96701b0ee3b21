"""A configuration of Ray Serve LLM: an application of `ray.serve.llm`, for `serve run` and `serve deploy`.

Source: Ray 2.60, its classes LLMConfig and VLLMEngineConfig, and build_dp_openai_app.
"""

from __future__ import annotations

import os.path
import re
from typing import TYPE_CHECKING, Any

from autofit.errors import UsageError
from autofit.render.container import checked, commented, deployment_of
from autofit.render.yaml import dump

from autofit_vllm.command.config import at_home, given
from autofit_vllm.command.flags import flag_of

if TYPE_CHECKING:
    from autofit.domain.plan import Plan

#: Ray serves the API itself
_SERVER = re.compile(r"host|port|uds|uvicorn_.*|ssl_.*|root_path|api_key|api_server_count|middleware|grpc|config")
#: and says itself where the ranks are
_PLACES = re.compile(r"nnodes|node_rank|master_.*|headless|device_ids|data_parallel_(?!size$).*")
_BY_RAY = ("distributed_executor_backend", "ray")


def render(plan: Plan) -> str:
    """A configuration with the application.

    Raises:
        UsageError: a setting that Ray has for itself.
    """
    return commented(plan, dump(application(plan)))


def application(plan: Plan) -> dict[str, Any]:
    """One application with one model, under the name that the plan's command serves it by.

    Raises:
        UsageError: a setting that Ray has for itself.
    """
    paths = deployment_of(plan).paths
    whole = {path: os.path.abspath(path) for path in paths}  # noqa: PTH100
    values = given(plan)
    source = values.pop("model")
    own = os.path.basename(source.rstrip("/")) if source in paths else source  # noqa: PTH119
    names = values.pop("served_model_name", None) or [own]
    if len(names) > 1:
        raise UsageError("--served-model-name with several names: Ray serves a model by one", hint="leave one")
    kept = {name: value for name, value in values.items() if not _SERVER.fullmatch(name)}
    _check(kept)
    if "optimization_level" in kept:  # an enumeration of numbers, where no parser turns a text into one
        kept["optimization_level"] = int(kept["optimization_level"])
    model: dict[str, Any] = {
        "model_loading_config": {
            "model_id": names[0],
            "model_source": whole.get(source, source),
        },
        "engine_kwargs": at_home(kept, whole),
        "deployment_config": {"num_replicas": 1},
    }
    if kept.get("disable_log_stats"):
        model["log_engine_metrics"] = False
    environ = {name: checked(value) for name, value in sorted(plan.env.items()) if name.startswith("VLLM_")}
    if environ:
        model["runtime_env"] = {"env_vars": environ}
    replicas = kept.get("data_parallel_size", 1) > 1
    one = {
        "name": "llm",
        "route_prefix": "/",
        "import_path": f"ray.serve.llm:{'build_dp_openai_app' if replicas else 'build_openai_app'}",
        "args": {"llm_config": model} if replicas else {"llm_configs": [model]},
    }
    return {"applications": [one]}


def _check(values: dict[str, Any]) -> None:
    """Refuse what Ray decides itself.

    Raises:
        UsageError
    """
    stated = next((name for name in values if _PLACES.fullmatch(name)), None)
    if stated is not None:
        raise UsageError(f"{flag_of(stated)}: Ray places the ranks itself", hint=f"leave {flag_of(stated)} out")
    name, only = _BY_RAY
    if values.get(name, only) != only:
        raise UsageError(f"{flag_of(name)} {values[name]}: Ray Serve starts vLLM by Ray alone", hint="leave it out")
