"""`python -m tests.walk --operations 100000 --orgs 50 [--database postgres]`: no org sees another's canary."""

import argparse
import os
import sys

from tests.walk.walking import walk


def main() -> int:
    """Walk as far as was asked for; 1 where something of one org was seen by another."""
    parser = argparse.ArgumentParser(prog="python -m tests.walk", description="A random walk that looks for leaks.")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--orgs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=["sqlite", "postgres"], default="sqlite", help="postgres: the tests' own")
    given = parser.parse_args()
    os.environ["KEYLEASH_TEST_DATABASE"] = given.database

    def tell(done: int) -> None:
        if done % 1000 == 0:
            print(f"\r{done} of {given.operations}", end="", file=sys.stderr, flush=True)

    walked = walk(given.operations, given.orgs, seed=given.seed, tell=tell)
    print(file=sys.stderr)
    for name, count in walked.done.most_common():
        print(f"{count:>8}  {name}")
    print("on record:", ", ".join(f"{count} {event}" for event, count in walked.recorded.most_common()))
    print(
        f"{walked.operations} operations over {walked.orgs} orgs on {given.database} in {walked.seconds:.0f} s, "
        f"{walked.cpu_seconds:.0f} s of them at work (seed {given.seed}): {walked.heard} texts looked at, "
        f"{walked.sent} calls sent, {walked.told} webhooks told, no canary of another org."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
