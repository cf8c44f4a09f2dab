"""The targets for rules, in a short form of the benchmark: the same contest, fewer rounds."""

import pytest

from tests.bench.policy import SIZES, contest, listing


@pytest.mark.parametrize("rules", SIZES)
def test_a_decision_is_five_times_faster_than_cedars(rules: int) -> None:
    assert contest(rules, rounds=3)["times_faster"] >= 5


@pytest.mark.parametrize("rules", SIZES)
def test_listing_costs_less_than_as_many_decisions(rules: int) -> None:
    assert listing(rules, rounds=3)["ratio"] < 1
