"""YAML as PyYAML writes it: the order of keys is kept, long lines are not broken."""

from __future__ import annotations

from typing import Any


def dump(*documents: Any) -> str:
    """Plain values as YAML documents."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        style = "|" if value.endswith("\n") else None  # a document within the document
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    written = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=1 << 20, allow_unicode=True)
    return str(written)
