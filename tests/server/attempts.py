"""What an agent can try through MCP: to act without a person, answer for one, use another's approval, or loosen a rule.

One entry is one attempt: its name says what it tries, and it ends with everything refused. To add one, write a function
under `@attempt`; `test_attempts.py` runs each at every client that it names, and looks at what came of it.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from server.approval import Decision, State
from server.clock import now_ms
from server.identity import rotate_agent
from tests.agents import decide
from tests.raw import MODERN, approving
from tests.server.hand import CLIENTS, Hand, Session

Trying = Callable[[Hand], Awaitable[None]]


@dataclass(frozen=True)
class Attempt:
    """`sent`: how many requests are honest, all others being in vain. `on_record`: whether it names a call to us."""

    name: str
    run: Trying
    clients: tuple[str, ...]
    on_record: bool
    sent: int = 0


ATTEMPTS: dict[str, Attempt] = {}
RAW = ("raw",)
MODERN_ONLY = ("modern", "raw")


def attempt(name: str, *, clients: tuple[str, ...] = CLIENTS, on_record: bool = True, sent: int = 0) -> Any:
    def add(run: Trying) -> Trying:
        assert name not in ATTEMPTS, name
        ATTEMPTS[name] = Attempt(name, run, clients, on_record, sent)
        return run

    return add


def one_of(variants: Any) -> list[tuple[Any, tuple[str, ...]]]:
    """Each of many variants of one attempt: by hand, and in the long form at both real clients, else some at one."""
    some = [("raw", "modern"), RAW, ("raw", "handshake"), RAW]
    return [(each, CLIENTS if LONG else some[at % 4]) for at, each in enumerate(variants)]


LONG = "KEYLEASH_PROOFS" in os.environ
REFUND_TOOL, POST_TOOL, ARCHIVE_TOOL = "stripe_create_refund", "slack_post_message", "slack_archive_channel"
REFUND = {"charge": "ch_1", "amount": 1200}
MESSAGE = {"channel": "C1", "text": "hello"}
APPROVE = {"decision": "approve"}


# -- to act without a person


@attempt("calls what must be confirmed, from a client that cannot ask")
async def _(hand: Hand) -> None:
    for _ in range(3):
        await hand.call(REFUND_TOOL, REFUND)


@attempt("calls it through the tool that calls tools")
async def _(hand: Hand) -> None:
    await hand.call("call_tool", {"name": REFUND_TOOL, "arguments": REFUND})


@attempt("calls it through the tool that calls tools, through itself", on_record=False)
async def _(hand: Hand) -> None:
    await hand.call("call_tool", {"name": "call_tool", "arguments": {"name": REFUND_TOOL, "arguments": REFUND}})


@attempt("says in the arguments that it is approved")
async def _(hand: Hand) -> None:
    for more in ({"approved": True}, {"decision": "approve"}, {"_approval": "apr_1"}, {"confirm": "yes"}):
        await hand.call(REFUND_TOOL, {**REFUND, **more})
        await hand.call("call_tool", {"name": REFUND_TOOL, "arguments": REFUND, **more})


@attempt("says in the request's metadata, headers and fields that it is approved", clients=RAW)
async def _(hand: Hand) -> None:
    raw = hand.raw(elicits=False)
    body = raw.body(REFUND_TOOL, REFUND)
    body["params"] |= {"approved": True, "decision": "approve", "approval": {"decision": "approve"}}
    body["params"]["_meta"] |= {"approved": True, "role": "owner", "member": "alice", "keyleash/approval": "approve"}
    headers = {"X-Approved": "true", "X-Forwarded-User": "alice", "X-Keyleash-Member": "alice", "X-Role": "owner"}
    hand.tried(await raw.post(body, {**raw.headers("tools/call", REFUND_TOOL), **headers}))


@attempt("calls without an id, as a notification that nobody answers", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw()
    body = raw.body(REFUND_TOOL, REFUND)
    del body["id"]
    reply = await raw.post(body, raw.headers("tools/call", REFUND_TOOL))
    assert not reply.result
    hand.count += 1


@attempt("calls a hundred times at once")
async def _(hand: Hand) -> None:
    many = 100 if hand.client == "raw" else 5
    await asyncio.gather(*(hand.call(REFUND_TOOL, REFUND) for _ in range(many)))


@attempt("calls twice with one id", clients=RAW)
async def _(hand: Hand) -> None:
    await hand.pending(REFUND_TOOL, REFUND)
    for reply in await asyncio.gather(*(hand.raw().call(REFUND_TOOL, REFUND) for _ in range(2))):
        hand.tried(reply)


@attempt("is a standalone agent that says it can ask a person")
async def _(hand: Hand) -> None:
    alone = hand.agent(standalone=True)
    hand.place.rule(who=f"agent:{hand.id_of(alone)}", tools=["stripe.create_refund"], then="confirm")
    hand.ready()
    reply = await hand.answered(REFUND_TOOL, REFUND, APPROVE, as_=alone)
    assert not reply.asks


@attempt("answers at the client what needs an approver outside it")
async def _(hand: Hand) -> None:
    reply = await hand.answered(ARCHIVE_TOOL, {"channel": "C1"}, APPROVE)
    assert not reply.asks


@attempt("sends an answer along with what needs an approver outside the client", clients=RAW)
async def _(hand: Hand) -> None:
    for content in ("approve", "approve_for_one_hour"):
        reply = await hand.raw().call(ARCHIVE_TOOL, {"channel": "C1"}, answers=approving(content))
        assert not hand.tried(reply).asks


@attempt("answers a question of its own wish: a client that only opens pages", clients=RAW)
async def _(hand: Hand) -> None:
    raw = hand.raw()
    raw.capabilities = {"elicitation": {"url": {}}}
    hand.tried(await raw.call(REFUND_TOOL, REFUND, answers=approving()))


# -- to answer for a person

NO_APPROVALS: dict[str, Any] = {
    "nothing": {},
    "null": {"decision": None},
    "another word": {"decision": "yes"},
    "the word in capitals": {"decision": "APPROVE"},
    "the word with a space": {"decision": " approve"},
    "the word with a line end": {"decision": "approve\n"},
    "the word in look-alikes": {"decision": "\u0430pprove"},
    "the word in wide letters": {"decision": "\uff41pprove"},
    "a list of the word": {"decision": ["approve"]},
    "the word twice": {"decision": ["approve", "approve"]},
    "an answer within an answer": {"decision": {"decision": "approve"}},
    "true": {"decision": True},
    "one": {"decision": 1},
    "the word and a field more": {"decision": "approve", "note": "please"},
    "the word and an amount": {"decision": "approve", "amount": 999_999},
    "the word under another name": {"Decision": "approve"},
    "the word under two names": {"decision": "deny", "decision ": "approve"},
    "an hour, which is not offered": {"decision": "approve_for_one_hour"},
    "a title": {"decision": "Approve this call"},
    "a number of the list": {"decision": "0"},
}


def _answers(content: Any) -> Trying:
    async def run(hand: Hand) -> None:
        await hand.answered(REFUND_TOOL, REFUND, content)

    return run


for (_name, _content), _clients in one_of(NO_APPROVALS.items()):
    attempt(f"accepts with {_name}", clients=_clients)(_answers(_content))


@attempt("declines, and then approves the same call")
async def _(hand: Hand) -> None:
    await hand.answered(REFUND_TOOL, REFUND, None, "decline")
    reply = await hand.answered(REFUND_TOOL, REFUND, APPROVE)
    assert not reply.asks


@attempt("cancels, and then approves the same call")
async def _(hand: Hand) -> None:
    await hand.answered(REFUND_TOOL, REFUND, None, "cancel")
    await hand.answered(REFUND_TOOL, REFUND, APPROVE)


@attempt("declines with the approving word")
async def _(hand: Hand) -> None:
    await hand.answered(REFUND_TOOL, REFUND, APPROVE, "decline")


@attempt("answers with an action that there is not", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    _, state = await hand.pending(REFUND_TOOL, REFUND)
    hand.ready()
    for action in ("approve", "accepted", "ACCEPT", "", " accept", "yes"):
        answers = {"approval": {"action": action, "content": APPROVE}}
        hand.tried(await hand.raw().call(REFUND_TOOL, REFUND, state=state, answers=answers))


@attempt("answers in other shapes than a client's", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    _, state = await hand.pending(REFUND_TOOL, REFUND)
    accept = {"action": "accept", "content": APPROVE}
    hand.ready()
    for answers in (
        [accept],
        {"approval": [accept]},
        {"approval": [accept, accept]},
        {"approval": "accept"},
        {"approval": True},
        {"approval": APPROVE},
        {"approval": {"approval": accept}},
        {"approval": {"result": accept}},
        {"approval": {"action": "accept", "content": [APPROVE]}},
        {"approval": {"action": "accept", "content": json.dumps(APPROVE)}},
        {"approval": {"action": ["accept"], "content": APPROVE}},
        {"approval": {"Action": "accept", "Content": APPROVE}},
        {"approval ": accept},
        {"Approval": accept},
        {"other": accept},
        {"": accept},
        {"0": accept, "1": accept},
        "approve",
        True,
    ):
        hand.tried(await hand.raw().call(REFUND_TOOL, REFUND, state=state, answers=answers))


@attempt("answers before there is a question", clients=RAW)
async def _(hand: Hand) -> None:
    for _ in range(2):
        hand.tried(await hand.raw().call(REFUND_TOOL, REFUND, answers=approving()))


@attempt("answers a question of another call of its own", clients=RAW)
async def _(hand: Hand) -> None:
    _, state = await hand.pending(REFUND_TOOL, REFUND)
    await hand.pending(REFUND_TOOL, {"charge": "ch_2"})
    hand.ready()
    hand.tried(await hand.raw().call(REFUND_TOOL, {"charge": "ch_2"}, state=state, answers=approving()))


@attempt("answers by a client that did not say it can ask", clients=RAW)
async def _(hand: Hand) -> None:
    _, state = await hand.pending(REFUND_TOOL, REFUND)
    hand.ready()
    hand.tried(await hand.raw(elicits=False).call(REFUND_TOOL, REFUND, state=state, answers=approving()))


@attempt("answers as another agent of the same member", clients=RAW)
async def _(hand: Hand) -> None:
    _, state = await hand.pending(REFUND_TOOL, REFUND)
    second = hand.agent()
    hand.ready()
    for given in (state, None):
        hand.tried(await hand.raw(second).call(REFUND_TOOL, REFUND, state=given, answers=approving()))


@attempt("answers as an agent of another org", clients=RAW)
async def _(hand: Hand) -> None:
    _, state = await hand.pending(REFUND_TOOL, REFUND)
    stranger = hand.agent(hand.scene.other)
    hand.ready()
    for tool in (REFUND_TOOL, "theirs_create_refund"):
        raw = hand.raw(stranger, hand.scene.other)
        hand.tried(await raw.call(tool, REFUND, state=state, answers=approving()))


@attempt("answers with a response that nobody waits for", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    await hand.pending(REFUND_TOOL, REFUND)
    hand.ready()
    raw = hand.raw()
    for question in (1, 0, "approval", "1", None):
        body = {"jsonrpc": "2.0", "id": question, "result": {"action": "accept", "content": APPROVE}}
        for headers in (raw.headers("tools/call", REFUND_TOOL), raw.headers("elicitation/create", None)):
            reply = await raw.post(body, headers)
            assert not reply.result
            hand.count += 1


@attempt("answers a question of the handshake in advance, by every number that it could have", clients=("handshake",))
async def _(hand: Hand) -> None:
    session = await Session(hand).open()
    for question in (*range(8), "0", "1", "approval"):
        await session.answer(question, APPROVE)
    async with session.calling(REFUND_TOOL, REFUND) as messages:
        question = await anext(messages)
        assert question["method"] == "elicitation/create"
        await session.answer(question["id"], None, "decline")
        hand.count += 1
        assert (await anext(messages))["result"]["isError"]


@attempt("answers another agent's question of the handshake", clients=("handshake",))
async def _(hand: Hand) -> None:
    """With a session of its own, with the other's session, without any, and by the modern way."""
    session = await Session(hand).open()
    second = await Session(hand, hand.agent()).open()
    stranger = await Session(hand, hand.agent(hand.scene.other), hand.scene.other).open()
    hand.ready()
    async with session.calling(REFUND_TOOL, REFUND) as messages:
        question = (await anext(messages))["id"]
        for other in (second, stranger):
            await other.answer(question, APPROVE)
            for theirs in (session.id, session.id.upper(), f"{session.id}x"):
                reply = await other.answer(question, APPROVE, **{"Mcp-Session-Id": theirs})
                assert reply.status >= 400, reply
            await other.answer(question, APPROVE, **{"Mcp-Session-Id": ""})
            hand.count += 1
        await session.answer(question, None, "decline")
        assert (await anext(messages))["result"]["isError"]


@attempt("answers a question of the handshake twice, no and then yes", clients=("handshake",))
async def _(hand: Hand) -> None:
    session = await Session(hand).open()
    async with session.calling(REFUND_TOOL, REFUND) as messages:
        question = (await anext(messages))["id"]
        await session.answer(question, None, "decline")
        await session.answer(question, APPROVE)
        assert (await anext(messages))["result"]["isError"]
        hand.count += 1
    await session.answer(question, APPROVE)
    await hand.call(REFUND_TOOL, REFUND)


@attempt("answers a question of the handshake from outside of its session's protocol", clients=("handshake",))
async def _(hand: Hand) -> None:
    session = await Session(hand).open()
    async with session.calling(REFUND_TOOL, REFUND) as messages:
        question = (await anext(messages))["id"]
        answers = approving()
        *_, record = hand.place.installation.approvals.list(hand.place.org, state=State.PENDING)
        for state in (record.id, json.dumps({"approval": record.id}), None):
            reply = await hand.raw().call(REFUND_TOOL, REFUND, state=state, answers=answers)
            hand.tried(reply)
        await session.answer(question, None, "cancel")
        assert (await anext(messages))["result"]["isError"]


# -- to use an approval that is not this call's, or not any more


@attempt("uses what was approved for another agent of the same member")
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    second = hand.agent()
    hand.ready()
    await hand.call(REFUND_TOOL, REFUND, as_=second)
    await hand.call(REFUND_TOOL, REFUND, as_=second, state=state)


@attempt("uses what was approved for a member's agent as one that stands alone")
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    alone = hand.agent(standalone=True)
    hand.ready()
    await hand.call(REFUND_TOOL, REFUND, as_=alone)
    await hand.call(REFUND_TOOL, REFUND, as_=alone, state=state)


@attempt("uses what was approved for another agent, being narrowed to reading")
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    narrow = hand.agent(effects=("read",))
    hand.ready()
    await hand.call(REFUND_TOOL, REFUND, as_=narrow)
    await hand.call(REFUND_TOOL, REFUND, as_=narrow, state=state)


@attempt("uses what was approved in another org", clients=RAW)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    raw = hand.raw(hand.agent(hand.scene.other), hand.scene.other)
    hand.ready()
    for tool in (REFUND_TOOL, "theirs_create_refund"):
        for given in (state, None):
            hand.tried(await raw.call(tool, REFUND, state=given))


@attempt("uses an approval with the token from before it was rotated", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    agent = hand.place.installation.directory.agent(hand.place.org, hand.name)
    old = hand.raw()
    hand.place.tokens[hand.name] = hand.place.database.of(hand.place.org).write_now(
        lambda rows: rotate_agent(rows, hand.place.org, agent, by="alice")
    )
    hand.ready()
    for given in (state, None):
        assert hand.tried(await old.call(REFUND_TOOL, REFUND, state=given)).status == 401
    hand.tried(await hand.raw().call(REFUND_TOOL, REFUND, state=state))


@attempt("names the approval where the client's state belongs", clients=RAW)
async def _(hand: Hand) -> None:
    approval, state = await hand.approved(REFUND_TOOL, {"charge": "ch_approved"})
    forged = json.dumps({"approval": approval})
    for given in (
        approval,
        forged,
        "",
        "{}",
        "null",
        f"{state}x",
        state[:-1],
        state.swapcase(),
        state[: len(state) // 2],
    ):
        hand.tried(await hand.raw().call(REFUND_TOOL, REFUND, state=given))


@attempt("gives the client's state as something else than text", clients=RAW)
async def _(hand: Hand) -> None:
    approval, state = await hand.approved(REFUND_TOOL, {"charge": "ch_approved"})
    raw = hand.raw()
    for given in ([state], {"approval": approval}, {"requestState": state}, 1, True, [], {}):
        body = raw.body(REFUND_TOOL, REFUND)
        body["params"]["requestState"] = given
        hand.tried(await raw.post(body, raw.headers("tools/call", REFUND_TOOL)))


@attempt("moves the state of an approved call to another tool", clients=MODERN_ONLY)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(POST_TOOL, {"channel": "C1", "text": "hello", "thread_ts": "1.2"})
    await hand.call("slack_update_message", {"channel": "C1", "text": "hello", "ts": "1.2"}, state=state)
    await hand.call(ARCHIVE_TOOL, {"channel": "C1"}, state=state)
    await hand.call(REFUND_TOOL, REFUND, state=state)


@attempt("moves the state of an approved call into the tool that calls tools", clients=MODERN_ONLY)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    await hand.call("call_tool", {"name": REFUND_TOOL, "arguments": REFUND}, state=state)


@attempt("repeats what a person denied", clients=MODERN_ONLY)
async def _(hand: Hand) -> None:
    approval, state = await hand.pending(REFUND_TOOL, REFUND)
    decide(hand.place, approval, Decision.DENY)
    hand.ready()
    for _ in range(2):
        await hand.call(REFUND_TOOL, REFUND, state=state)
    reply = await hand.raw().call(REFUND_TOOL, REFUND, state=state, answers=approving())
    assert hand.tried(reply).status_of_approval == "denied"


@attempt("uses an approval after its time", clients=MODERN_ONLY)
async def _(hand: Hand) -> None:
    approval, state = await hand.approved(REFUND_TOOL, REFUND)
    hand.execute("UPDATE approval SET expires_at = ? WHERE id = ?", now_ms() - 1, approval)
    hand.ready()
    await hand.call(REFUND_TOOL, REFUND, state=state)
    await hand.call(REFUND_TOOL, REFUND)


@attempt("answers a question after its time", clients=RAW)
async def _(hand: Hand) -> None:
    approval, state = await hand.pending(REFUND_TOOL, REFUND)
    hand.execute("UPDATE approval SET expires_at = ? WHERE id = ?", now_ms() - 1, approval)
    hand.ready()
    hand.tried(await hand.raw().call(REFUND_TOOL, REFUND, state=state, answers=approving()))


@attempt("does again what was approved once", sent=0)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    assert (await hand.raw().call(REFUND_TOOL, REFUND, state=state)).ran
    hand.ready()
    for _ in range(3):
        await hand.call(REFUND_TOOL, REFUND)
    assert (await hand.raw().call(REFUND_TOOL, REFUND, state=state)).ran  # it is told what came of it


@attempt("does what was approved, from two clients at once", clients=RAW, sent=1)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(REFUND_TOOL, REFUND)
    raw = hand.raw()
    replies = await asyncio.gather(
        *(raw.call(REFUND_TOOL, REFUND, state=given) for given in (state, None, state, None, state))
    )
    hand.count += 1
    assert any(reply.ran for reply in replies)
    assert len({reply.text for reply in replies if reply.ran}) == 1


# -- to change what was approved

OTHERS: dict[str, dict[str, Any]] = {
    "a larger amount": {"amount": 1201},
    "ten times the amount": {"amount": 12000},
    "the amount with a fraction": {"amount": 1200.5},
    "the amount as text": {"amount": "1200"},
    "the amount as true": {"amount": True},
    "a negative amount": {"amount": -1200},
    "no amount at all": {"amount": ...},
    "the amount as null": {"amount": None},
    "the amount in a list": {"amount": [1200]},
    "another charge": {"charge": "ch_2"},
    "the charge in capitals": {"charge": "CH_1"},
    "the charge with a space": {"charge": "ch_1 "},
    "the charge with a wide digit": {"charge": "ch_\uff11"},
    "the charge with a letter that looks the same": {"charge": "\u0441h_1"},
    "the charge with something invisible": {"charge": "ch_\u200b1"},
    "the charge with a combining mark": {"charge": "ch_1\u0301"},
    "the charge with an end of line": {"charge": "ch_1\n"},
    "the charge with an end of text": {"charge": "ch_1\x00"},
    "the charge with a parameter more": {"charge": "ch_1&amount=9999"},
    "the charge in a list": {"charge": ["ch_1"]},
    "the charge in an object": {"charge": {"id": "ch_1"}},
    "a reason more": {"reason": "duplicate"},
    "an empty reason": {"reason": ""},
    "a reason of null": {"reason": None},
    "an empty payment": {"payment_intent": ""},
    "a payment of null": {"payment_intent": None},
    "an argument that there is not": {"currency": "usd"},
    "an argument by its name upstream": {"amount[value]": 9999},
}


def _changed(change: dict[str, Any]) -> Trying:
    async def run(hand: Hand) -> None:
        _, state = await hand.approved(REFUND_TOOL, REFUND)
        arguments = {name: value for name, value in {**REFUND, **change}.items() if value is not ...}
        await hand.call(REFUND_TOOL, arguments, state=state)
        await hand.call(REFUND_TOOL, arguments)
        await hand.call("call_tool", {"name": REFUND_TOOL, "arguments": arguments})

    return run


for (_name, _change), _clients in one_of(OTHERS.items()):
    attempt(f"has a refund approved, and sends {_name}", clients=_clients)(_changed(_change))


@attempt("has composed letters approved, and sends decomposed ones", clients=CLIENTS)
async def _(hand: Hand) -> None:
    _, state = await hand.approved(POST_TOOL, {"channel": "C1", "text": "caf\u00e9"})
    for text in ("cafe\u0301", "CAF\u00c9", "caf\u00e9 ", "cafe"):
        await hand.call(POST_TOOL, {"channel": "C1", "text": text}, state=state)
        await hand.call(POST_TOOL, {"channel": "C1", "text": text})


RAW_ARGUMENTS = {
    "with a second charge": '{"charge": "ch_1", "amount": 1200, "charge": "ch_2"}',
    "with a second amount": '{"amount": 1200, "charge": "ch_1", "amount": 9999}',
    "with an escaped second name": '{"charge": "ch_1", "amount": 1200, "ch\\u0061rge": "ch_2"}',
    "with an exponent": '{"charge": "ch_1", "amount": 1.2e4}',
    "with a huge number": '{"charge": "ch_1", "amount": 120000000000000000000000000000}',
    "with a number that is none": '{"charge": "ch_1", "amount": NaN}',
    "with infinity": '{"charge": "ch_1", "amount": Infinity}',
    "with half a character": '{"charge": "ch_1\\ud800", "amount": 1200}',
    "with an escaped end of text": '{"charge": "ch_1\\u0000", "amount": 1200}',
    "as text": '"{\\"charge\\": \\"ch_1\\"}"',
    "as a list": '["ch_1", 1200]',
    "as null": "null",
    "in another object": '{"arguments": {"charge": "ch_1", "amount": 1200}}',
    "very deep": '{"charge": ' + "[" * 500 + "]" * 500 + "}",
}


def _by_hand(arguments: str) -> Trying:
    async def run(hand: Hand) -> None:
        _, state = await hand.approved(REFUND_TOOL, REFUND)
        raw = hand.raw()
        for given in (None, state):
            body = json.dumps(raw.body(REFUND_TOOL, "ARGUMENTS", state=given)).replace('"ARGUMENTS"', arguments)
            hand.tried(await raw.post(body.encode(), raw.headers("tools/call", REFUND_TOOL)))

    return run


for _name, _arguments in RAW_ARGUMENTS.items():
    attempt(f"has a refund approved, and sends its arguments {_name}", clients=RAW, on_record=False)(
        _by_hand(_arguments)
    )


# -- to stretch a grant

STRETCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "another channel": (POST_TOOL, {"channel": "C2", "text": "hello"}),
    "the channel in small letters": (POST_TOOL, {"channel": "c1", "text": "hello"}),
    "the channel with a space": (POST_TOOL, {"channel": "C1 ", "text": "hello"}),
    "the channel with something invisible": (POST_TOOL, {"channel": "C1\u200b", "text": "hello"}),
    "the channel as null": (POST_TOOL, {"channel": None, "text": "hello"}),
    "no channel": (POST_TOOL, {"text": "hello"}),
    "the channel in a list": (POST_TOOL, {"channel": ["C1"], "text": "hello"}),
    "two channels": (POST_TOOL, {"channel": "C1,C2", "text": "hello"}),
    "another tool with the same channel": ("slack_update_message", {"channel": "C1", "ts": "1.2", "text": "hello"}),
    "another tool that destroys": (ARCHIVE_TOOL, {"channel": "C1"}),
    "another tool that lets people in": ("slack_invite_to_channel", {"channel": "C1", "users": "U1"}),
}


def _stretched(tool: str, arguments: dict[str, Any]) -> Trying:
    async def run(hand: Hand) -> None:
        await hand.granted(POST_TOOL, MESSAGE)
        await hand.call(tool, arguments)
        await hand.call("call_tool", {"name": tool, "arguments": arguments})

    return run


for (_name, (_tool, _given)), _clients in one_of(STRETCHES.items()):
    attempt(f"has a channel granted for an hour, and takes {_name}", clients=_clients)(_stretched(_tool, _given))


@attempt("uses another agent's grant")
async def _(hand: Hand) -> None:
    await hand.granted(POST_TOOL, MESSAGE)
    second, alone = hand.agent(), hand.agent(standalone=True)
    hand.ready()
    for other in (second, alone):
        await hand.call(POST_TOOL, MESSAGE, as_=other)


@attempt("uses a grant after it was revoked")
async def _(hand: Hand) -> None:
    approval = await hand.granted(POST_TOOL, MESSAGE)
    hand.execute("UPDATE call_grant SET revoked_at = ? WHERE approval = ?", now_ms(), approval)
    hand.ready()
    await hand.call(POST_TOOL, MESSAGE)


@attempt("uses a grant after its hour")
async def _(hand: Hand) -> None:
    approval = await hand.granted(POST_TOOL, MESSAGE)
    hand.execute("UPDATE call_grant SET expires_at = ? WHERE approval = ?", now_ms() - 1, approval)
    await hand.pending(POST_TOOL, {"channel": "C9", "text": "hello"})  # whoever asks next has it written down
    hand.ready()
    await hand.call(POST_TOOL, MESSAGE)


@attempt("uses a grant after its last use")
async def _(hand: Hand) -> None:
    await hand.granted(POST_TOOL, MESSAGE, uses=0)
    await hand.call(POST_TOOL, MESSAGE)


@attempt("takes the last use of a grant ten times at once", clients=RAW, sent=1)
async def _(hand: Hand) -> None:
    await hand.granted(POST_TOOL, MESSAGE, uses=1)
    raw = hand.raw()
    messages = [{"channel": "C1", "text": f"message {number}"} for number in range(10)]
    replies = await asyncio.gather(*(raw.call(POST_TOOL, message) for message in messages))
    assert [reply.ran for reply in replies].count(True) == 1
    for reply in replies:
        if not reply.ran:
            hand.tried(reply)


@attempt("uses a grant against a rule that has become stricter")
async def _(hand: Hand) -> None:
    await hand.granted(POST_TOOL, MESSAGE)
    hand.place.rule(who=f"agent:{hand.id_of(hand.name)}", tools=["slack.post_message"], then="approve")
    hand.ready()
    await hand.call(POST_TOOL, MESSAGE)


# -- to loosen a rule, or to be more than it is

VERBS = [
    *("policy_add", "policy_remove", "policy_preset", "policy_apply", "policy_list", "policy_explain", "add_rule"),
    *("approvals_approve", "approvals_deny", "approvals_list", "approvals_resolve", "approve", "approvals_watch"),
    *("grant_create", "grant_revoke", "agent_create", "agent_rotate", "member_create", "org_create", "member_roles"),
    *("connect", "connection_rotate", "connection_remove", "connector_new", "vault_status", "vault_backup", "freeze"),
    *("unfreeze", "audit_list", "audit_export", "usage", "doctor", "init", "serve", "upgrade", "keyleash", "shell"),
]


def _as_a_tool(verb: str) -> Trying:
    async def run(hand: Hand) -> None:
        for name in (verb, f"keyleash_{verb}", verb.replace("_", "."), verb.replace("_", " ")):
            await hand.call(name, {"then": "allow", "tools": ["*"], "who": "everyone", "id": "apr_1"})
        await hand.call("call_tool", {"name": verb, "arguments": {"id": "apr_1"}})
        await hand.call("describe_tool", {"name": verb})

    return run


for _verb in VERBS:
    attempt(f"calls {_verb} as a tool", clients=RAW)(_as_a_tool(_verb))


@attempt("calls the commands that loosen rules as tools")
async def _(hand: Hand) -> None:
    for verb in ("policy_add", "approvals_approve", "grant_create"):
        await hand.call(verb, {"then": "allow"})


METHODS = [
    *(
        "policy/add",
        "policy/list",
        "approvals/approve",
        "approvals/list",
        "grants/create",
        "tools/approve",
        "rules/add",
    ),
    *("elicitation/create", "sampling/createMessage", "roots/list", "resources/list", "resources/read", "prompts/get"),
    *("prompts/list", "completion/complete", "logging/setLevel", "tasks/result", "tasks/list", "tasks/cancel"),
    *("Tools/Call", "tools/call/", "tools/Call", "tools//call", "rpc.discover", "__proto__", "initialize"),
]


@attempt("asks for methods that would change a rule or answer for a person", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    approval, state = await hand.pending(REFUND_TOOL, REFUND)
    hand.ready()
    for method in METHODS:
        params = {
            "name": REFUND_TOOL,
            "arguments": REFUND,
            "uri": "keyleash://policy",
            "id": approval,
            "requestState": state,
        }
        hand.tried(await hand.raw().request(method, params))
        hand.tried(await hand.raw().request(method, params, name=REFUND_TOOL))


@attempt("asks the server's other paths", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    approval, _ = await hand.pending(REFUND_TOOL, REFUND)
    hand.ready()
    base = hand.scene.url.removesuffix("/agent/mcp")
    headers = {"Authorization": f"Bearer {hand.raw().token}"}
    for path in (
        *("/", "/admin", "/policy", "/rules", f"/approvals/{approval}", f"/approvals/{approval}/approve", "/mcp"),
        *(f"/agent/mcp/approvals/{approval}/approve", "/agent", "/agent/mcp/", "/agent/mcp;x", "/agent/mcp%2f"),
        *("/AGENT/MCP", "//agent/mcp", "/agent/../policy", "/agent/%2e%2e/policy", "/login", "/metrics", "/docs"),
    ):
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            reply = await hand.http.request(method, base + path, headers=headers, json={"decision": "approve"})
            if (method, path) == ("GET", f"/approvals/{approval}"):  # a page that decides nothing, and knows of none
                unknown = await hand.http.get(f"{base}/approvals/apr_{'a' * 16}")
                assert (reply.status_code, reply.content) == (unknown.status_code, unknown.content)
                continue
            assert reply.status_code in (401, 403, 404, 405), (method, path, reply.status_code)
            hand.count += 1


@attempt("calls a tool that a rule denies")
async def _(hand: Hand) -> None:
    arguments = {"channel": "C1", "ts": "1.2"}
    hidden = await hand.call("slack_delete_message", arguments)
    unknown = await hand.call("slack_delete_massage", arguments)
    assert hidden.message == json.loads(json.dumps(unknown.message).replace("massage", "message"))
    await hand.call("call_tool", {"name": "slack_delete_message", "arguments": arguments})


@attempt("calls a tool of another org")
async def _(hand: Hand) -> None:
    await hand.call("theirs_create_refund", REFUND)
    await hand.call("theirs_list_charges", {})
    await hand.call("call_tool", {"name": "theirs_list_charges"})


@attempt("calls more than it is narrowed to")
async def _(hand: Hand) -> None:
    narrow = hand.agent(effects=("read",))
    hand.ready()
    await hand.call(POST_TOOL, MESSAGE, as_=narrow)
    await hand.call("call_tool", {"name": POST_TOOL, "arguments": MESSAGE}, as_=narrow)


@attempt("calls a tool by names that are nearly its own")
async def _(hand: Hand) -> None:
    names = [
        *("stripe.create_refund", "STRIPE_CREATE_REFUND", "stripe_create_refund ", " stripe_create_refund"),
        *("stripe__create_refund", "stripe_create_refund\u200b", "str\u0456pe_create_refund", "stripe/create_refund"),
        *("create_refund", "_create_refund", "stripe_", "stripe", "", "*", "stripe_*", "../stripe_create_refund"),
    ]
    for name in names if hand.client == "raw" or LONG else names[:3]:
        await hand.call("call_tool", {"name": name, "arguments": REFUND})
        if hand.client == "raw" and not (name.isascii() and name.strip() == name):
            continue  # such a name cannot stand in a header
        await hand.call(name, REFUND)


@attempt("lists with the cursor of another caller", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    for cursor in ("AAAA", "", "0", "1", "../", "'", "A" * 27, "A" * 5_000):
        hand.tried(await hand.raw().request("tools/list", {"cursor": cursor})) if cursor else None


# -- to say one thing to one reader, and another to the next


@attempt("names a reading tool in the header, and another in the body", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw(elicits=False)
    body = raw.body(REFUND_TOOL, REFUND)
    for method, name in (
        ("tools/call", "stripe_list_charges"),
        ("tools/list", REFUND_TOOL),
        ("tools/list", None),
        ("tools/call", None),
        ("tools/call", ""),
        ("Tools/Call", REFUND_TOOL),
        ("", REFUND_TOOL),
    ):
        reply = hand.tried(await raw.post(body, raw.headers(method, name)))
        assert reply.status == 400, (method, name, reply)


@attempt("repeats the headers that name the call", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw(elicits=False)
    for name, value in (("Mcp-Name", "stripe_list_charges"), ("Mcp-Method", "tools/list")):
        headers = [*raw.headers("tools/call", REFUND_TOOL).items(), (name, value)]
        content = json.dumps(raw.body(REFUND_TOOL, REFUND)).encode()
        sent = await hand.http.post(hand.scene.url, content=content, headers=headers)
        assert sent.status_code == 400, sent.text
        hand.count += 1


@attempt("says one protocol in the header, and another in the body", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw()
    for version in ("2025-11-25", "2024-11-05", "2099-01-01", "", "2026-07-28x"):
        headers = raw.headers("tools/call", REFUND_TOOL) | {"MCP-Protocol-Version": version}
        hand.tried(await raw.post(raw.body(REFUND_TOOL, REFUND), headers))
        body = raw.body(REFUND_TOOL, REFUND)
        body["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = version
        hand.tried(await raw.post(body, raw.headers("tools/call", REFUND_TOOL)))


@attempt("sends several requests as one", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw, headers = hand.raw(), hand.raw().headers("tools/call", REFUND_TOOL)
    call = raw.body(REFUND_TOOL, REFUND)
    answer = {"jsonrpc": "2.0", "id": 1, "result": {"action": "accept", "content": APPROVE}}
    for batch in ([call], [call, answer], [answer, call], [call, call], []):
        hand.tried(await raw.post(batch, headers))
        hand.tried(await raw.post(batch, headers | {"MCP-Protocol-Version": "2025-03-26"}))
    hand.tried(await raw.post(json.dumps(call).encode() * 2, headers))


@attempt("names two tools in one body", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw(elicits=False)
    whole = json.dumps(raw.body(REFUND_TOOL, REFUND))
    doubled = whole.replace(
        '"name": "stripe_create_refund"', '"name": "stripe_list_charges", "name": "stripe_create_refund"', 1
    )
    assert doubled != whole
    reply = await raw.post(doubled.encode(), raw.headers("tools/call", "stripe_list_charges"))
    hand.tried(reply)
    hand.tried(await raw.post(doubled.encode(), raw.headers("tools/call", REFUND_TOOL)))
    doubled = whole.replace('"method": "tools/call"', '"method": "tools/list", "method": "tools/call"', 1)
    hand.tried(await raw.post(doubled.encode(), raw.headers("tools/list", None)))


@attempt("takes a session of the handshake into a modern request", clients=RAW)
async def _(hand: Hand) -> None:
    session = await Session(hand).open()
    raw = hand.raw(elicits=False)
    headers = raw.headers("tools/call", REFUND_TOOL) | {"Mcp-Session-Id": session.id}
    hand.tried(await raw.post(raw.body(REFUND_TOOL, REFUND), headers))
    modern = {"Mcp-Session-Id": session.id, "MCP-Protocol-Version": MODERN}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": REFUND_TOOL, "arguments": REFUND}}
    hand.tried(await session.post(body, **modern))


@attempt("calls in another agent's session", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    theirs = await Session(hand, hand.agent()).open()
    stranger = await Session(hand, hand.agent(hand.scene.other), hand.scene.other).open()
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "stripe_list_charges", "arguments": {}},
    }
    mine = await Session(hand).open()
    hand.ready()
    for other in (theirs, stranger):
        assert hand.tried(await mine.post(body, **{"Mcp-Session-Id": other.id})).status == 404
    for unknown in ("x", "0" * 32, f"{theirs.id}x"):
        hand.tried(await mine.post(body, **{"Mcp-Session-Id": unknown}))


@attempt("shows no token, two tokens, or one in another place", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw()
    headers = {name: value for name, value in raw.headers("tools/call", REFUND_TOOL).items() if name != "Authorization"}
    body, token = json.dumps(raw.body(REFUND_TOOL, REFUND)).encode(), raw.token
    post = partial(hand.http.post, content=body)
    changed = f"{token[:-1]}{'A' if token[-1] != 'A' else 'B'}"
    for more in (
        {},
        {"Authorization": token},
        {"Authorization": f"Basic {token}"},
        {"Authorization": f"Bearer {changed}"},
        {"Authorization": f"Bearer {token} {token}"},
        {"Authorization": f"Bearer {token},"},
        {"Cookie": f"token={token}"},
        {"X-Api-Key": token},
        {"Proxy-Authorization": f"Bearer {token}"},
    ):
        sent = await post(hand.scene.url, headers={**headers, **more})
        assert sent.status_code == 401, more
        hand.count += 1
    two = [*headers.items(), ("Authorization", f"Bearer {token}"), ("Authorization", f"Bearer {token}")]
    assert (await post(hand.scene.url, headers=two)).status_code == 401
    assert (await post(f"{hand.scene.url}?access_token={token}&token={token}", headers=headers)).status_code == 401


@attempt("comes by another host's name, or from another's page", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw()
    for more in (
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "localhost@evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
    ):
        reply = await raw.post(raw.body(REFUND_TOOL, REFUND), raw.headers("tools/call", REFUND_TOOL) | more)
        assert hand.tried(reply).status in (403, 421), more


@attempt("writes the body otherwise than as JSON in UTF-8", clients=RAW, on_record=False)
async def _(hand: Hand) -> None:
    raw = hand.raw(elicits=False)
    text, headers = json.dumps(raw.body(REFUND_TOOL, REFUND)), raw.headers("tools/call", REFUND_TOOL)
    for content, kind in (
        (text.encode(), "text/plain"),
        (text.encode(), "application/x-www-form-urlencoded"),
        (text.encode("utf-7"), "application/json; charset=utf-7"),
        (b"\xff\xfe" + text.encode("utf-16-le"), "application/json"),
        (text.replace(" ", "\u00a0").encode(), "application/json"),
        (text.encode() + b"\x00", "application/json"),
        (text.replace('"', "'").encode(), "application/json"),
        (b"", "application/json"),
        (b"null", "application/json"),
    ):
        hand.tried(await raw.post(content, headers | {"Content-Type": kind}))
