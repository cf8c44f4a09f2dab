"""Make of an upstream's reply what a model may read: scrubbed, shaped as the definition says, bounded.

Everything returned or raised here has been through the scrubber first, and is raised in frames that hold scrubbed
values only. An upstream's own words about a refused credential are never passed on.
"""

import base64
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from connectors import payload, waiting
from connectors.brief import BRIEFS
from connectors.definition import Call, Connector, CredentialKind, ErrorShape, Operation, Selector, Tool
from connectors.errors import CredentialRejected, RateLimited, UpstreamError
from connectors.paging import cursor_in_link, cursor_in_url
from connectors.portions import dumped, portion
from connectors.reporting import numbers
from connectors.scrub import Scrubber

if TYPE_CHECKING:
    from connectors.egress import Reply  # at run time it would load the HTTP library

MAX_MESSAGE = 500  # characters of an upstream's own error message
_MAX_NAME = 128  # characters of a code, a request id, an account's name
MAX_SAID = 8_000  # characters of what a wrapped server says of its own failure


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome of a call as the model gets it. `text` is `structured` as compact JSON."""

    ok: bool
    structured: dict[str, Any] | None
    text: str
    status: int
    request_id: str | None = None
    usage: dict[str, Any] | None = None  # what the provider itself reports: numbers of tokens, cost and its unit
    quota: dict[str, int] | None = None  # how much is left of what, by the provider's word
    whole: dict[str, Any] | None = field(default=None, repr=False)  # where `structured` is only its first part


@dataclass(frozen=True, slots=True)
class _Answer:
    """A reply after scrubbing. Without `json`, `value` is the body's text, or None where it is empty or no text."""

    status: int
    headers: Mapping[str, str]
    json: bool
    value: Any
    size: int  # of the body, bytes
    request_id: str | None
    quota: dict[str, int] | None


def interpret(call: Call, reply: "Reply") -> Result:
    """The result of a call, with nothing in it that the definition removes or that the scrubber finds.

    Raises CredentialRejected for 401 and 403, RateLimited where the upstream asks for fewer calls, and UpstreamError
    for every other refusal.
    """
    connector, tool = call.connector, call.tool
    scrubber = Scrubber(reply.secrets)
    answer = _scrubbed(connector, reply, scrubber)
    _raise_refusal(connector, f"the connection {call.connection}", answer, tool.operation)
    if not answer.size:
        return _result({"status": answer.status}, answer, None, scrubber)
    if tool.output_text:
        return _result(_text_of(answer, _as_text(reply.body, scrubber)), answer, None, scrubber)
    if not answer.json:
        shown = _not_json(answer, shaped=bool(tool.output_select or tool.output_redact))
        return _result(shown, answer, None, scrubber)
    found = answer.value["data"] if tool.operation else answer.value
    usage = numbers(tool.output_usage.search(found)) if tool.output_usage else None
    value = found
    if tool.output_base64url:
        value = _decoded(value, tool.output_base64url, scrubber)
    value = _without(value, tool.output_redact)
    if tool.output_brief:
        value = BRIEFS[tool.output_brief](value)
    if tool.output_select:
        value = tool.output_select.search(value)
    shaped = _object(value, answer.status)
    if tool.output_next:
        shaped = shaped | {"next_cursor": _next_cursor(tool, answer)}
    if tool.operation:
        shaped = shaped | _incomplete(connector, tool.operation, answer)
    return _result(shaped, answer, usage, scrubber)


def failed(connector: Connector, result: Result) -> Result:
    """What is told of a call of which the wrapped server itself says that it failed: its text, which is scrubbed."""
    said = (result.structured or {}).get("text")
    text = said if isinstance(said, str) else result.text
    shown = text[:MAX_SAID] + ("…" if len(text) > MAX_SAID else "")
    return replace(result, ok=False, structured=None, text=f"{connector.title} says that it failed: {shown}")


def written(value: Mapping[str, Any]) -> str:
    """An object as a model reads it."""
    return dumped(value)


def interpret_verify(connector: Connector, reply: "Reply", kind: CredentialKind | None = None) -> str | None:
    """The name of the account that a credential belongs to, None where the definition or the upstream names none.

    Raises as `interpret` does for a credential that does not work.
    """
    answer = _scrubbed(connector, reply, Scrubber(reply.secrets))
    tool, account = connector.verifying(kind) if kind else (connector.verify, connector.account)
    _raise_refusal(connector, "this credential", answer, tool.operation)
    if not account or not answer.json:
        return None
    found = answer.value["data"] if tool.operation else answer.value
    return one_line(account.search(found), _MAX_NAME)


# --- taking in --------------------------------------------------------------------------------------------------------


def _scrubbed(connector: Connector, reply: "Reply", scrubber: Scrubber) -> _Answer:
    headers = reply.headers
    is_json, value = _parsed(reply.body)
    if not is_json:
        value = _as_text(reply.body, scrubber)
    elif scrubber.finds(reply.body.decode("utf-8", "replace")):
        value = scrubber.value(value)
        if scrubber.finds(json.dumps(value, ensure_ascii=False)):
            value = {"note": "The answer repeated a credential in a way that could not be cut out, so it is withheld."}
    if is_json and _whole_once_flat(value, reply.secrets):
        value = {"note": "The answer repeated a credential in pieces, so it is withheld."}
    shown = {name: scrubber.text(headers[name]) for name in _HEADERS if name in headers}
    named = connector.errors.request_id_header
    request_id = scrubber.text(headers.get(named, "")) if named else None
    if not request_id and connector.errors.request_id:
        request_id = connector.errors.request_id.search(value) if is_json else None
    left = _left(connector, headers, scrubber)
    return _Answer(reply.status, shown, is_json, value, len(reply.body), one_line(request_id, _MAX_NAME), left)


def _left(connector: Connector, headers: Mapping[str, str], scrubber: Scrubber) -> dict[str, int] | None:
    """How much is left of each quota of which this answer says so, in digits and nothing else."""
    found: dict[str, int] = {}
    for quota in connector.quota:
        text, of = headers.get(quota.left, "").strip(), headers.get(quota.of, "").strip() if quota.of else ""
        if _DIGITS.fullmatch(text) and (not quota.of or (_NAMED.fullmatch(of) and not scrubber.finds(of))):
            found[f"{quota.name} {of}".rstrip()] = int(text)
    return found or None


_DIGITS = re.compile(r"[0-9]{1,15}")
_NAMED = re.compile(r"[A-Za-z0-9_-]{1,40}")


def _whole_once_flat(value: Any, secrets: Sequence[str]) -> bool:
    """Whether a secret with spaces in it would become whole where `_line` turns control characters into spaces."""
    spaced = [" ".join(secret.split()) for secret in secrets if " " in secret]
    return bool(spaced) and any(secret in flat for flat in _flat(value) for secret in spaced)


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield " ".join("".join(" " if unicodedata.category(char)[0] == "C" else char for char in value).split())
    elif isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield from (*_flat(key), *_flat(item))
    elif isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _flat(item)


_HEADERS = ("content-type", "link", "x-ratelimit-remaining", *waiting.HEADERS)


def _parsed(body: bytes) -> tuple[bool, Any]:
    """Whether the body is JSON (RFC 8259: UTF-8, and no NaN), and its value."""
    if not body:
        return False, None
    try:
        return True, _DECODER.decode(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False, None


def _as_text(body: bytes, scrubber: Scrubber) -> str | None:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return scrubber.text(text) if text and "\0" not in text else None


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


# --- refusals ---------------------------------------------------------------------------------------------------------


def _raise_refusal(connector: Connector, whose: str, answer: _Answer, operation: Operation | None) -> None:
    errors, title = connector.errors, connector.title
    body = answer.value if answer.json else None
    refused = payload.refusal(operation, answer.status, body, errors.user_errors) if operation else None
    failed = refused or (errors.ok_field is not None and answer.json and errors.ok_field.search(answer.value) is False)
    if answer.status < 400 and not failed:
        return
    refused = refused or payload.Refusal()
    code = one_line(refused.code, _MAX_NAME) or _found(errors.code, answer, _MAX_NAME)
    said = one_line(refused.said, MAX_MESSAGE) or _found(errors.message, answer, MAX_MESSAGE)
    if code in errors.spent:
        why = said or "the account's quota or budget is used up"
        raise UpstreamError(
            answer.status,
            f"{title} refused the call and says: {why} Calling again will not help before the account has more.",
            code=code,
            request_id=answer.request_id,
        )
    asked = answer.status == 403 and (_used_up(answer) or waiting.retry_after(answer.headers) is not None)
    if answer.status == 429 or code in errors.limited or asked:
        wait = _wait(errors, answer, body)
        when = f"Try again in {math.ceil(wait)} s." if wait is not None else "Try again later."
        raise RateLimited(
            answer.status,
            f"{title} asks for fewer calls{f' and says: {_ended(said)}' if said else '.'} {when}",
            retry_after=wait,
            code=code,
            request_id=answer.request_id,
        )
    if answer.status in (401, 403) or code in errors.rejected:
        raise credential_rejected(title, whose, answer.status)
    meaning = refused.meaning or _meaning(answer.status)
    raise UpstreamError(
        answer.status,
        f"{title} refused the call and says: {said}" if said else f"{title} {meaning}",
        code=code,
        request_id=answer.request_id,
        maybe_done=refused.maybe_done or code in errors.unclear,
    )


def _incomplete(connector: Connector, operation: Operation, answer: _Answer) -> dict[str, Any]:
    """What is told beside a GraphQL result of which the upstream could not give every part."""
    said = one_line(payload.incomplete(answer.value), MAX_MESSAGE)
    done = "The call took effect. " if operation.kind == "mutation" else ""
    note = f"{done}{connector.title} could not give the whole answer and says: {said}"
    return {"note_on_errors": note} if said else {}


def credential_rejected(title: str, whose: str, status: int) -> CredentialRejected:
    """What is told of a refused credential; never a word of the upstream's own."""
    why = "it is not permitted to do this, or no longer valid" if status == 403 else "it is wrong, expired or revoked"
    return CredentialRejected(
        f"Credential rejected: {title} does not accept {whose} (HTTP {status}); {why}. "
        "Calling again will not help; an admin of the org has to enter a credential that works.",
        status,
    )


def _meaning(status: int) -> str:
    if status == 404:
        return "has nothing there, or this connection may not see it"
    if status >= 500:
        return "failed on its side; whether the call took effect is not known"
    return "refused the call and gave no reason"


def _wait(errors: ErrorShape, answer: _Answer, body: Any) -> float | None:
    """Seconds: what the answer says, else what the vendor's documents say for an answer that says nothing."""
    found = waiting.seconds_to_wait(answer.headers, body)
    found = payload.seconds_to_wait(body) if found is None else found
    return errors.wait if found is None else found


def _ended(said: str) -> str:
    """What was said, as a sentence before another."""
    return said if said.endswith((".", "!", "?", "…")) else f"{said}."


def _used_up(answer: _Answer) -> bool:
    return answer.headers.get("x-ratelimit-remaining", "").strip() == "0"


def _found(selector: Selector | None, answer: _Answer, most: int) -> str | None:
    return one_line(selector.search(answer.value), most) if selector and answer.json else None


def one_line(value: Any, most: int) -> str | None:
    """One line of text: no control, format or private characters, and not longer than `most`; None for nothing."""
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(" " if unicodedata.category(char)[0] == "C" else char for char in text[: most * 2])
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"


# --- results ----------------------------------------------------------------------------------------------------------


def _result(structured: dict[str, Any], answer: _Answer, usage: dict[str, Any] | None, scrubber: Scrubber) -> Result:
    told = portion(structured)
    if scrubber.finds(told.text if told.next is None else json.dumps(structured, ensure_ascii=False)):
        structured = {"note": "The answer repeated a credential in pieces, so it is withheld."}  # joined when selecting
        told = portion(structured)
    whole = structured if told.next is not None else None
    return Result(True, told.structured, told.text, answer.status, answer.request_id, usage, answer.quota, whole)


def _next_cursor(tool: Tool, answer: _Answer) -> str | None:
    if tool.output_next_url is None:
        return cursor_in_link(answer.headers.get("link", ""), tool.output_next)
    return cursor_in_url(tool.output_next_url.search(answer.value), tool.output_next)


def _object(value: Any, status: int) -> dict[str, Any]:
    if isinstance(value, dict):
        return cast("dict[str, Any]", value)
    if isinstance(value, list):
        return {"items": value}
    return {"status": status, "result": value}


def _not_json(answer: _Answer, *, shaped: bool) -> dict[str, Any]:
    """The text, labelled; nothing of it where the definition selects or removes, which it can do in JSON only."""
    kind = one_line(answer.headers.get("content-type"), _MAX_NAME)
    label = {"status": answer.status, "content_type": kind, "bytes": answer.size}
    if shaped or answer.value is None:
        return label | {"note": "The answer is not JSON and is not shown."}
    return label | {"note": "The answer is not JSON; this is its text.", "text": answer.value}


def _text_of(answer: _Answer, text: str | None) -> dict[str, Any]:
    """What a tool whose answer is a text gives."""
    if text is None:
        return {"status": answer.status, "bytes": answer.size, "note": "The answer is not text and is not shown."}
    return {"text": text}


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    """A copy without these keys, at any depth."""
    if not keys:
        return value
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value).items()
        return {name: _without(item, keys) for name, item in fields if name not in keys}
    if isinstance(value, list):
        return [_without(item, keys) for item in cast("list[Any]", value)]
    return value


def _decoded(value: Any, keys: tuple[str, ...], scrubber: Scrubber) -> Any:
    """A copy in which the base64url texts under these keys, at any depth, are read as UTF-8, and scrubbed once more."""
    if isinstance(value, list):
        return [_decoded(item, keys, scrubber) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    return {
        name: _read_base64url(item, scrubber)
        if name in keys and isinstance(item, str)
        else _decoded(item, keys, scrubber)
        for name, item in cast("dict[str, Any]", value).items()
    }


def _read_base64url(text: str, scrubber: Scrubber) -> str:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        return text
    return scrubber.text(raw.decode("utf-8", "replace"))
