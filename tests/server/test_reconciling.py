"""A day of Stripe's is reconciled by an agent that reads page by page; nobody is asked before money moves."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from server.cli.demo_upstream import DAY, Account
from tests.agents import answering, connected
from tests.installed import Place
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio
START = 1_700_006_400
LISTS = {
    "list_charges": "charges",
    "list_refunds": "refunds",
    "list_balance_transactions": "transactions",
    "list_payouts": "payouts",
}


def shop() -> Account:
    """The demo's day, with a charge of the day before and one of the day after."""
    account = Account(START)
    like = account.charges[0]
    for name, at in (("ch_before", START - 1), ("ch_after", START + DAY)):
        account.charges.append({**like, "id": name, "created": at, "balance_transaction": f"txn_{name}"})
    return account


def stripe(account: Account) -> Any:
    """Lists as Stripe gives them: newest first, a range of time, pages by the last id; a refund."""

    def answer(request: Received) -> Answer:
        url = urlsplit(request.target)
        if request.method == "POST":
            form = {name: values[-1] for name, values in parse_qs(request.body.decode()).items()}
            status, content = account.refund(form, request.headers["idempotency-key"])
            return Answer(content, status)
        wanted = {name: values[-1] for name, values in parse_qs(url.query).items()}
        rows = {
            "/v1/charges": account.charges,
            "/v1/refunds": account.refunds,
            "/v1/payouts": account.payouts,
            "/v1/balance_transactions": account.transactions(),
        }[url.path]
        since, before = int(wanted.get("created[gte]", 0)), int(wanted.get("created[lt]", 2**40))
        found = sorted((row for row in rows if since <= row["created"] < before), key=lambda row: -row["created"])
        if "starting_after" in wanted:
            found = found[[row["id"] for row in found].index(wanted["starting_after"]) + 1 :]
        limit = int(wanted.get("limit", 10))
        return Answer({"object": "list", "data": found[:limit], "has_more": len(found) > limit})

    return answer


async def test_a_day_is_read_page_by_page_adds_up_and_shows_the_double_charge(place: Place, upstream: Upstream) -> None:
    account = shop()
    upstream.answer = stripe(account)
    answer, asked = answering("accept", {"decision": "approve"})
    read: dict[str, list[dict[str, Any]]] = {}
    async with connected(place, "memory", "auto", answer) as client:
        for tool, name in LISTS.items():
            rows: list[dict[str, Any]] = []
            page: dict[str, Any] = {"has_more": True, "last_id": None}
            while page["has_more"]:
                asks = {"created_gte": START, "created_lt": START + DAY, "limit": 2}
                asks |= {"starting_after": page["last_id"]} if page["last_id"] else {}
                heard = await client.call_tool(f"stripe_{tool}", asks)
                assert heard.structured_content is not None
                page = heard.structured_content
                rows += page[name]
            read[name] = rows
        assert asked == []
        charges, moved = read["charges"], read["transactions"]
        assert [len(read[name]) for name in LISTS.values()] == [6, 1, 8, 1]
        assert not {"ch_before", "ch_after"} & {each["id"] for each in charges}
        gross = sum(each["amount"] for each in charges) - sum(each["amount"] for each in read["refunds"])
        fees = sum(each["fee"] for each in moved)
        paid_out = sum(each["amount"] for each in read["payouts"])
        assert sum(each["net"] for each in moved) == gross - fees - paid_out
        assert {each["source"] for each in moved} == {
            each["id"] for name in ("charges", "refunds", "payouts") for each in read[name]
        }
        first, second = (each for each in charges if each["description"] == "Order 1043")
        assert (first["amount"], first["customer"]) == (second["amount"], second["customer"])
        refund = {"charge": first["id"], "reason": "duplicate"}
        done = (await client.call_tool("stripe_create_refund", refund)).structured_content
    assert done is not None
    assert (done["amount"], done["charge"], done["reason"]) == (7_450, first["id"], "duplicate")
    assert len(asked) == 1
    assert first["id"] in asked[0].message
    assert [request.method for request in upstream.requests].count("POST") == 1
    assert len(upstream.requests) == 1 + 3 + 1 + 4 + 1
