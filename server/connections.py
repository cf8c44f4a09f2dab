"""An org's connected accounts: made, listed, tested and removed here; a call sees them as one unchanging Workspace."""

import ipaddress
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from connectors.answer import interpret_verify
from connectors.auth import Revealing, attaching
from connectors.catalogue import Catalogue, Offer, is_shipped
from connectors.definition import Connector, CredentialKind, Pace
from connectors.errors import Unsendable
from connectors.request import base, prepare_verify
from server.audit import Event, append
from server.budgets import Budget, budgets_in
from server.clock import now_ms
from server.database import Database, Rows
from server.ending import end_with
from server.erasure import request
from server.identity import Caller, new_id, touch
from server.pacing import pace_of, paces_in
from server.policy import RuleSet, load_preset, parse_rule
from vault import CannotOpen, Secret, Vault, source_of

if TYPE_CHECKING:
    from connectors.egress import Egress  # at run time it would load the HTTP library
    from connectors.upstream import Definition  # and this the protocol

log = logging.getLogger("keyleash")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NAME = re.compile(r"[a-z][a-z0-9_]{0,30}")


class ConnectionProblem(Exception):
    """A connection cannot be made, found or changed; the message says how to mend it."""


@dataclass(frozen=True)
class Connection:
    """An org's connected account. `base_url`, `private` and `scheme` are what its sealed credential is bound to."""

    org: str
    id: str
    name: str
    connector: str
    ownership: str
    base_url: str
    private: tuple[str, ...]
    kind: str
    scheme: str
    credential_version: int
    account: str | None
    verified_at: int | None
    created_by: str
    created_at: int
    source: str
    """`vault`, or the kind of place that a reference names. For showing: what was sealed says which it is."""
    needs_consent_at: int | None = None
    """Since when the account's provider takes its tokens no more, or a restore has made them doubtful."""
    shared_only: bool = False
    """Whether other orgs use the account too, so that only what is safe for that is on offer."""

    @property
    def signed(self) -> bool:
        """Whether its tokens are had with a private key, so that nobody consents to anything."""
        return self.scheme.startswith(_SIGNED)

    networks: tuple[Network, ...] = field(init=False, repr=False, compare=False)
    origin: str = field(init=False, repr=False, compare=False)
    """Where the secret may go, as bound into the sealed credential: it opens for nowhere else."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "networks", tuple(ipaddress.ip_network(text) for text in self.private))
        object.__setattr__(self, "origin", bound_origin(self.base_url, self.private))

    @property
    def managed(self) -> bool:
        """Whether the account is the operator's, who alone changes what stands here."""
        return self.ownership == MANAGED


MANAGED = "managed"


def bound_origin(base_url: str, private: Sequence[str]) -> str:
    """One text for a base URL and the private addresses allowed to it."""
    return json.dumps([base_url, sorted(private)])


@dataclass(frozen=True)
class Workspace:
    """What an org has at one revision: connections and their paces, the tools on offer, rules, preset and budgets.

    Never changes.
    """

    revision: int
    connections: Mapping[str, Connection]
    offer: Offer
    rules: RuleSet
    preset: RuleSet
    budgets: tuple[Budget, ...] = ()
    paces: Mapping[str, Pace] = field(default_factory=dict[str, Pace])

    def budgets_of(self, agent: str, connection: str) -> tuple[Budget, ...]:
        """The budgets that calls of this agent by this connection count in."""
        return tuple(one for one in self.budgets if one.concerns(agent, connection))

    def pace(self, connection: Connection, connector: Connector) -> Pace:
        """How many calls a connection takes at once, and in a minute."""
        return pace_of(connector.limits, self.paces.get(connection.name), managed=connection.ownership != "own")

    held: frozenset[str] = frozenset()
    """Tools on offer whose wrapped server says of them what nobody has reviewed: listed to no agent, never called."""


class Workspaces:
    """The current Workspace of each org, read again whenever its revision has moved."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self._database = database
        self._catalogue = catalogue
        self._kept: dict[str, Workspace] = {}

    def of(self, caller: Caller) -> Workspace:
        """The workspace of the caller's org. `caller.revision` was read with the caller, so it is never stale."""
        kept = self._kept.get(caller.org)
        if kept is not None and kept.revision == caller.revision:
            return kept
        workspace = self._read(caller.org)
        self._kept[caller.org] = workspace
        return workspace

    def _read(self, org: str) -> Workspace:
        def read(rows: Rows) -> tuple[Any, list[Any], list[Any], Any, Any, list[Any]]:
            head = rows.execute("SELECT revision, preset FROM org WHERE id = ?", (org,)).fetchone()
            connections = rows.execute(_SELECT, (org,))
            rules = rows.execute("SELECT id, body FROM rule WHERE org = ? ORDER BY created_at, id", (org,))
            found = connections.fetchall(), rules.fetchall()
            held = rows.execute("SELECT connection, tool, pinned FROM held_definition WHERE org = ?", (org,))
            return head, *found, budgets_in(rows, org), paces_in(rows, org), held.fetchall()

        head, connection_rows, rule_rows, budgets, paces, held_rows = self._database.of(org).snapshot(read)
        revision, preset = head or _REMOVED
        connections = {row[2]: _connection(row) for row in connection_rows}
        self._catalogue.look_again(connection.connector for connection in connections.values())
        for connection in connections.values():
            if not _usable(self._catalogue, connection):
                log.warning("connection %s has no usable connector %s", connection.name, connection.connector)
        offer = offer_of(self._catalogue, connections.values())
        held = {(connection, tool): pinned for connection, tool, pinned in held_rows}
        return Workspace(
            revision=revision,
            connections=MappingProxyType(connections),
            offer=offer,
            held=frozenset(
                each.name
                for each in offer.tools
                if each.tool.pinned and held.get((connections[each.connection].id, each.tool.name)) == each.tool.pinned
            ),
            rules=RuleSet(parse_rule({"id": rule, **json.loads(body)}) for rule, body in rule_rows),
            preset=load_preset(preset),
            budgets=budgets,
            paces=paces,
        )


def offer_of(catalogue: Catalogue, connections: Iterable[Connection]) -> Offer:
    """The tools of these connections; of an account that other orgs use too, only what is safe for that."""
    usable = [connection for connection in connections if _usable(catalogue, connection)]
    return catalogue.offer({each.name: each.connector for each in usable}, _shared(usable))


def _usable(catalogue: Catalogue, connection: Connection) -> bool:
    """Whether there is a definition for it. The operator's account is used by what comes with the program alone."""
    found = catalogue.connectors.get(connection.connector)
    return found is not None and (not connection.managed or is_shipped(found))


def _shared(connections: Iterable[Connection]) -> frozenset[str]:
    return frozenset(connection.name for connection in connections if connection.shared_only)


_REMOVED = (0, "strict")
"""Revision and preset of an org that was removed since its caller was looked up: it has nothing to offer."""


@dataclass(frozen=True)
class Plan:
    """A connection about to be made: everything but the secret has been checked."""

    connector: Connector
    kind: CredentialKind
    name: str
    base_url: str
    private: tuple[str, ...]


def plan(
    catalogue: Catalogue,
    existing: Sequence[Connection],
    *,
    connector: str,
    name: str | None,
    kind: str | None,
    base_url: str | None,
    private: Sequence[str],
) -> Plan:
    """Check what can be checked before a secret is asked for. Raises ConnectionProblem.

    Of what exists, only a managed connection of the same connector may have the name: its place is taken.
    """
    definition = catalogue.connectors.get(connector)
    if definition is None:
        known = ", ".join(sorted(catalogue.connectors))
        raise ConnectionProblem(f"There is no connector {connector!r}. There are {known}.")
    name = checked_name(name or connector)
    before = next((connection for connection in existing if connection.name == name), None)
    if before is not None and not (before.managed and before.connector == connector):
        raise ConnectionProblem(
            f"There is already a connection {name!r}. Remove it first, or give this one a name with `--name`."
        )
    others = [connection for connection in existing if connection is not before]
    clash = catalogue.collision({c.name: c.connector for c in others}, name, connector, _shared(others))
    if clash:
        raise ConnectionProblem(f"{clash} Choose another name with `--name`.")
    if base_url is None and definition.own_url:
        raise ConnectionProblem(_give_an_address(definition))
    where = _where(definition, base_url, definition.base_url, private)
    return Plan(
        connector=definition,
        kind=_kind(definition, kind),
        name=name,
        base_url=where,
        private=tuple(str(network(text)) for text in private),
    )


def _give_an_address(definition: Connector) -> str:
    if definition.example_url:
        return (
            f"Every account of {definition.title} has an address of its own. Give yours with `--base-url`, for "
            f"instance `--base-url {definition.example_url}`."
        )
    return (
        f"Nothing says where {definition.title} is reached: {definition.base_url} stands for it in {definition.file}. "
        "Write `base_url` there, or give yours with `--base-url URL`."
    )


def checked_name(name: str) -> str:
    """The name, where it can be a connection's. Raises ConnectionProblem."""
    if not _NAME.fullmatch(name):
        raise ConnectionProblem(
            f"{name!r} cannot name a connection: use up to 31 of a-z, 0-9 and underscore, beginning with a letter."
        )
    return name


def _kind(definition: Connector, wanted: str | None) -> CredentialKind:
    for kind in definition.credentials:
        if wanted in (None, kind.id):
            return kind
    kinds = ", ".join(kind.id for kind in definition.credentials)
    raise ConnectionProblem(f"{definition.title} has no credential kind {wanted!r}. It has {kinds}.")


def _where(definition: Connector, base_url: str | None, otherwise: str, private: Sequence[str]) -> str:
    """Where calls go. Raises ConnectionProblem; a server that is started has no address but its command."""
    if definition.server is not None and definition.server.command:
        if base_url is not None or private:
            raise ConnectionProblem(
                f"{definition.title} is started as a process: its command stands in {definition.file}, and there is no "
                "address to give. Leave `--base-url` and `--allow-private` out."
            )
        return definition.base_url
    where = _base_url(base_url or otherwise)
    require_private_for_http(where, private)
    return where


def require_private_for_http(base_url: str, private: Sequence[str]) -> None:
    """Refuse plain http that nobody has opened an own network for. Raises ConnectionProblem."""
    if base_url.startswith("http://") and not private:
        raise ConnectionProblem(
            "Over plain http the key could be read on its way. Use https; for an address of your own network, name it "
            "with `--allow-private CIDR` as well."
        )


def _base_url(text: str) -> str:
    try:
        return base(text).url
    except Unsendable as error:
        raise ConnectionProblem(str(error)) from None


def network(text: str) -> Network:
    """A range of addresses, as a person writes one. Raises ConnectionProblem."""
    try:
        return ipaddress.ip_network(text)
    except ValueError:
        raise ConnectionProblem(
            f"{text!r} is not a range of addresses. Write one like 10.1.2.0/24 or 127.0.0.1/32."
        ) from None


async def verify(
    egress: "Egress",
    planned: Plan | Connection,
    connector: Connector,
    secret: Revealing,
    *,
    seen: Callable[[Sequence["Definition"]], object] = lambda _found: None,
) -> str | None:
    """Make the connector's verify call; returns the account it names. `seen` hears what a wrapped server offers.

    Raises ConnectorError.

    For a Connection also CannotOpen, where its connector's file has changed: see `credential_kind`.
    """
    kind = planned.kind if isinstance(planned, Plan) else credential_kind(planned, connector)
    private = tuple(ipaddress.ip_network(text) for text in planned.private)
    if connector.server is not None:
        seen(await _asked_what_it_can(egress, planned.base_url, connector, kind, secret, private))
        return None
    request = prepare_verify(connector, kind, base_url=planned.base_url)
    reply = await egress.send(
        request,
        attach=attaching(kind, secret, request),
        private=private,
    )
    return interpret_verify(connector, reply, kind)


async def _asked_what_it_can(  # noqa: PLR0917 - what a conversation is made of
    egress: "Egress",
    base_url: str,
    connector: Connector,
    kind: CredentialKind,
    secret: Revealing,
    private: tuple[Network, ...],
) -> Sequence["Definition"]:
    """A wrapped server that lists its tools is there, and takes the credential; it names no account."""
    from connectors.upstream import opened  # at run time alone: it loads the protocol

    conversation = opened(connector, base_url=base_url, kind=kind, secret=secret, egress=egress, private=private)
    async with conversation as upstream:
        return await upstream.definitions()


def store(
    rows: Rows,
    vault: Vault,
    org: str,
    planned: Plan,
    *,
    fields: Mapping[str, str] | Secret,
    account: str | None,
    verified: bool,
    by: str,
    consent: Mapping[str, Any] | None = None,
    replaces: Connection | None = None,
) -> Connection:
    """Seal the credential, or the reference to it, and write the connection, in one transaction with its entry.

    `consent` is what the record says besides of tokens that were had by OAuth. A managed connection that it `replaces`
    gives way to it, with its approvals and grants; the offer stands.
    """
    secret = fields if isinstance(fields, Secret) else Secret(fields)
    del fields  # from here on a traceback that prints locals finds no secret
    now = now_ms()
    new = Connection(
        org=org,
        id=new_id("con"),
        name=planned.name,
        connector=planned.connector.id,
        ownership="own",
        base_url=planned.base_url,
        private=planned.private,
        kind=planned.kind.id,
        scheme=bound_scheme(planned.kind),
        credential_version=0,
        account=account,
        verified_at=now if verified else None,
        created_by=by,
        created_at=now,
        source=source_of(secret),
    )
    if replaces is not None:
        give_way(rows, replaces, by=by)
    made = replace(new, credential_version=seal(rows, vault, new, secret))
    write(rows, made)
    more = {**(consent or {}), **({"replaces": MANAGED} if replaces is not None else {})}
    _given(rows, Event.CONNECTION_CREATED, made, ownership=made.ownership, verified=verified, by=by, **more)
    return made


def write(rows: Rows, made: Connection) -> None:
    """Write the row of a connection whose credential is sealed."""
    rows.execute(
        f"INSERT INTO connection ({_COLUMNS}) VALUES ({', '.join('?' * 16)})",
        (
            made.org,
            made.id,
            made.name,
            made.connector,
            made.ownership,
            made.base_url,
            json.dumps(made.private),
            made.kind,
            made.scheme,
            made.credential_version,
            made.account,
            made.verified_at,
            made.created_by,
            made.created_at,
            made.source,
            made.needs_consent_at,
        ),
    )


def give_way(rows: Rows, connection: Connection, *, by: str) -> None:
    """Take a managed connection out of use: its approvals and grants end, and what is sealed for it stays.

    Raises ConnectionProblem where somebody else has done so meanwhile.
    """
    gone = rows.execute("DELETE FROM connection WHERE org = ? AND id = ?", (connection.org, connection.id))
    _require_one(gone.rowcount, connection)
    end_with(rows, connection.org, "connection", connection.id, by=by)
    touch(rows, connection.org)


def require_own(connection: Connection) -> None:
    """Refuse what an org may do only with an account of its own. Raises ConnectionProblem."""
    if connection.managed:
        raise ConnectionProblem(
            f"{connection.name} is managed: its account is the operator's, who alone can change or try it. "
            f"`keyleash connect {connection.connector} --name {connection.name}` puts an account of your own in its "
            "place."
        )


def seal(rows: Rows, vault: Vault, connection: Connection, secret: Secret) -> int:
    """Seal it for exactly what the connection says; returns its version."""
    return vault.put(
        rows,
        org=connection.org,
        connection=connection.id,
        fields=secret,
        origin=connection.origin,
        scheme=connection.scheme,
    )


def _given(rows: Rows, event: Event, connection: Connection, **more: Any) -> None:
    """On record: a credential was given, for what, and from what kind of place; callers see it from now on."""
    touch(rows, connection.org)
    append(
        rows,
        connection.org,
        event,
        connection=connection.name,
        connector=connection.connector,
        base_url=connection.base_url,
        private=list(connection.private),
        kind=connection.kind,
        account=connection.account,
        credential_version=connection.credential_version,
        source=connection.source,
        **more,
    )


def replan(
    connection: Connection,
    connector: Connector,
    *,
    kind: str | None,
    base_url: str | None,
    private: Sequence[str] | None,
) -> Plan:
    """What a connection is to become when its secret is given again. Raises ConnectionProblem.

    What is None stays; only a new `base_url` also drops the private addresses that are not named with it.
    """
    kept = () if base_url is not None else connection.private
    allowed = kept if private is None else private
    where = _where(connector, base_url, connection.base_url, allowed)
    return Plan(
        connector=connector,
        kind=_kind(connector, kind or connection.kind),
        name=connection.name,
        base_url=where,
        private=tuple(str(network(text)) for text in allowed),
    )


def rotate(
    rows: Rows,
    vault: Vault,
    connection: Connection,
    planned: Plan,
    *,
    fields: Mapping[str, str] | Secret,
    account: str | None,
    verified: bool,
    by: str,
    consent: Mapping[str, Any] | None = None,
) -> Connection:
    """Seal a new version of the credential, and point the connection where `planned` says, with its entry.

    Earlier versions are removed: a call under way has taken its own already; `erasure.attempt` afterwards sees to it
    that nothing of them is left in the files. Approvals and grants name the version that they were given for, so those
    of earlier ones end. Raises ConnectionProblem where somebody else has changed the connection
    meanwhile.
    """
    secret = fields if isinstance(fields, Secret) else Secret(fields)
    del fields
    require_own(connection)
    pointed = replace(
        connection,
        base_url=planned.base_url,
        private=planned.private,
        kind=planned.kind.id,
        scheme=bound_scheme(planned.kind),
        account=account,
        verified_at=now_ms() if verified else None,
        source=source_of(secret),
        needs_consent_at=None,
    )
    changed = replace(pointed, credential_version=seal(rows, vault, pointed, secret))
    moved = rows.execute(
        "UPDATE connection SET base_url = ?, private = ?, kind = ?, scheme = ?, credential_version = ?, account = ?, "
        "verified_at = ?, source = ?, needs_consent_at = NULL WHERE org = ? AND id = ? AND credential_version = ?",
        (
            changed.base_url,
            json.dumps(changed.private),
            changed.kind,
            changed.scheme,
            changed.credential_version,
            account,
            changed.verified_at,
            changed.source,
            changed.org,
            changed.id,
            connection.credential_version,
        ),
    )
    _require_one(moved.rowcount, connection)
    vault.remove_before(rows, org=changed.org, connection=changed.id, version=changed.credential_version)
    rows.execute("DELETE FROM oauth_token WHERE org = ? AND connection = ?", (changed.org, changed.id))
    request(rows, changed.org, changed.id, "secret", changed.name)
    end_with(rows, changed.org, "connection", changed.id, by=by)
    _given(rows, Event.CONNECTION_ROTATED, changed, verified=verified, by=by, **(consent or {}))
    return changed


def reencrypt(rows: Rows, vault: Vault, connection: Connection, *, by: str) -> None:
    """Seal the same credential anew under a new data key, with its entry; approvals and grants stay good.

    `erasure.attempt` afterwards sees to it that what was sealed before is gone from the files. Raises CannotOpen, and
    ConnectionProblem where somebody else has changed the connection meanwhile.
    """
    require_own(connection)
    there = rows.execute(
        "SELECT COUNT(*) FROM connection WHERE org = ? AND id = ? AND credential_version = ?",
        (connection.org, connection.id, connection.credential_version),
    ).fetchone()
    _require_one(there[0], connection)
    vault.reencrypt(
        rows,
        org=connection.org,
        connection=connection.id,
        version=connection.credential_version,
        origin=connection.origin,
        scheme=connection.scheme,
    )
    request(rows, connection.org, connection.id, "secret", connection.name)
    append(
        rows,
        connection.org,
        Event.CONNECTION_ROTATED,
        connection=connection.name,
        connector=connection.connector,
        credential_version=connection.credential_version,
        source=connection.source,
        same_secret=True,
        by=by,
    )


def _require_one(found: int, connection: Connection) -> None:
    if found != 1:
        raise ConnectionProblem(f"{connection.name} was changed or removed meanwhile. Look at it, then try again.")


def tested(rows: Rows, connection: Connection, *, account: str | None, problem: str | None, by: str) -> None:
    """Write down what trying a connection has shown; what works is marked as verified, for the account it names."""
    require_own(connection)
    org = connection.org
    if problem is None:
        rows.execute(
            "UPDATE connection SET verified_at = ?, account = ? WHERE org = ? AND id = ? AND credential_version = ?",
            (now_ms(), account, org, connection.id, connection.credential_version),
        )
        touch(rows, org)
    append(
        rows,
        org,
        Event.CONNECTION_TESTED,
        connection=connection.name,
        account=account,
        credential_version=connection.credential_version,
        outcome="failed" if problem else "succeeded",
        reason=problem,
        by=by,
    )


def remove(rows: Rows, vault: Vault, connection: Connection, *, by: str, keep_credential: bool = False) -> None:
    """Remove a connection with its credential; its approvals and grants end with it.

    `erasure.attempt` afterwards sees to it that nothing is left in the files. The credential is kept only for tokens
    that their provider has yet to end (`oauth.revoking`). Raises ConnectionProblem where somebody else has removed it
    meanwhile.
    """
    require_own(connection)
    org = connection.org
    if not keep_credential:
        vault.remove(rows, org=org, connection=connection.id)
    for table in ("oauth_token", "held_definition", "definition_look"):
        rows.execute(f"DELETE FROM {table} WHERE org = ? AND connection = ?", (org, connection.id))
    gone = rows.execute("DELETE FROM connection WHERE org = ? AND id = ?", (org, connection.id))
    if gone.rowcount != 1:
        raise ConnectionProblem(f"{connection.name} was removed meanwhile. Nothing was changed.")
    if not keep_credential:
        request(rows, org, connection.id, "connection", connection.name)
    end_with(rows, org, "connection", connection.id, by=by)
    touch(rows, org)
    kept = {"credential_kept": True} if keep_credential else {}
    append(rows, org, Event.CONNECTION_REMOVED, connection=connection.name, by=by, **kept)


def connections_of(database: Database, org: str) -> list[Connection]:
    """The connections of an org, by name."""
    return [_connection(row) for row in database.of(org).read(_SELECT, (org,))]


def connection_named(database: Database, org: str, name: str) -> Connection:
    """One connection of an org. Raises ConnectionProblem."""
    for connection in connections_of(database, org):
        if connection.name == name:
            return connection
    raise ConnectionProblem(f"There is no connection {name!r}. `keyleash connection list` shows them.")


def bound_scheme(kind: CredentialKind) -> str:
    """One text for the place that a credential takes in a request, as bound into the sealed credential.

    What tokens are renewed with is sent to the provider's endpoints besides, and to no others than these.
    """
    if kind.scheme == "env":
        return f"env:{','.join(f'{field.variable}={field.name}' for field in kind.fields)}"
    place = kind.scheme if kind.scheme in ("bearer", "basic", "none") else f"{kind.scheme}:{kind.name.lower()}"
    if kind.scheme == "aws_sigv4":
        place = f"aws_sigv4:{kind.service}:{kind.region}"
    if kind.oauth is None:
        return place
    how = f"{_SIGNED}{kind.oauth.grant}" if kind.oauth.signed else "oauth2"
    return f"{how} {place} {kind.oauth.token} {kind.oauth.revoke.url if kind.oauth.revoke else '-'}"


_SIGNED = "signed:"
"""How the scheme of a credential begins that is a private key."""


def credential_kind(connection: Connection, connector: Connector) -> CredentialKind:
    """How the connection's credential enters a request.

    CannotOpen where the connector's file now says another place than the one that the credential was given for.
    """
    started = connector.server is not None and bool(connector.server.command)
    for kind in connector.credentials:
        if started and connection.base_url != connector.base_url:
            break  # another command than the one that the credential was given to
        if kind.id == connection.kind and bound_scheme(kind) == connection.scheme:
            return kind
    raise CannotOpen


def open_credential(database: Rows, vault: Vault, connection: Connection) -> Secret:
    """What is sealed for a connection: its secret, or a reference to it. Wipe it after."""
    return take_credential(database, vault, connection)()


def take_credential(database: Rows, vault: Vault, connection: Connection) -> Callable[[], Secret]:
    """What opens the credential as its rows are now, whatever becomes of them. Opens nothing yet: see `Vault.take`."""
    return vault.take(
        database,
        org=connection.org,
        connection=connection.id,
        version=connection.credential_version,
        origin=connection.origin,
        scheme=connection.scheme,
    )


_COLUMNS = (
    "org, id, name, connector, ownership, base_url, private, kind, scheme, credential_version, account, verified_at, "
    "created_by, created_at, source, needs_consent_at"
)


_SELECT = """
SELECT c.org, c.id, COALESCE(m.name, c.name), COALESCE(m.connector, c.connector),
    CASE WHEN m.id IS NULL THEN c.ownership ELSE 'managed' END,
    COALESCE(m.base_url, c.base_url), COALESCE(m.private, c.private), COALESCE(m.kind, c.kind),
    COALESCE(m.scheme, c.scheme), COALESCE(m.credential_version, c.credential_version), COALESCE(m.account, c.account),
    COALESCE(m.verified_at, c.verified_at), COALESCE(m.offered_by, c.created_by), c.created_at,
    COALESCE(m.source, c.source), c.needs_consent_at, m.own_project
FROM connection c LEFT JOIN managed_offer m ON m.org = c.org AND m.id = c.id
WHERE c.org = ? ORDER BY 3"""
"""Of a managed connection, what counts is what the operator has offered, and not what its own row says."""


def _connection(row: Sequence[Any]) -> Connection:
    org, identifier, name, connector, ownership, base_url, private, *rest, own_project = row
    shared_only = ownership == MANAGED and not own_project
    known = (org, identifier, name, connector, ownership, base_url, tuple(json.loads(private)), *rest, shared_only)
    return Connection(*known)  # pyright: ignore[reportCallIssue] - the columns are the fields, in order; a test reads one back
