"""What a person sees is what is sent; and nothing that an agent writes can hide, imitate or push away a part of it."""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from connectors.catalogue import Offered
from connectors.layout import nested
from server.app import running
from server.approval import Decision, State
from server.call import Outcome, Parts, call
from server.errors import ApprovalRequired, BadArguments, Denied
from server.prompt import IN_CLIENT, quote
from tests.agents import Nobody, Person, answering, connected, decide, record
from tests.hostile import CONTAINED, FLAGGED, LIES, assert_visible
from tests.installed import Place, make
from tests.reading import BASE, arrived, flat, pairs, read, unquoted
from tests.samples import fuzzed_arguments, sample_arguments
from tests.upstream import Answer, Upstream

LONG = "KEYLEASH_PROOFS" in os.environ


@dataclass
class Desk:
    """A place with every shipped connector, where everything must be confirmed, and a loop to call it from."""

    place: Place
    upstream: Upstream
    parts: Parts
    portal: BlockingPortal

    def call(self, name: str, arguments: dict[str, Any], person: Person) -> Outcome:
        return self.portal.call(call, self.parts, self.place.caller(), name, arguments, person)

    def shown(self, name: str, arguments: dict[str, Any]) -> str:
        """What the person at the client is shown; they deny."""
        person = Person(Decision.DENY)
        with pytest.raises(Denied):
            self.call(name, arguments, person)
        # Hundreds of denials in a row would make the agent pause, which is tested elsewhere.
        self.place.database.write_now(lambda rows: rows.execute("DELETE FROM approval"))
        return person.questions[0].text

    def agreed_to(self, name: str, arguments: dict[str, Any]) -> str:
        """What was shown to whoever agreed: at the client, or elsewhere where it is too long for a client."""
        person = Person(Decision.APPROVE)
        try:
            self.call(name, arguments, person)
        except ApprovalRequired as held:
            assert person.questions == []
            assert self.upstream.requests == []
            decide(self.place, held.approval, Decision.APPROVE)
            self.call(name, arguments, Nobody())
            return self.place.installation.approvals.prompt(record(self.place, held.approval))
        return person.questions[0].text


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with Upstream() as upstream, start_blocking_portal() as portal:
        upstream.answer = lambda _: Answer({"ok": True, "id": "x"})
        place = make(tmp_path_factory.mktemp("prompts") / "home")
        for connector in place.installation.catalogue.connectors:
            place.connect(f"{upstream.url}{BASE}", connector=connector)
        place.agent()
        place.rule(who="everyone", tools=["*"], then="confirm")
        with portal.wrap_async_context_manager(running(place.installation)) as parts:
            yield Desk(place, upstream, parts, portal)
        place.installation.close()


# -- arguments that fit


HOSTILE = st.sampled_from(
    "\u202e\u2066\u200b\u200d\ufeff\u00ad\u0301\u0430\u03bf\U0001d41a\u2028\u00a0\u3164\U000e0041\U000e0100"
    "\x1b\x07\x85\n\t\"'\\{}[]<>&%=;,/ \x7f"
)
TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), HOSTILE), max_size=40)


def values(schema: Any) -> st.SearchStrategy[Any]:
    """Values that a schema may admit; those that it does not are dropped later."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(each) for each in schema["anyOf"]])
    match schema.get("type"):
        case "integer":
            return st.integers(schema.get("minimum", -5), schema.get("maximum", 10**6))
        case "number":
            return st.floats(0, 1, allow_nan=False)
        case "boolean":
            return st.booleans()
        case "array":
            return st.lists(values(schema.get("items", {})), min_size=schema.get("minItems", 1), max_size=3)
        case "object":
            known = {name: values(each) for name, each in schema.get("properties", {}).items()}
            needed = {name: known.pop(name) for name in schema.get("required", [])}
            return st.fixed_dictionaries(needed, optional=known)
        case _ if schema.get("pattern"):
            return st.from_regex(schema["pattern"], fullmatch=True)
        case _:
            return TEXT


@settings(max_examples=1_000 if LONG else 100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_shown_is_what_arrives(desk: Desk, data: st.DataObject) -> None:
    offered = data.draw(st.sampled_from(desk.parts.workspaces.of(desk.place.caller()).offer.tools))
    arguments = {
        argument.name: data.draw(values(argument.schema), label=argument.name)
        for argument in offered.tool.arguments
        if argument.required or data.draw(st.booleans())
    }
    desk.upstream.requests.clear()
    person = Person(Decision.APPROVE)
    try:
        desk.call(offered.name, arguments, person)
    except BadArguments:
        event("refused")
        assert person.questions == []
        assert desk.upstream.requests == []
        assume(False)
    except ApprovalRequired as held:
        event("too long")
        assert desk.upstream.requests == []
        decide(desk.place, held.approval, Decision.DENY)
        assert len(desk.place.installation.approvals.prompt(record(desk.place, held.approval))) > IN_CLIENT
        assume(False)
    event("sent")
    arrives_as_shown(desk, offered, arguments, person.questions[0].text)


def test_fuzzed_requests_of_every_tool_arrive_as_they_were_shown(desk: Desk) -> None:
    """Five thousand in the long form; in the short form each tool once. What is too long for a client, elsewhere."""
    seed = random.randrange(2**32)
    rng, tools = random.Random(seed), desk.parts.workspaces.of(desk.place.caller()).offer.tools
    sent: Counter[str] = Counter()
    refused = 0
    while not sent or (LONG and sent.total() < 5_000):
        for offered in tools:
            for _ in range(300):  # a mail whose addresses are all in form comes once in eight
                arguments = fuzzed_arguments(offered.tool, rng)
                desk.upstream.requests.clear()
                try:
                    text = desk.agreed_to(offered.name, arguments)
                except BadArguments:
                    assert desk.upstream.requests == []
                    refused += 1
                    continue
                arrives_as_shown(desk, offered, arguments, text)
                sent[offered.name] += 1
                break
    assert set(sent) == {offered.name for offered in tools}, f"seed {seed}"
    assert refused < 3 * sent.total(), f"seed {seed}: most of what was made fits no tool"


def test_every_shipped_tool_can_be_shown_and_arrives_as_shown(desk: Desk) -> None:
    """With every argument that there is; what a person agrees to stands in the first line."""
    for offered in desk.parts.workspaces.of(desk.place.caller()).offer.tools:
        arguments = sample_arguments(offered.tool)
        desk.upstream.requests.clear()
        person = Person(Decision.APPROVE)
        desk.call(offered.name, arguments, person)
        arrives_as_shown(desk, offered, arguments, person.questions[0].text)
        assert person.questions[0].text.split("\n")[0].strip()


def exactly(value: Any) -> str:
    """A value with its types: on the wire, 1 is not true, and not 1.0."""
    return json.dumps(value, sort_keys=True)


def arrives_as_shown(desk: Desk, offered: Offered, arguments: dict[str, Any], text: str) -> None:
    """What the person was shown is what the upstream got, and nothing more."""
    (request,) = desk.upstream.requests
    assert_visible(text)
    seen = read(text)
    assert seen.tool == offered.name
    assert seen.method == request.method
    host, _, path = seen.url.removeprefix("http://").partition("/")
    assert host == request.headers["host"]
    assert f"/{path}" == request.target.partition("?")[0]
    assert seen.arguments == arguments
    assert seen.fixed == (nested(offered.tool.fixed_body) if offered.tool.fixed_body else None)
    got = arrived(request, offered.tool, seen)
    places = {argument.name: argument for argument in offered.tool.arguments}
    form = "form" in request.headers.get("content-type", "")
    for name, value in seen.arguments.items():
        place = places[name]
        if offered.tool.encode and isinstance(value, str):
            value = value.removesuffix("\n")  # noqa: PLW2901 - the text of a mail ends its last line, whatever it was
        if place.place == "body" and not form:
            assert exactly(got.pop(name)) == exactly(value)
        elif place.place == "body":
            assert sorted(got.pop(name, [])) == sorted(pairs(value, place.wire_name))  # shown in order of their names
        else:
            assert got.pop(name, []) == ([flat(each) for each in value] if isinstance(value, list) else flat(value))
    assert not any(got.values()), "something arrived that nobody was shown"


MAIL = {
    "to": ["ann@acme.example", "Bob Ünal <bob@acme.example>"],
    "cc": ["c@acme.example"],
    "bcc": ["d@acme.example"],
    "subject": "Grüße: the offer\u202e",
    "text": "Hello,\n\nBcc: mallory@evil.example\n\n.\nBye",
    "in_reply_to": "<1@acme.example>",
    "thread": "t1",
}


def test_a_mail_that_is_shown_is_the_mail_that_arrives(desk: Desk) -> None:
    desk.upstream.requests.clear()
    person = Person(Decision.APPROVE)
    assert desk.call("gmail_send_message", MAIL, person).ok
    (request,) = desk.upstream.requests
    seen = read(person.questions[0].text)
    assert seen.arguments == MAIL
    tool = desk.parts.workspaces.of(desk.place.caller()).offer.get("gmail_send_message").tool
    assert arrived(request, tool, seen) == MAIL


def test_an_addressee_that_could_be_two_is_refused_before_anybody_is_asked(desk: Desk) -> None:
    desk.upstream.requests.clear()
    person = Person(Decision.APPROVE)
    for to in ("ann@acme.example, bob@acme.example", "ann@acme.example\nBcc: bob@acme.example"):
        with pytest.raises(BadArguments):
            desk.call("gmail_send_message", MAIL | {"to": [to]}, person)
    assert person.questions == []
    assert desk.upstream.requests == []


def test_what_the_connector_sends_along_is_shown(desk: Desk) -> None:
    text = desk.shown("zendesk_reply_to_ticket", {"ticket": 1, "body": "Hello"})
    assert 'always: {"ticket": {"comment": {"public": true}}}' in text
    assert "always" not in desk.shown("zendesk_delete_ticket", {"ticket": 1})


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.one_of(st.characters(), HOSTILE)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(HOSTILE, max_size=3), inner, max_size=3),
        max_leaves=6,
    )
)
def test_a_quoted_value_is_one_visible_line_and_can_be_read_back(value: Any) -> None:
    text = quote(value)
    assert_visible(text)
    assert "\n" not in text
    assert unquoted(text) == value


# -- strings that lie


def test_there_are_enough_lies() -> None:
    assert len(set(LIES.values())) >= 200


@pytest.mark.parametrize("field", ["text", "channel"])
def test_what_is_hidden_or_looks_like_something_else_is_escaped_or_named(desk: Desk, field: str) -> None:
    for name, lie in FLAGGED.items():
        arguments = {"channel": "C1", "text": "hello", field: lie}
        text = desk.shown("slack_post_message", arguments)
        seen = read(text)
        assert_visible(text)
        assert seen.arguments == arguments, name
        assert seen.careful, name
        assert text.count(lie) == 0 or all(char.isprintable() for char in lie), name


@pytest.mark.parametrize("field", ["text", "channel"])
def test_what_imitates_the_frame_stays_inside_its_quotes(desk: Desk, field: str) -> None:
    plain = desk.shown("slack_post_message", {"channel": "C1", "text": "hello"})
    for name, lie in CONTAINED.items():
        arguments = {"channel": "C1", "text": "hello", field: lie}
        text = desk.shown("slack_post_message", arguments)
        assert_visible(text)
        seen = read(text)
        assert seen.arguments == arguments, name
        assert (seen.tool, seen.method, seen.url) == ("slack_post_message", "POST", read(plain).url), name
        assert text.split("\n")[2:7] == plain.split("\n")[2:7], name


@pytest.mark.parametrize("lie", ["\u202e", "\u200b", "\n", "\x1bc", "\u0430bc", '"\n  amount = 1'], ids=ascii)
def test_a_lie_in_a_key_is_treated_as_one_in_a_value(desk: Desk, lie: str) -> None:
    arguments = {"name": "Ann", "metadata": {f"k{lie}": "v", "deep": lie}}
    text = desk.shown("stripe_create_customer", arguments)
    assert_visible(text)
    seen = read(text)
    assert seen.arguments == arguments
    assert seen.careful or lie.isascii()


@pytest.mark.parametrize("innocent", [
    "Refund for the broken cup \u2026 sorry!",
    "Caf\u00e9 Z\u00fcrich, na\u00efve fa\u00e7ade",
    "\u201cquoted\u201d \u2018text\u2019 \u2013 with a dash \u2014 and \u20ac 5",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043a\u0430\u043a \u0434\u0435\u043b\u0430?",
    "\u03ba\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1",
    "\u3053\u3093\u306b\u3061\u306f \u4e16\u754c",
    "\u0645\u0631\u062d\u0628\u0627",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u2705 done \U0001f389",
    "Keyleash\u2122",
    "line one\nline two\tindented",
], ids=ascii)  # fmt: skip
def test_honest_text_is_shown_as_it_is_and_not_warned_of(desk: Desk, innocent: str) -> None:
    """A warning that comes with every second message is read by nobody."""
    text = desk.shown("slack_post_message", {"channel": "C1", "text": innocent})
    assert read(text).careful == []
    assert json.dumps(innocent, ensure_ascii=False) in text


def test_half_a_character_never_comes_so_far(desk: Desk) -> None:
    for arguments in (
        {"channel": "C1", "text": "\ud800"},
        {"channel": "\udfff", "text": "x"},
        {"channel": "C1", "text": "a\0b"},
    ):
        person = Person(Decision.APPROVE)
        with pytest.raises(BadArguments):
            desk.call("slack_post_message", arguments, person)
        assert person.questions == []
    assert_visible(quote("\ud800"))


def test_a_hole_in_a_summary_is_filled_once_and_with_quotes(desk: Desk) -> None:
    text = desk.shown("slack_post_message", {"channel": "{text}", "text": "{channel} [red]"})
    assert text.split("\n")[0].count('"{text}"') == 1
    assert '"{channel} [red]"' in text


# -- too long


@pytest.mark.parametrize("length", [IN_CLIENT, 10_000, 35_000])
def test_what_cannot_be_shown_whole_is_not_asked_in_the_client_and_shown_whole_elsewhere(
    desk: Desk, length: int
) -> None:
    long = "begin " + "x" * (length - 10) + " end"
    desk.upstream.requests.clear()
    person = Person(Decision.APPROVE)
    with pytest.raises(ApprovalRequired) as held:
        desk.call("slack_post_message", {"channel": "C1", "text": long}, person)
    assert person.questions == []
    assert desk.upstream.requests == []
    found = record(desk.place, held.value.approval)
    assert found.state is State.PENDING
    assert not found.whole
    prompt = desk.place.installation.approvals.prompt(found)
    assert read(prompt).arguments == {"channel": "C1", "text": long}
    decide(desk.place, found.id, Decision.APPROVE)
    assert desk.call("slack_post_message", {"channel": "C1", "text": long}, Nobody()).ok
    assert json.loads(desk.upstream.requests[0].body)["text"] == long


@pytest.mark.parametrize("length", [100, 1_200, 1_600, 2_000, 2_800, 3_200, 3_400])
def test_no_question_is_longer_than_a_client_shows(desk: Desk, length: int) -> None:
    """With the terms of an hour, which repeat what is kept, a question is longer than its prompt."""
    person = Person(Decision.DENY)
    try:
        desk.call("slack_post_message", {"channel": "C" * length, "text": "hello"}, person)
    except Denied:
        question = person.questions[0]
        assert len(question.text) <= IN_CLIENT
        offered = "approve_for_one_hour" in question.choices
        assert ("approve_for_one_hour" in question.text) is offered
        assert offered or length > 1_000
    except ApprovalRequired as held:
        assert length > 2_500
        assert person.questions == []
        decide(desk.place, held.approval, Decision.DENY)


def test_escapes_count_as_long_as_they_are_shown(desk: Desk) -> None:
    """A thousand invisible characters are six thousand characters on the screen."""
    person = Person(Decision.APPROVE)
    with pytest.raises(ApprovalRequired) as held:
        desk.call("slack_post_message", {"channel": "C1", "text": "\u200b" * 1_000}, person)
    assert person.questions == []
    decide(desk.place, held.value.approval, Decision.DENY)


@pytest.mark.anyio
@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_real_client_is_not_asked_about_what_it_would_cut(tmp_path: Path, upstream: Upstream, era: str) -> None:
    place = make(tmp_path / "long")
    place.connect(upstream.url, connector="slack")
    place.agent()
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, "memory", era, answer) as client:
        result = await client.call_tool("slack_post_message", {"channel": "C1", "text": "x" * 5_000})
    assert result.is_error
    assert result.structured_content is not None
    assert result.structured_content["approval"]["status"] == "pending"
    assert asked == []
    assert upstream.requests == []
    place.installation.close()
