"""Slack's connector against `emulate`, which takes every method by POST only.

Slack takes both; a relay turns our reads by GET into POSTs with the same arguments, so what is shown of them is names
and answers, not that Slack takes them by GET. The client here is one of the handshake era.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tests.real.emulators import ask, emulate, watched
from tests.real.fetching import Cache
from tests.real.governed import Agent, agent, all_called, kept, org
from tests.real.report import CannotRun, Report, expect
from tests.upstream import Received

KEY = "xoxb-1234567890-canary8Jq2vXw0Zr5TnYb7LdKe"
SEED: Mapping[str, Any] = {
    "tokens": {KEY: {"login": "ann", "scopes": []}},
    "slack": {
        "users": [{"name": "ann", "email": "ann@example.com"}, {"name": "bob", "email": "bob@example.com"}],
        "channels": [{"name": "ops", "topic": "what runs"}],
    },
}


async def check(report: Report, cache: Cache) -> None:
    """Reads, messages, people and channels."""
    with emulate(cache, "slack", SEED) as url, watched(url, by_post) as upstream, org() as made:
        private = ask(url, "POST", "/api/conversations.create", KEY, {"name": "quiet"})["channel"]["id"]
        with report.line("connects, with the token tried"):
            connected = made.connect("slack", f"{upstream.url}/api", KEY)
            expect(connected["account"] == "ann in Emulate", f"the account is called {connected['account']}")
        with report.line("refuses to connect a token that Slack refuses"):
            ran = made.line.alone(
                *("connect", "slack", "--name", "other", "--secret-stdin", "--base-url", f"{upstream.url}/api"),
                *("--allow-private", "127.0.0.1/32"),
                stdin=b"xoxb-1234567890-another",
            )
            if ran.code == 0:
                raise CannotRun("emulate takes any token")
            expect("Nothing was stored" in ran.err, ran.err)
        upstream.requests.clear()
        with made.serving() as address:
            async with agent(address, made.token, "slack", upstream, era="legacy") as at_work:
                channel = await _looks_around(report, at_work)
                await _talks(report, at_work, channel)
                await _lets_people_in(report, at_work, private)
                with report.line("searches messages"):
                    await at_work.if_there("emulate", "search_messages", {"query": "hello"})
                with report.line("every shipped tool was called"):
                    all_called(at_work)
            with report.line("the token is in every request and nowhere else; the record verifies"):
                kept(made, at_work, KEY)


def by_post(request: Received) -> Received:
    """The same method of Slack's, called as `emulate` takes it."""
    if request.method != "GET":
        return request
    target, _, query = request.target.partition("?")
    headers = {**request.headers, "content-type": "application/x-www-form-urlencoded"}
    return replace(request, method="POST", target=target, body=query.encode(), headers=headers)


async def _looks_around(report: Report, at_work: Agent) -> str:
    channel = ""
    with report.line("reads who it is, channels and people"):
        expect((await at_work.get("get_me"))["user"] == "ann", "it is someone else")
        channels = (await at_work.get("list_channels", {"types": ["public_channel", "private_channel"]}))["channels"]
        found = next(each for each in channels if each["name"] == "ops")
        expect((found["topic"], found["private"], found["archived"]) == ("what runs", False, False), str(found))
        channel = found["id"]
        people = (await at_work.get("list_users"))["users"]
        expect({"ann", "bob"} <= {each["name"] for each in people}, str(people))
        expect("example.com" not in at_work.heard[-1], "the list of people has their addresses")
    with report.line("finds a person by address"):
        found = await at_work.get("find_user_by_email", {"email": "bob@example.com"})
        expect(found["name"] == "bob", str(found))
        said = await at_work.refused("find_user_by_email", {"email": "nobody@example.com"})
        expect("users_not_found" in said, said)
    return channel


async def _talks(report: Report, at_work: Agent, channel: str) -> None:
    ts = ""
    with report.line("a message that is not approved is not posted"):
        before, at_work.person.decision = at_work.sent, None
        await at_work.refused("post_message", {"channel": channel, "text": "hello"})
        at_work.person.decision = "approve"
        expect(at_work.sent == before, "something was sent")
    with report.line("posts a message and a reply"):
        ts = (await at_work.get("post_message", {"channel": channel, "text": "hello — grüß dich"}))["ts"]
        await at_work.get("post_message", {"channel": channel, "text": "and again", "thread_ts": ts})
    with report.line("reads a channel and a thread, after being asked"):
        asked = len(at_work.person.asked)
        read = (await at_work.get("read_channel", {"channel": channel, "oldest": "0", "limit": 10}))["messages"]
        expect([(each["text"], each["replies"]) for each in read] == [("hello — grüß dich", 1)], str(read))
        thread = (await at_work.get("read_thread", {"channel": channel, "ts": ts}))["messages"]
        expect([each["text"] for each in thread] == ["hello — grüß dich", "and again"], str(thread))
        expect(len(at_work.person.asked) == asked + 2, "nobody was asked")
    with report.line("changes and deletes a message"):
        changed = await at_work.get("update_message", {"channel": channel, "ts": ts, "text": "bye"})
        expect(changed["text"] == "bye", str(changed))
        await at_work.get("delete_message", {"channel": channel, "ts": ts})
        said = await at_work.refused("delete_message", {"channel": channel, "ts": ts})
        expect("message_not_found" in said, said)


async def _lets_people_in(report: Report, at_work: Agent, channel: str) -> None:
    with report.line("invites a person and archives the channel"):
        bob = (await at_work.get("find_user_by_email", {"email": "bob@example.com"}))["id"]
        invited = await at_work.get("invite_to_channel", {"channel": channel, "users": bob})
        expect(invited["channel"] == {"id": channel, "name": "quiet"}, str(invited))
        await at_work.get("archive_channel", {"channel": channel})
        said = await at_work.refused("post_message", {"channel": channel, "text": "anyone?"})
        expect("is_archived" in said, said)
