"""A Dockerfile whose image starts the plan. Source: the Dockerfile reference of BuildKit 0.25."""

from __future__ import annotations

import json

from autofit.domain.plan import Plan
from autofit.render.container import commented, container_of


def render(plan: Plan) -> str:
    """`FROM` the engine's image with the command; folders of models are mounted when it is started.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    rows = [f"# docker run with -v {json.dumps(f'{source}:{target}:ro')}" for source, target in container.mounts]
    rows += [f"FROM {container.image}"]
    rows += [f"ENV {name}={json.dumps(value).replace('$', chr(92) + '$')}" for name, value in container.environ.items()]
    rows += [f"EXPOSE {container.port}", f"CMD {json.dumps(list(container.words), ensure_ascii=False)}"]
    return commented(plan, "\n".join(rows))
