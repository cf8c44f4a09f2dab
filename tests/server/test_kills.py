"""Whatever is killed between a decision and its answer: no approval is sent twice, and what was lost is `unknown`.

The long form: `KEYLEASH_PROOFS=1 pytest tests/server/test_kills.py`.
"""

import os
import random
from collections import Counter
from pathlib import Path

import httpx2
import pytest

from server.approval import State, sweep
from server.approval.record import LOST_MS
from server.audit import Status, verify_database
from server.budgets import create
from server.clock import now_ms
from server.recounting import differences
from server.spending import all_standings
from server.totals import usage_by
from tests.installed import Place, make
from tests.raw import Reply
from tests.server.killing import IN_FLIGHT, PLANS, Run, Told, ask, deciding, durable_upstream, logged
from tests.servers import ServerProcess
from tests.serving import NO_TLS

LONG = "KEYLEASH_PROOFS" in os.environ
OPERATIONS, KILLS, AGENTS = (1_500, 64, 12) if LONG else (60, 8, 5)

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


async def test_no_approved_call_is_sent_twice_and_every_lost_one_is_unknown(tmp_path: Path) -> None:
    log, person = tmp_path / "upstream.jsonl", tmp_path / "person"
    person.mkdir()
    log.touch(mode=0o600)
    seed = random.randrange(2**32)
    async with durable_upstream(log) as url:
        place = make(tmp_path / "home")
        place.connect(url)
        for name in ("ann", "bob", "cid", "dee"):
            place.agent(name)
        place.database.write_now(
            lambda rows: create(rows, place.org, measure="calls", per="month", most=10**6, by="alice")
        )
        run = Run(place, person, log, OPERATIONS, KILLS, AGENTS, random.Random(seed))
        async with deciding(place, person):
            await run.run()
        assert sum(run.killed.values()) == KILLS, run.killed
        assert set(run.killed) == set(PLANS), f"seed {seed}: some way to die was never taken: {run.killed}"
        sent = logged(log)
        lost = place.installation.approvals.list(place.org, state=State.EXECUTING, limit=10**6)
        assert_nothing_ran_twice(place, run, sent)
        # Time passes for the database: of what was lost, it says so now.
        later = now_ms() + LOST_MS + 1
        place.database.of(place.org).write_now(lambda rows: sweep(rows, place.org, later))
        assert_what_was_lost_is_unknown(place, run, sent, {each.id for each in lost})
        await assert_lost_calls_are_told_and_not_sent(place, person, run)
    assert logged(log) == sent
    assert verify_database(place.database.of(place.org), place.org).status is Status.INTACT
    assert_usage_is_what_the_log_says(place)
    place.installation.close()


def assert_usage_is_what_the_log_says(place: Place) -> None:
    assert differences(place.database, place.org, since="2000-01-01")[1] == []
    (whole,) = usage_by(place.database, place.org, "org", since="2000-01-01")
    assert whole.calls == len(place.events("call.attempt"))
    assert whole.unknown == whole.calls - len(place.events("call.outcome")) > 0
    assert [one.used for one in all_standings(place.database, place.org)] == [whole.calls]


def assert_nothing_ran_twice(place: Place, run: Run, sent: list[dict[str, str]]) -> None:
    keys = [request["key"] for request in sent]
    assert max(Counter(keys).values()) == 1, "an approval was sent twice"
    attempts = Counter(event["approval"] for event in place.events("call.attempt"))
    assert max(attempts.values()) == 1, "an approval has two attempts"
    assert set(keys) <= set(attempts), "something was sent of which there is no attempt"
    records = {each.id: each for each in place.installation.approvals.list(place.org, limit=10**6)}
    for request in sent:
        record = records[request["key"]]
        assert record.state in (State.SUCCEEDED, State.EXECUTING), record
        arguments = place.installation.approvals.details(record)["arguments"]
        assert request["body"] == f"charge={arguments['charge']}&amount={arguments['amount']}"
    done = {each.id for each in records.values() if each.state is State.SUCCEEDED}
    assert done <= set(keys), "a call is said to have succeeded that was never sent"
    assert done == {event["approval"] for event in place.events("call.outcome")}
    by_key = {request["key"]: request["body"] for request in sent}
    for told in run.told:
        if told.outcome is not None:
            key = told.outcome["id"].removeprefix("re_")
            assert key in done, "an agent was told of a result that is not on record"
            assert by_key[key] == f"charge={told.arguments['charge']}&amount={told.arguments['amount']}"


def assert_what_was_lost_is_unknown(place: Place, run: Run, sent: list[dict[str, str]], lost: set[str]) -> None:
    after = place.installation.approvals.list(place.org, limit=10**6)
    assert {each.id for each in after if each.state is State.UNKNOWN} == lost
    assert {event["approval"] for event in place.events("approval.unknown")} == lost
    assert len(lost) >= run.killed["claimed, and not sent"]
    assert len(lost & {request["key"] for request in sent}) >= run.killed[IN_FLIGHT] / 2
    assert not any(each.state in (State.PENDING, State.EXECUTING) for each in after)


async def assert_lost_calls_are_told_and_not_sent(place: Place, person: Path, run: Run) -> None:
    """Each agent that was not answered asks once more, with what points to its call."""
    server = ServerProcess(place, person)
    await server.start()
    try:
        async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False, timeout=30) as http:
            for told in run.told:
                if told.status == "not heard":
                    told.status = await told_at_last(http, server.url, place, told)
    finally:
        server.stop()
    assert {told.status for told in run.told} <= {None, "unknown"}
    assert any(told.status == "unknown" for told in run.told)


async def told_at_last(http: httpx2.AsyncClient, url: str, place: Place, told: Told) -> str | None:
    reply = await ask(http, url, place, told, True)
    assert isinstance(reply, Reply)
    if reply.ran:  # it was slow, and is on record
        told.outcome = reply.result["structuredContent"]
        return None
    return reply.status_of_approval
