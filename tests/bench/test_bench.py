"""The benchmark runs, in a tiny form, so that it is there when it is needed."""

import json
import sys
from dataclasses import replace

import pytest

from tests.bench.__main__ import bench
from tests.bench.contest import BenchProblem, Plan, Rounds, ratios, require_same
from tests.bench.load import Tally
from tests.bench.report import table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="CPU and memory are read as Linux has them")
TINY = Plan(callers=(2,), upstreams=("https",), rounds=1, seconds=0.5, warm_s=0.0, starts=1, copies=1)


@pytest.mark.slow
def test_every_server_answers_alike_and_is_measured():
    report = json.loads(json.dumps(bench(TINY)))
    (result,) = report["results"]
    assert set(result["servers"]) == {"keyleash", "yardstick", "floor"}
    for figures in result["servers"].values():
        assert figures["calls"] > 0
        assert figures["cpu_us_per_call"] > 0
        assert figures["p50_ms"] <= figures["p99_ms"]
        assert figures["memory_bytes"] > 2**20
    assert set(result["keyleash_to"]) == {"yardstick", "floor"}
    assert 0 < report["start_up"]["discover_ms"] < report["start_up"]["tools_list_ms"]
    assert 0 < report["finding"]["search_ms"] <= report["finding"]["slowest_search_ms"]
    assert report["finding"]["search_to_list"] > 0
    assert "floor" in table(report)
    assert "finding a tool among" in table(report)


@pytest.mark.slow
def test_a_server_whose_key_the_upstream_refuses_is_named_and_not_measured():
    with pytest.raises(BenchProblem, match="keyleash: the call did not go well"):
        bench(replace(TINY, key="rk_test_not_the_key_of_the_upstream"))


def test_servers_that_answer_differently_are_not_compared():
    require_same({"keyleash": {"charges": []}, "floor": {"charges": []}})
    with pytest.raises(BenchProblem, match="different results"):
        require_same({"keyleash": {"charges": []}, "floor": {"charges": [1]}})


def test_a_ratio_compares_rounds_in_pairs_so_that_a_noisy_one_does_not_count():
    def rounds(*cpu_us: float) -> Rounds:
        return Rounds([Tally(calls=10, seconds=1, cpu_s=each / 1e5, latencies=[0.001]) for each in cpu_us])

    found = ratios(rounds(100, 900, 120), rounds(200, 1800, 200))
    assert found["cpu"] == 0.5
    assert found["cpu_quietest"] == 0.5
    assert (found["cpu_lowest"], found["cpu_highest"]) == (0.5, 0.6)
