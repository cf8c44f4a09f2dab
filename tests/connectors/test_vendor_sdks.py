"""What leaves for OpenAI, Stripe, GitHub and Slack is what the libraries that people use with them send.

Where it is not, the difference is stated here with its reason, and anything else still fails.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest

from connectors.definition import Effect
from tests.connectors.wire import CATALOGUE, OFFER, answering, media_type, same
from tests.upstream import Answer, Received

Row = tuple[Callable[[Any], Any], dict[str, Any]]  # what the library is told to do, and what our tool is given

# --- OpenAI

OPENAI: dict[str, Row] = {
    "list_models": (lambda client: client.models.list(), {}),
    "get_model": (lambda client: client.models.retrieve("gpt-6"), {"model": "gpt-6"}),
    "create_response": (
        lambda client: client.responses.create(
            model="gpt-6",
            input=[{"role": "user", "content": "Grüße"}],
            instructions="Be brief.",
            max_output_tokens=64,
            temperature=0.5,
            store=False,
        ),
        {
            "model": "gpt-6",
            "input": [{"role": "user", "content": "Grüße"}],
            "instructions": "Be brief.",
            "max_output_tokens": 64,
            "temperature": 0.5,
        },
    ),
    "continue_response": (
        lambda client: client.responses.create(
            model="gpt-6",
            input=[{"role": "user", "content": "Grüße"}],
            instructions="Be brief.",
            max_output_tokens=64,
            temperature=0.5,
            previous_response_id="resp_1",
            store=False,
        ),
        {
            "model": "gpt-6",
            "input": [{"role": "user", "content": "Grüße"}],
            "instructions": "Be brief.",
            "max_output_tokens": 64,
            "temperature": 0.5,
            "previous_response_id": "resp_1",
            "store": False,
        },
    ),
    "create_embedding": (
        lambda client: client.embeddings.create(model="e", input=["a", "b"], dimensions=8, encoding_format="float"),
        {"model": "e", "input": ["a", "b"], "dimensions": 8, "encoding_format": "float"},
    ),
    "create_moderation": (
        lambda client: client.moderations.create(input="text", model="omni"),
        {"input": "text", "model": "omni"},
    ),
    "list_files": (
        lambda client: client.files.list(purpose="batch", limit=5, order="asc", after="file-1"),
        {"purpose": "batch", "limit": 5, "order": "asc", "after": "file-1"},
    ),
    "create_fine_tuning_job": (
        lambda client: client.fine_tuning.jobs.create(model="gpt-6", training_file="file-1", suffix="shop"),
        {"model": "gpt-6", "training_file": "file-1", "suffix": "shop"},
    ),
    "delete_file": (lambda client: client.files.delete("file-1"), {"file_id": "file-1"}),
    "delete_model": (lambda client: client.models.delete("ft:gpt-6:acme"), {"model": "ft:gpt-6:acme"}),
}


@pytest.mark.parametrize("tool", OPENAI)
def test_openais_library_sends_the_same(tool: str) -> None:
    import openai

    call, arguments = OPENAI[tool]
    key = "sk-proj-canary"
    empty = {"id": "x", "object": "list", "data": [], "output": [], "results": [], "model": "m", "usage": {}}
    with answering(empty) as upstream, openai.OpenAI(api_key=key, base_url=f"{upstream.url}/v1") as client:
        call(client)
        (theirs,) = upstream.requests
    assert "idempotency-key" not in theirs.headers, "then ours should send one too"
    same(theirs, "openai", tool, arguments, key=key, headers=("accept",))


# --- Stripe

DAY = {"created_gte": 1_700_000_000, "created_lt": 1_700_086_400}
STRIPES_DAY = {"gte": 1_700_000_000, "lt": 1_700_086_400}

STRIPE: dict[str, Row] = {
    "get_balance": (lambda client: client.balance.retrieve(), {}),
    **{
        f"list_{name}": (
            lambda client, name=name: getattr(client, name).list(
                {"created": STRIPES_DAY, "limit": 100, "starting_after": "x_1"}
            ),
            DAY | {"limit": 100, "starting_after": "x_1"},
        )
        for name in ("charges", "refunds", "balance_transactions", "payouts", "disputes", "invoices")
    },
    "search_customers": (
        lambda client: client.customers.search({"query": "email:'ann@example.com'", "page": "p 2"}),
        {"query": "email:'ann@example.com'", "page": "p 2"},
    ),
    "get_charge": (lambda client: client.charges.retrieve("ch_1"), {"charge": "ch_1"}),
    "create_customer": (
        lambda client: client.customers.create({"name": "Ann & Bo", "metadata": {"team": "blau", "a b": "c"}}),
        {"name": "Ann & Bo", "metadata": {"team": "blau", "a b": "c"}},
    ),
    "create_refund": (
        lambda client: client.refunds.create({"charge": "ch_1", "amount": 500, "reason": "duplicate"}),
        {"charge": "ch_1", "amount": 500, "reason": "duplicate"},
    ),
    "cancel_subscription": (lambda client: client.subscriptions.cancel("sub_1"), {"subscription": "sub_1"}),
}


@pytest.mark.parametrize("tool", STRIPE)
def test_stripes_library_sends_the_same(tool: str) -> None:
    import stripe

    call, arguments = STRIPE[tool]
    key = "rk_test_canary"
    with answering({"id": "x", "object": "list", "data": [], "has_more": False}) as upstream:
        web = stripe.RequestsClient()
        call(stripe.StripeClient(key, base_addresses={"api": upstream.url}, http_client=web).v1)
        web.close()
        (theirs,) = upstream.requests
    assert ("idempotency-key" in theirs.headers) == (theirs.method == "POST")
    theirs.headers.update({"idempotency-key": "one-key"} if theirs.method == "POST" else {})  # each makes its own
    same(theirs, "stripe", tool, arguments, key=key, headers=("stripe-version", "idempotency-key"))


# --- GitHub, by PyGithub, which is not GitHub's own


def acme(client: Any) -> Any:
    return client.get_repo("acme/shop")


SHOP = {"owner": "acme", "repo": "shop"}
SHA = "a" * 40

GITHUB: dict[str, Row] = {
    "get_me": (lambda client: client.get_user().login, {}),
    "list_issues": (
        lambda client: list(
            acme(client).get_issues(state="all", labels=["bug", "p 1"], since=datetime(2026, 11, 1, tzinfo=UTC))
        ),
        SHOP | {"state": "all", "labels": ["bug", "p 1"], "since": "2026-11-01T00:00:00Z"},
    ),
    "list_pull_requests": (
        lambda client: list(acme(client).get_pulls(state="open", base="main", head="ann:fix")),
        SHOP | {"state": "open", "base": "main", "head": "ann:fix"},
    ),
    "list_commits": (
        lambda client: list(acme(client).get_commits(sha="main", path="src/a b.py")),
        SHOP | {"sha": "main", "path": "src/a b.py"},
    ),
    "search_issues": (
        lambda client: list(client.search_issues("repo:acme/shop is:open", sort="created", order="asc")),
        {"q": "repo:acme/shop is:open", "sort": "created", "order": "asc"},
    ),
    "list_files": (
        lambda client: acme(client).get_git_tree("main", recursive=True),
        SHOP | {"ref": "main", "recursive": "1"},
    ),
    "create_issue": (
        lambda client: acme(client).create_issue("Grüße", body="Text", labels=["bug"], assignees=["ann"]),
        SHOP | {"title": "Grüße", "body": "Text", "labels": ["bug"], "assignees": ["ann"]},
    ),
    "comment_on_issue": (
        lambda client: acme(client).get_issue(7).create_comment("Well done"),
        SHOP | {"issue_number": 7, "body": "Well done"},
    ),
    "close_issue": (
        lambda client: acme(client).get_issue(7).edit(state="closed", state_reason="not_planned"),
        SHOP | {"issue_number": 7, "state": "closed", "state_reason": "not_planned"},
    ),
    "create_pull_request": (
        lambda client: acme(client).create_pull(base="main", head="fix", title="T", body="B", draft=True),
        SHOP | {"base": "main", "head": "fix", "title": "T", "body": "B", "draft": True},
    ),
    "merge_pull_request": (
        lambda client: acme(client).get_pull(7).merge(sha=SHA, merge_method="squash", commit_title="T"),
        SHOP | {"pull_number": 7, "sha": SHA, "merge_method": "squash", "commit_title": "T"},
    ),
    "run_workflow": (
        lambda client: acme(client).get_workflow(5).create_dispatch("main", {"to": "test"}),
        SHOP | {"workflow_id": "5", "ref": "main", "inputs": {"to": "test"}},
    ),
    "delete_file": (
        lambda client: acme(client).delete_file("docs/a b.md", "Gone", SHA, branch="main"),
        SHOP | {"path": "docs/a b.md", "message": "Gone", "sha": SHA, "branch": "main"},
    ),
}


@pytest.mark.parametrize("tool", GITHUB)
def test_pygithub_sends_the_same(tool: str) -> None:
    import github

    call, arguments = GITHUB[tool]
    key = "github_pat_canary"
    one = {"number": 7, "login": "ann", "sha": SHA, "merged": True, "message": "", "commit": {}, "content": None}

    def answer(request: Received) -> Answer:
        listed = request.method == "GET" and urlsplit(request.target).path.endswith(("/issues", "/pulls", "/commits"))
        return Answer([] if listed else one | {"total_count": 0, "items": []})

    with answering({}) as upstream:
        upstream.answer = answer
        client = github.Github(
            auth=github.Auth.Token(key),
            base_url=upstream.url,
            retry=None,
            lazy=True,
            seconds_between_requests=0,
            seconds_between_writes=0,
        )
        call(client)
        client.close()
        (theirs,) = upstream.requests
    # GitHub takes either word, and ours is the one that its own documents use.
    assert theirs.headers["authorization"] == f"token {key}"
    theirs.headers["authorization"] = f"Bearer {key}"
    same(theirs, "github", tool, arguments, key=key)


def test_pygithub_names_no_api_version_and_ours_does() -> None:
    """Without one GitHub answers as in 2022-11-28, which ends in 2028; so this header is not compared."""
    assert dict(CATALOGUE.connectors["github"].headers)["X-GitHub-Api-Version"] == "2026-03-10"


# --- Slack

SLACK: dict[str, Row] = {
    "get_me": (lambda client: client.auth_test(), {}),
    "list_channels": (
        lambda client: client.conversations_list(
            types=["public_channel", "private_channel"], limit=5, cursor="c=", exclude_archived=True
        ),
        {"types": ["public_channel", "private_channel"], "limit": 5, "cursor": "c=", "exclude_archived": True},
    ),
    "read_channel": (
        lambda client: client.conversations_history(
            channel="C1", oldest="1.2", latest="3.4", inclusive=False, limit=5, cursor="c"
        ),
        {"channel": "C1", "oldest": "1.2", "latest": "3.4", "inclusive": False, "limit": 5, "cursor": "c"},
    ),
    "read_thread": (
        lambda client: client.conversations_replies(channel="C1", ts="1.2", limit=5, cursor="c"),
        {"channel": "C1", "ts": "1.2", "limit": 5, "cursor": "c"},
    ),
    "list_users": (lambda client: client.users_list(limit=5, cursor="c"), {"limit": 5, "cursor": "c"}),
    "find_user_by_email": (
        lambda client: client.users_lookupByEmail(email="ann+1@acme.example"),
        {"email": "ann+1@acme.example"},
    ),
    "search_messages": (
        lambda client: client.search_messages(query="in:#a refund", count=5, page=2, sort="timestamp"),
        {"query": "in:#a refund", "count": 5, "page": 2, "sort": "timestamp"},
    ),
    "post_message": (
        lambda client: client.chat_postMessage(channel="C1", text="Grüße", thread_ts="1.2"),
        {"channel": "C1", "text": "Grüße", "thread_ts": "1.2"},
    ),
    "update_message": (
        lambda client: client.chat_update(channel="C1", ts="1.2", text="Neu"),
        {"channel": "C1", "ts": "1.2", "text": "Neu"},
    ),
    "delete_message": (lambda client: client.chat_delete(channel="C1", ts="1.2"), {"channel": "C1", "ts": "1.2"}),
    "invite_to_channel": (
        lambda client: client.conversations_invite(channel="C1", users=["U1", "U2"]),
        {"channel": "C1", "users": "U1,U2"},
    ),
    "archive_channel": (lambda client: client.conversations_archive(channel="C1"), {"channel": "C1"}),
}


def told_as_we_do(theirs: Received, *, method: str) -> Received:
    """Slack takes a read by GET as well as by POST, and what a method is told in a query, a form or, for those that
    change something, JSON; flags as 1 and 0 or true and false. The library posts a form for most. We read by GET, so
    that a read may be sent again when a connection breaks, and write JSON, which is what a person is shown.
    """
    if media_type(theirs) != "application/x-www-form-urlencoded":
        return theirs
    named = dict(parse_qsl(theirs.body.decode(), keep_blank_values=True, strict_parsing=bool(theirs.body)))
    named |= {name: {"1": "true", "0": "false"}[value] for name, value in named.items() if name in FLAGS}
    if method == "GET":
        return replace(theirs, method="GET", target=f"{theirs.target}?{urlencode(named)}", body=b"")
    body = json.dumps(named).encode() if named else b""
    return replace(theirs, body=body, headers=theirs.headers | {"content-type": "application/json"})


FLAGS = frozenset({"exclude_archived", "inclusive"})


@pytest.mark.parametrize("tool", SLACK)
def test_slacks_library_sends_the_same(tool: str) -> None:
    import slack_sdk

    call, arguments = SLACK[tool]
    key = "xoxb-canary"
    with answering({"ok": True}) as upstream:
        call(slack_sdk.WebClient(key, base_url=f"{upstream.url}/api/"))
        (theirs,) = upstream.requests
    method = OFFER.get(f"slack_{tool}").tool.method
    same(told_as_we_do(theirs, method=method), "slack", tool, arguments, key=key)


# --- all


@pytest.mark.parametrize(
    ("connector", "rows"), [("openai", OPENAI), ("stripe", STRIPE), ("github", GITHUB), ("slack", SLACK)]
)
def test_reads_and_acts_of_each_are_compared(connector: str, rows: dict[str, Row]) -> None:
    effects = [OFFER.get(f"{connector}_{tool}").tool.effect for tool in rows]
    assert len([effect for effect in effects if effect is Effect.READ]) >= 3
    assert len([effect for effect in effects if effect.strictness >= Effect.WRITE.strictness]) >= 3
