"""An agent's leash: what it may reach at most and from where; what changes counts at the next call, wherever it is."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import anyio
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from server import narrowing
from server.app import running
from server.call import Parts, call
from server.errors import ApprovalRequired, NoLongerValid, NoSuchTool, Refused
from server.http import sender
from server.identity import Outside, create_agent, narrow_agent, remove_agent, rotate_agent, set_frozen
from server.narrowing import Narrowing, address_of, load, network
from tests.agents import Nobody, execute
from tests.commandline import MAIN, CommandLine
from tests.installed import Place
from tests.serving import NO_TLS, serving
from tests.upstream import Upstream

pytestmark = pytest.mark.anyio

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}},
}


def narrow(place: Place, name: str = "reconciler", **parts: Any) -> None:
    agent = place.installation.directory.agent(place.org, name)
    place.database.write_now(
        lambda rows: narrow_agent(
            rows, place.org, agent, narrowing=Narrowing(**parts), expires_at=agent.expires_at, by="alice"
        )
    )


def request(number: int, method: str, **params: Any) -> dict[str, Any]:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "prober", "version": "7"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "_meta": meta}}


async def post(url: str, token: str, body: dict[str, Any], **headers: str) -> httpx2.Response:
    name = {"Mcp-Name": body["params"]["name"]} if "name" in body["params"] else {}
    given = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": body["method"],
        "Authorization": f"Bearer {token}",
        **name,
        **headers,
    }
    async with httpx2.AsyncClient(verify=NO_TLS, trust_env=False) as client:
        return await client.post(url, json=body, headers=given)


def behind(place: Place, *proxies: str) -> Place:
    """The same place, whose operator trusts these proxies."""
    settings = replace(place.installation.settings, trusted_proxies=tuple(map(network, proxies)))
    place.installation = replace(place.installation, settings=settings)
    return place


# -- what a narrowing is


@pytest.mark.parametrize(
    "stored",
    [
        '{"tools": ["stripe.*"], "effects": ["read"]}',
        '{"tools": ["stripe.*"], "effects": ["read"], "connections": [], "addresses": null}',
        '{"tools": ["stripe.*"], "effects": ["read"], "phase_of_the_moon": {"full": [1]}}',
    ],
)
def test_a_row_of_another_release_narrows_what_it_names(place: Place, stored: str) -> None:
    execute(place, "UPDATE agent SET narrowing = ?", stored)
    caller = place.installation.directory.by_token(place.tokens["reconciler"])
    assert caller is not None
    assert caller.narrowing == Narrowing(tools=("stripe.*",), effects=("read",))
    assert load("{}") == Narrowing()


FROM: list[tuple[tuple[str, ...], str | None, bool]] = [
    ((), None, True),
    ((), "203.0.113.9", True),
    (("10.0.0.0/8",), "10.255.0.1", True),
    (("10.0.0.0/8",), "::ffff:10.1.2.3", True),
    (("192.0.2.7/32", "2001:db8::/32"), "2001:db8::1", True),
    (("10.0.0.0/8",), "11.0.0.1", False),
    (("10.0.0.0/8",), "::10.1.2.3", False),
    (("10.0.0.0/8",), None, False),
    (("10.0.0.0/8",), "", False),
    (("10.0.0.0/8",), "10.0.0.1 ", False),
    (("10.0.0.0/8",), "10.1", False),
    (("0.0.0.0/0",), "2001:db8::1", False),
    (("::/0",), "10.0.0.1", False),
    (("fe80::/10",), "fe80::1%eth0", False),
]


@pytest.mark.parametrize(("addresses", "address", "admitted"), FROM, ids=str)
def test_an_address_is_in_the_range_or_it_is_refused(
    addresses: tuple[str, ...], address: str | None, admitted: bool
) -> None:
    assert Narrowing(addresses=addresses).admits_from(address) is admitted


@pytest.mark.parametrize("text", ["", "10.0.0.1/8", "10.0.0.0/33", "localhost", "fe80::1%eth0", "::ffff:10.0.0.0/104"])
def test_what_is_no_range_of_addresses_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"10\.1\.2\.0/24"):
        network(text)


# -- whom a request comes from

PROXY, TRUSTED = "192.0.2.1", [ip_network("192.0.2.0/24"), ip_network("10.9.0.0/16")]
CHAINS: list[tuple[str, list[str], str | None]] = [
    ("198.51.100.7", [], "198.51.100.7"),
    ("198.51.100.7", ["203.0.113.5"], "198.51.100.7"),  # whoever is no proxy of ours is not believed
    (PROXY, ["203.0.113.5"], "203.0.113.5"),
    (PROXY, ["10.1.1.1, 203.0.113.5"], "203.0.113.5"),  # what the client itself claims stands on the left
    (PROXY, ["203.0.113.5, 10.9.0.3"], "203.0.113.5"),
    (PROXY, ["10.1.1.1", "203.0.113.5, 10.9.0.3"], "203.0.113.5"),  # two headers are one list
    (PROXY, ["10.9.0.3, 10.9.0.4"], "10.9.0.3"),
    (PROXY, ["2001:db8::5"], "2001:db8::5"),
    (PROXY, ["::ffff:203.0.113.5"], "203.0.113.5"),
    (PROXY, [], None),
    (PROXY, [""], None),
    (PROXY, ["unknown"], None),
    (PROXY, ["203.0.113.5:443"], None),
    (PROXY, ["203.0.113.5,"], None),
    (PROXY, ["x, 203.0.113.5"], None),
    (PROXY, [", ".join(["10.9.0.1"] * 33)], None),
    ("/run/keyleash.sock", ["203.0.113.5"], None),
]


@pytest.mark.parametrize(("peer", "headers", "found"), CHAINS, ids=lambda value: str(value)[:40])
def test_only_the_operators_proxies_are_believed_and_only_about_whom_they_saw(
    peer: str, headers: list[str], found: str | None
) -> None:
    scope = {"client": (peer, 1234), "headers": [(b"x-forwarded-for", each.encode()) for each in headers]}
    assert sender(scope, TRUSTED) == found
    assert sender({"client": None, "headers": scope["headers"]}, TRUSTED) is None


# -- from where a token is good


@pytest.mark.both_databases
async def test_a_token_from_outside_its_addresses_gets_what_a_wrong_one_gets_and_the_log_says_why(
    place: Place, upstream: Upstream
) -> None:
    narrow(place, addresses=("10.0.0.0/8",))
    right, wrong = place.tokens["reconciler"], place.tokens["reconciler"][:-3] + "xyz"
    asked = request(1, "tools/call", name="stripe_list_charges", arguments={})
    async with serving(behind(place, "127.0.0.1").installation) as url:
        outside = await post(url, right, asked, **{"X-Forwarded-For": "203.0.113.5"})
        nowhere = await post(url, right, asked, **{"X-Forwarded-For": "not an address"})
        stranger = await post(url, wrong, asked, **{"X-Forwarded-For": "203.0.113.5"})
        inside = await post(url, right, asked, **{"X-Forwarded-For": "203.0.113.5, 10.1.2.3"})
    for turned_away in (outside, nowhere):
        assert (turned_away.status_code, turned_away.content) == (stranger.status_code, stranger.content)
        assert {**turned_away.headers, "date": ""} == {**stranger.headers, "date": ""}
    assert stranger.status_code == 401
    assert inside.status_code == 200
    assert len(upstream.requests) == 1
    entries = place.events("agent.turned_away")
    assert [(each["agent"], each.get("address"), each["addresses"]) for each in entries] == [
        ("reconciler", "203.0.113.5", ["10.0.0.0/8"]),
        ("reconciler", None, ["10.0.0.0/8"]),
    ]
    assert place.events("call.attempt")[0]["address"] == "10.1.2.3"


async def test_without_proxies_a_client_cannot_say_where_it_comes_from(place: Place, upstream: Upstream) -> None:
    narrow(place, addresses=("10.0.0.0/8",))
    async with serving(place.installation) as url:
        reply = await post(url, place.tokens["reconciler"], request(1, "tools/list"), **{"X-Forwarded-For": "10.1.2.3"})
        assert reply.status_code == 401
        narrow(place, addresses=("127.0.0.0/8",))
        assert (await post(url, place.tokens["reconciler"], request(1, "tools/list"))).status_code == 200


async def test_a_frozen_orgs_token_from_outside_is_still_only_a_wrong_one(place: Place) -> None:
    narrow(place, addresses=("10.0.0.0/8",))
    place.database.write_now(lambda rows: set_frozen(rows, place.org, frozen=True, by="alice"))
    with pytest.raises(Outside):
        place.installation.directory.by_token(place.tokens["reconciler"], address="203.0.113.5")


def test_a_client_on_standard_input_is_refused_where_the_agent_is_narrowed_to_addresses(
    place: Place, owner: CommandLine
) -> None:
    narrow(place, addresses=("10.0.0.0/8",))
    ran = owner.alone("serve", "--agent", "reconciler")
    assert (ran.code, ran.out) == (1, "")
    assert "narrowed to addresses (10.0.0.0/8)" in ran.err
    assert "--any-address" in ran.err


@contextmanager
def on_a_pipe(line: CommandLine) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """`keyleash serve --agent reconciler`, as a client starts it: send a request, get its answer."""
    command = [sys.executable, "-c", MAIN, "serve", "--agent", "reconciler"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=line.environment, text=True
    ) as served:
        assert served.stdin is not None
        assert served.stdout is not None
        stdin, stdout = served.stdin, served.stdout

        def ask(asked: dict[str, Any]) -> Any:
            stdin.write(json.dumps(asked) + "\n")
            stdin.flush()
            return json.loads(stdout.readline())["result"]

        try:
            yield ask
        finally:
            served.kill()


def test_a_session_on_standard_input_comes_to_nothing_once_its_agent_is_narrowed_to_addresses(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    charges = request(3, "tools/call", name="stripe_list_charges", arguments={})
    with on_a_pipe(owner) as ask:
        assert ask(request(1, "tools/list"))["tools"]
        narrow(place, addresses=("127.0.0.0/8",))
        assert ask(request(2, "tools/list"))["tools"] == []
        refused = ask(charges)
        assert refused["isError"]
        assert "do not allow this call" in refused["content"][0]["text"]
        assert upstream.requests == []
        narrow(place)
        assert not ask(charges)["isError"]


# -- what changes while something is open

ENDS: dict[str, Callable[[Place], None]] = {
    "narrowed": lambda place: narrow(place, addresses=("10.0.0.0/8",)),
    "rotated": lambda place: _with_agent(place, rotate_agent),
    "removed": lambda place: _with_agent(place, remove_agent),
    "expired": lambda place: _expire(place),  # noqa: PLW0108 - it is defined below
}


def _with_agent(place: Place, act: Callable[..., Any]) -> None:
    agent = place.installation.directory.agent(place.org, "reconciler")
    place.database.write_now(lambda rows: act(rows, place.org, agent, by="alice"))


def _expire(place: Place) -> None:
    execute(place, "UPDATE agent SET expires_at = 1")


@pytest.mark.parametrize("end", ENDS)
async def test_a_stream_of_changes_and_an_open_session_end_with_what_let_them_in(
    place: Place, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr("server.protocol.CHANGES_S", 0.05)
    headers = {"Authorization": f"Bearer {place.tokens['reconciler']}"}
    async with (
        serving(place.installation) as url,
        httpx2.AsyncClient(verify=NO_TLS, headers=headers, timeout=30, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode="auto") as client,
        client.listen(tools_list_changed=True) as stream,
    ):
        accept = {"Accept": "application/json, text/event-stream"}
        opened = await http.post(url, json=INITIALIZE, headers=accept)
        session = {"Mcp-Session-Id": opened.headers["mcp-session-id"], "Accept": "text/event-stream"}
        async with http.stream("GET", url, headers=session) as pushed:
            assert pushed.status_code == 200
            ENDS[end](place)
            with anyio.fail_after(30):
                async for _ in stream:
                    raise AssertionError("nothing changed that it may hear of")
                with pytest.raises(httpx2.RemoteProtocolError):  # it is cut off, as when a server goes away
                    async for _ in pushed.aiter_raw():
                        raise AssertionError("nothing is to be told")
        listing = {"jsonrpc": "2.0", "id": 2, "method": "tools/list"}
        assert (await http.post(url, json=listing, headers={**session, **accept})).status_code == 401


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.mark.parametrize("end", ENDS)
async def test_a_call_that_was_held_for_an_ended_token_does_not_run(
    place: Place, parts: Parts, upstream: Upstream, end: str
) -> None:
    """The caller was let in before; the grant of another agent would not let it either."""
    directory = place.installation.directory
    caller = directory.by_token(place.tokens["reconciler"], transport="http", address="127.0.0.1")
    assert caller is not None
    with pytest.raises(ApprovalRequired) as held:
        await call(parts, caller, "stripe_create_refund", {"charge": "ch_1"}, Nobody())
    execute(place, "UPDATE approval SET state = 'approved'")
    ENDS[end](place)
    with pytest.raises((Refused, NoLongerValid)):
        await call(parts, caller, "stripe_create_refund", {"charge": "ch_1"}, Nobody(), pointer=held.value.approval)
    assert upstream.requests == []
    said = place.events("call.refused")[-1]["reason"]
    assert ("its access ended" in said) != (end == "removed"), said


async def test_a_new_token_does_not_end_what_never_used_the_old_one(
    place: Place, parts: Parts, upstream: Upstream
) -> None:
    """Over stdio the system user is the authority, and no token is asked for."""
    caller = replace(place.caller(), transport="stdio")
    _with_agent(place, rotate_agent)
    assert place.installation.directory.again(caller) is not None
    assert (await call(parts, caller, "stripe_list_charges", {}, Nobody())).ok


# -- at the command line


def test_a_leash_is_given_shown_and_changed_and_each_is_on_record(place: Place, owner: CommandLine) -> None:
    made = owner(
        *("agent", "create", "robot", "--connection", "stripe", "--address", "10.0.0.0/8", "--address", "192.0.2.7"),
        "--json",
    )
    assert made.code == 0, made.err
    told = owner("agent", "create", "other", "--address", "10.0.0.0/8").err
    assert "keyleash client show CLIENT --agent other --http URL" in told
    assert "client add" not in told, "that writes an entry that starts it over stdio, where it is refused"
    assert "keyleash client add CLIENT --agent third" in owner("agent", "create", "third").err
    shown = owner("agent", "show", "robot", "--json").json
    assert (shown["connections"], shown["addresses"]) == (["stripe"], ["10.0.0.0/8", "192.0.2.7/32"])
    assert "192.0.2.7/32" in owner("agent", "show", "robot").out
    changed = owner(
        *("agent", "narrow", "robot", "--any-address", "--effect", "read", "--expires", "30d", "--json")
    ).json
    assert (changed["connections"], changed["addresses"], changed["effects"]) == (["stripe"], [], ["read"])
    assert changed["expires_at"] is not None
    (entry,) = place.events("agent.changed")
    assert entry["before"]["addresses"] == ["10.0.0.0/8", "192.0.2.7/32"]
    assert (entry["after"]["addresses"], entry["after"]["effects"]) == ([], ["read"])
    assert (entry["before"]["expires_at"], entry["after"]["expires_at"]) == (None, changed["expires_at"])
    assert owner("agent", "narrow", "robot", "--expires", "never", "--json").json["expires_at"] is None
    assert "stripe" in owner("agent", "narrow", "robot", "--any-effect").out


async def test_a_changed_leash_counts_at_the_next_call(
    place: Place, owner: CommandLine, parts: Parts, upstream: Upstream
) -> None:
    place.connect(upstream.url, name="stripe_eu")
    assert owner("agent", "narrow", "reconciler", "--connection", "stripe_eu").code == 0
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert upstream.requests == []
    assert "narrowed" in place.events("call.refused")[-1]["reason"]
    assert (await call(parts, place.caller(), "stripe_eu_list_charges", {}, Nobody())).ok


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("agent", "narrow", "reconciler"), 2),
        (("agent", "narrow", "reconciler", "--address", "10.0.0.1/8"), 2),
        (("agent", "narrow", "reconciler", "--address", "here"), 2),
        (("agent", "narrow", "reconciler", "--tool", "stripe.*", "--any-tool"), 2),
        (("agent", "narrow", "reconciler", "--address", "10.0.0.0/8", "--any-address"), 2),
        (("agent", "narrow", "reconciler", "--expires", "soon"), 2),
        (("agent", "narrow", "reconciler", "--connection", "Not A Name"), 1),
        (("agent", "narrow", "nobody", "--effect", "read"), 1),
        (("agent", "create", "robot", "--address", "everywhere"), 2),
    ],
)
def test_a_leash_that_makes_no_sense_is_refused(
    place: Place, owner: CommandLine, command: tuple[str, ...], code: int
) -> None:
    before = place.events()
    ran = owner(*command)
    assert (ran.code, ran.out) == (code, "")
    assert place.events() == before


def test_a_connection_that_is_not_there_is_said_to_admit_nothing(owner: CommandLine) -> None:
    ran = owner("agent", "create", "robot", "--connection", "github")
    assert ran.code == 0
    assert "no connection 'github'" in ran.err


def test_a_new_token_for_an_expired_agent_needs_a_new_end(place: Place, owner: CommandLine) -> None:
    _expire(place)
    ran = owner("agent", "rotate", "reconciler", "--yes")
    assert (ran.code, ran.out) == (1, "")
    assert "--expires" in ran.err
    made = owner("agent", "rotate", "reconciler", "--yes", "--expires", "1d", "--json").json
    assert place.installation.directory.by_token(made["token"]) is not None
    assert place.events("agent.rotated")[0]["expires_at"] == made["expires_at"]


@pytest.mark.parametrize(
    ("given", "said"),
    [("10.0.0.1/8", "range of addresses"), ("x", "range of addresses"), ("0.0.0.0/0", "everybody")],
)
def test_a_setting_for_proxies_that_makes_no_sense_is_refused(owner: CommandLine, given: str, said: str) -> None:
    ran = owner.__class__(owner.home, owner.person, {"KEYLEASH_TRUSTED_PROXIES": given})("agent", "list")
    assert (ran.code, ran.out) == (1, "")
    assert "KEYLEASH_TRUSTED_PROXIES" in ran.err
    assert said in ran.err


# -- last use


async def test_an_agents_last_use_is_shown_with_where_it_came_from(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    assert owner("agent", "show", "reconciler", "--json").json["last_used_at"] is None
    assert "never" in owner("agent", "list").out
    async with serving(place.installation) as url:
        await post(url, place.tokens["reconciler"], request(1, "tools/call", name="stripe_get_balance", arguments={}))
    shown = owner("agent", "list", "--json").json[0]
    assert shown["last_used_at"] is not None
    assert (shown["last_used_from"], shown["last_used_over"], shown["last_used_client"]) == (
        "127.0.0.1",
        "http",
        "prober 7",
    )
    assert "127.0.0.1, prober 7" in owner("agent", "list").out


async def test_a_refusal_and_a_token_that_was_turned_away_are_uses_too(place: Place, parts: Parts) -> None:
    with pytest.raises(NoSuchTool):
        await call(parts, place.caller(), "no_such_tool", {}, Nobody())
    assert uses(place)[0] is not None
    execute(place, "UPDATE agent SET used_at = NULL")
    narrow(place, addresses=("10.0.0.0/8",))
    async with serving(place.installation) as url:
        await post(url, place.tokens["reconciler"], request(1, "tools/list"))
    assert uses(place)[0] is not None


@pytest.mark.both_databases
async def test_a_use_is_written_with_the_calls_own_rows_and_once_a_minute(place: Place, parts: Parts) -> None:
    await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    (first,) = uses(place)
    await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert uses(place) == [first]
    execute(place, "UPDATE agent SET used_at = used_at - 61000")
    await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert uses(place)[0] >= first
    execute(place, "UPDATE agent SET used_at = used_at + 3600000")  # the clock was set back since
    await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    assert uses(place)[0] < first + 3_600_000


@pytest.mark.both_databases
async def test_only_the_agent_that_called_was_used(place: Place, parts: Parts) -> None:
    place.agent("other")
    token = place.database.write_now(lambda rows: create_agent(rows, place.org, name="third", member=None, by="alice"))
    assert token
    await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())
    found = {agent.name: agent.last_use for agent in place.installation.directory.agents(place.org)}
    assert found["reconciler"] is not None
    assert (found["other"], found["third"]) == (None, None)


def uses(place: Place) -> list[Any]:
    return [row[0] for row in place.database.read("SELECT used_at FROM agent WHERE name = 'reconciler'")]


def test_a_text_that_is_too_long_for_an_address_is_none_and_is_not_kept() -> None:
    """Whoever is forwarded writes it, and has shown no token yet."""
    kept = narrowing._address.cache_info().currsize
    assert address_of("1" * (narrowing.LONGEST_ADDRESS + 1)) is None
    assert narrowing._address.cache_info().currsize == kept
    assert address_of("ABCD:ABCD:ABCD:ABCD:ABCD:ABCD:192.168.158.190") is not None


async def test_what_an_agent_is_narrowed_to_is_said_part_by_part(owner: CommandLine) -> None:
    narrow = ("agent", "narrow", "reconciler")
    assert (
        "is narrowed to tools stripe.*; effects read." in owner(*narrow, "--tool", "stripe.*", "--effect", "read").out
    )
    row = owner("agent", "list").out
    assert "tools stripe.*; effects read" in row
    assert row.count("never") == 2  # neither does it expire, nor was it used
    owner(*narrow, "--any-tool")
    assert owner(*narrow, "--any-effect").out == "reconciler is no longer narrowed: only rules hold it.\n"
    assert "to no effects" not in owner("agent", "narrow", "--help").out
