"""Read a prompt as a person does, and a request as its upstream does, each by itself; then the two can be compared.

Written from what the frame says, not with the code that renders it.
"""

import base64
import json
import re
from dataclasses import dataclass
from email import message_from_bytes
from email.policy import SMTP
from typing import Any
from urllib.parse import parse_qsl, quote_plus, unquote, unquote_plus

from connectors.definition import Tool
from tests.upstream import Received

BASE = "/base/v1"


@dataclass(frozen=True)
class Read:
    """What a person takes from a prompt."""

    tool: str
    method: str
    url: str
    arguments: dict[str, Any]
    fixed: Any
    careful: list[str]
    document: str = ""  # of GraphQL
    added: str = ""  # the variable that Keyleash fills
    query: str = ""  # what the connector adds to the address


FRAME = (
    "Tool: ",
    "Account: ",
    "Asked by: ",
    "Request: ",
    "Document, from the connector's file: ",
    "Added by Keyleash: ",
    "Written by the agent",
    "  ",
    "Added to the address by the connector, always: ",
    "Sent along by the connector, always: ",
    "Careful: ",
    "approve_for_one_hour",
)


def read(text: str) -> Read:
    """Take a prompt apart, line by line, as its frame says; fails on a line that is not of the frame."""
    lines = text.split("\n")
    assert lines[1] == ""
    rest = [line for line in lines[2:] if line]
    for line in rest:
        assert line.startswith(FRAME), line
    one = {start: [line for line in rest if line.startswith(start)] for start in FRAME}
    for start in ("Tool: ", "Account: ", "Asked by: ", "Request: ", "Written by the agent"):
        assert len(one[start]) == 1, start
    documents, added = one["Document, from the connector's file: "], one["Added by Keyleash: "]
    assert len(documents) <= 1
    assert len(added) <= len(documents)
    frame = ["Tool", "Acco", "Aske", "Requ", *["Docu"] * len(documents), *["Adde"] * len(added), "Writ"]
    assert [line[:4] for line in rest[: len(frame)]] == frame
    method, _, url = one["Request: "][0].removeprefix("Request: ").partition(" ")
    arguments: dict[str, Any] = {}
    for line in one["  "]:
        name, _, value = line.removeprefix("  ").partition(" = ")
        assert name not in arguments
        arguments[name] = unquoted(value)
    tool = one["Tool: "][0].removeprefix("Tool: ").partition(",")[0]
    always = one["Sent along by the connector, always: "]
    fixed = unquoted(always[0].partition(": ")[2]) if always else None
    assert len(always) <= 1
    in_address = one["Added to the address by the connector, always: "]
    assert len(in_address) <= 1
    query = unquoted(in_address[0].partition(": ")[2]) if in_address else ""
    careful = [line.removeprefix("Careful: ") for line in one["Careful: "]]
    document = "".join(documents).removeprefix("Document, from the connector's file: ")
    filled = "".join(added)[19:].partition(",")[0]
    return Read(tool, method, url, arguments, fixed, careful, document, filled, query)


def unquoted(text: str) -> Any:
    """The value behind what is shown: JSON, in which characters beyond the first 65,536 stand as \\Uxxxxxxxx."""

    def pair(found: re.Match[str]) -> str:
        return found[0] if not found[1] else json.dumps(chr(int(found[1], 16)))[1:-1]

    return json.loads(re.sub(r"\\U([0-9a-f]{8})|\\.", pair, text))


def arrived(request: Received, tool: Tool, seen: Read) -> dict[str, Any]:
    """The arguments out of the bytes that the upstream got, by the places that the definition names.

    Fails where anything else arrived than arguments, what the definition says is always sent, and, for GraphQL, the
    document and the key of Keyleash's own, as they were shown.
    """
    target, _, query = request.target.partition("?")
    found: dict[str, Any] = {}
    holes = re.fullmatch(re.escape(BASE) + re.sub(r"\\\{([a-z0-9_]+)\\\}", r"(?P<\1>.+)", re.escape(tool.path)), target)
    assert holes, (target, tool.path)
    found |= {name: unquote(value, errors="strict") for name, value in holes.groupdict().items()}
    queried = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict")
    for pair in seen.query.split("&") if seen.query else ():
        name, _, value = pair.partition("=")
        queried.remove((name, value))
    form = "form" in request.headers.get("content-type", "")
    body = {} if form or not request.body else json.loads(request.body)
    if seen.document:
        assert list(body) == ["query", "operationName", "variables"]
        assert body["query"] == seen.document
        assert body["operationName"] == re.findall(r"\w+", seen.document)[1]
        body = body["variables"]
        assert (body.pop(seen.added) != "") if seen.added else True
    fields = request.body.decode().split("&") if form and request.body else []
    for steps, encoder in tool.encode:
        assert encoder == "mail"
        put(body, steps, mail_of(take(body, steps)))
    for steps, value in tool.fixed_body:
        if form:
            fields.remove(f"{quote_plus(steps[0])}={quote_plus(value)}")
        else:
            assert take(body, steps) == value
    for argument in tool.arguments:
        if argument.place == "query":
            name = argument.wire_name + ("[]" if argument.style == "brackets" else "")
            values = [value for key, value in queried if key == name]
            if argument.schema.get("type") == "array":
                found[argument.name] = values[0].split(",") if argument.style == "comma" and values else values
            elif values:
                (found[argument.name],) = values
        elif argument.place == "body" and form:
            mine = [(steps_of(key), value) for key, value in map(_field, fields) if _top(key) == argument.wire_name]
            if mine:
                found[argument.name] = mine
        elif argument.place == "body" and stands_in(body, argument.steps):
            found[argument.name] = take(body, argument.steps)
        elif argument.place == "header" and argument.wire_name.lower() in request.headers:
            found[argument.name] = request.headers[argument.wire_name.lower()]
    assert {name for name, _ in queried} <= {
        f"{each.wire_name}{suffix}" for each in tool.arguments if each.place == "query" for suffix in ("", "[]")
    }
    mine = [each.wire_name for each in tool.arguments if each.place == "body"]
    assert not left_in(body)
    assert {_top(name) for name, _ in map(_field, fields)} <= set(mine)
    return found


def mail_of(raw: str) -> dict[str, Any]:
    """The fields of a mail in base64url, as a mail program reads them."""
    mail = message_from_bytes(base64.urlsafe_b64decode(raw), policy=SMTP)
    found: dict[str, Any] = {"text": mail.get_content().replace("\r\n", "\n").removesuffix("\n")}
    for header, name in (("To", "to"), ("Cc", "cc"), ("Bcc", "bcc")):
        if header in mail:
            found[name] = [str(address) for address in mail[header].addresses]
    for header, name in (("Subject", "subject"), ("In-Reply-To", "in_reply_to"), ("References", "references")):
        if header in mail:
            found[name] = str(mail[header])
    return found


def _inside(value: Any, steps: tuple[str, ...]) -> Any:
    for step in steps:
        value = value[0 if step == "0" else step]
    return value


def stands_in(body: Any, steps: tuple[str, ...]) -> bool:
    try:
        _inside(body, steps)
    except (KeyError, IndexError):
        return False
    return True


def take(body: Any, steps: tuple[str, ...]) -> Any:
    return _inside(body, steps[:-1]).pop(0 if steps[-1] == "0" else steps[-1])


def put(body: Any, steps: tuple[str, ...], value: Any) -> None:
    _inside(body, steps[:-1])[steps[-1]] = value


def left_in(body: Any) -> list[Any]:
    """Whatever is no empty object or list, at any depth."""
    inner = body.values() if isinstance(body, dict) else body if isinstance(body, list) else None
    return [body] if inner is None else [found for each in inner for found in left_in(each)]


def _field(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return unquote_plus(name, errors="strict"), unquote_plus(value, errors="strict")


def _top(key: str) -> str:
    return key.partition("[")[0]


def steps_of(key: str) -> tuple[str, ...]:
    """The way to a value, as an upstream reads a name in a form: `a[b][0]` is three steps."""
    found = re.fullmatch(r"([^\[\]]+)((?:\[[^\[\]]+\])*)", key)
    assert found, f"{key!r} can be read in more than one way"
    return (found[1], *re.findall(r"\[([^\[\]]+)\]", found[2]))


def flat(value: Any) -> Any:
    """A shown value in the form in which a query or a header can carry it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else str(value)


def pairs(value: Any, *steps: str) -> list[tuple[tuple[str, ...], str]]:
    """A shown value as a form carries it: each text in it, and the way to it."""
    if isinstance(value, dict):
        return [pair for key, item in value.items() for pair in pairs(item, *steps, key)]
    if isinstance(value, list):
        return [pair for place, item in enumerate(value) for pair in pairs(item, *steps, str(place))]
    return [(steps, "" if value is None else flat(value))]
