"""Of the operator's account an org uses so many tokens and no more: the next call is refused, and no other org's."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest

from server.allowance import require_left
from server.approval import Decision
from server.connections import ConnectionProblem, connection_named
from server.errors import LimitReached
from server.managed import LIMITS, Managed, Terms, limit, offered, this_month
from server.usage import BOUND, MOST_TOKENS
from tests.agents import Person, execute
from tests.offering import ASK, SECOND, Offering, asked, offering
from tests.upstream import Answer, Received

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]


def month() -> int:
    now = datetime.now(UTC)
    return now.year * 12 + now.month - 1


@pytest.fixture
def offers(tmp_path: Path) -> Iterator[Offering]:
    with offering(tmp_path) as made:
        takes(made, 30, 10)
        yield made


def takes(offers: Offering, tokens_in: int, tokens_out: int) -> None:
    """What each answer says from now on that it took."""

    def answered(request: Received) -> Answer:
        if request.method == "GET":
            return Answer({"data": []})
        return Answer({"id": "r", "usage": {"input_tokens": tokens_in, "output_tokens": tokens_out}})

    offers.upstream.answer = answered


def stands(offers: Offering, org: str = "acme") -> Managed:
    place = {"acme": offers.acme, "beta": offers.beta}[org]
    found = offered(place.database, place.org, "openai")
    assert found is not None
    return found


def used(offers: Offering, org: str = "acme") -> tuple[int, ...]:
    return tuple(stands(offers, org).used().values())


@pytest.mark.parametrize(("per", "when"), [("day", "today (days"), ("month", "this month (months")])
def test_once_its_tokens_are_used_the_next_call_is_refused_and_nothing_is_sent(
    offers: Offering, per: str, when: str
) -> None:
    offers.offer("acme,beta", f"--tokens-per-{per} 80")
    offers.upstream.requests.clear()
    for _ in range(2):
        assert asyncio.run(asked(offers.acme)).ok
    with pytest.raises(LimitReached) as refused:
        asyncio.run(asked(offers.acme))
    assert len(offers.keys()) == 2
    assert f"as many tokens as it may use {when} begin at 00:00 UTC) are used" in str(refused.value)
    assert "Nothing was sent" in str(refused.value)
    assert "keyleash" not in str(refused.value)
    (entry,) = offers.acme.events("call.refused")
    assert entry["reason"] == f"the operator's limit of tokens a {per} is reached"
    assert (entry["ownership"], entry["tool"]) == ("managed", ASK[0])
    assert used(offers) == (2, 80, 80)
    assert stands(offers).reached() == [f"tokens_per_{per}"]
    assert used(offers, "beta") == (0, 0, 0)
    assert asyncio.run(asked(offers.beta)).ok, "each org has its own"
    assert (used(offers), used(offers, "beta")) == ((2, 80, 80), (1, 40, 40))


def test_one_token_below_the_limit_a_call_still_goes_out(offers: Offering) -> None:
    offers.offer("acme", "--tokens-per-day 81 --tokens-per-month 121")
    for _ in range(2):
        assert asyncio.run(asked(offers.acme)).ok
    assert asyncio.run(asked(offers.acme)).ok, "80 of 81"
    with pytest.raises(LimitReached):
        asyncio.run(asked(offers.acme))
    execute(offers.acme, "UPDATE managed_offer SET used_day = used_day - 1")
    assert asyncio.run(asked(offers.acme)).ok, "120 of 121"
    with pytest.raises(LimitReached, match="this month"):
        asyncio.run(asked(offers.acme))


def test_a_new_day_and_a_new_month_begin_anew_and_a_clock_that_is_behind_wins_nothing(offers: Offering) -> None:
    offers.offer("acme", "--tokens-per-day 40 --tokens-per-month 80")
    assert stands(offers).used_month == 0
    assert asyncio.run(asked(offers.acme)).ok
    assert stands(offers).used_month == month() == this_month()
    with pytest.raises(LimitReached, match="today"):
        asyncio.run(asked(offers.acme))
    execute(offers.acme, "UPDATE managed_offer SET used_day = used_day + 1")
    with pytest.raises(LimitReached, match="today"):
        asyncio.run(asked(offers.acme))
    execute(offers.acme, "UPDATE managed_offer SET used_day = used_day - 2")
    assert used(offers) == (0, 0, 40)
    assert asyncio.run(asked(offers.acme)).ok
    assert used(offers) == (1, 40, 80)
    with pytest.raises(LimitReached, match="this month"):
        asyncio.run(asked(offers.acme))
    execute(offers.acme, "UPDATE managed_offer SET used_day = used_day - 1, used_month = used_month + 1")
    with pytest.raises(LimitReached, match="this month"):
        asyncio.run(asked(offers.acme))
    execute(offers.acme, "UPDATE managed_offer SET used_month = used_month - 2")
    assert used(offers) == (0, 0, 0)
    assert asyncio.run(asked(offers.acme)).ok
    assert used(offers) == (1, 40, 40)


def test_by_a_clock_that_is_behind_calls_and_tokens_count_on_and_are_seen_so(offers: Offering) -> None:
    offers.offer("acme", "--calls-per-day 3 --tokens-per-day 200 --tokens-per-month 200")
    assert asyncio.run(asked(offers.acme)).ok
    execute(offers.acme, "UPDATE managed_offer SET used_day = used_day + 1, used_month = used_month + 1")
    assert used(offers) == (1, 40, 40)
    for _ in range(2):
        assert asyncio.run(asked(offers.acme)).ok
    assert used(offers) == (3, 120, 120)
    assert (stands(offers).reached(), stands(offers).used_month) == (["calls_per_day"], month() + 1)
    with pytest.raises(LimitReached):
        asyncio.run(asked(offers.acme))


def test_what_is_said_after_midnight_counts_on_the_new_day(offers: Offering) -> None:
    offers.offer("acme", "--calls-per-day 5 --tokens-per-day 80")
    assert asyncio.run(asked(offers.acme)).ok

    def midnight(_request: Received) -> Answer:
        execute(offers.acme, "UPDATE managed_offer SET used_day = used_day - 1, used_month = used_month - 1")
        return Answer({"usage": {"input_tokens": 7, "output_tokens": 0}})

    offers.upstream.answer = midnight
    assert asyncio.run(asked(offers.acme)).ok
    assert used(offers) == (0, 7, 7), "the call was one of yesterday's"


async def test_calls_that_are_under_way_when_they_are_used_up_go_on(offers: Offering) -> None:
    await anyio.to_thread.run_sync(lambda: offers.offer("acme", "--tokens-per-day 40"))
    offers.upstream.requests.clear()
    together = threading.Barrier(3)

    def answered(_request: Received) -> Answer:
        together.wait(30)
        return Answer({"usage": {"input_tokens": 30, "output_tokens": 10}})

    offers.upstream.answer = answered
    came: list[bool] = []

    async def one(number: int) -> None:
        came.append((await asked(offers.acme, given={**ASK[1], "input": str(number)})).ok)

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(one, number)
    assert came == [True] * 3
    assert used(offers) == (3, 120, 120)
    with pytest.raises(LimitReached):
        await asked(offers.acme)
    assert len(offers.keys()) == 3


def test_a_limit_is_changed_for_the_next_call_and_on_record(offers: Offering) -> None:
    offers.offer("acme,beta", "--calls-per-day 9 --tokens-per-day 40")
    assert asyncio.run(asked(offers.acme)).ok
    with pytest.raises(LimitReached):
        asyncio.run(asked(offers.acme))
    ran = offers("managed limit openai --tokens-per-day 80 --org acme")
    assert (ran.code, ran.out.strip()) == (0, "openai: 80 tokens a day for acme.")
    assert asyncio.run(asked(offers.acme)).ok
    ran = offers("managed limit openai --tokens-per-day none --tokens-per-month 80")
    assert "any number of tokens a day, 80 tokens a month for acme, beta" in ran.out
    assert "acme has used as much as that, or more" in ran.err
    assert "beta has" not in ran.err
    with pytest.raises(LimitReached, match="this month"):
        asyncio.run(asked(offers.acme))
    assert offers("managed limit openai 1 --tokens-per-month none").code == 0
    changed = offers.acme.events("managed.changed")
    names = ("calls_per_day", "tokens_per_day", "tokens_per_month")
    assert [tuple(each.get(name) for name in names) for each in changed] == [
        (9, 80, None),
        (9, None, 80),
        (1, None, None),
    ]
    assert [each.get("tokens_per_day") for each in offers.beta.events("managed.changed")] == [None, None]
    assert offers("managed limit openai").code == 2
    for wrong in ("0", "-1", "many", "1.5", str(LIMITS["tokens_per_day"] + 1), "9" * 5000):
        assert offers(f"managed limit openai --tokens-per-day={wrong}").code in (1, 2), wrong
        assert offers(f"managed limit openai --tokens-per-month={wrong}").code in (1, 2), wrong
    assert len(offers.acme.events("managed.changed")) == 3


@pytest.mark.parametrize("name", LIMITS)
def test_what_can_be_no_limit_is_refused_and_the_last_that_can_be_is_not(offers: Offering, name: str) -> None:
    option = f"--{name.replace('_', '-')}"
    for wrong in (0, -1, LIMITS[name] + 1):
        ran = offers(f"managed offer openai --to acme {option}={wrong} {offers.there()}", secret="sk-proj-x")
        assert ran.code == 1
        assert f"A limit is a number of {name.replace('_per_', ' a ')}, from 1 to {LIMITS[name]}" in ran.err
    assert offers("managed list --json").json == []
    offers.offer("acme", f"{option}={LIMITS[name]}")
    assert stands(offers).terms.limits == {**dict.fromkeys(LIMITS), name: LIMITS[name]}
    assert offers.acme.events("managed.offered")[0][name] == LIMITS[name]


def test_what_was_withdrawn_meanwhile_cannot_be_limited(offers: Offering) -> None:
    offers.offer("acme")
    gone = stands(offers)
    offers("managed withdraw openai --yes")
    with pytest.raises(ConnectionProblem, match="withdrawn meanwhile"):
        offers.acme.database.write_now(lambda rows: limit(rows, gone, gone.terms, by="the operator"))


def test_of_two_offers_to_one_org_each_is_counted_limited_and_set_aside_by_itself(offers: Offering) -> None:
    offers.offer("acme", "--calls-per-day 1 --own-project")
    offers.offer("acme", "--name spare --calls-per-day 5")
    org, database = offers.acme.org, offers.acme.database
    assert asyncio.run(asked(offers.acme)).ok
    connection = connection_named(database, org, "openai")
    with pytest.raises(LimitReached):
        require_left(database, connection)
    require_left(database, connection_named(database, org, "spare"))
    database.write_now(lambda rows: limit(rows, stands(offers), Terms(), by="the operator"))
    assert offers.acme.events("managed.changed")[-1]["own_project"] is stands(offers).terms.own_project is True
    assert asyncio.run(asked(offers.acme)).ok
    rows = "SELECT credential_version FROM connection ORDER BY name"
    assert offers("managed rotate openai --secret-stdin", secret=SECOND).code == 0
    assert database.read(rows) == [(2,), (1,)]
    assert offers("connection remove openai --yes", org="acme").code == 0
    spare = offered(database, org, "spare")
    assert spare is not None
    assert (spare.used_calls, spare.terms.calls_per_day, spare.set_aside_at, spare.in_use) == (0, 5, None, True)
    assert (stands(offers).used_calls, stands(offers).in_use) == (2, False)


def test_nobody_is_asked_about_a_call_for_which_no_tokens_are_left(offers: Offering) -> None:
    offers.offer("acme", "--tokens-per-day 40")
    offers.acme.rule(who="everyone", tools=["openai.*"], then="confirm")
    person = Person(Decision.APPROVE)
    assert asyncio.run(asked(offers.acme, person)).ok
    with pytest.raises(LimitReached):
        asyncio.run(asked(offers.acme, person, given={**ASK[1], "input": "another"}))
    assert len(person.questions) == 1
    assert len(offers.acme.installation.approvals.list(offers.acme.org)) == 1


def test_tokens_by_an_account_of_ones_own_are_not_counted_and_come_back_to_nothing(offers: Offering) -> None:
    offers.offer("acme", "--tokens-per-day 40")
    assert asyncio.run(asked(offers.acme)).ok
    offers.own()
    for _ in range(2):
        assert asyncio.run(asked(offers.acme)).ok
    assert used(offers) == (1, 40, 40)
    assert offers("connection remove openai --yes", org="acme").code == 0
    with pytest.raises(LimitReached):
        asyncio.run(asked(offers.acme))


def test_what_a_provider_makes_up_breaks_nothing(offers: Offering) -> None:
    offers.offer("acme", "--tokens-per-day 1000000000000000")
    takes(offers, MOST_TOKENS, MOST_TOKENS)
    execute(offers.acme, f"UPDATE managed_offer SET used_day = 1000000, used_tokens = {10**15} - 1")
    execute(offers.acme, f"UPDATE managed_offer SET used_month = 1000000, used_month_tokens = {BOUND} - 1")
    assert asyncio.run(asked(offers.acme)).ok
    assert (stands(offers).used_tokens, stands(offers).used_month_tokens) == (10**15 - 1 + 2 * MOST_TOKENS, BOUND)
    with pytest.raises(LimitReached):
        asyncio.run(asked(offers.acme))
    takes(offers, -5, 0)
    offers("managed limit openai --tokens-per-day none")
    assert asyncio.run(asked(offers.acme)).ok
    assert stands(offers).used_month_tokens == BOUND


def test_how_much_is_used_is_seen_by_the_operator_and_by_the_org_that_uses_it(offers: Offering) -> None:
    offers.offer("acme,beta", "--calls-per-day 5 --tokens-per-day 50")
    assert asyncio.run(asked(offers.acme)).ok
    acme, beta = offers("managed list --json").json
    assert (acme["tokens_per_day"], acme["tokens_today"], acme["tokens_this_month"], acme["reached"]) == (
        50,
        40,
        40,
        [],
    )
    assert (beta["tokens_today"], beta["calls_today"], acme["calls_today"]) == (0, 0, 1)
    heads, first, second = offers("managed list").out.splitlines()
    assert heads.split("  ")[0].strip() == "NAME"
    assert "1/5" in first
    assert "40/50" in first
    assert "0/50" in second
    shown = offers("managed show openai --json").json[0]
    assert (shown["tokens_per_day"], shown["tokens_today"]) == (50, 40)
    assert "tokens_today" in offers("managed show openai").out
    for org, tokens in (("acme", 40), ("beta", 0)):
        own = offers("connection show openai --json", org=org).json["managed"]
        assert (own["tokens_per_day"], own["tokens_today"], own["tokens_per_month"]) == (50, tokens, None)
        assert f"tokens today {tokens} of 50" in offers("connection show openai", org=org).out


def test_doctor_warns_near_a_limit_and_says_when_calls_are_refused(offers: Offering) -> None:
    def said() -> str:
        return " ".join(offers("doctor").out.split())

    assert "managed" not in said()
    offers.offer("acme,beta", "--tokens-per-day 51")
    assert asyncio.run(asked(offers.acme)).ok
    assert "2 offers were looked at" in said()
    assert "has used of openai" not in said(), "78 percent"
    offers("managed limit openai --tokens-per-day 50")
    assert "acme has used of openai: tokens today 40 of 50; then it is refused." in said()
    offers("managed limit openai --tokens-per-day 40")
    refused = "its calls are refused until the limit opens again"
    assert f"acme has used of openai: tokens today 40 of 40; {refused}" in said()
    assert "keyleash managed limit openai --org acme" in said()
    assert "beta has used" not in said()
    offers.own()
    assert "acme has used" not in said(), "it uses its own account"
