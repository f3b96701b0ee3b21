"""Reads what autofit writes for other programs, with those programs; run by their own interpreters.

python read_formats.py ray|kserve|vllm|config FILE ...: prints what it read as JSON, fails at what they do not know.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import yaml


def ray(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The models of an application, by Ray's own classes."""
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    ServeDeploySchema.model_validate(document)
    arguments = [application["args"] for application in document["applications"]]
    models = [model for one in arguments for model in one.get("llm_configs") or [one["llm_config"]]]
    read = [LLMConfig.model_validate(model) for model in models]
    return [{"id": one.model_id, "settings": one.engine_kwargs} for one in read]


def kserve(document: dict[str, Any]) -> dict[str, Any]:
    """The object, each of whose names is one of the classes made from KServe's and Kubernetes' APIs."""
    import kserve

    check(document, kserve.V1beta1InferenceService)
    return document


def vllm(document: dict[str, Any]) -> dict[str, list[str]]:
    """In which arguments the settings of an application and the flags of a command differ, to vLLM itself."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    of_server = {field.name for field in dataclasses.fields(FrontendArgs)}
    flags = document["flags"]
    said = AsyncEngineArgs.from_cli_args(make_arg_parser(FlexibleArgumentParser()).parse_args(flags))
    settings = {name: value for name, value in document["settings"].items() if name not in of_server}
    given = AsyncEngineArgs(model=said.model, served_model_name=said.served_model_name, **settings)
    differing = [name for name in settings if str(getattr(said, name)) != str(getattr(given, name))]
    return {"differing": differing}


def config(document: dict[str, Any]) -> dict[str, list[str]]:
    """In which arguments a settings file and the flags of a command differ, to vLLM's own parser."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    said, given = (
        AsyncEngineArgs.from_cli_args(make_arg_parser(FlexibleArgumentParser()).parse_args(words))
        for words in (document["flags"], ["serve", "--config", document["file"]])
    )
    return {"differing": [name for name in vars(said) if repr(getattr(said, name)) != repr(getattr(given, name))]}


def check(value: Any, kind: Any, where: str = "") -> None:
    if not hasattr(kind, "attribute_map"):
        return
    names = {key: name for name, key in kind.attribute_map.items()}
    for key, inner in value.items():
        if key not in names:
            raise SystemExit(f"{where}.{key} is not of {kind.__name__}")
        named = kind.openapi_types[names[key]]
        is_list = named.startswith("list[")
        of = class_of(named.removeprefix("list[").removesuffix("]"))
        for item in inner if is_list else [inner]:
            check(item, of, f"{where}.{key}")


def class_of(name: str) -> Any:
    import kserve
    from kubernetes import client

    name = name.removeprefix("K8sIoApiAppsV1").removeprefix("K8sIoApiCoreV1") if name.startswith("K8sIo") else name
    return getattr(kserve, name, None) or getattr(client, name, None) or getattr(client, f"V1{name}", None)


if __name__ == "__main__":
    readers = {"ray": ray, "kserve": kserve, "vllm": vllm, "config": config}
    for path in sys.argv[2:]:
        with open(path) as file:  # noqa: PTH123
            print(json.dumps(readers[sys.argv[1]](yaml.safe_load(file))))
