"""Plans over several machines: how many are taken, whose memory rules, what each starts, and what the network costs."""

from __future__ import annotations

import autofit
import pytest
from autofit.domain.plan import Plan
from autofit.errors import EngineRefusalError

from support import DATA

CONFIGS = DATA / "vllm/configs"
A3 = "gcp-a3-highgpu-8g"


def plan(config: str, *on: str, **options: object) -> Plan:
    return autofit.plan("vllm", str(CONFIGS / config), on=list(on), **options)  # type: ignore[arg-type]


def told(plan: Plan, code: str) -> str:
    return next((one.message for one in plan.findings if one.code == code), "")


def test_as_few_machines_as_hold_it() -> None:
    found = plan("deepseek-v3", f"4x{A3}")
    assert found.fits and found.engine_report["pipeline_parallel_size"] == 2
    assert [one.node for one in found.nodes] == ["node0", "node1"]
    assert found.argv == found.nodes[0].commands[0]
    assert found.argv[found.argv.index("--nnodes") + 1] == "2"
    assert found.argv[-4:] == ("--node-rank", "0", "--master-addr", "HEAD_ADDRESS")
    assert "2 of 4 machines are not used; 1 more copy of this plan" in told(found, "idle-nodes")
    one = plan("llama3-8b", f"2x{A3}")
    assert one.nodes == () and "--nnodes" not in one.argv and "1 of 2 machines is not used" in told(one, "idle-nodes")


@pytest.mark.slow
def test_ranks_have_the_memory_of_their_own_devices() -> None:
    """A stage on smaller cards has less for its cache, and the machine with fewer GPUs says how many take part."""
    found = plan("llama3-70b", "aws-g6e-12xlarge", "aws-g6-12xlarge", context="8k")
    totals = {pool.id.rpartition("/")[0]: pool.total_bytes for pool in found.memory.pools if pool.id != "host"}
    assert found.fits and len(set(totals.values())) == len(totals)
    mixed = plan("deepseek-v3", A3, "aws-p5e-48xlarge", "aws-g6e-12xlarge")
    assert mixed.fits and {one.n_devices for one in mixed.nodes} == {8}


def test_unlike_machines_are_no_copies() -> None:
    assert "copy" not in told(plan("llama3-8b", A3, "aws-g6-12xlarge"), "idle-nodes")


@pytest.mark.slow
def test_the_network_is_part_of_the_rate() -> None:
    slow, fast = (plan("deepseek-v3", f"2x{A3}", link=link, context="8k").speed for link in ("1Gbit", "400Gbit"))
    assert slow is not None and fast is not None
    assert slow.prefill_tokens_per_s is not None and fast.prefill_tokens_per_s is not None
    assert slow.prefill_tokens_per_s < 0.7 * fast.prefill_tokens_per_s
    assert slow.decode_tokens_per_s < fast.decode_tokens_per_s
    unsaid = plan("deepseek-v3", f"2x{A3}").speed
    assert unsaid is not None and "assumed: the network at 10 Gbit/s (--link states it)" in unsaid.basis
    alike = autofit.load_machine("8xh100-80gb", ram="1TiB")
    engine = ("--nnodes", "2")
    by_flag = autofit.plan("vllm", str(CONFIGS / "deepseek-v3"), alike, engine_args=engine)
    assert by_flag.speed is not None and "the network at 10 Gbit/s" in by_flag.speed.basis


@pytest.mark.slow
def test_nodes_like_this_machine() -> None:
    by_option = plan("deepseek-v3", "8xh100-80gb", nodes=2, ram="1TiB")
    by_name = plan("deepseek-v3", "8xh100-80gb", ram="1TiB", engine_args=["--nnodes", "2"])
    assert by_option.fits and by_option.engine_report == by_name.engine_report


def test_a_checked_command_takes_the_machines_that_it_says() -> None:
    words = ["vllm", "serve", str(CONFIGS / "deepseek-v3"), "-tp", "8", "-pp", "2", "--nnodes", "2"]
    found = autofit.check(words, on=[f"3x{A3}"])
    assert found.fits and len(found.memory.pools) == 17 and len(found.nodes) == 2
    with pytest.raises(EngineRefusalError, match="4 nodes are asked for, and 3 machines"):
        autofit.check([*words[:-1], "4"], on=[f"3x{A3}"])


REPLICAS = ("-dp", "16", "--enable-expert-parallel")


def test_replicas_that_machines_share_out() -> None:
    """`--data-parallel-size-local`: the last machine has the rest, and only the first a server."""
    found = plan("qwen3-30b-a3b", A3, engine_args=[*REPLICAS, "-dpl", "6"])
    assert [(one.role, one.n_devices) for one in found.nodes] == [("head", 6), ("worker", 6), ("worker", 4)]
    head, *others = [one.commands[-1] for one in found.nodes]
    own = ("--data-parallel-size-local", "6", "--data-parallel-address", "HEAD_ADDRESS")
    assert head[-4:] == own and "-dpl" not in head and "--headless" not in head
    assert [words[words.index("--data-parallel-start-rank") + 1] for words in others] == ["6", "12"]
    assert all(words[-1] == "--headless" for words in others)
    assert "10 more run on other machines" in told(found, "nodes")


@pytest.mark.parametrize("flags", [["--data-parallel-hybrid-lb"], ["--data-parallel-start-rank", "8"]])
def test_replicas_with_a_server_on_each_machine(flags: list[str]) -> None:
    engine = [*REPLICAS, "-dpl", "8", "--data-parallel-address", "10.0.0.1", *flags]
    found = plan("qwen3-30b-a3b", f"2x{A3}", engine_args=engine)
    assert [one.head_address for one in found.nodes] == ["10.0.0.1"] * 2
    for at, one in enumerate(found.nodes):
        assert one.commands[-1][-2:] == ("--data-parallel-start-rank", str(8 * at))
        assert "--headless" not in one.commands[-1] and one.commands[-1].count("--data-parallel-start-rank") == 1
    assert told(found, "idle-nodes") == ""


def test_a_replica_that_is_given_its_rank_is_a_process_of_its_own() -> None:
    words = ["vllm", "serve", str(CONFIGS / "qwen3-30b-a3b"), *REPLICAS, "--data-parallel-rank", "1", "-dpl", "1"]
    assert autofit.check(words, on=[A3]).nodes == ()
