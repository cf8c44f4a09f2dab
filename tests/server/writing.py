"""`python -m tests.server.writing ORG NAME COUNT`: a server's process that adds entries, and signs, until it is killed.

It goes on with the entries that are not there yet. A line with the entry's number says that it is durable.
"""

import asyncio
import sys

from server.app import open_installation
from server.audit import AuditError, Event, append, select
from server.audit.noted import NotedHeads
from server.database import DatabaseProblem
from server.settings import read_settings
from server.signing import signing

AT_ONCE = 10
SIGN_EVERY = 50


async def write(org: str, name: str, count: int) -> None:
    installation = open_installation(read_settings())
    database = installation.database.of(org)
    noted, sign = NotedHeads(installation.settings.noted_heads), signing(installation.database, installation.vault)
    there = {entry.body["number"] for entry in select(database, org, event="audit.listed", agent=name)}
    due = [number for number in range(count) if number not in there]

    async def one(number: int) -> None:
        while True:
            try:
                await database.write(
                    lambda rows: append(rows, org, Event.AUDIT_LISTED, agent=name, number=number, by="a test")
                )
            except DatabaseProblem:  # another process had the lock for too long, on a busy machine
                continue
            print(number, flush=True)
            return

    for place in range(0, len(due), AT_ONCE):
        await asyncio.gather(*(one(number) for number in due[place : place + AT_ONCE]))
        if place % SIGN_EVERY == 0:
            try:
                await asyncio.to_thread(noted.note, installation.database, sign)
            except (AuditError, DatabaseProblem) as problem:
                if "locked" not in str(problem):
                    print(f"refused: {problem}", flush=True)


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], sys.argv[2], int(sys.argv[3])))
