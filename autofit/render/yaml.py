"""YAML as PyYAML writes it: the order of keys is kept, long lines are not broken."""

from __future__ import annotations

from typing import Any


def dump(*documents: Any) -> str:
    """Plain values as YAML documents."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    written = yaml.dump_all(documents, Dumper=Dumper, sort_keys=False, width=1 << 20, allow_unicode=True)
    return str(written)
