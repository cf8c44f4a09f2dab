"""The evaluator says what Cedar says, and one that is broken anywhere does not.

The short form; `python -m tests.cedar` compares 100,000 pairs.
"""

import pytest

from server import policy
from tests.cedar.mutants import MUTANTS, Mutant, broken
from tests.cedar.pairs import Pair, mismatches, pairs

PAIRS, SEED = 4000, 2


@pytest.fixture(scope="module")
def asked() -> list[Pair]:
    return list(pairs(PAIRS, SEED))


def test_there_is_no_pair_on_which_cedar_says_something_else(asked: list[Pair]) -> None:
    assert mismatches(policy, asked) == []
    assert {pair.ruling for pair in asked} == {"allow", "confirm", "approve", "deny"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_evaluator_is_found_out(asked: list[Pair], mutant: Mutant) -> None:
    assert mismatches(broken(mutant), asked)
