"""A GraphQL tool on the whole path of a call: what is sent is what was shown, and an argument stays an argument."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from connectors.catalogue import shipped_folder
from connectors.loading import parse
from server.app import running
from server.approval import Decision, State
from server.call import Outcome, Parts, call
from server.connections import ConnectionProblem, Workspaces, plan
from server.errors import ApprovalRequired, Denied, NoLongerValid
from tests.agents import ERAS, Nobody, Person, answering, connected, decide, record
from tests.commandline import CommandLine
from tests.installed import Place
from tests.tracker import Tracker
from tests.upstream import Answer, Received, Upstream

pytestmark = pytest.mark.anyio

KEY = "lin_api_canary_8Jq2vXw0Zr5TnYb7LdKe"
TOKEN = "shpat_canary_8Jq2vXw0Zr5TnYb7LdKe"
ISSUE = {"title": "It breaks", "team": "t1", "priority": 2}
LINEAR = (shipped_folder() / "linear.yaml").read_text("utf-8")
Calling = Callable[..., Awaitable[Outcome]]


@pytest.fixture
def tracker() -> Tracker:
    return Tracker(KEY)


@pytest.fixture
def linear(place: Place, tracker: Tracker) -> Iterator[Upstream]:
    with Upstream() as upstream:
        upstream.answer = tracker.answer
        place.connect(upstream.url, connector="linear", secret=KEY)
        yield upstream


@pytest.fixture
def shop(place: Place) -> Iterator[Upstream]:
    """A shop that answers as the test says."""
    with Upstream() as upstream:
        place.connect(f"{upstream.url}/admin/api/2026-10", connector="shopify", secret=TOKEN)
        yield upstream


@pytest.fixture
async def parts(place: Place) -> AsyncIterator[Parts]:
    async with running(place.installation) as opened:
        yield opened


@pytest.fixture
def calling(place: Place, parts: Parts) -> Calling:
    async def run(name: str, arguments: dict[str, Any], person: Any = None) -> Outcome:
        return await call(parts, place.caller(), name, arguments, person or Nobody())

    return run


def shown(text: str) -> bytes:
    """The body that a prompt describes, made of the prompt alone."""
    lines = text.split("\n")
    (document,) = [line.partition(": ")[2] for line in lines if line.startswith("Document, from")]
    pairs = [line.strip().partition(" = ") for line in lines if line.startswith("  ")]
    arguments = {name: json.loads(value) for name, _, value in pairs}
    order = [name.strip("$: ") for name in document.split("(", 1)[1].split(")")[0].split() if name.startswith("$")]
    variables = {name: arguments[name] for name in order if name in arguments}
    body = {"query": document, "operationName": document.split("(")[0].split()[1], "variables": variables}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


async def test_a_query_runs_and_the_agent_never_sees_the_key(
    place: Place, calling: Calling, linear: Upstream, tracker: Tracker
) -> None:
    outcome = await calling("linear_get_me", {})
    assert outcome.ok
    assert outcome.structured == {
        "id": "u1", "name": "Ann", "display_name": "ann", "workspace": "Acme", "workspace_key": "acme",
    }  # fmt: skip
    (request,) = linear.requests
    assert (request.method, request.target) == ("POST", "/graphql")
    assert request.headers["authorization"] == KEY
    assert KEY not in outcome.text
    assert (tracker.issues, tracker.deleted) == ([], [])
    (entry,) = place.events("call.outcome")
    assert (entry["tool"], entry["effect"], entry["outcome"]) == ("linear_get_me", "read", "succeeded")


@pytest.mark.parametrize("transport", ["memory", "http"])
@pytest.mark.parametrize("era", ERAS)
async def test_a_mutation_is_held_and_sent_once_byte_for_byte_as_it_was_shown(
    place: Place, linear: Upstream, tracker: Tracker, transport: str, era: str
) -> None:
    answer, asked = answering("accept", {"decision": "approve"})
    async with connected(place, transport, era, answer) as client:
        result = await client.call_tool("linear_create_issue", ISSUE)
    assert not result.is_error
    assert result.structured_content == {"issue": {"id": "i1", "identifier": "ENG-1", "url": "https://x/1"}}
    (question,) = asked
    (request,) = linear.requests
    assert request.body == shown(question.message)
    assert f"Request: POST {linear.url}/graphql" in question.message
    assert KEY not in question.message
    assert tracker.issues == [{"teamId": "t1", "title": "It breaks", "priority": 2}]


async def test_a_mutation_that_nobody_agreed_to_is_not_sent(
    place: Place, calling: Calling, linear: Upstream, tracker: Tracker
) -> None:
    with pytest.raises(Denied):
        await calling("linear_create_issue", ISSUE, Person(Decision.DENY))
    with pytest.raises(ApprovalRequired) as held:
        await calling("linear_create_issue", {**ISSUE, "title": "Another"})
    assert linear.requests == []
    decide(place, held.value.approval, Decision.APPROVE)
    assert (await calling("linear_create_issue", {**ISSUE, "title": "Another"})).ok
    with pytest.raises(ApprovalRequired):
        await calling("linear_create_issue", {**ISSUE, "title": "Another"})
    assert len(linear.requests) == len(tracker.issues) == 1


HOSTILE = [
    '") { success } } mutation Evil { issueDelete(id: "i1") { success } } #',
    '"}}) { success } issueDelete(id: "i1") { success } }',
    "$title } mutation CreateIssue { issueDelete(id: i1) { success } }",
    '","operationName":"Evil","query":"mutation Evil { issueDelete(id: \\"i1\\") { success } }","x":"',
    "\\u0022}) { success }",
    '"""\n# }) { success } issueDelete(id: "i1") { success }\n"""',
    "}}]}){{[($",
]


@pytest.mark.parametrize("text", HOSTILE)
async def test_what_an_agent_writes_stays_in_its_variable(
    place: Place, calling: Calling, linear: Upstream, tracker: Tracker, text: str
) -> None:
    person = Person(Decision.APPROVE)
    outcome = await calling("linear_create_issue", {"team": text, "title": text, "labels": [text]}, person)
    assert outcome.ok, outcome.text
    (request,) = linear.requests
    assert request.body == shown(person.questions[0].text)
    assert tracker.issues == [{"teamId": text, "title": text, "labelIds": [text]}]
    assert tracker.deleted == []
    tool = place.installation.catalogue.connectors["linear"].tools["create_issue"]
    assert tool.operation is not None
    assert json.loads(request.body)["query"] == tool.operation.document


async def test_an_approval_does_not_outlive_a_changed_document(
    place: Place, calling: Calling, parts: Parts, linear: Upstream
) -> None:
    with pytest.raises(ApprovalRequired) as held:
        await calling("linear_delete_issue", {"issue": "ENG-1"})
    decide(place, held.value.approval, Decision.APPROVE)
    text = LINEAR.replace("permanentlyDelete: false", "permanentlyDelete: true")
    assert text != LINEAR
    changed = {"linear": parse(text)}
    catalogue = replace(place.installation.catalogue, connectors={**place.installation.catalogue.connectors, **changed})
    after = replace(parts, workspaces=Workspaces(place.database, catalogue))
    with pytest.raises(NoLongerValid, match="definition has changed"):
        await call(after, place.caller(), "linear_delete_issue", {"issue": "ENG-1"}, Nobody())
    assert linear.requests == []


async def test_a_rule_sees_a_variable_as_it_sees_any_argument(
    place: Place, calling: Calling, linear: Upstream, tracker: Tracker
) -> None:
    ours = {"argument": "team", "op": "equals", "value": "t1"}
    place.rule(who="everyone", tools=["linear.create_issue"], when=[ours], then="allow")
    assert (await calling("linear_create_issue", ISSUE)).ok
    with pytest.raises(ApprovalRequired):
        await calling("linear_create_issue", {**ISSUE, "team": "t2"})
    assert [issue["teamId"] for issue in tracker.issues] == ["t1"]


async def test_a_client_is_told_which_operations_may_be_repeated(place: Place, linear: Upstream) -> None:
    async with connected(place, "memory", "auto") as client:
        tools = {tool.name: tool.annotations for tool in (await client.list_tools()).tools}
    read, write = tools["linear_get_me"], tools["linear_create_issue"]
    assert read is not None
    assert write is not None
    assert (read.read_only_hint, read.idempotent_hint) == (True, True)
    assert (write.read_only_hint, write.idempotent_hint) == (False, False)
    assert linear.requests == []


# -- what goes wrong


async def test_a_refusal_with_status_200_is_a_failure_in_the_upstreams_words(
    place: Place, calling: Calling, linear: Upstream, tracker: Tracker
) -> None:
    outcome = await calling("linear_create_issue", {**ISSUE, "team": "nowhere"}, Person(Decision.APPROVE))
    assert not outcome.ok
    assert outcome.text == "Linear refused the call and says: Entity not found: Team (HTTP 200, INPUT_ERROR)"
    (entry,) = place.events("call.outcome")
    assert (entry["outcome"], entry["status"], entry["code"]) == ("failed", 200, "INPUT_ERROR")
    assert tracker.issues == []


async def test_a_refused_key_says_what_to_do_and_nothing_of_the_upstreams(
    place: Place, calling: Calling, linear: Upstream, tracker: Tracker
) -> None:
    tracker.key = "another"
    outcome = await calling("linear_get_me", {})
    assert "Credential rejected" in outcome.text
    assert "Who are you" not in outcome.text
    assert place.events("call.outcome")[0]["error"] == "credential rejected"


TAGS = {"thing": "gid://shopify/Order/1", "tags": ["vip"]}


def tagged(**payload: Any) -> Answer:
    return Answer({"data": {"tagsAdd": {"node": {"id": "gid://shopify/Order/1"}, "userErrors": [], **payload}}})


async def test_a_payloads_own_errors_are_a_failure(place: Place, calling: Calling, shop: Upstream) -> None:
    shop.answer = lambda _: tagged(node=None, userErrors=[{"field": ["tags"], "message": "is too long"}])
    outcome = await calling("shopify_add_tags", TAGS, Person(Decision.APPROVE))
    assert not outcome.ok
    assert outcome.text == "Shopify refused the call and says: tags: is too long (HTTP 200)"
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["failed"]
    assert shop.requests[0].headers["x-shopify-access-token"] == TOKEN
    assert shop.requests[0].target == "/admin/api/2026-10/graphql.json"


async def test_a_throttled_call_says_when_to_come_back(calling: Calling, shop: Upstream) -> None:
    cost = {"requestedQueryCost": 90, "throttleStatus": {"currentlyAvailable": 0, "restoreRate": 30}}
    errors = [{"message": "Throttled", "extensions": {"code": "THROTTLED"}}]
    shop.answer = lambda _: Answer({"errors": errors, "extensions": {"cost": cost}})
    outcome = await calling("shopify_get_shop", {})
    assert outcome.text == "Shopify asks for fewer calls and says: Throttled. Try again in 3 s. (HTTP 200, THROTTLED)"
    assert len(shop.requests) == 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (Answer(hang_up=True), "without an answer"),
        (Answer({"data": {"tagsAdd": None}}), "answered with nothing"),
        (Answer(b"<html>", headers={"Content-Type": "text/html"}), "base URL"),
        (Answer({"errors": [{"message": "Oh", "path": ["tagsAdd", "node"]}], "data": {"tagsAdd": None}}), "Oh"),
        (Answer({"errors": [{"message": "Oh", "extensions": {"code": "INTERNAL_SERVER_ERROR"}}]}), "Oh"),
        (tagged(userErrors=[{"message": "Busy", "code": "IDEMPOTENCY_CONCURRENT_REQUEST"}]), "Busy"),
    ],
    ids=["hang up", "null", "no graphql", "below", "broke", "busy"],
)
async def test_a_mutation_of_which_nobody_can_be_sure_is_unknown_and_sent_once(
    place: Place, calling: Calling, shop: Upstream, answer: Answer, says: str
) -> None:
    shop.answer = lambda _: answer
    outcome = await calling("shopify_add_tags", TAGS, Person(Decision.APPROVE))
    assert says in outcome.text
    assert "not known whether the call took effect" in outcome.text
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["unknown"]
    assert [one.state for one in place.installation.approvals.list(place.org)] == [State.UNKNOWN]
    assert len(shop.requests) == 1


async def test_a_query_without_an_answer_is_tried_again_and_then_a_plain_failure(
    place: Place, calling: Calling, shop: Upstream
) -> None:
    shop.answer = lambda _: Answer(hang_up=True)
    outcome = await calling("shopify_get_shop", {})
    assert "not known" not in outcome.text
    assert [entry["outcome"] for entry in place.events("call.outcome")] == ["failed"]
    assert len(shop.requests) == 3


async def test_a_refund_is_sent_again_by_the_key_of_its_approval_and_by_nothing_else(
    place: Place, calling: Calling, shop: Upstream
) -> None:
    refund = {"order": "gid://1", "transaction": "gid://2", "gateway": "cash", "amount": "5.00", "notify": False}
    given = {"refund": {"id": "gid://r", "createdAt": "now", "totalRefundedSet": None}, "userErrors": []}

    def second_time(_request: Received) -> Answer:
        return Answer({"data": {"refundCreate": given}}, hang_up=len(shop.requests) == 1)

    shop.answer = second_time
    person = Person(Decision.APPROVE)
    outcome = await calling("shopify_refund_order", refund, person)
    assert outcome.ok, outcome.text
    first, second = shop.requests
    assert first.body == second.body
    (approval,) = place.installation.approvals.list(place.org)
    sent = json.loads(first.body)
    assert sent["variables"].pop("idempotency_key") == approval.id
    assert json.dumps(sent, ensure_ascii=False, separators=(",", ":")).encode() == shown(person.questions[0].text)
    assert "Added by Keyleash: idempotency_key, " in person.questions[0].text
    assert record(place, approval.id).state is State.SUCCEEDED


# -- connecting


def test_an_account_is_connected_by_its_query(owner: CommandLine, linear: Upstream, tracker: Tracker) -> None:
    more = ("--name", "linear_two", "--base-url", linear.url, "--allow-private", "127.0.0.1/32", "--secret-stdin")
    ran = owner("connect", "linear", *more, "--json", stdin=f"{KEY}\n".encode())
    assert ran.code == 0, ran.err
    assert ran.json["account"] == "Ann in Acme"
    assert json.loads(linear.requests[0].body)["operationName"] == "Verify"
    tracker.key = "another"
    tested = owner("connection", "test", "linear_two")
    assert tested.code == 1
    assert "Credential rejected" in tested.err
    refused = owner("connect", "linear", *(*more[:1], "three", *more[2:]), stdin=f"{KEY}\n".encode())
    assert refused.code != 0
    assert "Nothing was stored" in refused.err


def test_a_shop_is_not_connected_before_its_address_is_given(place: Place, owner: CommandLine) -> None:
    ran = owner("connect", "shopify", "--secret-stdin", stdin=f"{TOKEN}\n".encode())
    assert ran.code != 0
    assert "--base-url https://your-shop.myshopify.com/admin/api/2026-10" in " ".join(ran.err.lower().split())
    assert [one["name"] for one in owner("connection", "list", "--json").json] == ["stripe"]
    with pytest.raises(ConnectionProblem, match="--base-url"):
        plan(place.installation.catalogue, [], connector="shopify", name=None, kind=None, base_url=None, private=())


def test_a_tools_document_can_be_looked_at(keyleash: CommandLine) -> None:
    tools = {tool["name"]: tool for tool in keyleash("connector", "show", "linear", "--json").json["tools"]}
    assert tools["get_me"]["document"].startswith("query GetMe {")
    assert tools["get_me"]["call"] == "POST /graphql"
