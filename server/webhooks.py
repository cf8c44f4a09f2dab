"""The webhooks of an org: made, listed, rotated and removed here; what they are sent, and how that is signed.

The URL may be a secret itself, as chat tools' are: with the signing secret it is sealed like a credential, and bound to
the private addresses that the operator allowed. Signatures are those of the Standard Webhooks specification, 1.0.0:
`webhook-id`, `webhook-timestamp`, and `webhook-signature: v1,BASE64` of HMAC-SHA256 over `id.timestamp.body`.
"""

import base64
import hashlib
import hmac
import ipaddress
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from connectors.addresses import Network, network
from connectors.errors import ConnectorError, Unreachable
from connectors.notice import check_notice, prepare_notice
from connectors.request import Prepared
from server.approval.eligible import in_words
from server.approval.outbox import Happening
from server.audit import Event, append
from server.clock import iso, now_ms
from server.database import Database, Rows
from server.erasure import request
from server.identity import new_id
from server.policy import Ruling
from vault import Secret, Vault

KIND = "webhook"
SCHEME = "webhook"
"""What the sealed URL and secret are bound to, beside the private addresses: they are no connection's credential."""
MOST = 10
"""Webhooks of one org at most: none can use up what others need."""
PAYLOAD_VERSION = 1
RULINGS = (Ruling.CONFIRM, Ruling.APPROVE)

_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")
_PLAIN = re.compile(r"[^A-Za-z0-9_.:-]")


class ChannelProblem(Exception):
    """A channel cannot be made, found or changed; the message says how to mend it."""


@dataclass(frozen=True)
class Hook:
    """A webhook, without its URL and its secret."""

    org: str
    id: str
    name: str
    kind: str
    address: str
    """What may be shown of its URL: scheme, host, and that there is more."""
    private: tuple[str, ...]
    events: tuple[str, ...]
    rulings: tuple[str, ...]
    secret_version: int
    created_by: str
    created_at: int
    disabled_at: int | None
    disabled_why: str | None
    resume_at: int
    delivered_at: int | None
    failed_at: int | None
    failure: str | None
    given_up: int
    given_up_at: int | None

    @property
    def networks(self) -> tuple[Network, ...]:
        """The private addresses that the operator allowed it."""
        return tuple(ipaddress.ip_network(text) for text in self.private)

    @property
    def bound_to(self) -> str:
        """What its seal binds, as the origin of a credential: it opens with no other addresses allowed."""
        return json.dumps(sorted(self.private))


@dataclass(frozen=True)
class Plan:
    """A webhook about to be made or pointed elsewhere: everything has been checked."""

    address: str
    private: tuple[str, ...]


def plan(url: str, private: Sequence[str]) -> Plan:
    """Check an URL before anything is kept. Raises ChannelProblem, which does not quote it."""
    try:
        networks = tuple(network(text) for text in private)
    except ValueError:
        raise ChannelProblem(
            f"{', '.join(private)!r} is not a range of addresses. Write one like 10.1.2.0/24 or 127.0.0.1/32."
        ) from None
    try:
        origin = check_notice(url, networks)
    except Unreachable as problem:
        raise ChannelProblem(f"{problem} They do so with `--allow-private CIDR`.") from None
    except ConnectorError as problem:
        raise ChannelProblem(str(problem)) from None
    if origin.startswith("http://") and not private:
        raise ChannelProblem(
            "Over plain http, what is sent could be read and the URL taken on its way. Use https; for an address of "
            "your own network, the operator names it with `--allow-private CIDR` as well."
        )
    return Plan(f"{origin}/…", tuple(str(one) for one in networks))


def create(
    rows: Rows,
    vault: Vault,
    org: str,
    planned: Plan,
    url: Secret,
    *,
    name: str,
    events: Sequence[Happening],
    rulings: Sequence[Ruling],
    by: str,
) -> tuple[Hook, str]:
    """Keep a webhook, on record; returns it and its signing secret, which is not shown again. Raises ChannelProblem."""
    if not _NAME.fullmatch(name):
        raise ChannelProblem(
            f"{name!r} cannot name a channel: use up to 31 of a-z, 0-9 and underscore, beginning with a letter."
        )
    there = [found for (found,) in rows.execute("SELECT name FROM channel WHERE org = ?", (org,)).fetchall()]
    if name in there:
        raise ChannelProblem(f"There is already a channel {name!r}. Remove it first, or choose another name.")
    if len(there) >= MOST:
        raise ChannelProblem(f"There are {MOST} channels already, and no org has more. Remove one that is not needed.")
    now = now_ms()
    new = Hook(
        org=org,
        id=new_id("chn"),
        name=name,
        kind=KIND,
        address=planned.address,
        private=planned.private,
        events=tuple(event.value for event in events),
        rulings=tuple(ruling.value for ruling in rulings),
        secret_version=1,
        created_by=by,
        created_at=now,
        disabled_at=None,
        disabled_why=None,
        resume_at=0,
        delivered_at=None,
        failed_at=None,
        failure=None,
        given_up=0,
        given_up_at=None,
    )
    signing = _new_signing_secret()
    _seal(rows, vault, new, url, signing)
    values = [getattr(new, column) for column in _COLUMNS.split(", ")]
    rows.execute(
        f"INSERT INTO channel ({_COLUMNS}) VALUES ({', '.join('?' * len(values))})",
        [json.dumps(value) if isinstance(value, tuple) else value for value in values],
    )
    _on_record(rows, Event.CHANNEL_CREATED, new, events=list(new.events), rulings=list(new.rulings), by=by)
    return new, signing


def rotate(rows: Rows, vault: Vault, hook: Hook, planned: Plan | None, url: Secret | None, *, by: str) -> str:
    """Give a webhook a new signing secret, and a new URL where one is given; it is enabled again.

    Returns the secret, which is not shown again. `erasure.attempt` afterwards sees to it that nothing of the earlier
    ones is left in the files. Raises ChannelProblem where somebody else has changed it meanwhile, and CannotOpen.
    """
    now = hook_in(rows, hook.org, hook.id)
    if now is None or now.secret_version != hook.secret_version:
        raise ChannelProblem(f"{hook.name} was changed or removed meanwhile. Look at it, then try again.")
    signing = _new_signing_secret()
    kept = url or Secret({"secret": _opener(rows, vault, hook)().reveal("url")})
    address, private = (planned.address, planned.private) if planned else (hook.address, hook.private)
    changed = replace(hook, address=address, private=private)
    version = _seal(rows, vault, changed, kept, signing)
    rows.execute(
        "UPDATE channel SET address = ?, private = ?, secret_version = ?, disabled_at = NULL, disabled_why = NULL, "
        "resume_at = 0 WHERE org = ? AND id = ?",
        (address, json.dumps(private), version, hook.org, hook.id),
    )
    vault.remove_before(rows, org=hook.org, connection=hook.id, version=version)
    request(rows, hook.org, hook.id, "address", hook.name)
    _on_record(rows, Event.CHANNEL_ROTATED, changed, pointed_elsewhere=planned is not None, by=by)
    return signing


def remove(rows: Rows, vault: Vault, hook: Hook, *, by: str) -> None:
    """Remove a webhook with what it has still to be told; see `rotate` for what is sealed. Raises ChannelProblem."""
    vault.remove(rows, org=hook.org, connection=hook.id)
    if rows.execute("DELETE FROM channel WHERE org = ? AND id = ?", (hook.org, hook.id)).rowcount != 1:
        raise ChannelProblem(f"{hook.name} was removed meanwhile. Nothing was changed.")
    rows.execute("DELETE FROM notice WHERE org = ? AND channel = ?", (hook.org, hook.id))
    request(rows, hook.org, hook.id, "channel", hook.name)
    _on_record(rows, Event.CHANNEL_REMOVED, hook, by=by)


def tested(rows: Rows, hook: Hook, *, problem: str | None, by: str) -> None:
    """Write down what trying a webhook has shown; one that takes what it is sent is enabled again."""
    if problem is None:
        rows.execute(
            "UPDATE channel SET disabled_at = NULL, disabled_why = NULL, resume_at = 0, delivered_at = ? "
            "WHERE org = ? AND id = ?",
            (now_ms(), hook.org, hook.id),
        )
    _on_record(rows, Event.CHANNEL_TESTED, hook, outcome="failed" if problem else "succeeded", reason=problem, by=by)


def hooks_of(database: Database, org: str) -> list[Hook]:
    """The webhooks of an org, by name."""
    rows = database.of(org).read(f"SELECT {_COLUMNS} FROM channel WHERE org = ? ORDER BY name", (org,))
    return [hook_of(row) for row in rows]


def hook_named(database: Database, org: str, name: str) -> Hook:
    """One webhook of an org. Raises ChannelProblem."""
    for hook in hooks_of(database, org):
        if hook.name == name:
            return hook
    raise ChannelProblem(f"There is no channel {name!r}. `keyleash channel list` shows them.")


def hook_in(rows: Rows, org: str, channel: str) -> Hook | None:
    """One webhook of an org, by id, as this transaction sees it."""
    row = rows.execute(f"SELECT {_COLUMNS} FROM channel WHERE org = ? AND id = ?", (org, channel)).fetchone()
    return hook_of(row) if row else None


def waiting(database: Database, hook: Hook) -> tuple[int, int | None]:
    """How many notices wait to be delivered to it, and since when the oldest does."""
    rows = database.of(hook.org).read(
        "SELECT COUNT(*), MIN(created_at) FROM notice WHERE org = ? AND channel = ?", (hook.org, hook.id)
    )
    return rows[0][0], rows[0][1]


def take_target(rows: Rows, vault: Vault, hook: Hook) -> Callable[[], Secret]:
    """What opens its URL and signing secret as they are now; opens nothing yet: see `Vault.take`."""
    return _opener(rows, vault, hook)


# -- what is sent


@dataclass(frozen=True)
class Message:
    """One notice as it is sent, each time anew but for its id and body."""

    id: str
    body: bytes


def message(identifier: str, facts: dict[str, Any], public_url: str) -> Message:
    """The payload of a notice. docs/telling.md shows it; its version only grows."""
    approval = facts.get("approval")
    link = f"{public_url}/approvals/{approval['id']}" if public_url and approval else None
    text = _text(facts, link)
    body = {"v": PAYLOAD_VERSION, "id": identifier, **facts, "link": link, "text": text, "content": text}
    return Message(identifier, json.dumps(body).encode())


def trial_facts(org_name: str) -> dict[str, Any]:
    """What `channel test` tells."""
    return {"event": "channel.test", "time": iso(now_ms()), "org": org_name, "approval": None}


def request_of(note: Message, target: Secret, *, now_s: int) -> Prepared:
    """The signed request that carries a message. Raises Unsendable."""
    stamp = str(now_s)
    headers = (
        ("webhook-id", note.id),
        ("webhook-timestamp", stamp),
        ("webhook-signature", _signature(target.reveal("signing"), note, stamp)),
    )
    return prepare_notice(target.reveal("url"), note.body, headers)


def _signature(signing: str, note: Message, stamp: str) -> str:
    key = base64.b64decode(signing.removeprefix(_PREFIX))
    signed = hmac.new(key, f"{note.id}.{stamp}.".encode() + note.body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def _text(facts: dict[str, Any], link: str | None) -> str:
    """One line that a chat tool can show: every name in it is reduced to what no tool takes for markup or a mention."""
    org = _word(facts["org"])
    one = facts.get("approval")
    if "checkpoint" in facts:
        return f"Keyleash ({org}): the record was signed at entry {facts['checkpoint'].splitlines()[1]}."
    if "budget" in facts:
        return f"Keyleash ({org}): {_budget(facts['event'], facts['budget'])}"
    if one is None:
        return f"Keyleash ({org}): a test. Calls that wait for a person will be announced here."
    call = f"`{_word(one['tool'])}` ({_word(one['effect'])}) by the agent `{_word(one['agent'])}`"
    said = _SAID[facts["event"]](one, call)
    how = link or f"At the terminal: `keyleash approvals show {_word(one['id'])}`"
    return f"Keyleash ({org}): {said} {how}"


def _opened(one: dict[str, Any], call: str) -> str:
    until = one["expires_at"][:16].replace("T", " ")
    if one["ruling"] == Ruling.CONFIRM:
        return f"{call} waits to be confirmed until {until} UTC."
    people = "one person" if one["needed"] == 1 else f"{one['needed']} people"
    circle = in_words(tuple(_word(name) for name in one["approvers"]))
    second = ", somebody else than who asks" if one["second_person"] else ""
    return f"{call} waits until {until} UTC for {people} to approve it ({circle}{second})."


def _decided(one: dict[str, Any], call: str) -> str:
    if one["state"] == "pending":
        return f"{call} has {one['decided']} of the {one['needed']} approvals that it needs."
    return f"{call} was {_word(one['state'])}."


def _expired(_one: dict[str, Any], call: str) -> str:
    return f"{call} ran out before it was carried out. Nothing was sent."


def _budget(event: str, budget: dict[str, Any]) -> str:
    words = " ".join(_word(word) for word in budget["in_words"].split())
    until = budget["until"][:16].replace("T", " ")
    if event == Event.BUDGET_REACHED:
        return f"the budget of {words} is used up: further calls wait for an approver until {until} UTC."
    percent = int(budget["used"] * 100 // budget["most"])
    return f"{percent} percent of the budget of {words} is used. It starts anew at {until} UTC."


def _unknown(_one: dict[str, Any], call: str) -> str:
    return f"{call} may have been carried out, and what came of it is not known. Look at the account."


_SAID: dict[str, Callable[[dict[str, Any], str], str]] = {
    "approval.opened": _opened,
    "approval.decided": _decided,
    "approval.expired": _expired,
    "approval.unknown": _unknown,
}


def _word(text: str) -> str:
    return _PLAIN.sub("_", text)[:80]


# -- sealing

_PREFIX = "whsec_"


def _new_signing_secret() -> str:
    return _PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def _seal(rows: Rows, vault: Vault, hook: Hook, url: Secret, signing: str) -> int:
    return vault.put(
        rows,
        org=hook.org,
        connection=hook.id,
        fields=Secret({"url": url.reveal(), "signing": signing}),
        origin=hook.bound_to,
        scheme=SCHEME,
    )


def _opener(rows: Rows, vault: Vault, hook: Hook) -> Callable[[], Secret]:
    return vault.take(
        rows,
        org=hook.org,
        connection=hook.id,
        version=hook.secret_version,
        origin=hook.bound_to,
        scheme=SCHEME,
    )


def _on_record(rows: Rows, event: Event, hook: Hook, **more: Any) -> None:
    append(
        rows,
        hook.org,
        event,
        channel=hook.name,
        kind=hook.kind,
        address=hook.address,
        private=list(hook.private),
        **more,
    )


# -- rows

_COLUMNS = (
    "org, id, name, kind, address, private, events, rulings, secret_version, created_by, created_at, disabled_at, "
    "disabled_why, resume_at, delivered_at, failed_at, failure, given_up, given_up_at"
)


def hook_of(row: Sequence[Any]) -> Hook:
    read: dict[str, Any] = dict(zip(_COLUMNS.split(", "), row, strict=True))
    for name in ("private", "events", "rulings"):
        read[name] = tuple(json.loads(read[name]))
    return Hook(**read)
