"""What a llama-swap configuration lets be loaded at once, read back as a fleet: groups, matrices, what is neither."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import autofit
import pytest
import yaml
from autofit.cli.main import main
from autofit.deployments.swap_sets import MAX_SETS, sets
from autofit.errors import UsageError
from autofit.text.yaml import documents

from support import TINY


def sets_of(config: dict[str, Any]) -> set[frozenset[str]]:
    (document,) = documents(yaml.safe_dump(config, sort_keys=False))
    return set(sets(document))


def of(*names: str, **more: Any) -> dict[str, Any]:
    return {"models": {name: {"cmd": "x"} for name in names}, **more}


def some(*words: str) -> set[frozenset[str]]:
    return {frozenset(word.split()) for word in words}


def test_without_groups_one_model_is_loaded_at_a_time() -> None:
    assert sets_of(of("a", "b")) == some("a", "b")


def test_a_group_beside_what_is_in_none() -> None:
    forever = {"swap": False, "exclusive": False, "persistent": True, "members": ["a", "b"]}
    assert sets_of(of("a", "b", "c", "d", groups={"g": forever})) == some("a b c", "a b d")
    assert sets_of(of("a", "b", "c", "d", groups={"g": {**forever, "swap": True}})) == some("a c", "a d", "b c", "b d")
    closed = {"swap": False, "members": ["a", "b"]}
    assert sets_of(of("a", "b", "c", routing={"router": {"settings": {"groups": {"g": closed}}}})) == some("a b", "c")


def loaded(groups: dict[str, Any], names: list[str], seed: int) -> set[frozenset[str]]:
    """All that requests in any order lead to, by the rule of internal/router/group.go:EvictionFor."""
    group_of = {name: key for key, one in groups.items() for name in one["members"]}
    reached, waiting = {frozenset[str]()}, [frozenset[str]()]
    while waiting:
        running = waiting.pop()
        for target in names:
            own = groups[group_of[target]]
            gone = {
                name
                for name in running - {target}
                if (own["swap"] if group_of[name] == group_of[target] else
                    own["exclusive"] and not groups[group_of[name]]["persistent"])
            }  # fmt: skip
            after = running if target in running else (running - gone) | {target}
            if after not in reached:
                reached.add(after)
                waiting.append(after)
    return reached


@pytest.mark.parametrize("seed", range(40))
def test_groups_of_every_kind_against_the_rule_that_they_follow(seed: int) -> None:
    rng = random.Random(seed)
    names = list("abcdef")[: rng.randint(2, 6)]
    cuts = sorted(rng.sample(range(1, len(names)), min(len(names) - 1, rng.randint(0, 3))))
    parts = [names[i:j] for i, j in zip([0, *cuts], [*cuts, len(names)], strict=True)]
    flags = ("swap", "exclusive", "persistent")
    groups = {
        f"g{i}": {**{flag: rng.random() < 0.5 for flag in flags}, "members": part} for i, part in enumerate(parts)
    }
    reached = loaded(groups, names, seed)
    largest = {one for one in reached if not any(one < other for other in reached)}
    assert sets_of(of(*names, groups=groups)) == largest


def test_a_matrix() -> None:
    matrix = {
        "vars": {"x": "a"},
        "sets": {"llms": "x | b", "all": "+llms & (c | d & e)", "one": "e"},
    }
    expected = some("a c", "b c", "a d e", "b d e", "f")
    assert sets_of(of(*"abcdef", matrix=matrix)) == expected
    router = {"use": "matrix", "settings": {"matrix": matrix, "groups": {"g": {"members": ["a"]}}}}
    assert sets_of(of(*"abcdef", routing={"router": router})) == expected


@pytest.mark.parametrize(
    ("expressions", "cause"),
    [
        ({"s": "a &"}, "'its end' is not expected"),
        ({"s": "a b"}, "'b' is not expected"),
        ({"s": "(a"}, "'its end' is not expected"),
        ({"s": "zz"}, "'zz' is not expected"),
        ({"s": "+s"}, "'\\+s' is not expected"),
        ({"s": "+t", "t": "+s"}, "'\\+s' is not expected"),
        ({"s": "+none"}, "'\\+none' is not expected"),
        ({"s": ""}, "'its end' is not expected"),
        ({"s": "(" * 60 + "a" + ")" * 60}, "nested deeper than 50"),
        ({f"s{i}": f"+s{i + 1} & (a | b)" for i in range(30)} | {"s30": "a"}, ""),
        ({"s": " & ".join(f"({' | '.join(chr(97 + i + j) for j in range(9))})" for i in range(12))}, "more than"),
    ],
)  # fmt: skip
def test_expressions_that_are_none_or_too_large(expressions: dict[str, str], cause: str) -> None:
    config = of(*map(chr, range(97, 123)), matrix={"vars": {"v": "a"}, "sets": expressions})
    if not cause:
        assert frozenset("ab") in sets_of(config)
        return
    with pytest.raises(UsageError, match=f"line \\d+.*{cause}"):
        sets_of(config)


def test_groups_of_more_sets_than_are_looked_at() -> None:
    names = [f"m{i}" for i in range(60)]
    groups = {f"g{i}": {"exclusive": False, "members": names[4 * i : 4 * i + 4]} for i in range(15)}
    with pytest.raises(UsageError, match=f"more than {MAX_SETS} sets"):
        sets_of(of(*names, groups=groups))


# -- as a fleet ------------------------------------------------------------------------------------------------


def fleet_json(path: Path, capsys: pytest.CaptureFixture[str], on: str = "2x rtx-3090") -> dict[str, Any]:
    code = main(["fleet", str(path), "--on", on, "--ram", "64GiB", "--format", "json"])
    out = capsys.readouterr()
    found: dict[str, Any] = json.loads(out.out)
    assert code == (0 if found["fits"] else 3)
    return {**found, "said": out.err}


@pytest.mark.parametrize("apart", [False, True])
def test_what_a_fleet_prints_is_read_back(apart: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Groups, and a matrix where groups cannot say it."""
    phases = [["a", "b"], ["b", "c"], ["a", "c"]] if apart else [["a"], ["b"], ["c"]]
    rows = [{"name": f"m{i}", "model": str(TINY), "context": f"{i + 1}k", "phases": p} for i, p in enumerate(phases)]
    rows.append({"name": "all", "model": str(TINY), "context": "512"})
    on = autofit.load_machine("2x rtx-3090", ram="64GiB")
    plan = autofit.fleet({"phases": ["a", "b", "c"], "model": rows}, on, settings=None)
    from autofit.render.swap import render_fleet

    ((path, text),) = render_fleet(plan)
    assert ("matrix:" in text) == apart
    (tmp_path / path).write_text(text)
    found = fleet_json(tmp_path / path, capsys)
    assert {frozenset(one) for one in found["sets"]} == {frozenset(one) for one in plan.sets}
    assert len({one["port"] for one in found["models"]}) == len(rows)
    weights = {one.name: [p.sum_bytes("weights") for p in one.plan.memory.pools] for one in plan.placements}
    for one in found["models"]:
        assert [pool["weights_bytes"] for pool in one["plan"]["pools"]] == weights[one["name"]]


def test_a_configuration_that_does_not_fit_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cmd = "llama-server -m example:llama-3.1-8b-q4_k_m -ngl 99 -c 65536 --port ${PORT}"
    models = {"Org/one:8b": {"cmd": cmd}, "two": {"cmd": cmd}, "hear": {"cmd": "whisper-server --port ${PORT}"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    alone = fleet_json(path, capsys, "rtx-3090")
    assert alone["fits"] and [one["name"] for one in alone["models"]] == ["Org-one-8b", "two"]
    assert "hear: no engine that is known starts it: its memory does not count" in alone["said"]
    together = {"g": {"swap": False, "members": list(models)}}
    path.write_text(yaml.safe_dump({"models": models, "groups": together}))
    assert fleet_json(path, capsys, "rtx-3090")["left_out"] == ["two"]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("models: {}", "no model of llama-swap"),
        ("a: b", "no model of llama-swap"),
        ("a: [", "not YAML"),
        ("models: {a: {cmd: 'llama-server -m ${gone}.gguf'}}", "a: .*gone.* is not set here"),
        ("models: {a: {cmd: 'x'}}", "no model of llama-swap"),
    ],
)
def test_what_is_no_configuration(text: str, cause: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert main(["fleet", str(tmp_path / "c.yaml"), "--on", "cpu", "--ram", "8GiB"]) == 2
    import re

    assert re.search(cause, capsys.readouterr().err)
