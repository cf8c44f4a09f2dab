"""The next page of every list can be asked for with what the answer and the arguments give a model."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from connectors.answer import interpret
from connectors.catalogue import Offered
from connectors.definition import Call
from connectors.egress import Reply
from connectors.request import Prepared, prepare
from tests.connectors.realistic import ITEMS, answer
from tests.connectors.sizes import lists
from tests.connectors.wire import OFFER
from tests.samples import sample_arguments

COUNTED = "counted by the model: a page's number, or how many there were"
LAST = "the id of the last thing"
NEXT: dict[str, tuple[str, ...]] = {
    "starting_after": ("last_id",),
    "after_id": ("last_id",),
    "after": ("after", "next", "last_id", LAST),
    "cursor": ("next_cursor",),
    "start_cursor": ("next_cursor",),
    "page_token": ("next_page_token", "next_cursor"),
    "next_page_token": ("next_page_token",),
    "page": ("next_page", COUNTED),
    "offset": ("offset", COUNTED),
    "start_at": (COUNTED,),
}
"""By argument: what in an answer it is to be given."""
WHOLE = {
    "discord_list_channels": "Discord gives all channels",
    "discord_list_roles": "and all roles",
    "discord_search_members": "a search without pages: its text can be made longer",
    "github_list_files": "all that fit into one answer, which says by truncated that there are more",
    "gmail_get_thread": "a conversation has its messages",
    "gmail_list_labels": "Gmail gives all labels",
    "jira_list_transitions": "an issue has few at a time",
    "openai_list_models": "OpenAI gives all models",
    "pagerduty_list_incident_notes": "PagerDuty gives all notes",
    "sendgrid_list_scopes": "a key has its scopes",
    "sentry_list_tag_values": "the most frequent ones; its document knows of no pages here",
    "twilio_list_available_numbers": "some of the numbers that are free: asked for more narrowly, others",
}
"""Lists that come in one piece, and why."""
EVERY = [pytest.param(offered, id=offered.name) for offered, _ in lists()]


def pages(offered: Offered) -> str | None:
    """The argument that leads to the next page."""
    return next((name for name in NEXT if name in offered.tool.input_schema["properties"]), None)


def told(offered: Offered) -> dict[str, Any]:
    """What a model hears of a full page after which there is another."""
    tool, headers = offered.tool, dict[str, str]()
    body = answer(offered.connector.id, tool)
    url = f"https://api.example.com/x?{tool.output_next}=a%20mark%3D"
    if tool.output_next and tool.output_next_url is None:
        headers["link"] = f'<{url}>; rel="next"; results="true"'
    elif tool.output_next_url is not None:
        *outer, last = tool.output_next_url.text.split(".")
        for name in outer:
            body = {**body, name: {}} if name not in body else body
        (body[outer[0]] if outer else body)[last] = url
    raw = json.dumps({"data": body} if tool.operation else body).encode()
    call = Call(offered.connection, offered.connector, tool, offered.name, {})
    structured = interpret(call, Reply(200, headers, raw, 1.0, len(raw))).structured
    assert structured is not None
    return structured


def sent_names(request: Prepared) -> dict[str, str]:
    """Everything that the request says, by name, as text."""
    named = dict(parse_qsl(urlsplit(request.url).query))
    body = json.loads(request.body) if request.body else {}
    return named | {key: str(value) for key, value in (body | body.get("variables", {})).items()}


@pytest.mark.parametrize("offered", EVERY)
def test_the_next_page_of_a_list_is_asked_for_with_what_was_told(offered: Offered) -> None:
    argument = pages(offered)
    if argument is None:
        assert offered.name in WHOLE, "it has no next page, or it cannot be asked for"
        return
    assert offered.name not in WHOLE
    shown = told(offered)
    (items,) = [value for value in shown.values() if isinstance(value, list) and len(value) == ITEMS][:1]
    found = {**shown, COUNTED: 2, LAST: items[-1].get("id") if isinstance(items[-1], dict) else None}
    (declared,) = [each for each in offered.tool.arguments if each.name == argument]
    marks = (found[key] for key in NEXT[argument] if found.get(key) is not None)
    mark = found[COUNTED] if declared.schema["type"] == "integer" else next(marks, None)
    assert mark is not None, f"{argument} has nothing to be given"
    mark = "123" if "0-9" in str(declared.schema.get("pattern")) else mark
    needed = {name: sample_arguments(offered.tool)[name] for name in offered.tool.input_schema.get("required", [])}
    request = prepare(OFFER.bind(offered.name, needed | {argument: mark}), base_url=offered.connector.base_url)
    assert sent_names(request)[declared.wire_name] == str(mark)
    if offered.tool.output_next:
        assert (mark, declared.wire_name) == ("a mark=", offered.tool.output_next)


@pytest.mark.parametrize("offered", EVERY)
def test_a_model_is_told_how_to_go_on(offered: Offered) -> None:
    argument = pages(offered)
    said = f"{offered.tool.description} {json.dumps(offered.tool.input_schema['properties'])}".lower()
    assert argument is None or "page" in said or "last id" in said or "leave out first" in said
