"""Stripe's connector against the two emulators of Stripe that there are; neither has all of what reconciling takes.

localstripe knows the balance, refunds, balance transactions and payouts, and no range of time; `emulate` knows charges
from a time, and nothing of the others. Neither knows idempotency keys: what is shown is that one is sent.
"""

from collections.abc import Iterator
from typing import Any

from tests.real.emulators import ask, emulate, localstripe, watched
from tests.real.fetching import Cache
from tests.real.governed import Agent, Org, agent, all_called, kept, org
from tests.real.report import CannotRun, Report, expect
from tests.upstream import Received, Upstream

KEY = "sk_test_canary8Jq2vXw0Zr5TnYb7LdKe"
BEFORE, LATER = 1_600_000_000, 4_000_000_000  # Unix seconds: long before and long after any run


async def check(report: Report, cache: Cache) -> None:
    """Both emulators, one after the other."""
    with report.line("localstripe runs"), localstripe(cache) as url, watched(url) as upstream, org() as made:
        await with_localstripe(report, made, url, upstream)
    emulator = emulate(cache, "stripe", {"stripe": {}})
    with report.line("emulate runs"), emulator as url, watched(url) as upstream, org() as made:
        await with_emulate(report, made, url, upstream)


async def with_localstripe(report: Report, made: Org, url: str, upstream: Upstream) -> None:
    """Everything but ranges of time."""
    charges = list(_charges(url))
    with report.line("connects, with the key tried (localstripe)"):
        connected = made.connect("stripe", upstream.url, KEY)
        expect(connected["account"] == "test mode", f"the account is called {connected['account']}")
        expect([request.target for request in upstream.requests] == ["/v1/balance"], "it was not tried once")
    with report.line("refuses to connect a key that Stripe refuses (localstripe)"):
        ran = made.line.alone(
            *("connect", "stripe", "--name", "other", "--secret-stdin", "--base-url", upstream.url),
            *("--allow-private", "127.0.0.1/32"),
            stdin=b"rk_test_localstripe_knows_no_restricted_keys",
        )
        expect(ran.code == 1 and "Nothing was stored" in ran.err, f"exit {ran.code}: {ran.err}")
    upstream.requests.clear()
    with made.serving() as address:
        async with agent(address, made.token, "stripe", upstream) as at_work:
            await _reads(report, at_work, charges)
            await _refunds(report, at_work, charges)
            await _customers(report, at_work)
            await _not_there(report, at_work)
            with report.line("every shipped tool was called (localstripe)"):
                all_called(at_work)
        with report.line("the key is in every request and nowhere else; the record verifies (localstripe)"):
            kept(made, at_work, KEY)


def _charges(url: str) -> Iterator[str]:
    """Three charges and a payout, made by whoever runs the shop."""
    card = {f"card[{name}]": value for name, value in CARD.items()}
    method = ask(url, "POST", "/v1/payment_methods", KEY, {"type": "card", **card}, form=True)["id"]
    customer = ask(url, "POST", "/v1/customers", KEY, {"name": "Ann", "email": "ann@example.com"}, form=True)["id"]
    ask(url, "POST", f"/v1/payment_methods/{method}/attach", KEY, {"customer": customer}, form=True)
    ask(url, "POST", "/v1/payouts", KEY, {"amount": 900, "currency": "eur"}, form=True)
    for amount in (1200, 1200, 700):
        charge = {"amount": amount, "currency": "eur", "customer": customer, "source": method}
        yield ask(url, "POST", "/v1/charges", KEY, charge, form=True)["id"]


CARD = {"number": "4242424242424242", "exp_month": "12", "exp_year": "2040", "cvc": "123"}


async def _reads(report: Report, at_work: Agent, charges: list[str]) -> None:
    with report.line("lists charges page by page (localstripe)"):
        first = await at_work.get("list_charges", {"limit": 2})
        rest = await at_work.get("list_charges", {"limit": 2, "starting_after": first["last_id"]})
        listed = [charge["id"] for page in (first, rest) for charge in page["charges"]]
        expect(sorted(listed) == sorted(charges), f"{len(listed)} of {len(charges)} charges were listed")
        expect((first["has_more"], rest["has_more"]) == (True, False), "has_more is not true, then false")
    with report.line("reads a charge (localstripe)"):
        charge = await at_work.get("get_charge", {"charge": charges[0]})
        expect((charge["amount"], charge["status"], charge["paid"]) == (1200, "succeeded", True), str(charge))
    with report.line("lists balance transactions with fee and net (localstripe)"):
        moved = (await at_work.get("list_balance_transactions", {"limit": 100}))["transactions"]
        expect({each["source"] for each in moved} == set(charges), "they are not those of the charges")
        expect(all(each["net"] == each["amount"] - each["fee"] for each in moved), "net is not amount less fee")
    with report.line("lists payouts (localstripe)"):
        payouts = (await at_work.get("list_payouts"))["payouts"]
        expect([(each["amount"], each["currency"]) for each in payouts] == [(900, "eur")], str(payouts))
    with report.line("reads the balance (localstripe)"):
        balance = await at_work.get("get_balance")
        expect(balance["livemode"] is False, str(balance))
        if not isinstance(balance["available"], list):
            raise CannotRun("localstripe gives one amount where Stripe gives a list by currency; it was read, unshown")
    with report.line("lists invoices and subscriptions (localstripe; there are none)"):
        expect((await at_work.get("list_invoices"))["invoices"] == [], "there are invoices")
        expect((await at_work.get("list_subscriptions"))["subscriptions"] == [], "there are subscriptions")


async def _refunds(report: Report, at_work: Agent, charges: list[str]) -> None:
    refund = {"charge": charges[1], "amount": 1200}
    with report.line("a refund that is not approved is not sent (localstripe)"):
        before, at_work.person.decision = at_work.sent, None
        await at_work.refused("create_refund", {**refund, "amount": 1})
        at_work.person.decision = "approve"
        expect(at_work.sent == before, "something was sent")
    with report.line("an approved refund is sent once, as a form, with an idempotency key (localstripe)"):
        before, asked = at_work.sent, len(at_work.person.asked)
        done = await at_work.get("create_refund", refund)
        expect((done["status"], done["amount"], done["charge"]) == ("succeeded", 1200, charges[1]), str(done))
        sent = at_work.upstream.requests[-1]
        expect(at_work.sent == before + 1 and sent.target == "/v1/refunds", f"{at_work.sent - before} were sent")
        expect(sent.body == f"charge={charges[1]}&amount=1200".encode(), f"the body is {sent.body!r}")
        expect(sent.headers.get("idempotency-key"), "it carries no Idempotency-Key")
        prompt = at_work.person.asked[asked]
        expect(charges[1] in prompt and "1200" in prompt, f"the person was asked: {prompt}")
    with report.line("the refund is in the books: refunds, the charge, a balance transaction (localstripe)"):
        refunds = (await at_work.get("list_refunds", {"charge": charges[1]}))["refunds"]
        expect([each["amount"] for each in refunds] == [1200], str(refunds))
        charge = await at_work.get("get_charge", {"charge": charges[1]})
        expect(charge["amount_refunded"] == 1200 and charge["refunded"] is True, str(charge))
        moved = (await at_work.get("list_balance_transactions", {"limit": 100}))["transactions"]
        expect(sum(each["net"] for each in moved) == 1200 + 700, "the nets do not add up")
    with report.line("two approvals are two idempotency keys (localstripe)"):
        for _ in range(2):
            await at_work.get("create_refund", {"charge": charges[0], "amount": 1})
        keys = [request.headers["idempotency-key"] for request in _posts(at_work.upstream)]
        expect(len(set(keys)) == len(keys) == 3, f"the keys are {keys}")
    with report.line("a refused refund says why (localstripe)"):
        said = await at_work.refused("create_refund", {"charge": "ch_none"})
        expect("Not Found" in said and "404" in said, said)
    with report.line("a refund with a reason"):
        await at_work.if_there("localstripe", "create_refund", {"charge": charges[2], "reason": "duplicate"})


def _posts(upstream: Upstream) -> list[Received]:
    return [request for request in upstream.requests if request.method == "POST"]


async def _customers(report: Report, at_work: Agent) -> None:
    with report.line("creates, lists and reads a customer (localstripe)"):
        created = await at_work.get("create_customer", {"name": "Bo", "metadata": {"team": "blue"}})
        expect(created["metadata"] == {"team": "blue"}, f"the metadata came back as {created['metadata']}")
        listed = (await at_work.get("list_customers", {"limit": 100}))["customers"]
        expect({each["name"] for each in listed} == {"Ann", "Bo"}, str(listed))
        expect((await at_work.get("get_customer", {"customer": created["id"]}))["name"] == "Bo", "it reads another")


async def _not_there(report: Report, at_work: Agent) -> None:
    day = {"created_gte": BEFORE, "created_lt": LATER}
    missing: list[tuple[str, str, dict[str, Any]]] = [
        ("a range of time on charges", "list_charges", day),
        ("a range of time on refunds", "list_refunds", day),
        ("a range of time on balance transactions", "list_balance_transactions", day),
        ("a range of time on payouts", "list_payouts", day),
        ("disputes", "list_disputes", {}),
        ("the search for customers", "search_customers", {"query": "email:'ann@example.com'"}),
        ("the end of a subscription", "cancel_subscription", {"subscription": "sub_1"}),
    ]
    for what, tool, arguments in missing:
        with report.line(what):
            await at_work.if_there("localstripe", tool, arguments)
    with report.line("ranges of time are asked for in Stripe's way (localstripe, which does not know them)"):
        asked = [request.target for request in at_work.upstream.requests if "created" in request.target]
        expect(len(asked) == 4, f"{len(asked)} requests asked for one")
        wanted = f"?created%5Bgte%5D={BEFORE}&created%5Blt%5D={LATER}"
        expect(all(target.endswith(wanted) for target in asked), f"the queries are {asked}")


async def with_emulate(report: Report, made: Org, url: str, upstream: Upstream) -> None:
    """Charges from a time; the balance, by which the key would be tried, is not there."""
    customer = ask(url, "POST", "/v1/customers", KEY, {"name": "Ann", "email": "ann@example.com"}, form=True)["id"]
    for amount in (1200, 1200, 700):
        payment = {"amount": amount, "currency": "eur", "customer": customer, "payment_method": "pm_card"}
        payment = ask(url, "POST", "/v1/payment_intents", KEY, payment, form=True)
        ask(url, "POST", f"/v1/payment_intents/{payment['id']}/confirm", KEY, {}, form=True)
    made.connect("stripe", upstream.url, KEY, verify=False)
    with made.serving() as address:
        async with agent(address, made.token, "stripe", upstream) as at_work:
            with report.line("lists charges made at or after a time (emulate; it ignores the other end)"):
                found = await at_work.get("list_charges", {"created_gte": BEFORE, "created_lt": LATER})
                expect([each["amount"] for each in found["charges"]] == [700, 1200, 1200], str(found))
                target = upstream.requests[-1].target
                expect(
                    target == f"/v1/charges?created%5Bgte%5D={BEFORE}&created%5Blt%5D={LATER}", f"asked for {target}"
                )
                found = await at_work.get("list_charges", {"created_gte": LATER})
                expect(found["charges"] == [] and found["last_id"] is None, str(found))
            with report.line("lists charges page by page, newest first (emulate)"):
                first = await at_work.get("list_charges", {"limit": 2})
                rest = await at_work.get("list_charges", {"limit": 2, "starting_after": first["last_id"]})
                amounts = [charge["amount"] for page in (first, rest) for charge in page["charges"]]
                expect(amounts == [700, 1200, 1200], str(amounts))
            with report.line("finds a customer by address, and their charges (emulate)"):
                found = (await at_work.get("list_customers", {"email": "ann@example.com"}))["customers"]
                expect([each["id"] for each in found] == [customer], str(found))
                expect(len((await at_work.get("list_charges", {"customer": customer}))["charges"]) == 3, "not three")
            with report.line("an error's message and code reach the agent (emulate)"):
                said = await at_work.refused("get_charge", {"charge": "ch_none"})
                expect("No such charge: 'ch_none'" in said and "resource_missing" in said, said)
        with report.line("the key is in every request and nowhere else; the record verifies (emulate)"):
            kept(made, at_work, KEY)
    for what in ("refunds", "balance transactions", "payouts", "the balance"):
        with report.line(what):
            raise CannotRun("emulate's Stripe does not have them")
