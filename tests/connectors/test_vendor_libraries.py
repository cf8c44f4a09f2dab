"""What leaves for PagerDuty, SendGrid, Airtable, Cloudflare and Zendesk is what their libraries send."""

import json
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.connectors.wire import CATALOGUE, same, without
from tests.upstream import Answer, Received, Upstream

BASE, TABLE, RECORD = "app" + "A" * 14, "Open orders", "rec" + "R" * 14
SENDGRID_KEY = "SG.aaaaaaaa.bbbbbbbb"


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


# --- PagerDuty


FROM = {"from": "ann@acme.example"}

PAGERDUTY: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "list_incidents": (
        lambda client: client.list_all(
            "incidents",
            params={"statuses": ["triggered", "acknowledged"], "service_ids[]": ["P1"], "since": "2026-11-01"},
        ),
        {"statuses": ["triggered", "acknowledged"], "service_ids": ["P1"], "since": "2026-11-01"}
        | {"limit": 100, "offset": 0},
    ),
    "get_incident": (lambda client: client.rget("incidents/Q1"), {"id": "Q1"}),
    "create_incident": (
        lambda client: client.rpost(
            "incidents",
            json={
                "type": "incident",
                "title": "Fire",
                "service": {"id": "P1", "type": "service_reference"},
                "urgency": "high",
                "body": {"details": "It burns."},
            },
        ),
        FROM | {"title": "Fire", "service_id": "P1", "urgency": "high", "details": "It burns."},
    ),
    "set_incident_status": (
        lambda client: client.rput("incidents/Q1", json={"type": "incident_reference", "status": "resolved"}),
        FROM | {"id": "Q1", "status": "resolved"},
    ),
    "add_incident_note": (
        lambda client: client.rpost("incidents/Q1/notes", json={"content": "Mended."}),
        FROM | {"id": "Q1", "content": "Mended."},
    ),
    "override_schedule": (
        lambda client: client.rpost(
            "schedules/S1/overrides",
            json=[{"start": "2026-11-01", "end": "2026-11-02", "user": {"id": "U1", "type": "user_reference"}}],
        ),
        {"id": "S1", "user_id": "U1", "start": "2026-11-01", "end": "2026-11-02"},
    ),
}


@pytest.mark.parametrize("tool", PAGERDUTY)
def test_pagerdutys_library_sends_the_same(tool: str) -> None:
    import httpx2
    import pagerduty

    sent: list[Received] = []

    def answer(request: httpx2.Request) -> httpx2.Response:  # the library speaks https only, so it is heard out here
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent.append(Received(request.method, request.url.raw_path.decode(), headers, request.content))
        body = {"incidents": [], "incident": {}, "note": {}, "overrides": [], "more": False}
        return httpx2.Response(200, stream=httpx2.ByteStream(json.dumps(body).encode()))

    call, arguments = PAGERDUTY[tool]
    sender = FROM["from"] if "from" in arguments else None
    key = "pd-key-pd-key-pd-key"
    with pagerduty.RestApiV2Client(key, default_from=sender, transport=httpx2.MockTransport(answer)) as client:
        call(client)
    (request,) = sent
    same(without(request, "total"), "pagerduty", tool, arguments, key=key, headers=("from", "accept"))  # total=false


# --- SendGrid


def mail(**more: Any) -> Any:
    from sendgrid.helpers.mail import Mail

    return Mail(from_email=("shop@acme.example", "The shop"), to_emails=["ann@acme.example"], **more)


SENDGRID: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "send_mail": (
        lambda sendgrid: sendgrid.send(mail(subject="Grüße", plain_text_content="Hello,\n\nAnn")),
        {
            "from_email": "shop@acme.example",
            "from_name": "The shop",
            "to": [{"email": "ann@acme.example"}],
            "subject": "Grüße",
            "text": "Hello,\n\nAnn",
        },
    ),
    "list_bounces": (
        lambda sendgrid: sendgrid.client.suppression.bounces.get(query_params={"start_time": 1, "limit": 5}),
        {"start_time": 1, "limit": 5},
    ),
    "get_stats": (
        lambda sendgrid: sendgrid.client.stats.get(query_params={"start_date": "2026-11-01", "aggregated_by": "week"}),
        {"start_date": "2026-11-01", "aggregated_by": "week"},
    ),
    "remove_bounce": (
        lambda sendgrid: sendgrid.client.suppression.bounces._("ann@acme.example").delete(),
        {"email": "ann@acme.example"},
    ),
    "add_unsubscribe": (
        lambda sendgrid: sendgrid.client.asm.suppressions._("global").post(
            request_body={"recipient_emails": ["ann@acme.example"]}
        ),
        {"emails": ["ann@acme.example"]},
    ),
}


@pytest.mark.parametrize("tool", SENDGRID)
def test_sendgrids_library_sends_the_same(upstream: Upstream, tool: str) -> None:
    import sendgrid

    upstream.answer = lambda _: Answer({})
    call, arguments = SENDGRID[tool]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the library does not close its connections
        call(sendgrid.SendGridAPIClient(SENDGRID_KEY, host=upstream.url))
    same(upstream.requests[-1], "sendgrid", tool, arguments, key=SENDGRID_KEY)


def test_sendgrids_library_fills_a_template_in_the_same_way(upstream: Upstream) -> None:
    import sendgrid

    upstream.answer = lambda _: Answer({})
    template = "d-" + "0" * 32
    filled = mail()
    filled.template_id = template
    filled.dynamic_template_data = {"name": "Ann"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        sendgrid.SendGridAPIClient(SENDGRID_KEY, host=upstream.url).send(filled)
    arguments = {
        "from_email": "shop@acme.example",
        "from_name": "The shop",
        "to": [{"email": "ann@acme.example"}],
        "template_id": template,
        "data": {"name": "Ann"},
    }
    same(upstream.requests[-1], "sendgrid", "send_template_mail", arguments, key=SENDGRID_KEY)


# --- Airtable: a library that many use; Airtable itself publishes none for Python


AIRTABLE: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "list_records": (
        # A formula that fits into no URL makes the library read by POST, as we always do.
        lambda table: table.all(
            formula=f"{{Name}} = '{'x' * 16_000}'"[:16_000], page_size=5, fields=["Name"], sort=["-Name"]
        ),
        {
            "formula": f"{{Name}} = '{'x' * 16_000}'"[:16_000],
            "page_size": 5,
            "fields": ["Name"],
            "sort": [{"field": "Name", "direction": "desc"}],
        },
    ),
    "get_record": (lambda table: table.get(RECORD), {"record": RECORD}),
    "create_records": (
        lambda table: table.batch_create([{"Name": "A"}, {"Name": "B"}], typecast=True),
        {"records": [{"fields": {"Name": "A"}}, {"fields": {"Name": "B"}}], "typecast": True},
    ),
    "update_record": (
        lambda table: table.update(RECORD, {"Name": "C"}, typecast=True),
        {"record": RECORD, "fields": {"Name": "C"}, "typecast": True},
    ),
    "add_comment": (lambda table: table.add_comment(RECORD, "Well done"), {"record": RECORD, "text": "Well done"}),
    "delete_record": (lambda table: table.delete(RECORD), {"record": RECORD}),
}


@pytest.mark.parametrize("tool", AIRTABLE)
def test_airtables_library_sends_the_same(upstream: Upstream, tool: str) -> None:
    import pyairtable

    record = {"id": RECORD, "createdTime": "2026-11-01T00:00:00.000Z", "fields": {}, "deleted": True}
    author = {"id": "usrAAAAAAAAAAAAAA", "email": "ann@acme.example", "name": "Ann"}
    comment = {
        "id": "com1",
        "text": "x",
        "author": author,
        "createdTime": record["createdTime"],
        "lastUpdatedTime": None,
    }
    upstream.answer = lambda request: Answer(
        comment if "comments" in request.target else {"records": [record] * 2} | record
    )
    call, arguments = AIRTABLE[tool]
    call(pyairtable.Api("pat-key", endpoint_url=upstream.url, retry_strategy=None).table(BASE, TABLE))
    arguments = {"base": BASE, "table": TABLE} | arguments
    theirs = upstream.requests[-1]
    assert b'"returnFieldsByFieldId":true' not in theirs.body.replace(b" ", b"")
    same(without(theirs, "returnFieldsByFieldId"), "airtable", tool, arguments, key="pat-key")  # false, the default


# --- Cloudflare


ZONE, ACCOUNT, ENTRY = "f" * 32, "a" * 32, "e" * 32
ADDRESS = {"content": "192.0.2.1", "ttl": 60, "proxied": False}
STYLE = "https://shop.acme.example/style.css"

CLOUDFLARE: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "list_accounts": (lambda client: client.accounts.list(page=2, per_page=20), {"page": 2, "per_page": 20}),
    "list_zones": (
        lambda client: client.zones.list(
            name="contains:acme", account={"id": ACCOUNT}, status="active", page=1, per_page=50
        ),
        {"name": "contains:acme", "account_id": ACCOUNT, "status": "active", "page": 1, "per_page": 50},
    ),
    "get_zone": (lambda client: client.zones.get(zone_id=ZONE), {"zone_id": ZONE}),
    "list_dns_records": (
        lambda client: client.dns.records.list(
            zone_id=ZONE, type="MX", name={"contains": "mail"}, content={"exact": "192.0.2.1"}, page=1, per_page=9
        ),
        {"zone_id": ZONE, "type": "MX", "name_contains": "mail", "content": "192.0.2.1", "page": 1, "per_page": 9},
    ),
    "export_dns_records": (lambda client: client.dns.records.export(zone_id=ZONE), {"zone_id": ZONE}),
    "create_dns_record": (
        lambda client: client.dns.records.create(zone_id=ZONE, type="A", name="www.acme.example", **ADDRESS),
        {"zone_id": ZONE, "type": "A", "name": "www.acme.example"} | ADDRESS,
    ),
    "delete_dns_record": (
        lambda client: client.dns.records.delete(ENTRY, zone_id=ZONE),
        {"zone_id": ZONE, "record_id": ENTRY},
    ),
    "set_security_level": (
        lambda client: client.zones.settings.edit("security_level", zone_id=ZONE, value="under_attack"),
        {"zone_id": ZONE, "value": "under_attack"},
    ),
    "purge_files": (
        lambda client: client.cache.purge(zone_id=ZONE, files=[STYLE]),
        {"zone_id": ZONE, "files": [STYLE]},
    ),
    "purge_everything": (
        lambda client: client.cache.purge(zone_id=ZONE, purge_everything=True),
        {"zone_id": ZONE},
    ),
}


def through_cloudflares_library(upstream: Upstream, call: Callable[[Any], Any]) -> Received:
    import cloudflare

    upstream.answer = lambda _: Answer({"success": True, "result": {}, "errors": [], "messages": []})
    base = f"{upstream.url}/client/v4"
    with cloudflare.Cloudflare(api_token="cf-token", base_url=base, max_retries=0) as client:
        call(client)
    return upstream.requests[-1]


@pytest.mark.parametrize("tool", CLOUDFLARE)
def test_cloudflares_library_sends_the_same(upstream: Upstream, tool: str) -> None:
    call, arguments = CLOUDFLARE[tool]
    same(through_cloudflares_library(upstream, call), "cloudflare", tool, arguments, key="cf-token")


def test_cloudflares_library_changes_a_record_in_the_same_place_and_names_more_of_it(upstream: Upstream) -> None:
    """It names type and name, too, which its types require; Cloudflare's reference has a change in part."""
    theirs = through_cloudflares_library(
        upstream,
        lambda client: client.dns.records.edit(ENTRY, zone_id=ZONE, type="A", name="www.acme.example", **ADDRESS),
    )
    arguments = {"zone_id": ZONE, "record_id": ENTRY} | ADDRESS
    same(without(theirs, "type", "name"), "cloudflare", "update_dns_record", arguments, key="cf-token")


def test_every_tool_of_cloudflare_is_compared() -> None:
    assert {*CLOUDFLARE, "update_dns_record"} == CATALOGUE.connectors["cloudflare"].tools.keys()


# --- Zendesk: a library that many use; Zendesk itself publishes none for Python


def ticket(**changes: Any) -> Any:
    from zenpy.lib.api_objects import Ticket

    return Ticket(**changes)


def said(body: str, *, public: bool | None = None) -> Any:
    from zenpy.lib.api_objects import Comment

    return Comment(body=body, public=public)


def ann() -> Any:
    from zenpy.lib.api_objects import User

    return User(name="Ann", email="ann@acme.example")


ZENDESK: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "get_me": (lambda zendesk: zendesk.users.me(), {}),
    "search": (
        lambda zendesk: zendesk.search("open fire", sort_by="created_at", sort_order="desc"),
        {"query": "open fire", "sort_by": "created_at", "sort_order": "desc"},
    ),
    "list_tickets": (lambda zendesk: zendesk.tickets(cursor_pagination=5), {"size": 5}),
    "get_user": (lambda zendesk: zendesk.users(id=7), {"user": 7}),
    "list_groups": (lambda zendesk: zendesk.groups(cursor_pagination=20), {"size": 20}),
    "create_ticket": (
        lambda zendesk: zendesk.tickets.create(
            ticket(subject="Fire", comment=said("It burns."), requester=ann(), priority="high", group_id=3, tags=["a"])
        ),
        {"subject": "Fire", "body": "It burns.", "requester_name": "Ann", "requester_email": "ann@acme.example"}
        | {"priority": "high", "group_id": 3, "tags": ["a"]},
    ),
    "reply_to_ticket": (
        lambda zendesk: zendesk.tickets.update(ticket(id=5, comment=said("Mended.", public=True), status="solved")),
        {"ticket": 5, "body": "Mended.", "status": "solved"},
    ),
    "add_internal_note": (
        lambda zendesk: zendesk.tickets.update(ticket(id=5, comment=said("Twice now.", public=False))),
        {"ticket": 5, "body": "Twice now."},
    ),
    "update_ticket": (
        lambda zendesk: zendesk.tickets.update(ticket(id=5, status="open", assignee_id=7, group_id=3, tags=["b"])),
        {"ticket": 5, "status": "open", "assignee_id": 7, "group_id": 3, "tags": ["b"]},
    ),
    "delete_ticket": (lambda zendesk: zendesk.tickets.delete(ticket(id=5)), {"ticket": 5}),
}


@pytest.mark.parametrize("tool", ZENDESK)
def test_zendesks_library_sends_the_same(tool: str) -> None:
    import requests
    import requests.adapters
    import zenpy

    heard: list[requests.PreparedRequest] = []

    class Ear(requests.adapters.BaseAdapter):  # the library speaks https only, so it is heard out here
        def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
            heard.append(request)
            answer = requests.Response()
            answer.status_code, answer.url, answer.request = 200, request.url or "", request
            things = ("tickets", "users", "groups", "results")
            body = {"user": {}, "ticket": {}, "audit": {"events": []}, "count": 0} | {name: [] for name in things}
            answer._content = json.dumps(body).encode()  # pyright: ignore[reportPrivateUsage]
            return answer

        def close(self) -> None:
            return

    session = requests.Session()
    session.mount("https://", Ear())
    call, arguments = ZENDESK[tool]
    call(zenpy.Zenpy(subdomain="acme", oauth_token="zd-token", session=session))
    (request,) = heard
    headers = {name.lower(): value for name, value in request.headers.items()}
    # It says once more in the body which ticket it is; the address does.
    body = (request.body or b"").replace(b'"id": 5, ', b"").replace(b'{"ticket": {"id": 5}}', b"")
    theirs = Received(request.method or "", request.path_url, headers, body)
    same(theirs, "zendesk", tool, arguments, key="zd-token", kind="oauth")
