"""What the shipped connectors make of real answers and refusals, and what is unusual in the requests of each."""

import base64
import json
import math
from typing import Any

import pytest

from connectors.answer import interpret
from connectors.auth import attaching, check
from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Call, Effect
from connectors.egress import Reply
from connectors.errors import ConnectorError, CredentialRejected, RateLimited, UpstreamError
from connectors.portions import MAX_TEXT
from connectors.request import prepare
from connectors.waiting import seconds_to_wait
from server.usage import reported

CATALOGUE = Catalogue.load(shipped_folder())
OFFER = CATALOGUE.offer({name: name for name in CATALOGUE.connectors})


def shaped(name: str, answer: Any) -> Any:
    select = OFFER.get(name).tool.output_select
    assert select is not None
    return select.search(answer)


def test_a_day_of_stripe_can_be_reconciled():
    day = {"created_gte": 1_700_000_000, "created_lt": 1_700_086_400, "limit": 100}
    for tool in ("charges", "refunds", "balance_transactions", "payouts"):
        call = OFFER.bind(f"stripe_list_{tool}", day | {"starting_after": "x_1"})
        assert prepare(call, base_url="https://api.stripe.com").url == (
            f"https://api.stripe.com/v1/{tool}?created%5Bgte%5D=1700000000&created%5Blt%5D=1700086400&limit=100&starting_after=x_1"
        )
    charge = {
        "id": "ch_1",
        "amount": 500,
        "currency": "usd",
        "billing_details": {"email": "a@b.c"},
        "payment_method_details": {},
    }
    page = shaped(
        "stripe_list_charges", {"object": "list", "data": [charge, charge | {"id": "ch_2"}], "has_more": True}
    )
    assert (page["has_more"], page["last_id"], [item["id"] for item in page["charges"]]) == (
        True,
        "ch_2",
        ["ch_1", "ch_2"],
    )
    assert "a@b.c" not in json.dumps(page)
    assert shaped("stripe_list_charges", {"data": [], "has_more": False}) == {
        "charges": [],
        "has_more": False,
        "last_id": None,
    }


def test_a_refund_states_what_it_will_do_with_and_without_an_amount():
    ask = OFFER.get("stripe_create_refund").tool.summary
    unit = "An amount counts the currency's smallest unit, cents"
    assert ask({"charge": "ch_1", "amount": 500}) == f"Refund 500 of charge ch_1, reason: none. {unit}"
    assert ask({"charge": "ch_1"}) == f"Refund everything that is left of charge ch_1, reason: none. {unit}"


def test_thirty_github_issues_are_a_few_kilobytes():
    user = {"login": "ann", **{f"{name}_url": "https://api.github.com/users/ann/" + name for name in "abcdefghijkl"}}
    issue = {
        "number": 1,
        "title": "It breaks",
        "state": "open",
        "user": user,
        "body": "x" * 5000,
        "comments": 2,
        "id": 1,
    }
    issue |= {
        "labels": [{"name": "bug", "url": "https://…", "color": "f00"}],
        "assignees": [user],
        "html_url": "https://g/1",
    }
    issue |= {"created_at": "2026-11-01T00:00:00Z", "updated_at": "2026-11-01T00:00:00Z"}
    listed = shaped("github_list_issues", [issue] * 29 + [issue | {"pull_request": {}, "state": "closed"}])
    assert len(json.dumps(listed)) < 12_000 < 150_000 < len(json.dumps([issue] * 30))
    assert listed[0] | {"kind": "issue", "author": "ann", "labels": ["bug"], "assignees": ["ann"]} == listed[0]
    assert shaped("github_get_issue", issue)["body"] == issue["body"]


def test_a_slack_message_keeps_who_when_and_what():
    message = {"type": "message", "user": "U1", "ts": "1.2", "text": "hi", "blocks": [{"x": 1}], "reply_count": 2}
    page = shaped("slack_read_channel", {"ok": True, "messages": [message], "response_metadata": {"next_cursor": "c"}})
    assert page["next_cursor"] == "c"
    assert {key: page["messages"][0][key] for key in ("ts", "user", "text", "replies")} == {
        "ts": "1.2", "user": "U1", "text": "hi", "replies": 2,
    }  # fmt: skip
    people = shaped(
        "slack_list_users", {"members": [{"id": "U1", "name": "ann", "profile": {"email": "a@b.c", "phone": "1"}}]}
    )
    assert "a@b.c" not in json.dumps(people)


def test_a_models_answer_is_its_text_and_its_usage():
    openai = {
        "id": "resp_1",
        "status": "completed",
        "output": [
            {"type": "reasoning", "summary": []},
            {
                "type": "message",
                "content": [{"type": "output_text", "text": "Hel"}, {"type": "output_text", "text": "lo"}],
            },
        ],
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    assert shaped("openai_create_response", openai)["text"] == "Hello"
    assert shaped("openai_create_response", openai)["refusal"] is None
    anthropic = {
        "content": [{"type": "text", "text": "Hello"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2},
    }
    assert shaped("anthropic_create_message", anthropic)["text"] == "Hello"
    for name, answer in (("openai_create_response", openai), ("anthropic_create_message", anthropic)):
        usage = OFFER.get(name).tool.output_usage
        assert usage is not None
        found = usage.search(answer)
        assert (found["tokens_in"], found["tokens_out"], found["tokens_cached"]) == (3, 2, None)


METERED: dict[str, tuple[Any, dict[str, int]]] = {
    "openai_create_response": (
        {
            "usage": {
                "input_tokens": 3,
                "output_tokens": 2,
                "total_tokens": 5,
                "input_tokens_details": {"cached_tokens": 1},
            }
        },
        {"tokens_in": 3, "tokens_out": 2, "tokens_cached": 1, "total_tokens": 5},
    ),
    "openai_continue_response": (
        {
            "usage": {
                "input_tokens": 3,
                "output_tokens": 2,
                "total_tokens": 5,
                "input_tokens_details": {"cached_tokens": 1},
            }
        },
        {"tokens_in": 3, "tokens_out": 2, "tokens_cached": 1, "total_tokens": 5},
    ),
    "openai_create_embedding": (
        {"data": [], "usage": {"prompt_tokens": 8, "total_tokens": 8}},
        {"tokens_in": 8, "total_tokens": 8},
    ),
    "anthropic_create_message": (
        {"content": [], "usage": {"input_tokens": 3, "output_tokens": 2, "service_tier": "standard"}},
        {"tokens_in": 3, "tokens_out": 2},
    ),
    "google_gemini_generate_content": (
        {"candidates": [], "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5}},
        {"tokens_in": 3, "tokens_out": 2, "totalTokenCount": 5},
    ),
    "google_gemini_embed_content": (
        {"embedding": {"values": [0.5]}, "usageMetadata": {"promptTokenCount": 3}},
        {"tokens_in": 3},
    ),
}


def test_every_call_that_is_metered_reports_what_it_used():
    assert set(METERED) == {offered.name for offered in OFFER.tools if offered.tool.effect is Effect.METERED}
    assert {OFFER.get(name).connector.id for name in METERED} == {"openai", "anthropic", "google_gemini"}


@pytest.mark.parametrize("name", METERED)
def test_the_tokens_that_a_model_provider_reports_are_taken_down(name: str):
    answer, used = METERED[name]
    offered = OFFER.get(name)
    body = json.dumps(answer).encode()
    call = Call(offered.connection, offered.connector, offered.tool, name, {})
    result = interpret(call, Reply(200, {}, body, 1.0, len(body)))
    assert result.usage == used
    said = reported(result.usage)
    counted = (used["tokens_in"], used.get("tokens_out", 0), used.get("tokens_cached", 0))
    assert (said.counts, said.tokens_in, said.tokens_out, said.tokens_cached) == (True, *counted)
    assert result.structured is not None
    assert result.structured["usage"], "the model hears of it too"


def test_notion_results_have_their_titles_whatever_they_are():
    page = {
        "object": "page",
        "id": "p",
        "properties": {"Done": {"checkbox": True}, "Name": {"title": [{"plain_text": "A"}]}},
    }
    table = {"object": "data_source", "id": "d", "title": [{"plain_text": "B"}, {"plain_text": "C"}]}
    bare = {"object": "page", "id": "e"}
    results = shaped("notion_search", {"results": [page, table, bare], "has_more": False, "next_cursor": None})[
        "results"
    ]
    assert [(result["kind"], result["title"]) for result in results] == [
        ("page", "A"),
        ("data_source", "BC"),
        ("page", ""),
    ]


def test_errors_and_accounts_are_found_in_the_answers_that_vendors_document():
    stripe, slack, notion = (CATALOGUE.connectors[name] for name in ("stripe", "slack", "notion"))
    assert stripe.errors.message is not None
    assert stripe.errors.message.search({"error": {"message": "No such charge"}}) == "No such charge"
    assert slack.errors.ok_field is not None
    assert slack.errors.ok_field.search({"ok": False, "error": "not_in_channel"}) is False
    accounts = [
        (stripe, {"livemode": False}, "test mode"),
        (stripe, {"livemode": True}, "live mode"),
        (slack, {"user": "bot", "team": "acme"}, "bot in acme"),
        (CATALOGUE.connectors["github"], {"login": "ann"}, "ann"),
        (notion, {"name": "Keyleash", "bot": {"workspace_name": "Acme"}}, "Acme"),
        (notion, {"name": "Keyleash", "bot": {}}, "Keyleash"),
    ]
    for connector, answer, expected in accounts:
        assert connector.account is not None
        assert connector.account.search(answer) == expected


def encoded(text: str) -> dict[str, str]:
    return {"data": base64.urlsafe_b64encode(text.encode()).decode()}


HEADERS = [{"name": "From", "value": "Ann <ann@acme.example>"}, {"name": "Subject", "value": "Offer"}]


def test_a_mail_is_its_text_wherever_in_its_parts_that_stands():
    plain, html = (
        {"mimeType": "text/plain", "body": encoded("Grüße")},
        {"mimeType": "text/html", "body": encoded("<b>")},
    )
    file = {"mimeType": "application/pdf", "filename": "offer.pdf", "body": {"attachmentId": "a1", "size": 9}}
    either = {"mimeType": "multipart/alternative", "parts": [plain, html]}
    related = {"mimeType": "multipart/related", "parts": [either]}
    for payload, text, markup, files in (
        (plain, "Grüße", None, []),
        (html, "", "<b>", []),
        (either, "Grüße", None, []),
        ({"mimeType": "multipart/mixed", "parts": [either, file]}, "Grüße", None, ["offer.pdf"]),
        ({"mimeType": "multipart/mixed", "parts": [related, file]}, "Grüße", None, ["offer.pdf"]),
        ({"mimeType": "multipart/mixed", "parts": [file]}, "", None, ["offer.pdf"]),
        ({"mimeType": "text/calendar", "body": encoded("BEGIN:VCALENDAR")}, "", None, []),
    ):
        message = {"id": "m1", "threadId": "t1", "labelIds": ["INBOX"], "payload": payload | {"headers": HEADERS}}
        shown = answered("gmail_get_message", message)
        assert (shown["text"], shown["html"]) == (text, markup)
        assert [each["name"] for each in shown["attachments"]] == files
        assert (shown["from"], shown["subject"], shown["thread"]) == ("Ann <ann@acme.example>", "Offer", "t1")
        (of_thread,) = answered("gmail_get_thread", {"id": "t1", "messages": [message]})["messages"]
        assert of_thread == {name: value for name, value in shown.items() if name != "thread"}


def answered(name: str, answer: Any, status: int = 200, **headers: str) -> Any:
    """What a model gets of this answer, decoded, selected and bounded."""
    offered = OFFER.get(name)
    call = Call(offered.connection, offered.connector, offered.tool, name, {})
    body = json.dumps(answer).encode()
    result = interpret(call, Reply(status, headers, body, 1.0, len(body)))
    assert len(result.text) < MAX_TEXT
    return result.structured


PERSON = {
    "self": "https://a.example/" + "x" * 80,
    "accountId": "5b1",
    "displayName": "Ann",
    "avatarUrls": {"48x48": "x" * 90},
}
STATUS = {"self": "https://a.example/" + "x" * 80, "name": "Open", "description": "x" * 80, "iconUrl": "x" * 80}

LONG: dict[str, Any] = {
    "jira_search_issues": {
        "isLast": False,
        "nextPageToken": "t",
        "issues": [
            {
                "key": f"SHOP-{number}",
                "expand": "x" * 80,
                "fields": {
                    "summary": "It breaks",
                    "status": STATUS | {"statusCategory": STATUS},
                    "issuetype": STATUS,
                    "priority": STATUS,
                    "project": STATUS | {"key": "SHOP", "avatarUrls": {"48x48": "x" * 90}},
                    "assignee": PERSON,
                    "reporter": PERSON,
                    "labels": ["bug"],
                },
            }
            for number in range(30)
        ],
    },
    "sentry_list_issues": [
        {
            "id": str(number),
            "shortId": f"SHOP-{number}",
            "title": "ValueError",
            "metadata": {"value": "x" * 800},
            "stats": {"24h": [[1, 2]] * 24},
            "project": {"id": "1", "slug": "shop", "name": "Shop"},
            "assignedTo": {"type": "user", "id": "1", "name": "Ann", "email": "ann@acme.example"},
        }
        for number in range(30)
    ],
    "zendesk_list_tickets": {
        "tickets": [
            {
                "id": number,
                "subject": "Help",
                "description": "x" * 2000,
                "custom_fields": [{"id": 1, "value": "x"}] * 20,
            }
            for number in range(30)
        ],
        "meta": {"has_more": True, "after_cursor": "c"},
    },
    "hubspot_search_deals": {
        "results": [{"id": str(number), "properties": {"dealname": "A"}, "url": "x" * 90} for number in range(30)],
        "paging": {"next": {"after": "30"}},
    },
    "pagerduty_list_incidents": {
        "incidents": [
            {
                "id": f"Q{number}",
                "title": "Fire",
                "service": {"id": "P1", "summary": "Shop", "self": "x" * 80},
                "first_trigger_log_entry": {"summary": "x" * 800},
                "assignments": [{"at": "2026", "assignee": {"summary": "Ann", "self": "x" * 80}}],
                "pending_actions": [{"type": "x" * 80}],
            }
            for number in range(30)
        ],
        "more": True,
    },
    "discord_read_channel": [
        {
            "id": str(number),
            "content": "hi",
            "author": {"id": "1", "username": "ann", "avatar": "x" * 80, "banner": "x" * 80},
            "mentions": [{"username": "x" * 800}],
            "components": [{"x": "x" * 800}],
        }
        for number in range(30)
    ],
    "google_calendar_list_events": {
        "items": [
            {
                "id": str(number),
                "summary": "Stand-up",
                "description": "x" * 2000,
                "start": {"dateTime": "2026-11-01T09:00:00Z"},
                "conferenceData": {"x": "x" * 800},
                "attendees": [{"email": "ann@acme.example", "responseStatus": "accepted", "id": "x" * 80}],
            }
            for number in range(30)
        ],
    },
    "cloudflare_list_dns_records": {
        "success": True,
        "result": [
            {
                "id": "0" * 32,
                "type": "A",
                "name": "www",
                "content": "192.0.2.1",
                "meta": {"x": "x" * 400},
                "settings": {},
            }
            for _ in range(30)
        ],
        "result_info": {"page": 1, "total_pages": 2},
    },
}


@pytest.mark.parametrize("name", LONG)
def test_thirty_of_anything_are_a_few_kilobytes(name: str):
    shown = answered(name, LONG[name])
    ((listed, items), *_) = [(key, value) for key, value in shown.items() if isinstance(value, list)]
    assert len(items) == 30, listed
    assert len(json.dumps(shown)) < 15_000
    assert any(value is not None for value in items[0].values())


def test_the_next_page_can_be_asked_for_in_each_vendors_own_way():
    assert answered("jira_search_issues", LONG["jira_search_issues"])["next_page_token"] == "t"
    assert answered("zendesk_list_tickets", LONG["zendesk_list_tickets"])["after"] == "c"
    assert answered("hubspot_search_deals", LONG["hubspot_search_deals"])["after"] == "30"
    assert answered("pagerduty_list_incidents", LONG["pagerduty_list_incidents"])["more"] is True
    cloudflare = answered("cloudflare_list_dns_records", LONG["cloudflare_list_dns_records"])
    assert (cloudflare["page"], cloudflare["pages"]) == (1, 2)
    link = '<https://sentry.io/api/0/x/?cursor=0:100:0>; rel="next"; results="true"'
    assert answered("sentry_list_issues", [], link=link) == {"issues": [], "next_cursor": "0:100:0"}
    twilio = {"messages": [], "next_page_uri": "/2010-04-01/Accounts/AC0/Messages.json?Page=1&PageToken=PASM1"}
    assert answered("twilio_list_messages", twilio)["next_cursor"] == "PASM1"
    sendgrid = {"result": [], "_metadata": {"next": "https://api.sendgrid.com/v3/templates?page_size=5&page_token=t"}}
    assert answered("sendgrid_list_templates", sendgrid)["next_cursor"] == "t"


GOOGLE_403 = {"error": {"code": 403, "message": "Slow down", "errors": [{"domain": "usageLimits", "reason": "%s"}]}}


def google_refuses(reason: str) -> Any:
    return json.loads(json.dumps(GOOGLE_403) % reason)


REFUSALS: list[tuple[str, int, Any, type[ConnectorError], str]] = [
    ("gmail_list_labels", 403, google_refuses("userRateLimitExceeded"), RateLimited, "fewer calls"),
    ("google_drive_list_files", 403, google_refuses("insufficientPermissions"), CredentialRejected, "not permitted"),
    ("google_calendar_list_calendars", 404, google_refuses("notFound"), UpstreamError, "Slow down .HTTP 404, notFound"),
    (
        "google_gemini_list_models",
        400,
        {
            "error": {
                "code": 400,
                "status": "INVALID_ARGUMENT",
                "message": "x",
                "details": [{}, {"reason": "API_KEY_INVALID"}],
            }
        },
        CredentialRejected,
        "Credential rejected",
    ),
    (
        "google_gemini_list_models",
        400,
        {"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "Bad model"}},
        UpstreamError,
        "Bad model .HTTP 400, INVALID_ARGUMENT",
    ),
    (
        "cloudflare_list_zones",
        200,
        {"success": False, "errors": [{"code": 7003, "message": "No route"}], "result": None},
        UpstreamError,
        "No route .HTTP 200, 7003",
    ),
    (
        "zendesk_get_me",
        422,
        {"error": "RecordInvalid", "description": "Subject: blank"},
        UpstreamError,
        "Subject: blank",
    ),
    ("zendesk_get_me", 400, {"error": {"title": "Bad", "message": "No such field"}}, UpstreamError, "No such field"),
    ("airtable_get_me", 404, {"error": "NOT_FOUND"}, UpstreamError, "says: NOT_FOUND .HTTP 404, NOT_FOUND"),
    (
        "airtable_get_me",
        422,
        {"error": {"type": "INVALID_FILTER", "message": "The formula is wrong"}},
        UpstreamError,
        "The formula is wrong .HTTP 422, INVALID_FILTER",
    ),
    ("sendgrid_get_stats", 400, {"errors": [{"message": "no date", "field": "start_date"}]}, UpstreamError, "no date"),
    ("jira_get_me", 400, {"errorMessages": ["No such field"], "errors": {}}, UpstreamError, "says: No such field"),
    ("jira_get_me", 400, {"errorMessages": [], "errors": {"summary": "Too long"}}, UpstreamError, "says: Too long"),
    ("sentry_list_organizations", 404, {"detail": "Not here"}, UpstreamError, "says: Not here"),
    ("sentry_list_organizations", 400, {"detail": {"code": "c", "message": "Odd"}}, UpstreamError, "says: Odd .*, c"),
    (
        "discord_get_me",
        400,
        {"code": 50035, "message": "Invalid Form Body"},
        UpstreamError,
        "Invalid Form Body .*, 50035",
    ),
    ("twilio_get_balance", 400, {"code": 21211, "message": "Invalid To"}, UpstreamError, "Invalid To .*, 21211"),
    ("pagerduty_list_users", 400, {"error": {"code": 2001, "message": "Bad"}}, UpstreamError, "says: Bad .*, 2001"),
    (
        "hubspot_get_account",
        400,
        {"category": "VALIDATION_ERROR", "message": "Odd"},
        UpstreamError,
        "Odd .*, VALIDATION",
    ),
]


@pytest.mark.parametrize(("name", "status", "answer", "refusal", "says"), REFUSALS)
def test_refusals_are_understood_as_vendors_document_them(
    name: str, status: int, answer: Any, refusal: type[ConnectorError], says: str
):
    with pytest.raises(refusal, match=says) as refused:
        answered(name, answer, status)
    assert type(refused.value) is refusal


STRIPE_404 = {
    "error": {"type": "invalid_request_error", "code": "resource_missing", "message": "No such charge: 'ch_1'"}
}
OTHER_REFUSALS: list[tuple[str, int, Any, str]] = [
    ("stripe_get_charge", 404, STRIPE_404, "No such charge: 'ch_1' .*404, resource_missing"),
    (
        "stripe_create_refund",
        400,
        {"error": {"code": "charge_already_refunded", "message": "Been refunded."}},
        "refunded",
    ),
    ("stripe_create_refund", 409, {"error": {"code": "lock_timeout", "message": "Locked."}}, "Locked. .HTTP 409"),
    (
        "github_create_issue",
        422,
        {"message": "Validation Failed", "errors": [{"resource": "Issue", "code": "missing_field", "field": "title"}]},
        "Validation Failed for title missing_field .HTTP 422",
    ),
    (
        "github_create_pull_request",
        422,
        {"message": "Validation Failed", "errors": [{"message": "A pull request already exists for acme:fix."}]},
        "Validation Failed: A pull request already exists",
    ),
    ("github_get_issue", 404, {"message": "Not Found", "status": "404"}, "Not Found"),
    ("github_merge_pull_request", 409, {"message": "Head branch was modified."}, "Head branch was modified"),
    (
        "slack_post_message",
        200,
        {"ok": False, "error": "invalid_arguments", "response_metadata": {"messages": ["[ERROR] no text"]}},
        "no text",
    ),
    ("slack_post_message", 200, {"ok": False, "error": "not_in_channel"}, "says: not_in_channel"),
    (
        "slack_read_channel",
        200,
        {"ok": False, "error": "missing_scope", "needed": "channels:history"},
        "channels:history",
    ),
    (
        "openai_create_response",
        400,
        {"error": {"message": "Bad model", "type": "x", "code": "model_not_found"}},
        "Bad model",
    ),
    (
        "openai_get_model",
        404,
        {"error": {"message": "No model", "code": "model_not_found"}},
        "No model .HTTP 404, model_not",
    ),
    (
        "anthropic_create_message",
        400,
        {
            "type": "error",
            "error": {"type": "invalid_request_error", "message": "max_tokens: too large"},
            "request_id": "r",
        },
        "max_tokens: too large .HTTP 400, invalid_request_error, request r",
    ),
    (
        "notion_get_page",
        404,
        {
            "object": "error",
            "status": 404,
            "code": "object_not_found",
            "message": "Could not find page",
            "request_id": "r",
        },
        "Could not find page .HTTP 404, object_not_found, request r",
    ),
    ("notion_update_page", 409, {"code": "conflict_error", "message": "Conflict occurred."}, "Conflict occurred"),
    (
        "notion_create_page",
        400,
        {"code": "validation_error", "message": "body failed validation"},
        "body failed validation",
    ),
    (
        "linear_get_issue",
        200,
        {"errors": [{"message": "Entity not found", "extensions": {"code": "INPUT_ERROR"}}], "data": None},
        "Entity not found",
    ),
    (
        "shopify_cancel_order",
        200,
        {"data": {"orderCancel": {"job": None, "userErrors": [{"field": ["orderId"], "message": "Order is closed"}]}}},
        "orderId: Order is closed",
    ),
    (
        "zendesk_get_ticket",
        404,
        {"error": "RecordNotFound", "description": "Not found"},
        "Not found .HTTP 404, RecordNot",
    ),
    (
        "twilio_get_message",
        404,
        {"code": 20404, "message": "The resource was not found", "status": 404},
        "not found .*20404",
    ),
    ("jira_get_issue", 404, {"errorMessages": ["Issue does not exist"], "errors": {}}, "Issue does not exist"),
    ("discord_get_message", 404, {"code": 10008, "message": "Unknown Message"}, "Unknown Message .*10008"),
    ("pagerduty_get_incident", 404, {"error": {"code": 2100, "message": "Not Found"}}, "Not Found .*2100"),
    ("sentry_get_issue", 404, {"detail": "The requested resource does not exist"}, "does not exist"),
    (
        "hubspot_create_contact",
        409,
        {"category": "CONFLICT", "message": "Contact already exists"},
        "already exists .*CONFLICT",
    ),
    ("sendgrid_get_template", 404, {"errors": [{"message": "template not found"}]}, "template not found"),
    ("airtable_get_record", 404, {"error": "NOT_FOUND"}, "NOT_FOUND"),
    (
        "cloudflare_get_zone",
        404,
        {"success": False, "errors": [{"code": 7003, "message": "No zone"}]},
        "No zone .*7003",
    ),
    ("google_drive_get_file", 404, {"error": {"code": 404, "message": "File not found: x."}}, "File not found"),
    ("gmail_get_message", 400, {"error": {"code": 400, "message": "Invalid id value"}}, "Invalid id value"),
    (
        "google_calendar_get_event",
        410,
        {"error": {"code": 410, "message": "Resource has been deleted"}},
        "been deleted",
    ),
    (
        "google_gemini_get_model",
        404,
        {"error": {"status": "NOT_FOUND", "message": "no such model"}},
        "no such model .*NOT_FOUND",
    ),
]


@pytest.mark.parametrize(("name", "status", "answer", "says"), OTHER_REFUSALS)
def test_what_a_vendor_says_of_a_call_reaches_the_model(name: str, status: int, answer: Any, says: str):
    with pytest.raises(UpstreamError, match=says) as refused:
        answered(name, answer, status)
    assert type(refused.value) is UpstreamError
    assert refused.value.status == status


NOW = 1_800_000_000.0
IN_A_MINUTE, IN_AN_HOUR = str(int(NOW) + 60), str(int(NOW) + 3600)
LIMITS: list[tuple[str, int, dict[str, str], Any, float | None]] = [
    ("stripe_list_charges", 429, {"retry-after": "2"}, {"error": {"code": "rate_limit", "message": "Too many"}}, 2),
    ("stripe_list_charges", 429, {}, {"error": {"code": "rate_limit", "message": "Too many"}}, None),
    (
        "github_get_me",
        403,
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": IN_A_MINUTE},
        {"message": "exceeded"},
        60,
    ),
    (
        "github_get_me",
        429,
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": IN_A_MINUTE},
        {"message": "exceeded"},
        60,
    ),
    # A secondary limit: the hour's calls are not used up, so their end says nothing; with retry-after, and without.
    ("github_get_me", 403, {"retry-after": "90", "x-ratelimit-remaining": "4000"}, {"message": "secondary"}, 90),
    (
        "github_get_me",
        429,
        {"x-ratelimit-remaining": "4000", "x-ratelimit-reset": f"{int(IN_A_MINUTE) + 600}"},
        {"message": "second"},
        60,
    ),
    ("slack_list_users", 429, {"retry-after": "30"}, {"ok": False, "error": "ratelimited"}, 30),
    ("discord_get_me", 429, {"x-ratelimit-reset-after": "1.5"}, {"message": "You are", "retry_after": 1.5}, 1.5),
    (
        "discord_get_me",
        429,
        {},
        {"message": "You are being rate limited.", "retry_after": 64.57, "global": True},
        64.57,
    ),
    ("hubspot_get_account", 429, {}, {"message": "ten_secondly limit", "errorType": "RATE_LIMIT"}, 10),
    (
        "pagerduty_list_users",
        429,
        {"ratelimit-remaining": "0", "ratelimit-reset": "25"},
        {"error": {"message": "x"}},
        25,
    ),
    ("zendesk_get_me", 429, {"retry-after": "93"}, {"description": "Number of allowed API requests exceeded"}, 93),
    ("sentry_list_organizations", 429, {"x-sentry-rate-limit-reset": IN_A_MINUTE}, {"detail": "You are"}, 60),
    ("sendgrid_list_scopes", 429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": IN_A_MINUTE}, {"errors": []}, 60),
    ("jira_get_me", 429, {"retry-after": "5", "x-ratelimit-reset": "2027-01-15T08:01:00Z"}, {}, 5),
    ("jira_get_me", 429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "2027-01-15T08:01:00Z"}, {}, 60),
    ("linear_get_me", 400, {"x-ratelimit-requests-reset": f"{IN_A_MINUTE}000"}, "RATELIMITED", 60),
    ("shopify_get_shop", 200, {}, "THROTTLED", None),
    (
        "openai_list_models",
        429,
        {"retry-after": "20"},
        {"error": {"code": "rate_limit_exceeded", "message": "Slow"}},
        20,
    ),
    ("anthropic_list_models", 429, {"retry-after": "7"}, {"error": {"type": "rate_limit_error", "message": "Slow"}}, 7),
    ("notion_get_me", 429, {"retry-after": "3"}, {"code": "rate_limited", "message": "You have been rate limited"}, 3),
    ("airtable_get_me", 429, {}, {"errors": [{"error": "RATE_LIMIT_REACHED"}]}, 30),
    ("twilio_get_balance", 429, {}, {"code": 20429, "message": "Too Many Requests"}, None),
    ("cloudflare_list_zones", 429, {"ratelimit": '"default";r=0;t=30'}, {"success": False, "errors": []}, 30),
    (
        "google_gemini_list_models",
        429,
        {},
        {"error": {"status": "RESOURCE_EXHAUSTED", "message": "x", "details": [{"retryDelay": "34.5s"}]}},
        34.5,
    ),
    ("gmail_list_labels", 403, {}, google_refuses("userRateLimitExceeded"), None),
    ("google_drive_list_files", 403, {}, google_refuses("rateLimitExceeded"), None),
    ("google_calendar_list_calendars", 429, {"retry-after": "Fri, 15 Jan 2027 08:01:00 GMT"}, google_refuses("x"), 60),
]


@pytest.mark.parametrize(("name", "status", "headers", "answer", "wait"), LIMITS)
def test_an_answer_that_asks_for_fewer_calls_says_for_how_long(
    monkeypatch: pytest.MonkeyPatch, name: str, status: int, headers: dict[str, str], answer: Any, wait: float | None
):
    monkeypatch.setattr("connectors.waiting.time", lambda: NOW)
    if isinstance(answer, str):  # a code of GraphQL
        answer = {"errors": [{"message": "Slow down", "extensions": {"code": answer}}]}
    with pytest.raises(RateLimited, match="asks for fewer calls") as limited:
        answered(name, answer, status, **headers)
    assert limited.value.retry_after == wait
    assert (f"Try again in {math.ceil(wait)} s." if wait else "Try again later.") in str(limited.value)


def test_limits_and_refusals_of_every_connector_are_looked_at():
    def of(rows: list[Any]) -> set[str]:
        return {OFFER.get(row[0]).connector.id for row in rows}

    assert of(LIMITS) == set(CATALOGUE.connectors)
    assert of(OTHER_REFUSALS) == set(CATALOGUE.connectors)


def test_what_is_used_up_is_not_tried_again():
    spent = {"error": {"message": "You exceeded your current quota.", "type": "insufficient_quota", "code": None}}
    with pytest.raises(UpstreamError, match=r"exceeded your current quota\. Calling again will not help") as refused:
        answered("openai_create_response", spent, 429)
    assert not isinstance(refused.value, RateLimited)
    assert "Try again" not in str(refused.value)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"retry-after": "soon"}, {}),
        ({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "tomorrow"}, {}),
        ({"ratelimit-reset": "9" * 20}, {}),
        ({"retry-after": "99999999"}, {}),
        ({}, {"retry_after": True}),
        ({}, {"retry_after": -1}),
        ({}, {"error": {"details": [None, {"retryDelay": 3}, {"retryDelay": "3 hours"}]}}),
        ({}, {"error": {"details": "3s"}}),
    ],
)
def test_a_time_to_wait_that_cannot_be_believed_is_none(headers: dict[str, str], body: Any):
    assert seconds_to_wait(headers, body) is None


def signed(connector: str, kind: str, **fields: str) -> dict[str, str]:
    """The headers that sign in."""
    headers: dict[str, str] = {}
    attaching(CATALOGUE.connectors[connector].kind(kind), Given(fields))(headers, [])
    return headers


class Given:
    """A credential."""

    def __init__(self, fields: dict[str, str]) -> None:
        self._fields = fields

    def reveal(self, field: str) -> str:
        return self._fields[field]


def test_each_vendor_is_signed_in_to_in_its_own_way():
    assert signed("discord", "bot_token", secret="t" * 20) == {"Authorization": "Bot " + "t" * 20}
    assert signed("pagerduty", "api_key", secret="k" * 20) == {"Authorization": "Token token=" + "k" * 20}
    assert signed("google_gemini", "api_key", secret="AQ.1") == {"x-goog-api-key": "AQ.1"}
    zendesk = signed("zendesk", "api_token", user="ann@acme.example/token", password="secret")
    assert zendesk == {"Authorization": "Basic " + base64.b64encode(b"ann@acme.example/token:secret").decode()}
    twilio = signed("twilio", "api_key", user="SK" + "0" * 32, password="secret")
    assert twilio == {"Authorization": "Basic " + base64.b64encode(b"SK" + b"0" * 32 + b":secret").decode()}


def test_a_message_by_twilio_is_a_form_below_its_account():
    call = OFFER.bind("twilio_send_message", {"to": "+15551234567", "from": "+15557654321", "body": "Hä? 1 & 2"})
    prepared = prepare(call, base_url="https://api.twilio.com/2010-04-01/Accounts/AC1")
    assert prepared.url == "https://api.twilio.com/2010-04-01/Accounts/AC1/Messages.json"
    assert prepared.body == b"To=%2B15551234567&From=%2B15557654321&Body=H%C3%A4%3F%201%20%26%202"
    assert dict(prepared.headers)["Content-Type"] == "application/x-www-form-urlencoded"
    paths = {tool.path for tool in CATALOGUE.connectors["twilio"].tools.values()}
    assert not any("Accounts" in path or "/Keys" in path for path in paths), "these hand out secrets"


def test_a_reply_goes_to_the_customer_and_a_note_does_not():
    for tool, public in (("reply_to_ticket", True), ("add_internal_note", False)):
        call = OFFER.bind(f"zendesk_{tool}", {"ticket": 7, "body": "Hello"})
        body = prepare(call, base_url="https://acme.zendesk.com").body or b""
        assert json.loads(body) == {"ticket": {"comment": {"public": public, "body": "Hello"}}}
    assert OFFER.get("zendesk_reply_to_ticket").tool.effect is Effect.SEND
    assert OFFER.get("zendesk_add_internal_note").tool.effect is Effect.WRITE


def test_a_post_on_discord_cannot_call_everyone():
    call = OFFER.bind("discord_post_message", {"channel_id": "1", "content": "@everyone"})
    body = json.loads(prepare(call, base_url="https://discord.com/api/v10").body or b"")
    assert body["allowed_mentions"] == {"parse": ["users"]}


def test_connectors_whose_address_is_the_accounts_own_say_so():
    own = {name: connector for name, connector in CATALOGUE.connectors.items() if connector.example_url}
    assert set(own) == {"jira", "shopify", "twilio", "zendesk"}
    for connector in own.values():
        assert all("--base-url" in kind.help for kind in connector.credentials)


def test_a_credential_that_ends_says_when_it_is_entered():
    for connector in ("gmail", "google_calendar", "google_drive"):
        kind = CATALOGUE.connectors[connector].kind("access_token")
        assert any("hour" in warning for warning in check(kind, {"secret": "ya29.abcdefgh"}))
    old = CATALOGUE.connectors["zendesk"].kind("api_token")
    said = check(old, {"user": "ann@acme.example/token", "password": "x" * 40})
    assert any("2027-04-30" in warning for warning in said)
    gemini = CATALOGUE.connectors["google_gemini"].kind("api_key")
    assert any("rejected" in warning for warning in check(gemini, {"secret": "AIzaSyA"}))
    assert {deprecation.date for deprecation in CATALOGUE.connectors["zendesk"].deprecations} == {
        "2026-10-27",
        "2027-04-30",
    }
