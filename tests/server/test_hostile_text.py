"""Hostile text, in every place where somebody's words come to a person's eyes: none of it is shown raw.

In the long form (`KEYLEASH_PROOFS=1`) the terminal shows all of it as well.
"""

import json
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mcp_types as t
import pytest

from server.app import running
from server.call import Parts, call
from server.connections import ConnectionProblem, plan
from server.errors import ApprovalRequired, CallRefused
from server.identity import IdentityProblem, create_agent, create_member, create_org
from tests.agents import ERAS, Nobody, answering, connected, execute
from tests.commandline import CommandLine, Ran
from tests.hostile import LIES, assert_not_raw, assert_visible, batches
from tests.installed import SECRET, Place, make
from tests.reading import read
from tests.upstream import Upstream

LONG = "KEYLEASH_PROOFS" in os.environ
CUSTOMER = "stripe_create_customer"

pytestmark = pytest.mark.anyio


def arguments_with(lies: dict[str, str]) -> dict[str, Any]:
    """Each lie as a value, and as a part of a key."""
    no_brackets = str.maketrans("[]", "()")  # they may not stand in the names of a form
    metadata = {f"k{n}{lie}"[:40].translate(no_brackets): lie[:500] for n, lie in enumerate(lies.values())}
    first = next(iter(lies.values()))
    return {"name": first[:250] or "x", "metadata": metadata}


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


async def held(parts: Parts, place: Place, arguments: dict[str, Any], tool: str = CUSTOMER) -> str:
    with pytest.raises(ApprovalRequired) as waiting:
        await call(parts, place.caller(), tool, arguments, Nobody())
    return waiting.value.approval


# -- at the client


@pytest.mark.parametrize("era", ERAS)
async def test_no_question_to_a_client_shows_it_raw(tmp_path: Path, era: str) -> None:
    """The message as it comes over the wire, and the form beside it."""
    with Upstream(SECRET) as upstream:
        place = make(tmp_path / "asked")
        place.connect(upstream.url)
        place.agent()
        answer, asked = answering("decline")
        tried = [arguments_with(lies) for lies in batches(3)]
        async with connected(place, "memory", era, answer) as client:
            for arguments in tried:
                before = len(asked)
                assert (await client.call_tool(CUSTOMER, arguments)).is_error
                if len(asked) > before:
                    assert read(asked[-1].message.split("\n\napprove_for_one_hour")[0]).arguments == arguments
                execute(place, "DELETE FROM approval")  # or so many would be too many at once
        assert len(asked) > len(tried) * 0.8, "most fit into a client's question"
        for question in asked:
            assert isinstance(question, t.ElicitRequestFormParams)
            assert_visible(question.message)
            assert_not_raw(question.message, where="in the question")
            assert_not_raw(json.dumps(question.requested_schema, ensure_ascii=False), where="in the form")
        assert upstream.requests == []
        place.installation.close()


# -- at the command line


@pytest.fixture
async def waiting(place: Place, parts: Parts) -> list[str]:
    """All the lies, in calls that wait."""
    place.rule(who="everyone", tools=["stripe.create_customer"], then="confirm")
    return [await held(parts, place, arguments_with(lies)) for lies in batches(len(LIES) // 15)]


def require_harmless(ran: Ran, *, as_json: bool) -> None:
    assert ran.code == 0, ran.err
    if as_json:
        assert ran.out.isascii()
        json.loads(ran.out)
    for text in (ran.out, ran.err):
        assert_visible(text)
        assert_not_raw(text, where="at the command line")


@pytest.mark.parametrize("as_json", [False, True], ids=["words", "json"])
async def test_no_command_about_approvals_shows_it_raw(
    place: Place, owner: CommandLine, waiting: list[str], as_json: bool
) -> None:
    more = ("--json",) if as_json else ()
    require_harmless(owner("approvals", "list", *more), as_json=as_json)
    for approval in waiting:
        shown = owner("approvals", "show", approval, *more)
        require_harmless(shown, as_json=as_json)
        assert approval in shown.out
    require_harmless(owner("audit", "list", *more), as_json=as_json)


async def test_no_decision_shows_it_raw(place: Place, owner: CommandLine, waiting: list[str]) -> None:
    for number, approval in enumerate(waiting):
        verb = "approve" if number % 2 else "deny"
        require_harmless(owner("approvals", verb, approval, "--yes"), as_json=False)


async def test_the_terminal_that_is_watched_shows_nothing_raw(place: Place, owner: CommandLine, parts: Parts) -> None:
    """A terminal would act on what it is sent: our own colours are all that it gets."""
    size = 40 if LONG else len(LIES)
    for lies in batches(size):
        approval = await held(parts, place, arguments_with(lies))
        with owner.at_terminal("approvals", "watch") as terminal:
            terminal.until("Written by the agent")
            terminal.until("[q] leave\x1b[0m")  # in our own style, which no text of an agent's can have
            terminal.type("q")
            assert terminal.end() == 0
        shown = terminal.shown
        assert approval in shown
        assert_not_raw(shown.replace("\r\n", "\n"), where="on the terminal")
        for char in "\u202e\u200b\u2066\ufeff\x9b\x08\x85\u2028\U000e0041\ufe0f\u0301\u3164":
            assert char not in shown
        assert "\x1b[2J" not in shown
        assert "\x1b]" not in shown
        execute(place, "DELETE FROM approval")


# -- what an upstream says of itself


async def test_an_accounts_name_is_shown_as_somebody_elses_words(
    place: Place, owner: CommandLine, parts: Parts
) -> None:
    """An upstream says what the account is called, and an upstream may lie."""
    for number, (name, lie) in enumerate(LIES.items()):
        execute(place, "UPDATE connection SET account = ?", lie)
        execute(place, "UPDATE org SET revision = revision + 1")
        if number % (1 if LONG else 30) == 0:
            for command in (("connection", "list"), ("connection", "show", "stripe")):
                require_harmless(owner(*command), as_json=False)
                require_harmless(owner(*command, "--json"), as_json=True)
        approval = await held(parts, place, {"name": f"n{number}"})
        text = place.installation.approvals.prompt(
            next(each for each in place.installation.approvals.list(place.org) if each.id == approval)
        )
        assert_visible(text)
        (line,) = [line for line in text.split("\n") if line.startswith("Account: ")]
        assert line.startswith("Account: stripe (Stripe"), name
        assert line.endswith("), your organisation's own key"), name
        assert read(text).tool == CUSTOMER
        execute(place, "DELETE FROM approval")


# -- what an agent says of itself, and calls


async def test_what_a_client_calls_itself_and_its_tools_is_harmless_in_the_log(
    place: Place, owner: CommandLine, parts: Parts
) -> None:
    for lie in LIES.values():
        caller = replace(place.caller(), client=lie[:100], client_version=lie[:100])
        with pytest.raises(CallRefused):
            await call(parts, caller, lie, {}, Nobody())
        with pytest.raises(CallRefused):
            await call(parts, caller, "stripe_create_refund", {lie[:50]: lie}, Nobody())
    for more in ((), ("--json",)):
        require_harmless(owner("audit", "list", "--limit", "1000", *more), as_json=bool(more))


# -- names


NO_NAMES = {name: lie for name, lie in LIES.items() if name not in ("null as text", "a rule of signs")}
"""A name may be `null`, and have hyphens."""
NAMED: dict[str, Callable[[Place, Any, str], object]] = {
    "agent": lambda place, rows, name: create_agent(rows, place.org, name=name, member=place.owner, by="x"),
    "member": lambda place, rows, name: create_member(
        rows, place.org, name=name, roles=("member",), os_user=None, by="x"
    ),
    "org": lambda place, rows, name: create_org(rows, name=name, preset="default", by="x"),
}


@pytest.mark.parametrize("kind", NAMED)
def test_no_name_can_be_a_lie(place: Place, kind: str) -> None:
    """So that what is in our frame without quotes is what it says."""

    def change(rows: Any) -> None:
        for name, lie in NO_NAMES.items():
            for text in (lie, f"a{lie}", f"a{lie}b"):
                with pytest.raises(IdentityProblem):
                    NAMED[kind](place, rows, text)
                    raise AssertionError(name)

    place.database.of(place.org).write_now(change)


def test_no_connection_can_be_named_by_a_lie(place: Place) -> None:
    for name, lie in NO_NAMES.items():
        for text in (lie, f"a{lie}", f"a{lie}b"):
            with pytest.raises(ConnectionProblem):
                plan(
                    place.installation.catalogue,
                    [],
                    connector="stripe",
                    name=text,
                    kind=None,
                    base_url="https://stripe.example",
                    private=(),
                )
                raise AssertionError(name)
