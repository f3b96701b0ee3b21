"""`hf:ORG/REPO[:QUANT or FILE][@REVISION]`, or that without a scheme: a repository of a hub, on disk or elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autofit.domain.model import ModelFiles, Offer
from autofit.domain.names import HubName, is_branch, is_file_name, parse_bare, parse_hub
from autofit.domain.patterns import lazy_pattern
from autofit.domain.text import printable
from autofit.domain.units import format_bytes
from autofit.domain.values import NamedTuple
from autofit.errors import CorruptModelError, ModelNotFoundError, RemoteError, UsageError
from autofit.files import read_bounded
from autofit.sources import hub_cache, scheme_of
from autofit.sources.choice import GgufModel, choose, is_model, models_of, sibling, split_name, with_file
from autofit.sources.folders import below

if TYPE_CHECKING:
    from autofit.remote.session import Session

ENDPOINT = "https://huggingface.co"
MAIN = "main"
PRESETS = "preset.ini"  #: of models that llama-server loads one by one, as asked (common/download.cpp)
MAX_PRESETS_BYTES = 1 << 16
MAX_LIST_BYTES = 1 << 24  #: of one page of a list
MAX_PAGES = 20  #: of 1,000 files each
MAX_FILES = 20_000
_TOKEN = lazy_pattern(r"[\x21-\x7e]{1,512}")
_NEXT = lazy_pattern(r'<([^<>]+)>\s*;\s*rel="?next"?')
_PRESET_MODEL = lazy_pattern(r"(?m)^[ \t]*(?:(?:hfr?|hf-repo|LLAMA_ARG_HF_REPO)[ \t]*=[ \t]*|\[)([^\s;#\]]{3,200})")
_COMMIT = lazy_pattern(r"[0-9a-f]{40}")


class Repository(NamedTuple):
    """The files of one revision of a repository: path -> (bytes, hash of the content). `branch` is the hub's own."""

    name: HubName
    files: Mapping[str, tuple[int, str]]
    branch: str

    @property
    def models(self) -> tuple[GgufModel, ...]:
        """Its GGUF models of which no shard is missing, in the order of their names."""
        return tuple(model for model in self.all_models if model.is_whole)

    @property
    def all_models(self) -> tuple[GgufModel, ...]:
        return models_of({path: size for path, (size, _) in self.files.items()})

    @property
    def is_checkpoint(self) -> bool:
        return any(path.endswith((".safetensors", ".safetensors.index.json")) for path in self.files)


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
    """The files of a repository: those on this disk, else those of the hub.

    Raises:
        ModelNotFoundError: it is not there, or has no such model. UsageError: no such name. RemoteError: the hub does
        not answer.
    """
    name = name_of(reference)
    if name is None:
        return None
    try:
        return find_name(reference, name)
    except (ModelNotFoundError, RemoteError) as error:
        if scheme_of(reference) is not None:
            raise
        # it may be a path with a slip in it
        raise type(error)(
            f"{printable(reference)}: no such file or directory; as a repository: {error.message}", hint=error.hint
        ) from error


def find_name(reference: str, name: HubName) -> ModelFiles:
    """The files of a repository by its name, as `find`."""
    return on_disk(reference, name) or elsewhere(reference, name)


# -- on this disk -------------------------------------------------------------------------------------------------


def on_disk(reference: str, name: HubName) -> ModelFiles | None:
    """The files of a repository that are on this disk, whole; `None` if they are not."""
    found = hub_cache.find_model(name, os.environ)
    if found is not None:
        snapshot, model = found
        projector = sibling(snapshot.files, model.files[0], "mmproj")
        beside = {"mmproj": snapshot.files[projector].path} if projector else {}
        return ModelFiles(
            reference=reference,
            paths=(snapshot.files[model.files[0]].path,),
            beside=beside,
            offers=_offers(name, snapshot.models),
            is_chosen=name.choice is not None,
        )
    here = hub_cache.find(name, os.environ)
    if here is not None and name.file is not None and name.file in here.files and not is_model(name.file):
        return ModelFiles(reference=reference, paths=(here.files[name.file].path,))
    if here is not None and name.choice is None and here.is_checkpoint and not here.models:
        return ModelFiles(reference=reference, paths=(str(here.directory),), written=name.written())
    plain = hub_cache.find_plain(name, os.environ) if name.revision is None else None
    return None if plain is None else ModelFiles(reference=reference, paths=(plain.path,))


# -- at the hub ---------------------------------------------------------------------------------------------------


def elsewhere(reference: str, name: HubName) -> ModelFiles:
    """The files of a repository at the hub.

    Raises:
        ModelNotFoundError: it is not there, or has no such model. RemoteError: the hub does not answer.
    """
    with session_of(name) as session:
        repository = list_repository(name, session)
        if name.file is not None and name.file in repository.files and with_file(repository.models, name.file) is None:
            return _remote(reference, repository, session, name.file)  # a projector, or a checkpoint's file
        if repository.models:
            return _gguf(reference, repository, session)
        if repository.is_checkpoint and name.choice is None:
            return _remote(reference, repository, session, "")
        if PRESETS in repository.files and name.choice is None:
            raise _presets(repository, session)
        raise _none(repository)


def session_of(name: HubName) -> Session:
    from autofit.remote.session import Session

    return Session(printable(name.repository, 60))


def endpoint_of(environ: Mapping[str, str]) -> str:
    """The hub's address: `MODEL_ENDPOINT`, `HF_ENDPOINT`, else Hugging Face (common.cpp:common_get_model_endpoint)."""
    return (environ.get("MODEL_ENDPOINT") or environ.get("HF_ENDPOINT") or ENDPOINT).rstrip("/")


def authorization_of(environ: Mapping[str, str]) -> str | None:
    """The header that carries the user's token: `HF_TOKEN`, else the file that logging in has made.

    Raises:
        UsageError: it is no token; it is not shown.
    """
    token = environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or ""
    where = "HF_TOKEN"
    if not token and environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").lower() not in ("1", "true", "yes", "on"):
        base = below(environ, {"HF_HOME": "", "XDG_CACHE_HOME": "huggingface"}, ".cache/huggingface")
        path = Path(environ.get("HF_TOKEN_PATH") or base / "token")
        where = printable(str(path))
        try:
            token = read_bounded(path, 4096).decode("ascii", "replace")
        except OSError:
            return None
    token = token.strip()
    if not token:
        return None
    if not _TOKEN.fullmatch(token):
        raise UsageError(f"{where}: what it holds is not a token", hint="log in again, or set HF_TOKEN")
    return f"Bearer {token}"


def list_repository(name: HubName, session: Session) -> Repository:
    """The files of a repository at the hub; the list is kept, and asked for again after an hour.

    Raises:
        ModelNotFoundError: there is no such repository or revision. RemoteError: the hub does not answer.
        CorruptModelError: what it answers is no list.
    """
    revision = name.revision or MAIN
    endpoint = endpoint_of(session.environ)
    key = f"list\0{endpoint}\0{name.repository}\0{revision}"
    fresh = {"fresh_s": float("inf")} if _COMMIT.fullmatch(revision) else {}
    found = session.remembered(key, lambda: _ask(name, endpoint, session), **fresh)
    branch, rows = found if isinstance(found, list) and len(found) == 2 else (None, [])
    branch = branch if isinstance(branch, str) and is_branch(branch) else revision
    return Repository(name, _files(rows, name), branch)


def url_of(name: HubName, file: str, environ: Mapping[str, str]) -> str:
    """Where a file of a repository can be read."""
    from urllib.parse import quote

    revision = quote(name.revision or MAIN, safe="")
    return f"{endpoint_of(environ)}/{name.repository}/resolve/{revision}/{quote(file)}"


def _ask(name: HubName, endpoint: str, session: Session) -> list[Any]:
    """Revision and lines of its list: of `main`, or where a hub calls it otherwise, of its first branch."""
    from autofit.remote.session import parse_document

    try:
        return [name.revision or MAIN, _ask_for_list(name, endpoint, session)]
    except ModelNotFoundError:
        if name.revision is not None or endpoint == ENDPOINT:
            raise
        url = f"{endpoint}/api/models/{name.repository}/refs"
        secret, label = authorization_of(session.environ), _label(name, endpoint)
        raw, _ = session.client.document(url, MAX_LIST_BYTES, authorization=secret, label=label)
        refs = parse_document(raw, name.written())
        branches = refs.get("branches") if isinstance(refs, dict) else None
        names = [each.get("name") for each in branches or () if isinstance(each, dict)]
        branch = next((each for each in names if isinstance(each, str) and is_branch(each)), None)
        if branch is None:
            raise
        return [branch, _ask_for_list(name._replace(revision=branch), endpoint, session)]


def _ask_for_list(name: HubName, endpoint: str, session: Session) -> list[Any]:
    from urllib.parse import quote, urljoin

    from autofit.remote.policy import origin_of, shown
    from autofit.remote.session import parse_document

    authorization = authorization_of(session.environ)
    revision = quote(name.revision or MAIN, safe="")
    url = f"{endpoint}/api/models/{name.repository}/tree/{revision}?recursive=true"
    rows: list[Any] = []
    for _ in range(MAX_PAGES):
        raw, headers = session.client.document(
            url, MAX_LIST_BYTES, authorization=authorization, label=_label(name, endpoint)
        )
        page = parse_document(raw, name.written())
        if not isinstance(page, list):
            raise CorruptModelError(
                name.written(),
                "the hub's answer is not a list of files",
                hint="try again later, or name the file by its URL",
            )
        rows += [_row(item) for item in page if isinstance(item, dict) and item.get("type") == "file"]
        following = _NEXT.search(headers.get("link", ""))
        if following is None or len(rows) > MAX_FILES:
            break
        target = urljoin(url, following[1])
        if origin_of(target) != origin_of(url):
            raise CorruptModelError(
                name.written(),
                f"the hub's list of files goes on at {shown(target)}, another server, which is not asked",
            )
        url = target
    return rows


def _label(name: HubName, endpoint: str) -> str:
    """What an error calls a repository: not the address of its list, which nobody has written."""
    from urllib.parse import urlsplit

    revision = f"@{name.revision}" if name.revision else ""
    return f"{name.repository}{revision} at {printable(urlsplit(endpoint).hostname or endpoint, 80)}"


def _row(item: Mapping[str, Any]) -> list[Any]:
    """Path, bytes and hash of a line of the hub's list, unchecked."""
    large = item.get("lfs")
    oid = large.get("oid") if isinstance(large, dict) else None
    return [item.get("path"), item.get("size"), oid or item.get("oid")]


def _files(rows: Any, name: HubName) -> dict[str, tuple[int, str]]:
    """The lines that make sense: a name that could lead elsewhere, or a size that is none, is no file."""
    files = {}
    for row in rows if isinstance(rows, list) else ():
        if not isinstance(row, list) or len(row) != 3:
            continue
        path, size, identity = row
        if not (isinstance(path, str) and is_file_name(path) and type(size) is int and 0 <= size < 1 << 60):
            continue
        if isinstance(identity, str) and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", identity):
            files[path] = (size, identity)
    if len(files) > MAX_FILES:
        raise CorruptModelError(name.written(), f"more than {MAX_FILES} files")
    return files


def _gguf(reference: str, repository: Repository, session: Session) -> ModelFiles:
    name, models = repository.name, repository.models
    model = with_file(models, name.file) if name.file else choose(models, name.quantization)
    if model is None and (inside := [m for m in models if m.files[0].startswith(f"{name.choice}/")]):
        model = choose(inside)  # the page of a folder was named
    if model is None:
        raise _none(repository)
    if name.choice is None and len(models) > 1:
        session.notes.append(
            f"{name.repository} has {len(models)} GGUF models; this is {model.files[0]}, which the engine takes where "
            f"none is named: {_quantizations(models)}"
        )
    projector = sibling(repository.files, model.files[0], "mmproj")
    beside = {"mmproj": name._replace(choice=projector).written()} if projector else {}
    found = _remote(reference, repository, session, model.files[0])
    from autofit.domain.values import replace

    written = _written(name, models, model, session.environ)
    offers, is_chosen = _offers(name, models), name.choice is not None
    return replace(found, written=written, beside=beside, offers=offers, is_chosen=is_chosen)


def _remote(reference: str, repository: Repository, session: Session, file: str) -> ModelFiles:
    """All files of a repository, of which `file`, or the whole of it, is the model."""
    from autofit.remote.files import Listed

    name = repository.name
    root, at = HubName(name.repository, None, name.revision).written(), name._replace(revision=repository.branch)
    listed = {
        path: Listed(url_of(at, path, session.environ), size, identity)
        for path, (size, identity) in repository.files.items()
    }
    storage = session.storage(root, listed, lambda: authorization_of(session.environ))
    return ModelFiles(
        reference=reference,
        paths=(f"{root}/{file}" if file else root,),
        storage=storage,
        written=name.written(),
        notes=tuple(session.notes),
    )


def _offers(name: HubName, models: Sequence[GgufModel]) -> tuple[Offer, ...]:
    """All models of a repository."""
    named = [(name._replace(choice=model.files[0]).written(), model) for model in models]
    return tuple(Offer(reference, model.quantization, model.size_bytes) for reference, model in named)


def _written(name: HubName, models: Sequence[GgufModel], model: GgufModel, environ: Mapping[str, str]) -> str:
    """How a command names one of several models: by quantization, where that is it; by file; else by address."""
    if name.revision is not None:
        return url_of(name, model.files[0], environ)
    for word in (name.quantization, model.quantization):
        if word and choose(models, word) == model:
            return HubName(name.repository, word).written()
    return HubName(name.repository, model.files[0]).written()


def _presets(repository: Repository, session: Session) -> ModelNotFoundError:
    """The error for a repository of presets, with the models that they name."""
    files = _remote("", repository, session, PRESETS)
    assert files.storage is not None
    try:
        with files.storage.open(files.paths[0]) as file:
            text = file.read(0, MAX_PRESETS_BYTES).decode("utf-8", "replace")
    finally:
        files.storage.close()
    named = [name for word in _PRESET_MODEL.findall(text) if (name := parse_bare(word)) is not None]
    models = ", ".join(name.written().removeprefix("hf:") for name in dict.fromkeys(named[:12])) or "none by -hf"
    return ModelNotFoundError(
        f"{repository.name.repository}: no model, but {PRESETS}, which names several that are served in turn",
        hint=f"plan for one of them: {models}",
    )


def _none(repository: Repository) -> ModelNotFoundError:
    name, models = repository.name, repository.models
    if models and name.choice is not None:
        return ModelNotFoundError(
            f"{name.repository}: no model {printable(name.choice, 80)}", hint=f"it has {_quantizations(models)}"
        )
    if parts := [model for model in repository.all_models if not model.is_whole]:
        file = parts[0].files[0]
        n_shards = split_name(file).n_shards
        return ModelNotFoundError(
            f"{name.written()}: {printable(file, 80)} is one of {n_shards} shards, and not all are there",
            hint="wait until all of them are uploaded, or name another repository",
        )
    if any(path.endswith((".bin", ".pt", ".pth")) for path in repository.files):
        return ModelNotFoundError(f"{name.repository}: only pickled weights (.bin, .pt)", hint="name a converted one")
    found = ", ".join(printable(path, 60) for path in list(repository.files)[:6]) or "no files"
    return ModelNotFoundError(f"{name.written()}: no GGUF and no safetensors model", hint=f"it has {found}")


def _quantizations(models: Sequence[GgufModel]) -> str:
    words = [
        f"{printable(model.quantization or model.files[0], 60)} ({format_bytes(model.size_bytes)})"
        for model in sorted(models, key=lambda model: model.size_bytes)
    ]
    return ", ".join(words[:40]) + (f" and {len(words) - 40} more" if len(words) > 40 else "")
