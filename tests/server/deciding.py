"""A person in a process of their own who approves whatever waits, until standard input ends. Run by `test_kills.py`."""

import select
import sys

from server.app import open_installation
from server.approval import ApprovalProblem, Decision, State
from server.settings import read_settings
from tests.agents import decide
from tests.installed import Place


def main() -> None:
    org, owner = sys.argv[1:]
    installation = open_installation(read_settings())
    place = Place(installation, org, installation.directory.member(org, owner))
    print("decides", flush=True)
    while not select.select([sys.stdin], [], [], 0.03)[0]:
        for record in installation.approvals.list(org, state=State.PENDING):
            try:
                decide(place, record.id, Decision.APPROVE)
            except ApprovalProblem:
                continue  # it is no longer pending
    installation.close()


if __name__ == "__main__":
    main()
