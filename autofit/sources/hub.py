"""`hf:ORG/REPO[:QUANT or FILE][@REVISION]`, or that without a scheme: a repository of a hub."""

from __future__ import annotations

import os

from autofit.domain.model import ModelFiles
from autofit.domain.names import HubName, parse_bare, parse_hub
from autofit.domain.text import printable
from autofit.errors import UsageError
from autofit.sources import hub_cache, scheme_of


def name_of(reference: str) -> HubName | None:
    """The repository that a reference names; `None`: it is a path.

    Raises:
        UsageError: a name with the scheme that is none.
    """
    if scheme_of(reference) is None:
        return parse_bare(reference)
    name = parse_hub(reference.partition(":")[2])
    if name is None:
        raise UsageError(
            f"{printable(reference)}: not a name of a repository",
            hint="write hf:ORG/REPO, hf:ORG/REPO:QUANT or hf:ORG/REPO:FILE, with @REVISION behind it if need be",
        )
    return name


def find(reference: str) -> ModelFiles | None:
    """The files of a repository.

    Raises:
        ModelNotFoundError: it is not there, or has no such model. UsageError: no such name.
    """
    name = name_of(reference)
    if name is None:
        return None
    return on_disk(reference, name)


def on_disk(reference: str, name: HubName) -> ModelFiles | None:
    """The files of a repository that are on this disk, whole; `None` if they are not."""
    found = hub_cache.find_model(name, os.environ)
    if found is not None:
        snapshot, model = found
        return ModelFiles(reference=reference, paths=(snapshot.files[model.files[0]].path,))
    here = hub_cache.find(name, os.environ)
    if here is not None and name.choice is None and here.is_checkpoint and not here.models:
        return ModelFiles(reference=reference, paths=(str(here.directory),), written=name.written())
    plain = hub_cache.find_plain(name, os.environ) if name.revision is None else None
    return None if plain is None else ModelFiles(reference=reference, paths=(plain.path,))
