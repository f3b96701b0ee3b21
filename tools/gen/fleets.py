"""Write what each format makes of tests/data/fleets/fleet.toml, beside it.

    python tools/gen/fleets.py [--check]

In the files, /autofit is the repository. Of JSON the plan of each model is left out: it is that of `autofit.plan`.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import autofit
from autofit.domain.fleet import FleetPlan
from autofit.host import host, resolve

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests/data/fleets"


def plan() -> FleetPlan:
    text = (FOLDER / "fleet.toml").read_text(encoding="utf-8").replace("@ROOT@", str(ROOT))
    return autofit.fleet(tomllib.loads(text), settings=None)


def files(fleet: FleetPlan) -> Iterator[tuple[str, str]]:
    """(path below the folder, text) of every format that fleets have."""
    for form, ref in sorted(host().renderers().items()):
        for path, text in resolve(ref.fleet)(fleet) if ref.fleet else ():
            if form == "json":
                document = json.loads(text)
                document["models"] = [{**one, "plan": {}} for one in document["models"]]
                text = json.dumps(document, indent=1)
            yield f"{form}/{path}", text.replace(str(ROOT), "/autofit").rstrip("\n") + "\n"


def main() -> int:
    made = dict(files(plan()))
    there = {str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*")}
    stale = sorted(there - made.keys())
    stale += [path for path, text in made.items()
              if not (FOLDER / path).is_file() or (FOLDER / path).read_text(encoding="utf-8") != text]  # fmt: skip
    if "--check" in sys.argv[1:]:
        print("\n".join(f"{path} is not what is made now" for path in stale))
        return 1 if stale else 0
    for path in stale:
        (FOLDER / path).unlink(missing_ok=True)
        if path in made:
            (FOLDER / path).parent.mkdir(exist_ok=True)
            (FOLDER / path).write_text(made[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
