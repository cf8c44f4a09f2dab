"""Calls that were lost on their way: found on the record, shown, sent again only under a key, settled by people."""

import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from server.app import running
from server.approval import ApprovalProblem, Asked, Decision, Lost, State
from server.approval.record import LOST_MS
from server.approval.tending import DAY_MS, empty_old, tend
from server.audit import Event, append
from server.audit.entry import RESERVED
from server.call import Outcome, Parts, call
from server.clock import now_ms
from server.errors import ApprovalRequired, NoSuchTool, OutcomeUnknown, Refused, Unrecorded
from server.identity import Actor, Agent, create_agent
from server.policy import Ruling, Verdict
from server.prompt import Prompt
from server.rules import remove as remove_rule
from server.settings import SettingsProblem, read_settings
from tests.agents import Nobody, Person, decide, execute, record
from tests.commandline import CommandLine
from tests.installed import Place, add_org
from tests.remnants import remnants
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio

REFUND = {"charge": "ch_1", "amount": 1200}
MESSAGE = {"channel": "C1", "text": "hello"}


@pytest.fixture
async def parts(place: Place, upstream: Upstream) -> AsyncIterator[Parts]:
    place.connect(upstream.url, connector="slack", name="chat")
    upstream.answer = lambda request: Answer({"ok": True, "ts": "1", "id": "re_1"})
    async with running(place.installation) as opened:
        yield opened


async def made(parts: Parts, place: Place, name: str, arguments: dict[str, Any], person: Any = None) -> Outcome:
    return await call(parts, place.caller(), name, arguments, person or Nobody())


async def held(parts: Parts, place: Place, name: str = "chat_post_message", arguments: Any = None) -> str:
    with pytest.raises(ApprovalRequired) as waiting:
        await made(parts, place, name, MESSAGE if arguments is None else arguments)
    return waiting.value.approval


async def lost(parts: Parts, place: Place, name: str = "chat_post_message", arguments: Any = None) -> str:
    """An approved call whose process died after it was claimed, longer ago than a call can take."""
    approval = await held(parts, place, name, arguments)
    decide(place, approval, Decision.APPROVE)
    claimed = now_ms() - LOST_MS - 1
    execute(place, "UPDATE approval SET state = 'executing', changed_at = ? WHERE id = ?", claimed, approval)
    return approval


def resolve(
    place: Place, identifier: str, *, happened: bool, who: Actor | None = None, note: str | None = None
) -> None:
    unknown, actor = place.installation.approvals.unknown, who or place.actor()
    place.database.write_now(
        lambda rows: unknown.resolve(rows, place.org, identifier, happened=happened, actor=actor, note=note)
    )


async def tended(place: Place) -> None:
    await tend(place.database, place.installation.approvals, place.org)


# -- written down


async def test_a_running_server_writes_down_what_was_lost_and_what_has_expired_once(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    gone, late = await lost(parts, place), await held(parts, place, arguments={**MESSAGE, "text": "late"})
    execute(place, "UPDATE approval SET expires_at = ? WHERE id = ?", now_ms() - 1, late)
    for _ in range(2):
        await tended(place)
    assert (record(place, gone).state, record(place, late).state) == (State.UNKNOWN, State.EXPIRED)
    assert [event["approval"] for event in place.events("approval.unknown")] == [gone]
    assert [event["approval"] for event in place.events("approval.expired")] == [late]
    assert upstream.requests == []


async def test_whatever_server_starts_does_so_by_itself(parts: Parts, place: Place) -> None:
    gone = await lost(parts, place)
    async with running(place.installation):
        await anyio.lowlevel.checkpoint()
    assert record(place, gone).state is State.UNKNOWN
    assert [event["approval"] for event in place.events("approval.unknown")] == [gone]


async def an_attempt_without_an_end(parts: Parts, place: Place, name: str, arguments: dict[str, Any]) -> int:
    """The number of an allowed call's attempt, as a killed server leaves it behind, minutes ago."""
    await made(parts, place, name, arguments)
    written = place.events("call.attempt")[-1]
    fields = {key: value for key, value in written.items() if key not in RESERVED}
    entry = place.database.write_now(
        lambda rows: append(rows, place.org, Event.CALL_ATTEMPT, at_ms=now_ms() - LOST_MS - 1, **fields)
    )
    return entry.seq


async def test_an_allowed_call_that_was_lost_is_unknown_on_the_record_and_waits_for_a_look(
    parts: Parts, place: Place
) -> None:
    place.rule(who="everyone", tools=["chat.post_message"], then="allow")
    attempt = await an_attempt_without_an_end(parts, place, "chat_post_message", MESSAGE)
    for _ in range(3):
        await tended(place)
    (entry,) = place.events("call.unknown")
    assert (entry["attempt"], entry["tool"], entry["agent"]) == (attempt, "chat_post_message", "reconciler")
    (found,) = place.installation.approvals.unknown.calls(place.org)
    assert (found.attempt, found.tool, found.grant) == (attempt, "chat_post_message", None)
    resolve(place, found.id, happened=True, note="it stands in the channel")
    assert place.installation.approvals.unknown.calls(place.org) == []
    said = place.events("approval.resolved")[-1]
    assert (said["lost"], said["happened"], said["approver"]) == (found.id, True, "alice")
    with pytest.raises(ApprovalProblem, match="nothing to look into"):
        resolve(place, found.id, happened=False)


async def test_a_read_that_was_lost_ends_on_the_record_and_asks_for_nobodys_time(parts: Parts, place: Place) -> None:
    attempt = await an_attempt_without_an_end(parts, place, "stripe_get_balance", {})
    await tended(place)
    assert [event["attempt"] for event in place.events("call.unknown")] == [attempt]
    assert place.installation.approvals.unknown.calls(place.org) == []


async def test_two_servers_that_look_at_once_write_one_end(parts: Parts, place: Place) -> None:
    await an_attempt_without_an_end(parts, place, "stripe_get_balance", {})
    unknown, database = place.installation.approvals.unknown, place.database
    now = now_ms()
    looks = [unknown.look(place.org, now) for _ in range(2)]
    assert [len(look.lost) for look in looks] == [1, 1]
    wrote = [
        database.write_now(lambda rows, look=look: unknown.write_down(rows, place.org, look, now)) for look in looks
    ]
    assert wrote == [True, False]
    assert len(place.events("call.unknown")) == 1


async def test_a_call_on_its_way_and_one_that_ended_are_not_lost(parts: Parts, place: Place) -> None:
    await made(parts, place, "stripe_get_balance", {})
    written = place.events("call.attempt")[-1]
    fields = {key: value for key, value in written.items() if key not in RESERVED}
    recent = now_ms() - LOST_MS + 60_000
    attempt = place.database.write_now(
        lambda rows: append(rows, place.org, Event.CALL_ATTEMPT, at_ms=recent, **fields)
    ).seq
    await made(parts, place, "stripe_get_balance", {})
    await tended(place)
    assert place.events("call.unknown") == []
    look = place.installation.approvals.unknown.look(place.org, now_ms())
    assert look.settled == attempt - 1, "the next look begins before what is still under way"


async def test_an_end_that_comes_while_the_log_is_looked_through_counts(parts: Parts, place: Place) -> None:
    attempt = await an_attempt_without_an_end(parts, place, "stripe_get_balance", {})
    unknown, database = place.installation.approvals.unknown, place.database
    look = unknown.look(place.org, now_ms())
    database.write_now(lambda rows: append(rows, place.org, Event.CALL_OUTCOME, attempt=attempt, outcome="succeeded"))
    database.write_now(lambda rows: unknown.write_down(rows, place.org, look, now_ms()))
    assert place.events("call.unknown") == []


# -- settled by people


@pytest.mark.parametrize("happened", [True, False])
async def test_the_agent_that_asks_again_is_told_what_a_person_found(
    parts: Parts, place: Place, upstream: Upstream, happened: bool
) -> None:
    approval = await lost(parts, place)
    resolve(place, approval, happened=happened, note="seen in the account")
    with pytest.raises(OutcomeUnknown) as told:
        await call(parts, place.caller(), "chat_post_message", MESSAGE, Nobody(), pointer=approval)
    assert ("do not repeat it" in str(told.value)) is happened
    assert ("make the call anew" in str(told.value)) is not happened
    assert record(place, approval).happened is happened
    if happened:
        with pytest.raises(OutcomeUnknown, match="do not repeat it"):
            await made(parts, place, "chat_post_message", MESSAGE)
    anew = await held(parts, place)
    assert anew != approval
    prompt = place.installation.approvals.prompt(record(place, anew))
    assert ("already done exactly this" in prompt) is happened
    assert "nobody knows" not in prompt
    (entry,) = place.events("approval.resolved")
    assert (entry["happened"], entry["known_by"], entry["note"]) == (happened, "os user", "seen in the account")
    assert upstream.requests == []


async def test_only_an_unknown_outcome_is_resolved_and_only_once(parts: Parts, place: Place) -> None:
    approval = await held(parts, place)
    for state in State:
        execute(place, "UPDATE approval SET state = ?, changed_at = ?", state.value, now_ms())
        if state is State.UNKNOWN:
            continue
        with pytest.raises(ApprovalProblem, match="only an unknown outcome") as refused:
            resolve(place, approval, happened=True)
        assert (state is State.EXECUTING) == ("becomes unknown three minutes after it set out" in str(refused.value))
    execute(place, "UPDATE approval SET state = 'unknown'")
    resolve(place, approval, happened=False)
    with pytest.raises(ApprovalProblem, match="has been looked at"):
        resolve(place, approval, happened=True)
    assert record(place, approval).happened is False


async def test_who_may_say_what_became_of_it_is_who_may_decide_such_a_call(parts: Parts, place: Place) -> None:
    confirmed = await lost(parts, place)
    place.rule(who="everyone", tools=["chat.post_message"], then="approve", second_person=True)
    approved = await held(parts, place, arguments={**MESSAGE, "text": "another"})
    execute(place, "UPDATE approval SET state = 'unknown' WHERE id = ?", approved)
    bob, carol = place.member("bob"), place.member("carol", ("approver",))
    for approval in (confirmed, approved):
        with pytest.raises(ApprovalProblem, match="bob"):
            resolve(place, approval, happened=True, who=place.actor(bob))
    with pytest.raises(ApprovalProblem, match="does not count"):
        resolve(place, approved, happened=True, who=Actor(carol, "operator's word"))
    resolve(place, confirmed, happened=True, who=Actor(carol, "operator's word"))
    resolve(place, approved, happened=True, who=place.actor(place.owner))
    assert [event["known_by"] for event in place.events("approval.resolved")] == ["operator's word", "os user"]


async def test_another_orgs_lost_call_is_as_if_there_were_none(parts: Parts, place: Place) -> None:
    other = add_org(place.installation, "globex")
    place.rule(who="everyone", tools=["chat.post_message"], then="allow")
    await an_attempt_without_an_end(parts, place, "chat_post_message", MESSAGE)
    await tended(place)
    (found,) = place.installation.approvals.unknown.calls(place.org)
    approval = await held(parts, place, "stripe_create_refund", REFUND)
    execute(place, "UPDATE approval SET state = 'unknown' WHERE id = ?", approval)
    for identifier in (found.id, approval):
        with pytest.raises(ApprovalProblem, match="nothing to look into"):
            resolve(other, identifier, happened=True)
    assert other.installation.approvals.unknown.calls(other.org) == []
    assert other.installation.approvals.unknown.approvals(other.org) == []


# -- sent again under its key


async def test_where_the_upstream_honours_a_key_a_lost_call_is_sent_once_more_under_the_same_one(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await lost(parts, place, "stripe_create_refund", REFUND)
    assert (await made(parts, place, "stripe_create_refund", REFUND)).ok
    assert [request.headers["idempotency-key"] for request in upstream.requests] == [approval]
    assert record(place, approval).state is State.SUCCEEDED
    attempt = place.events("call.attempt")[-1]
    assert (attempt["approval"], attempt["resent"]) == (approval, True)
    with pytest.raises(ApprovalRequired):
        await made(parts, place, "stripe_create_refund", REFUND)
    assert len(upstream.requests) == 1


NOT_AGAIN: dict[str, str] = {
    "it was sent again before": "UPDATE approval SET resent_at = 1",
    "a person has said what became of it": """UPDATE approval SET resolution = '{"happened": true, "told": true}'""",
    "the approval has expired": "UPDATE approval SET expires_at = 1",
    "the upstream no longer promises to know the key": "UPDATE approval SET changed_at = changed_at - 86400000",
    "it has an outcome, an unknown one": "UPDATE approval SET sealed_outcome = sealed_prompt, state = 'unknown'",
    "the credential is another": "UPDATE approval SET credential_version = 99",
    "the definition is another": "UPDATE approval SET definition = 'another'",
}


@pytest.mark.parametrize("sql", NOT_AGAIN.values(), ids=NOT_AGAIN)
async def test_a_lost_call_is_not_sent_again_where(parts: Parts, place: Place, upstream: Upstream, sql: str) -> None:
    approval = await lost(parts, place, "stripe_create_refund", REFUND)
    execute(place, sql)
    with pytest.raises(OutcomeUnknown):
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody(), pointer=approval)
    with pytest.raises(ApprovalRequired):
        await made(parts, place, "stripe_create_refund", REFUND)
    assert upstream.requests == []


async def test_a_lost_call_is_not_sent_again_under_a_stricter_rule_nor_for_another_agent_or_call(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    approval = await lost(parts, place, "stripe_create_refund", REFUND)
    await held(parts, place, "stripe_create_refund", {**REFUND, "amount": 1201})
    place.agent("second")
    with pytest.raises(ApprovalRequired):
        await call(parts, place.caller("second"), "stripe_create_refund", REFUND, Nobody())
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
    with pytest.raises(OutcomeUnknown):
        await call(parts, place.caller(), "stripe_create_refund", REFUND, Nobody(), pointer=approval)
    assert upstream.requests == []
    assert record(place, approval).resent_at is None


async def test_of_many_that_find_a_lost_call_at_once_one_sends_it(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    await lost(parts, place, "stripe_create_refund", REFUND)
    outcomes: list[Outcome] = []

    async def agent() -> None:
        outcomes.append(await made(parts, place, "stripe_create_refund", REFUND))

    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(agent)
    assert len(upstream.requests) == 1
    assert {outcome.text for outcome in outcomes} == {outcomes[0].text}


# -- under a grant


async def work(place: Place, owner: CommandLine) -> None:
    ran = owner(
        *("grant", "create", "w", "--tool", "stripe_create_refund", "--runner", "agent:reconciler"),
        *("--where", "amount max 5000", "--uses", "9", "--yes", "--json"),
    )
    assert ran.code == 0, ran.err


async def an_hour(parts: Parts, place: Place) -> None:
    first = await made(parts, place, "chat_post_message", {**MESSAGE, "text": "first"}, Person(Decision.APPROVE_HOUR))
    assert first.ok


async def under_a_grant(
    parts: Parts, place: Place, owner: CommandLine, kind: str
) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A tool that a grant of this kind covers, and two calls of it."""
    if kind == "work":
        await work(place, owner)
        return "stripe_create_refund", REFUND, {**REFUND, "amount": 7}
    await an_hour(parts, place)
    return "chat_post_message", MESSAGE, {**MESSAGE, "text": "something else"}


async def unrecorded(parts: Parts, place: Place, name: str, arguments: dict[str, Any]) -> None:
    """It is sent, and what came of it cannot be written down."""
    place.refuse_entries("call.outcome")
    with pytest.raises(Unrecorded):
        await made(parts, place, name, arguments)
    place.database.write_now(lambda rows: rows.execute('DROP TRIGGER "full"'))


kinds = pytest.mark.parametrize("kind", ["work", "an hour"])


@kinds
async def test_a_call_under_a_grant_without_a_known_outcome_is_not_made_again_unasked(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream, kind: str
) -> None:
    name, arguments, other = await under_a_grant(parts, place, owner, kind)
    await unrecorded(parts, place, name, arguments)
    sent = len(upstream.requests)
    asked = await held(parts, place, name, arguments)
    assert "whether it was done, nobody knows" in place.installation.approvals.prompt(record(place, asked))
    assert len(upstream.requests) == sent
    assert (await made(parts, place, name, other)).ok, "another call is no repeat"
    place.agent("second")
    decide(place, asked, Decision.APPROVE)
    assert (await made(parts, place, name, arguments)).ok
    assert (await made(parts, place, name, arguments)).ok, "a person knew, and it is done now"


@kinds
@pytest.mark.parametrize("happened", [True, False])
async def test_it_stays_so_once_it_is_found_lost_until_a_person_says_what_became_of_it(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream, kind: str, happened: bool
) -> None:
    name, arguments, _ = await under_a_grant(parts, place, owner, kind)
    await unrecorded(parts, place, name, arguments)
    unknown, database = place.installation.approvals.unknown, place.database
    assert unknown.calls(place.org) == [], "its outcome may yet come"
    later = now_ms() + LOST_MS + 1
    look = unknown.look(place.org, later)
    assert database.write_now(lambda rows: unknown.write_down(rows, place.org, look, later))
    (found,) = unknown.calls(place.org)
    assert (found.tool, found.attempt) == (name, place.events("call.attempt")[-1]["seq"])
    sent = len(upstream.requests)
    await held(parts, place, name, arguments)
    assert len(upstream.requests) == sent
    resolve(place, found.id, happened=happened)
    assert (await made(parts, place, name, arguments)).ok


async def test_a_call_under_a_grant_whose_outcome_is_an_unknown_one_is_not_made_again_unasked(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    await work(place, owner)
    upstream.answer = lambda request: Answer({"error": {"message": "oops"}}, status=500)
    assert not (await made(parts, place, "stripe_create_refund", REFUND)).ok
    assert place.events("call.outcome")[-1]["outcome"] == "unknown"
    sent = len(upstream.requests)
    await held(parts, place, "stripe_create_refund", REFUND)
    assert len(upstream.requests) == sent
    (found,) = place.installation.approvals.unknown.calls(place.org)
    assert found.tool == "stripe_create_refund"


async def test_a_call_under_a_grant_that_failed_for_certain_or_went_well_leaves_nothing_behind(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    await work(place, owner)
    upstream.answer = lambda request: Answer({"error": {"message": "no such charge"}}, status=404)
    assert not (await made(parts, place, "stripe_create_refund", REFUND)).ok
    upstream.answer = lambda request: Answer({"id": "re_1"})
    assert (await made(parts, place, "stripe_create_refund", REFUND)).ok
    assert (await made(parts, place, "stripe_create_refund", REFUND)).ok
    assert place.database.read("SELECT 1 FROM lost_call") == []


async def test_of_identical_calls_under_a_grant_at_once_one_is_sent_unasked(
    parts: Parts, place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    await work(place, owner)
    arrived, go = threading.Event(), threading.Event()

    def answer(_request: Received) -> Answer:
        arrived.set()
        assert go.wait(20)
        return Answer({"id": "re_1"})

    upstream.answer = answer
    outcomes: list[Outcome] = []

    async def agent() -> None:
        outcomes.append(await made(parts, place, "stripe_create_refund", REFUND))

    async with anyio.create_task_group() as group:
        group.start_soon(agent)
        assert await anyio.to_thread.run_sync(arrived.wait, 20)
        try:
            await held(parts, place, "stripe_create_refund", REFUND)
        finally:
            go.set()
    assert [outcome.ok for outcome in outcomes] == [True]
    assert len(upstream.requests) == 1


async def test_a_grant_is_not_taken_where_an_identical_call_has_begun_since_it_was_looked_up(
    parts: Parts, place: Place, owner: CommandLine
) -> None:
    await work(place, owner)
    approvals, workspace = place.installation.approvals, place.installation.workspaces.of(place.caller())
    bound = workspace.offer.bind("stripe_create_refund", REFUND)
    verdict, prompt = Verdict(Ruling.CONFIRM, ""), Prompt("", whole=False)
    asked = Asked(place.caller(), bound, workspace.connections["stripe"], verdict, prompt)
    clearance = await approvals.clear(asked, Nobody(), None)
    place.database.write_now(lambda rows: approvals.unknown.begun(rows, asked, clearance, 1))
    with pytest.raises(Lost):
        place.database.write_now(lambda rows: approvals.claim(rows, asked, clearance))
    assert place.database.read("SELECT uses_left FROM work") == [(9,)]


async def test_a_rule_that_denies_ends_the_agents_grants_of_the_tool_for_good_and_on_record(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    await an_hour(parts, place)
    place.agent("second")
    assert (await call(parts, place.caller("second"), "chat_post_message", MESSAGE, Person(Decision.APPROVE_HOUR))).ok
    when = [{"argument": "text", "op": "equals", "value": "denied"}]
    rule = place.rule(who="everyone", tools=["chat.*"], then="deny", when=when)
    with pytest.raises(Refused):
        await made(parts, place, "chat_post_message", {**MESSAGE, "text": "denied"})
    place.database.write_now(lambda rows: remove_rule(rows, place.org, rule, by="x"))
    sent = len(upstream.requests)
    await held(parts, place, "chat_post_message", {**MESSAGE, "text": "denied"})
    assert len(upstream.requests) == sent
    (ended,) = place.events("grant.revoked")
    assert (ended["tool"], ended["reason"]) == ("chat_post_message", "a rule denies it now")
    second = await call(parts, place.caller("second"), "chat_post_message", {**MESSAGE, "text": "2"}, Nobody())
    assert second.ok, "nobody has denied anything to that one"


async def test_a_tool_that_is_hidden_by_a_rule_ends_the_agents_grants_of_it_too(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    await an_hour(parts, place)
    rule = place.rule(who="everyone", tools=["chat.*"], then="deny")
    for _ in range(2):
        with pytest.raises(NoSuchTool):
            await made(parts, place, "chat_post_message", MESSAGE)
    place.database.write_now(lambda rows: remove_rule(rows, place.org, rule, by="x"))
    await held(parts, place, "chat_post_message", MESSAGE)
    assert len(upstream.requests) == 1
    assert len(place.events("grant.revoked")) == 1


# -- what is not kept


async def test_what_is_sealed_of_old_calls_and_grants_is_emptied_and_who_decided_stays(
    parts: Parts, place: Place, upstream: Upstream
) -> None:
    assert (await made(parts, place, "chat_post_message", MESSAGE, Person(Decision.APPROVE_HOUR))).ok
    waits = await held(parts, place, "stripe_create_refund", REFUND)
    done = next(each for each in place.installation.approvals.list(place.org) if each.state is State.SUCCEEDED)
    database, approvals = place.database, place.installation.approvals
    sealed = [
        blob
        for row in database.read(
            "SELECT sealed_call, sealed_prompt, sealed_outcome FROM approval WHERE id = ?", (done.id,)
        )
        for blob in row
    ]
    sealed += [row[0] for row in database.read("SELECT sealed_bounds FROM call_grant")]
    assert all(sealed)
    for age, kept in ((29, True), (31, False)):
        past = now_ms() - age * DAY_MS
        execute(place, "UPDATE approval SET created_at = ?, changed_at = ?", past, past)
        execute(place, "UPDATE call_grant SET expires_at = ?", past)
        await empty_old(database, place.org, keep_days=30)
        assert bool(approvals.details(record(place, done.id))) is kept
        assert (approvals.grants(place.org, every=True)[0]["bounds"] is not None) is kept
    assert record(place, done.id).decisions[0]["by"] == "alice"
    assert approvals.prompt(record(place, waits)), "what still waits is kept, however old"
    (entry,) = place.events("approvals.emptied")
    assert (entry["count"], entry["keep_days"]) == (2, 30)
    assert database.erase(()), "nothing of it waits in the write-ahead log"
    assert remnants(place.home, sealed) == []
    await empty_old(database, place.org, keep_days=30)
    assert len(place.events("approvals.emptied")) == 1


@pytest.mark.parametrize("given", ["0", "366", "-1", "1.5", "ten", "", "\u0663"])
async def test_how_long_it_is_kept_is_a_number_of_days(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for days in ("1", "365"):
        monkeypatch.setenv("KEYLEASH_KEEP_DAYS", days)
        assert read_settings().keep_days == int(days)
    monkeypatch.setenv("KEYLEASH_KEEP_DAYS", given)
    with pytest.raises(SettingsProblem, match="from 1 to 365"):
        read_settings()


async def test_an_emptied_record_is_shown_as_such(parts: Parts, place: Place, owner: CommandLine) -> None:
    approval = await held(parts, place)
    decide(place, approval, Decision.DENY)
    execute(place, "UPDATE approval SET created_at = 1, changed_at = 1")
    await empty_old(place.database, place.org, keep_days=1)
    assert "not kept any more" in owner("approvals", "show", approval).out
    shown = owner("approvals", "show", approval, "--json").json
    assert (shown["prompt"], shown["arguments"], shown["summary"]) == (None, None, None)
    assert [made["by"] for made in shown["decisions"]] == ["alice"]
    assert owner("approvals", "list", "--all", "--json").json[0]["status"] == "denied"


# -- at the command line


async def test_the_command_line_shows_unknown_calls_and_takes_a_persons_word(
    parts: Parts, place: Place, owner: CommandLine
) -> None:
    place.rule(who="everyone", tools=["chat.post_message"], then="allow")
    await an_attempt_without_an_end(parts, place, "chat_post_message", MESSAGE)
    await tended(place)
    (without,) = place.installation.approvals.unknown.calls(place.org)
    approval = await lost(parts, place, "stripe_create_refund", REFUND)
    shown = owner("approvals", "list", "--json").json
    assert {one["id"]: one["status"] for one in shown} == {approval: "unknown", without.id: "unknown"}
    listed = owner("approvals", "list")
    assert approval in listed.out
    assert "approvals resolve ID" in listed.err
    findings = {one["check"]: one for one in owner("doctor", "--json").json if one["check"] == "unknown calls"}
    assert findings["unknown calls"]["status"] == "warn"
    assert "2 calls" in findings["unknown calls"]["message"]
    assert owner("approvals", "resolve", approval).code == 2
    assert owner("approvals", "resolve", "apr_nosuch", "--happened").code == 1
    ran = owner("approvals", "resolve", approval, "--did-not", "--note", "no refund there", "--json")
    assert ran.json == {"id": approval, "happened": False, "note": "no refund there"}
    assert owner("approvals", "resolve", without.id, "--happened").code == 0
    assert owner("approvals", "resolve", approval, "--happened").code == 1
    assert owner("approvals", "list", "--json").json == []
    assert "unknown, did not happen" in owner("approvals", "list", "--all").out
    assert [one["status"] for one in owner("approvals", "list", "--all", "--json").json] == ["unknown"]
    again = owner("approvals", "show", approval, "--json").json
    assert again["resolution"]["happened"] is False
    assert "no refund there" in owner("approvals", "show", approval).out
    (finding,) = [one for one in owner("doctor", "--json").json if one["check"] == "unknown calls"]
    assert finding["status"] == "ok"


async def test_whoever_watches_is_told_once_of_a_call_of_which_nobody_knows(
    parts: Parts, place: Place, owner: CommandLine
) -> None:
    approval = await lost(parts, place)
    with owner.at_terminal("approvals", "watch") as terminal:
        shown = terminal.until("Nothing waits for you.")
        assert f"{approval} (agent reconciler)" in shown
        assert "approvals resolve ID" in shown
        terminal.glance(1.0)
        terminal.type("q")
        assert terminal.end() == 0
    assert terminal.shown.count("nobody knows what became of it") == 1


async def test_a_member_sees_and_resolves_what_their_own_agents_lost_and_nobody_elses(
    parts: Parts, place: Place, owner: CommandLine, keyleash: CommandLine
) -> None:
    from server.identity import system_user

    approval = await lost(parts, place, "stripe_create_refund", REFUND)
    execute(place, "UPDATE member SET os_user = NULL")
    bob = place.member("bob", ("member",), os_user=system_user())
    assert keyleash("approvals", "list", "--json").json == []
    refused = keyleash("approvals", "resolve", approval, "--happened")
    assert refused.code == 1
    assert "no approval" in refused.err
    place.database.write_now(lambda rows: create_agent(rows, place.org, name="bobs", member=bob, by="bob"))
    agent: Agent = place.installation.directory.agent(place.org, "bobs")
    execute(place, "UPDATE approval SET agent = ?, member = ?", agent.id, bob.id)
    assert keyleash("approvals", "resolve", approval, "--happened").code == 0
    assert (
        json.loads(place.database.read("SELECT resolution FROM approval WHERE id = ?", (approval,))[0][0])["by"]
        == "bob"
    )
