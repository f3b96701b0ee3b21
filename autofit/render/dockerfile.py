"""A Dockerfile whose image starts the plan. Source: the Dockerfile reference of BuildKit 0.25."""

from __future__ import annotations

import json
from collections.abc import Iterator

from autofit.domain.plan import Plan
from autofit.render.container import SHARED_MEMORY_BYTES, Container, commented, container_of
from autofit.text import shell


def render(plan: Plan) -> str:
    """`FROM` the engine's image with the command; folders of models are mounted when it is started.

    Raises:
        UsageError: no image is known.
    """
    container = container_of(plan)
    rows = [f"# docker run with {words}" for words in _started(container)]
    rows += [f"FROM {container.image}"]
    rows += [f"ENV {name}={_quoted(value)}" for name, value in container.environ.items()]
    rows += [f"EXPOSE {container.port}", f"CMD {json.dumps(list(container.words), ensure_ascii=False)}"]
    return commented(plan, "\n".join(rows))


def _quoted(value: str) -> str:
    """A value of `ENV`, in which `$` would name a variable."""
    return json.dumps(value, ensure_ascii=False).replace("$", "\\$")


def _mount(source: str, target: str) -> str:
    """A folder as `docker run` takes it: `-v` would end it at a colon, and `--mount` reads a line of CSV."""
    if ":" not in source:
        return f"-v {shell.word(f'{source}:{target}:ro')}"
    field = f"source={source}"
    if set(field) & set(',"'):
        field = '"' + field.replace('"', '""') + '"'
    return f"--mount {shell.word(f'type=bind,{field},target={target},readonly')}"


def _started(container: Container) -> Iterator[str]:
    """What `docker run` is told beside the image: it is not the image's own."""
    yield from (_mount(source, target) for source, target in container.mounts)
    if container.n_gpus and container.api == "cuda":
        ids = ",".join(container.device_ids)
        yield f"--gpus '\"device={ids}\"'" if ids else f"--gpus {container.n_gpus}"
    elif container.n_gpus:
        yield "--device /dev/kfd --device /dev/dri" if container.api == "rocm" else "--device /dev/dri"
    if container.shares_memory:
        yield f"--shm-size {SHARED_MEMORY_BYTES}"
    yield f"-p {container.port}:{container.port}"
