"""Channels: whoever has to know is told, of what happened and nothing else; a decision comes in where one may."""

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import anyio
import pytest
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from connectors import departure
from connectors.notice import prepare_notice
from server.app import Installation, running
from server.approval import Decision, sweep
from server.approval.channels import CHANNELS, tell, through
from server.approval.eligible import Wanted
from server.approval.outbox import Happening
from server.clock import now_ms
from server.delivery import AT_ONCE, DAY_MS, HESITATE_MS, LEASE_MS, delivering, wait_ms
from server.policy import Ruling
from server.rotation import rotate_org
from server.webhooks import MOST, ChannelProblem, hooks_of, message, plan, remove, rotate, take_target
from tests.agents import decide, execute
from tests.installed import SECRET, Place, add_org
from tests.telling import (
    EVERYTHING,
    LOOPBACK,
    PATH,
    REFUND,
    Clock,
    Receiver,
    a_server,
    called,
    delivered,
    held,
    hook,
    hooked,
    outbox,
    until,
)
from tests.upstream import Answer, Upstream
from tests.written import written
from vault import CannotOpen, Vault

pytestmark = pytest.mark.anyio

CANARY = PATH.rpartition("/")[2]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


# -- every channel there is


@pytest.mark.parametrize("name", CHANNELS)
async def test_every_channel_reports_when_it_reaches_nobody(place: Place, name: str) -> None:
    execute(place, "UPDATE member SET os_user = NULL")
    for ruling in EVERYTHING:
        wanted = Wanted(ruling, approvers=("group:nobody",))
        reached = place.installation.database.query(
            lambda rows, wanted=wanted: CHANNELS[name].reaches(rows, place.org, wanted)
        )
        assert reached == ()


@pytest.mark.parametrize("name", CHANNELS)
async def test_a_decision_comes_in_through_a_channel_that_asks_and_through_no_other(name: str) -> None:
    if CHANNELS[name].asks:
        assert through(name, by="alice") == {"channel": name, "by": "alice"}
    else:
        with pytest.raises(PermissionError, match="only tells"):
            through(name, by="alice")


@pytest.mark.parametrize("name", CHANNELS)
@pytest.mark.parametrize("happening", Happening)
async def test_nothing_that_a_channel_writes_holds_a_secret_an_argument_or_the_prompt(
    place: Place, receiver: Receiver, name: str, happening: Happening
) -> None:
    hooked(place, receiver.hook)
    amount = 9_876_543_210  # no time in milliseconds has these digits
    approval = await held(place, {**REFUND, "amount": amount})
    execute(place, "DELETE FROM notice")
    before = everything_but_sealed(place)
    place.installation.database.write_now(lambda rows: CHANNELS[name].tell(rows, place.org, approval, happening))
    written = everything_but_sealed(place).removeprefix(before)
    for secret in (SECRET, CANARY, REFUND["charge"], "whsec_", amount, "MOVES MONEY", "Refund "):
        assert str(secret) not in written
    assert bool(outbox(place)) is not CHANNELS[name].asks


@pytest.mark.parametrize("name", CHANNELS)
async def test_no_channel_reaches_into_another_org(place: Place, receiver: Receiver, name: str) -> None:
    other = add_org(place.installation, "globex")
    hooked(other, receiver.hook)
    other.agent()
    approval = await held(place)
    rows = place.installation.database
    rows.write_now(lambda rows: CHANNELS[name].tell(rows, place.org, approval, Happening.OPENED))
    rows.write_now(lambda rows: CHANNELS[name].tell(rows, other.org, approval, Happening.OPENED))
    assert outbox(place) == outbox(other) == []
    wanted = Wanted(Ruling.APPROVE)
    reached = rows.query(lambda rows: CHANNELS[name].reaches(rows, place.org, wanted))
    assert set(reached) <= {"alice"}


def everything_but_sealed(place: Place) -> str:
    return repr(place.installation.database.read("SELECT * FROM notice ORDER BY id"))


# -- what is told, and of what


async def test_each_thing_that_happens_is_told_once_in_the_transaction_in_which_it_happens(
    place: Place, receiver: Receiver
) -> None:
    hooked(place, receiver.hook)
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2)
    bob = place.member("bob", ("approver",))
    first = await held(place)
    decide(place, first, Decision.APPROVE)
    decide(place, first, Decision.APPROVE, bob)
    await held(place, {"charge": "ch_2"})
    execute(place, "UPDATE approval SET expires_at = 1 WHERE state = 'pending'")
    place.installation.database.write_now(lambda rows: sweep(rows, place.org, now_ms()))
    told = sorted(event for _, event, *_ in outbox(place))
    happened = place.events("approval.opened", "approval.decided", "approval.expired")
    assert told == sorted(entry["event"] for entry in happened)
    assert len(told) == 5


async def test_a_change_that_is_undone_tells_nobody(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook)
    approval = await held(place)
    execute(place, "DELETE FROM notice")

    def undone(rows: Any) -> None:
        tell(rows, place.org, approval, Happening.DECIDED)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        place.installation.database.write_now(undone)
    assert outbox(place) == []


async def test_an_outcome_that_nobody_knows_is_told_whatever_the_ruling_was(
    place: Place, receiver: Receiver, upstream: Upstream
) -> None:
    hooked(place, receiver.hook, rulings=(Ruling.APPROVE,))
    approval = await held(place)
    assert outbox(place) == []  # a confirmation is asked at the client, and this webhook does not want those
    decide(place, approval, Decision.APPROVE)
    upstream.answer = lambda _request: Answer(hang_up=True)
    assert not (await called(place, "stripe_create_refund", REFUND)).ok
    assert [event for _, event, *_ in outbox(place)] == ["approval.unknown"]


async def test_a_webhook_is_told_of_what_it_asked_for_only(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook, "pager", events=(Happening.OPENED,))
    hooked(place, receiver.hook, "log", events=(Happening.DECIDED, Happening.EXPIRED), rulings=(Ruling.CONFIRM,))
    approval = await held(place)
    decide(place, approval, Decision.DENY)
    assert [(name, event) for name, event, *_ in outbox(place)] == [
        ("pager", "approval.opened"),
        ("log", "approval.decided"),
    ]


async def test_a_notice_is_signed_as_the_specification_says_and_verified_by_its_own_library(
    place: Place, receiver: Receiver
) -> None:
    _, secret = hooked(place, receiver.hook)
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve", count=2, second_person=True)
    approval = await held(place)
    async with a_server(place, Clock(), public_url="https://keyleash.example.com") as server:
        await delivered(server)
    (request,) = receiver.requests
    assert (request.method, request.target, request.headers["content-type"]) == ("POST", PATH, "application/json")
    body = Verifier(secret).verify(request.body, request.headers)
    link = f"https://keyleash.example.com/approvals/{approval}"
    text = body.pop("text")
    assert body == {
        "v": 1,
        "id": request.headers["webhook-id"],
        "event": "approval.opened",
        "time": body["time"],
        "org": "acme",
        "approval": {
            "id": approval,
            "state": "pending",
            "expires_at": body["approval"]["expires_at"],
            "effect": "spend",
            "ruling": "approve",
            "needed": 2,
            "decided": 0,
            "approvers": [],
            "second_person": True,
            "connection": "stripe",
            "tool": "stripe_create_refund",
            "agent": "reconciler",
        },
        "link": link,
        "content": text,
    }
    shown = json.loads(re.findall(r"```json\n(.*?)```", written(), re.DOTALL)[0])
    assert list(shown) == [*list(body)[:-2], "link", "text", "content"]
    assert shown["approval"].keys() == body["approval"].keys()
    assert "for 2 people to approve it (approver, admin or owner, somebody else than who asks)" in text
    assert text.endswith(link)
    for altered in (request.body.replace(b"acme", b"evil"), request.body + b" "):
        with pytest.raises(WebhookVerificationError):
            Verifier(secret).verify(altered, request.headers)
    assert outbox(place) == []
    assert hook(place).delivered_at is not None


async def test_without_a_public_address_there_is_no_link_and_the_text_says_how(
    place: Place, receiver: Receiver
) -> None:
    hooked(place, receiver.hook)
    approval = await held(place)
    async with a_server(place, Clock()) as server:
        await delivered(server)
    (body,) = receiver.told()
    assert body["link"] is None
    assert f"keyleash approvals show {approval}" in body["text"]
    assert "approve" not in body["text"].replace("approvals show", "")


async def test_no_name_in_the_text_is_markup_or_a_mention(place: Place) -> None:
    facts = {"event": "approval.opened", "time": "t", "org": "<!channel>", "approval": None}
    named = {"id": "apr_1", "tool": "a`b*", "effect": "spend", "agent": "@everyone <https://evil.example|ok>"}
    named |= {"ruling": "approve", "needed": 1, "approvers": ["group:<!here> @all"], "second_person": False}
    text = json.loads(message("ntf_1", {**facts, "approval": {**named, "expires_at": "2026-01-01T00:00"}}, "").body)[
        "text"
    ]
    said = text.replace("`a_b_`", "").replace("keyleash approvals show", "")
    assert not set("<>@*|/") & set(said), text


# -- how it is delivered


async def test_what_fails_is_sent_again_later_each_time_with_the_same_id(place: Place, receiver: Receiver) -> None:
    receiver.answers = [Answer(status=500), Answer(status=404), Answer(hang_up=True)]
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    async with a_server(place, clock) as server:
        for tries in (1, 2, 3):
            await delivered(server)
            await delivered(server)  # not due yet
            assert len(receiver.requests) == tries
            ((_, _, tried, due),) = outbox(place)
            assert (tried, due > clock.now) == (tries, True)
            clock.now = due
        await delivered(server)
    assert outbox(place) == []
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
    assert len({request.body for request in receiver.requests}) == 1
    assert "closed the connection" in str(hook(place).failure)


async def test_waits_grow_and_are_never_all_the_same() -> None:
    waits = [[wait_ms(tries) for _ in range(50)] for tries in (1, 2, 3, 8, 30)]
    assert all(max(earlier) < min(later) for earlier, later in pairwise(waits[:-1]))
    assert all(len(set(some)) > 1 for some in waits)
    assert max(waits[-1]) <= 14400 * 1200


async def test_a_receiver_that_asks_for_time_is_left_alone_for_so_long(place: Place, receiver: Receiver) -> None:
    receiver.answers = [Answer(status=429, headers={"Retry-After": "900"})]
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    async with a_server(place, clock) as server:
        await delivered(server)
        await held(place, {"charge": "ch_2"})  # this one was never tried, and waits all the same
        clock.pass_s(899)
        await delivered(server)
        assert len(receiver.requests) == 1
        clock.pass_s(2)
        await delivered(server)
    assert len(receiver.requests) == 3
    assert outbox(place) == []


async def test_what_fails_beside_it_does_not_cut_that_time_short(place: Place, receiver: Receiver) -> None:
    receiver.answers = [Answer(status=503, headers={"Retry-After": "900"}), Answer(status=500)]
    hooked(place, receiver.hook)
    await held(place)
    await held(place, {"charge": "ch_2"})
    clock = Clock()
    async with a_server(place, clock) as server:
        await delivered(server)
        assert len(receiver.requests) == 2
        clock.pass_s(60)
        await delivered(server)
        assert len(receiver.requests) == 2
        clock.pass_s(900)
        await delivered(server)
    assert outbox(place) == []


async def test_a_day_later_it_is_given_up_and_that_is_shown(place: Place, receiver: Receiver) -> None:
    receiver.answers = [Answer(status=500) for _ in range(99)]
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    start = clock.now
    async with a_server(place, clock) as server:
        while outbox(place):
            await delivered(server)
            clock.now = max([due for *_, due in outbox(place)], default=clock.now)
    assert 10 <= len(receiver.requests) <= 20
    assert start + DAY_MS / 2 < clock.now <= start + DAY_MS
    shown = hook(place)
    assert (shown.given_up, shown.disabled_at) == (1, None)
    (entry,) = place.events("channel.gave_up")
    assert (entry["channel"], entry["reason"]) == ("chat", "the receiver answered HTTP 500")


async def test_what_no_server_delivered_within_a_day_is_given_up_and_not_sent(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    clock.pass_s(DAY_MS / 1000 + 1)
    async with a_server(place, clock) as server:
        await delivered(server)
    assert receiver.requests == []
    assert (outbox(place), hook(place).given_up) == ([], 1)


async def test_one_that_is_gone_is_told_nothing_more(place: Place, receiver: Receiver) -> None:
    receiver.answers = [Answer(status=410)]
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    async with a_server(place, clock) as server:
        await delivered(server)
        assert hook(place).disabled_at is not None
        await held(place, {"charge": "ch_2"})
        assert len(outbox(place)) == 1  # nothing new is written for it
        clock.pass_s(3600)
        await delivered(server)
    assert len(receiver.requests) == 1
    assert [entry["channel"] for entry in place.events("channel.disabled")] == ["chat"]


async def test_no_redirect_is_followed(place: Place, receiver: Receiver) -> None:
    with Receiver() as elsewhere:
        receiver.answers = [Answer(status=307, headers={"Location": elsewhere.hook})]
        hooked(place, receiver.hook)
        await held(place)
        async with a_server(place, Clock()) as server:
            await delivered(server)
        assert (len(receiver.requests), elsewhere.requests) == (1, [])
    assert "redirect" in str(hook(place).failure)
    assert len(outbox(place)) == 1


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1:1/x", "https://10.0.0.7/x", "https://169.254.169.254/latest", "https://[::1]/x"),
        *("https://0x7f000001/x", "https://2130706433/x", "ftp://example.com/", "https://a:b@example.com/x"),
        *("https://example.com/x#y", "https:///x", "https://example.com/../x", "https://example.com/%2e%2e/x", ""),
        *("http://example.com/x", "https://example.com/a b", "https://example.com/\r\nHost: evil", "https://ex.com:0/"),
    ],
)
async def test_an_url_that_leads_inside_or_nowhere_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ChannelProblem) as refused:
        plan(url, ())
    assert not url or url not in str(refused.value)


async def test_a_name_that_leads_inside_gets_nothing(place: Place, receiver: Receiver) -> None:
    port = receiver.url.rpartition(":")[2]
    hooked(place, f"https://hooks.example.com:{port}/x", private=())
    await held(place)

    async def inside(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    async with a_server(place, Clock(), resolve=inside) as server:
        await delivered(server)
    assert receiver.requests == []
    assert "not public" in str(hook(place).failure)


async def test_private_addresses_are_bound_into_the_seal(place: Place, receiver: Receiver) -> None:
    """Whoever can write to the database cannot let a webhook in."""
    hooked(place, receiver.hook)
    await held(place)
    execute(place, "UPDATE channel SET private = ?", json.dumps(["10.0.0.0/8", *LOOPBACK]))
    async with a_server(place, Clock()) as server:
        await delivered(server)
    assert receiver.requests == []
    assert "cannot be opened" in str(hook(place).failure)


async def test_two_servers_deliver_it_once(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook)
    for number in range(5):
        await held(place, {"charge": f"ch_{number}"})
    clock = Clock()
    async with a_server(place, clock) as one, a_server(place, clock) as two:
        while outbox(place):
            one.look()
            two.look()
            await one.settled()
            await two.settled()
    ids = [request.headers["webhook-id"] for request in receiver.requests]
    assert len(ids) == len(set(ids)) == 5


async def test_what_a_killed_server_held_is_sent_again_when_its_lease_has_run_out(
    place: Place, receiver: Receiver
) -> None:
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    async with a_server(place, clock) as killed:
        killed.look()
        for task in set(killed.tasks):
            task.cancel()
        execute(place, "UPDATE notice SET lease = 'of-the-dead', leased_until = ?", clock.now + LEASE_MS)
    receiver.requests.clear()
    async with a_server(place, clock) as server:
        await delivered(server)
        assert receiver.requests == []
        clock.pass_s(LEASE_MS / 1000 + 1)
        await delivered(server)
    assert len(receiver.requests) == 1
    assert outbox(place) == []


async def test_a_server_whose_lease_has_gone_to_another_settles_nothing(place: Place, receiver: Receiver) -> None:
    gate = threading.Event()
    receiver.answers = [Answer(status=500, wait=gate)]
    hooked(place, receiver.hook)
    await held(place)
    async with a_server(place, Clock()) as server:
        server.look()
        await until(lambda: receiver.requests)
        execute(place, "UPDATE notice SET lease = 'of-another'")
        gate.set()
        await server.settled()
    assert place.installation.database.read("SELECT lease, tries FROM notice") == [("of-another", 1)]
    assert hook(place).failure is None


async def test_a_webhook_that_hangs_delays_no_call_and_no_other_webhook(
    place: Place, receiver: Receiver, upstream: Upstream
) -> None:
    hanging = threading.Event()
    other = add_org(place.installation, "globex")
    other.connect(upstream.url)
    other.agent()
    with Receiver() as dead:
        dead.answer = lambda _request: Answer(wait=hanging)
        hooked(place, dead.hook, "dead")
        hooked(place, receiver.hook, "alive")
        hooked(other, receiver.hook)
        for number in range(4):
            await held(place, {"charge": f"ch_{number}"})
        await held(other)
        async with a_server(place, Clock()) as server:

            def all_others() -> bool:
                server.look()
                return len(receiver.requests) == 5 and len(dead.requests) >= AT_ONCE

            await until(all_others)
            assert (await called(place, "stripe_get_balance", {})).ok
            assert len(dead.requests) == AT_ONCE
            hanging.set()
            await server.settled()


def public(place: Place) -> Installation:
    """The same installation, whose operator has said where people reach it."""
    settings = replace(place.installation.settings, public_url="https://keyleash.example.com")
    return replace(place.installation, settings=settings)


async def test_a_running_server_delivers_by_itself(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook)
    approval = await held(place)
    async with running(public(place)):
        await until(lambda: not outbox(place))
    (body,) = receiver.told()
    assert body["link"] == f"https://keyleash.example.com/approvals/{approval}"


async def test_a_server_that_knows_no_public_address_leaves_it_to_one_that_does_for_a_while(
    place: Place, receiver: Receiver
) -> None:
    """Servers that clients start know of none; a link is not left to chance."""
    hooked(place, receiver.hook)
    await held(place)
    clock = Clock()
    async with a_server(place, clock, hesitate_ms=HESITATE_MS) as server:
        await delivered(server)
        assert receiver.requests == []
        clock.pass_s(HESITATE_MS / 1000 + 1)
        await delivered(server)
    assert len(receiver.requests) == 1


async def test_a_server_ends_without_waiting_for_the_dead(
    place: Place, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.delivery.PATIENCE_S", 0.1)
    hanging = threading.Event()
    receiver.answers = [Answer(wait=hanging)]
    hooked(place, receiver.hook)
    await held(place)
    async with running(public(place)):
        await until(lambda: receiver.requests)
        asked = anyio.current_time()
    assert anyio.current_time() - asked < 8, "an answer is waited for ten seconds"
    hanging.set()
    assert len(outbox(place)) == 1  # whoever is next sends it again, with the same id


async def test_a_sealed_server_sends_nothing_and_loses_nothing(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook)
    await held(place)
    async with delivering(place.installation.database, Vault(None), every_s=0.001):
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
    assert receiver.requests == []
    assert len(outbox(place)) == 1


# -- what is sealed


async def test_url_and_secret_stand_nowhere_in_clear(place: Place, receiver: Receiver) -> None:
    made, secret = hooked(place, receiver.hook)
    shown = [repr(made), repr(prepare_notice(receiver.hook, b"{}")), made.address]
    files = [path.read_bytes() for path in place.home.rglob("*") if path.is_file()]
    for text in (CANARY, secret, secret.removeprefix("whsec_")):
        assert all(text not in one for one in shown)
        assert all(text.encode() not in one for one in files)
    assert made.address == f"{receiver.url}/…"


async def test_the_url_is_kept_in_no_cache_of_checked_ones() -> None:
    kept = departure._checked.cache_info().currsize
    departure.checked_url(prepare_notice(f"https://hooks.example.com{PATH}", b"{}"))
    assert departure._checked.cache_info().currsize == kept


async def test_a_rotated_org_key_opens_it_and_a_swapped_row_does_not(place: Place, receiver: Receiver) -> None:
    hooked(place, receiver.hook, "one")
    hooked(place, receiver.hook, "two")
    rotate_org(place.installation.database, place.installation.vault, place.org, by="alice")
    await held(place)
    clock = Clock()
    async with a_server(place, clock) as server:
        await delivered(server)
    assert len(receiver.requests) == 2
    one, two = hook(place, "one"), hook(place, "two")
    theirs = "SELECT sealed FROM vault_field f WHERE f.field = vault_field.field AND f.connection = ?"
    execute(place, f"UPDATE vault_field SET sealed = ({theirs}) WHERE connection = ?", one.id, two.id)
    with pytest.raises(CannotOpen):
        place.installation.database.query(lambda rows: take_target(rows, place.installation.vault, two))()


async def test_rotating_gives_a_new_secret_that_counts_at_once_and_enables_it(place: Place, receiver: Receiver) -> None:
    before, old = hooked(place, receiver.hook)
    execute(place, "UPDATE channel SET disabled_at = 1, disabled_why = 'gone'")
    vault, database = place.installation.vault, place.installation.database
    new = database.write_now(lambda rows: rotate(rows, vault, before, None, None, by="alice"))
    await held(place)
    async with a_server(place, Clock()) as server:
        await delivered(server)
    (request,) = receiver.requests
    assert Verifier(new).verify(request.body, request.headers)["org"] == "acme"
    with pytest.raises(WebhookVerificationError):
        Verifier(old).verify(request.body, request.headers)
    with pytest.raises(ChannelProblem, match="changed or removed meanwhile"):
        database.write_now(lambda rows: rotate(rows, vault, before, None, None, by="alice"))
    assert database.read("SELECT DISTINCT version FROM vault_credential WHERE connection = ?", (before.id,)) == [(2,)]


async def test_a_removed_webhook_is_told_nothing_more_and_leaves_nothing(place: Place, receiver: Receiver) -> None:
    made, _ = hooked(place, receiver.hook)
    await held(place)
    vault, database = place.installation.vault, place.installation.database
    async with a_server(place, Clock()) as server:
        database.write_now(lambda rows: remove(rows, vault, made, by="alice"))
        await delivered(server)
    assert receiver.requests == []
    for table in ("channel", "notice", "vault_credential WHERE connection = '" + made.id + "'"):
        assert database.read(f"SELECT COUNT(*) FROM {table}") == [(0,)]
    with pytest.raises(ChannelProblem):
        database.write_now(lambda rows: remove(rows, vault, made, by="alice"))


async def test_an_org_has_so_many_and_no_more(place: Place, receiver: Receiver) -> None:
    for number in range(MOST):
        hooked(place, receiver.hook, f"chat{number}")
    with pytest.raises(ChannelProblem, match="no org has more"):
        hooked(place, receiver.hook, "one_more")
    assert len(hooks_of(place.installation.database, place.org)) == MOST


async def test_what_needs_an_approver_is_told_before_what_is_confirmed_anyway(place: Place, receiver: Receiver) -> None:
    """An agent that is confirmed a hundred times in its client does not hold up who has to approve."""
    hooked(place, f"{receiver.url}{PATH}")
    for number in range(12):
        await held(place, {**REFUND, "amount": number + 1})
    place.rule(who="everyone", tools=["stripe.create_refund"], then="approve")
    await held(place, {**REFUND, "amount": 4000})
    gate = threading.Event()
    receiver.answers = [Answer(b"ok", wait=gate) for _ in range(AT_ONCE)]
    async with a_server(place, Clock()) as server:
        server.look()
        await until(lambda: len(receiver.requests) == AT_ONCE)
        gate.set()
        await server.settled()
    told = [json.loads(request.body)["approval"]["ruling"] for request in receiver.requests]
    assert "approve" in told[:AT_ONCE], "so many are under way at once"
    assert len(told) == 13, "all of it at one look"
    assert outbox(place) == []
