"""`policy explain` says what a budget that is used up, or nearly, makes of a call; and what it says is what happens."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.app import running
from server.budgets import create
from server.call import call
from server.errors import ApprovalRequired, LimitReached
from server.managed import offered
from tests.agents import Nobody, execute
from tests.commandline import CommandLine
from tests.installed import Place
from tests.offering import asked, offering
from tests.upstream import Upstream

READ, REFUND = "stripe_list_charges", "stripe_create_refund"


def budget(place: Place, most: int, measure: str = "calls", **more: Any) -> str:
    given = {"per": "month", "by": "alice", **more}
    return place.database.write_now(lambda rows: create(rows, place.org, measure=measure, most=most, **given)).id


def calls(place: Place, number: int, tool: str = READ) -> None:
    async def run() -> None:
        async with running(place.installation) as parts:
            for _ in range(number):
                await call(parts, place.caller(), tool, {}, Nobody())

    asyncio.run(run())


def explain(owner: CommandLine, tool: str = READ, *more: str, args: str = "{}") -> tuple[dict[str, Any], str]:
    words = ("policy", "explain", "--agent", "reconciler", "--tool", tool, "--args", args, *more)
    told = owner(*words)
    assert told.code == 0
    return owner(*words, "--json").json, " ".join((told.out + told.err).split())


def test_without_a_budget_the_call_is_what_the_rules_say(place: Place, owner: CommandLine) -> None:
    budget(place, 1, connection="other")
    budget(place, 1, agent="other")
    shown, said = explain(owner)
    assert shown["budgets"] == []
    assert shown["in_force"] == {"ruling": "allow", "reason": "As the rules say.", "notes": []}
    assert "but now" not in said
    assert "budget" not in said


def test_a_budget_with_enough_left_is_named_and_changes_nothing(place: Place, owner: CommandLine) -> None:
    made = budget(place, 5)
    calls(place, 3)
    shown, said = explain(owner)
    (one,) = shown["budgets"]
    assert (one["id"], one["most"], one["used"], one["status"], one["measure"]) == (made, 5, 3, "ok", "calls")
    assert shown["in_force"] == {"ruling": "allow", "reason": "As the rules say.", "notes": []}
    assert "but now" not in said


def test_one_that_is_near_its_end_is_said_with_what_would_then_happen(place: Place, owner: CommandLine) -> None:
    made = budget(place, 5)
    calls(place, 4)
    shown, said = explain(owner)
    assert (shown["ruling"], shown["in_force"]["ruling"], shown["budgets"][0]["status"]) == (
        *("allow", "allow", "near end"),
    )
    assert f"The budget of 5 calls a month of the whole organisation ({made}) is near its end" in said
    assert "once it is used up, such a call waits until an approver, admin or owner agrees to it" in said
    assert "but now" not in said


def test_one_that_is_used_up_says_that_the_call_waits_and_it_does(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    made = budget(place, 1, agent="reconciler")
    calls(place, 1)
    shown, said = explain(owner)
    assert (shown["ruling"], shown["in_force"]["ruling"], shown["budgets"][0]["status"]) == (
        *("allow", "approve", "used up"),
    )
    assert "but now approve: The budget of 1 calls a month of agent reconciler is used up until" in said
    assert f"({made}). So this call waits until an approver, admin or owner agrees to it" in said
    assert "near its end" not in said
    with pytest.raises(ApprovalRequired):
        calls(place, 1)
    refund, _ = explain(owner, REFUND, args='{"charge": "ch_1"}')
    assert (refund["ruling"], refund["in_force"]["ruling"]) == ("confirm", "approve")
    assert len(upstream.requests) == 1
    assert len(place.events("call.held")) == 1, "explaining calls nothing"


@pytest.mark.parametrize("then", ["approve", "deny"])
def test_what_is_as_strict_already_stays_as_it_is(place: Place, owner: CommandLine, then: str) -> None:
    budget(place, 1)
    calls(place, 1)
    place.rule(who="everyone", tools=["stripe.list_charges"], then=then)
    shown, said = explain(owner)
    assert (shown["ruling"], shown["in_force"]["ruling"]) == (then, then)
    assert "is used up until" in said
    assert "That makes this call no stricter" in said
    assert "but now" not in said


def test_a_cost_is_a_number_in_its_unit(place: Place, owner: CommandLine) -> None:
    budget(place, 2_500_000_000, "cost", unit="USD")
    execute(place, "UPDATE budget SET used = 1250000000")
    (one,) = explain(owner)[0]["budgets"]
    assert (one["most"], one["used"], one["unit"]) == (2.5, 1.25, "USD")
    assert owner("budget", "list", "--json").json == [one]


def test_how_much_others_use_is_not_shown_to_a_member(place: Place, owner: CommandLine) -> None:
    place.member("carol")
    budget(place, 977)
    execute(place, "UPDATE budget SET used = 98300000017")  # digits that no id has
    shown, said = explain(owner, READ, "--as", "carol")
    assert (shown["budgets"][0]["used"], shown["in_force"]["ruling"]) == (None, "approve")
    assert "98300000017" not in str(shown) + said
    assert explain(owner)[0]["budgets"][0]["used"] == 98300000017


def test_where_no_rule_is_asked_no_budget_is_either(place: Place, owner: CommandLine) -> None:
    budget(place, 1)
    execute(place, "UPDATE agent SET expires_at = 1")
    shown, _ = explain(owner)
    assert (shown["budgets"], shown["in_force"]["ruling"]) == ([], "deny")


def test_the_operators_limit_is_said_as_well_and_no_person_can_help(tmp_path: Path) -> None:
    with offering(tmp_path) as offers:
        offers.offer("acme", "--calls-per-day 1")
        budget(offers.acme, 1)
        given = '{"model":"m","input":"x"}'
        words = f"policy explain --agent reconciler --tool openai_create_response --args {given}"
        assert offers(f"{words} --json", org="acme").json["in_force"]["ruling"] == "allow"
        assert asyncio.run(asked(offers.acme)).ok
        shown = offers(f"{words} --json", org="acme").json
        assert (shown["ruling"], shown["in_force"]["ruling"]) == ("allow", "deny")
        assert "The operator's limit of calls a day is reached" in shown["in_force"]["reason"]
        denied = {"argument": "model", "op": "equals", "value": "no"}
        offers.acme.rule(who="everyone", tools=["openai.create_response"], when=[denied], then="deny")
        by_rule = offers(f"{words} --json".replace('"m"', '"no"'), org="acme").json["in_force"]
        assert (by_rule["ruling"], by_rule["reason"]) == ("deny", "As the rules say.")
        with pytest.raises(LimitReached):
            asyncio.run(asked(offers.acme))
        offers.own()
        assert offered(offers.acme.database, offers.acme.org, "openai") is not None
        assert offers(f"{words} --json", org="acme").json["in_force"]["ruling"] == "approve", "its own budget is left"
