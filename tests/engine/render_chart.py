"""Renders a chart with a file of values as Helm does, by Helm's own library; run by the interpreter that has it.

python render_chart.py CHART VALUES RELEASE: the manifests, one after the other; fails where the chart's schema refuses.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(chart: str, values: str, release: str) -> None:
    import helm_python

    with helm_python.Chart.load(chart) as loaded:
        given = json.loads(Path(values).read_text())  # numbers come as those of `-f`: Helm reads YAML by way of JSON
        loaded.validate_schema(given)
        for text in loaded.render(given, name=release, namespace="default").values():
            print("---")
            print(text)


main(*sys.argv[1:])
