"""`python -m tests.cedar --pairs 100000`: the evaluator beside Cedar on random rules and requests, and its mutants."""

import argparse
import sys
import time
from collections import Counter

from server import policy
from tests.cedar.mutants import MUTANTS, broken
from tests.cedar.pairs import mismatches, pairs


def main() -> int:
    """Compare, and say what was compared; 1 where anything differs or a mutant passes."""
    parser = argparse.ArgumentParser(prog="python -m tests.cedar", description="Our evaluator beside Cedar.")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.monotonic()
    asked = list(pairs(given.pairs, given.seed))
    print(f"{len(asked)} pairs, seed {given.seed}; Cedar took {time.monotonic() - began:.0f} s")
    print(
        "rulings:", ", ".join(f"{count} {ruling}" for ruling, count in Counter(p.ruling for p in asked).most_common())
    )
    found = mismatches(policy, asked, most=10)
    for pair, said in found:
        print(f"MISMATCH: Cedar {pair.ruling} {sorted(pair.rules)}, ours {said}: {pair}")
    print(f"mismatches: {len(found) if len(found) < 10 else '10 or more'}")
    passed = [mutant.name for mutant in MUTANTS if not mismatches(broken(mutant), asked)]
    print(f"mutants: {len(MUTANTS) - len(passed)} of {len(MUTANTS)} caught", *passed, sep="\n  passed: ")
    return 1 if found or passed else 0


if __name__ == "__main__":
    sys.exit(main())
