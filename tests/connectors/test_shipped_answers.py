"""What the shipped connectors make of real answers and refusals, and what is unusual in the requests of each."""

import base64
import json
from typing import Any

import pytest

from connectors.answer import MAX_TEXT, interpret
from connectors.auth import attaching, check
from connectors.catalogue import Catalogue, shipped_folder
from connectors.definition import Call, Effect
from connectors.egress import Reply
from connectors.errors import ConnectorError, CredentialRejected, RateLimited, UpstreamError
from connectors.request import prepare

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
