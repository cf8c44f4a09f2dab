"""A stored key goes to the one origin and place that it was given for, and so does one that a reference leads to.

Whatever an intruder writes into the database or into a connector file: it is not sent elsewhere, and nor are its parts.
"""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from mcp import Client

from connectors.egress import Egress
from connectors.errors import ConnectorError, DefinitionError
from connectors.loading import parse
from server.app import running
from server.approval import Decision
from server.call import call
from server.connections import bound_scheme, connection_named, open_credential, plan, replan, rotate, store, verify
from server.credential import credential, resolver_of
from server.errors import CallRefused
from tests.agents import Nobody, connected, decide, execute, reopened, with_connector
from tests.installed import SECRET, Place, add_org
from tests.leaks import leak
from tests.places import Places
from tests.probe import PROBE
from tests.upstream import Upstream
from vault import REFERENCES, Secret, VaultError, to_reference

pytestmark = [pytest.mark.anyio, pytest.mark.sqlite_only("its intruder edits SQLite's file")]


@pytest.fixture(params=["stored", "elsewhere"])
def given(request: pytest.FixtureRequest, places: Places) -> Secret:
    """What is sealed: the secret itself, or a reference to the file that it is in."""
    stored = request.param == "stored"
    return Secret({"secret": SECRET}) if stored else to_reference(places.keep("file", SECRET))


@pytest.fixture
def place(place: Place, given: Secret) -> Place:
    """The place; what is sealed for `stripe` was given a second time."""
    connection = connection_named(place.database, place.org, "stripe")
    connector = place.installation.catalogue.connectors["stripe"]
    planned = replan(connection, connector, kind=None, base_url=None, private=None)
    place.database.write_now(
        lambda rows: rotate(
            rows,
            place.installation.vault,
            connection,
            planned,
            fields=given,
            account="acct_test",
            verified=False,
            by="alice",
        )
    )
    return place


@asynccontextmanager
async def agent(place: Place, *, name: str = "reconciler") -> AsyncIterator[Client]:
    """A real client over HTTP."""
    async with connected(place, "http", "auto", agent=name) as client:
        yield client


# -- an intruder in the database


def _edit(place: Place, sql: str, *parameters: Any) -> None:
    """One statement, as somebody with the file makes it: no constraint of ours holds it up."""
    with contextlib.closing(sqlite3.connect(place.installation.settings.database)) as raw:
        assert raw.execute(sql, parameters).rowcount == 1, sql
        raw.execute("UPDATE org SET revision = revision + 1")
        raw.commit()


async def _read(place: Place) -> tuple[bool, str]:
    async with agent(place) as client:
        result = await client.call_tool("stripe_list_charges", {})
    return bool(result.is_error), result.content[0].text  # type: ignore[union-attr]


BOUND: dict[str, dict[str, list[Any]]] = {
    "connection": {
        "org": ["org_another"],
        "id": ["con_another"],
        "base_url": ["ELSEWHERE", "HERE/deeper", "https://api.stripe.com", "http://localhost:9"],
        "private": ["[]", '["127.0.0.1/32", "0.0.0.0/0"]', '["127.0.0.0/8"]'],
        "scheme": ["query:key", "basic", "header:x-key", ""],
        "credential_version": [0, 1, 3],
        "source": [*REFERENCES, "vault", "", "VAULT"],
    },
    "vault_credential": {
        "org": ["org_another"],
        "connection": ["con_another"],
        "version": [1, 3],
        "key_id": ["key_0000000000000000"],
        "key_version": [2],
        "data_key": [b"x" * 113, "text"],
    },
    "vault_field": {
        "org": ["org_another"],
        "connection": ["con_another"],
        "version": [1, 3],
        "field": ["@reference", "secret", "user", ""],
        "sealed": [b"x" * 113, "text"],
    },
}
"""What a secret is bound to: with any of it changed, nothing is sent at all."""

FREE: dict[str, dict[str, list[Any]]] = {
    "connection": {
        "name": ["ELSEWHERE", "github"],
        "connector": ["github", "slack", "nosuch"],
        "ownership": ["managed"],
        "kind": ["secret_key", "token", "nosuch"],
        "account": ["ELSEWHERE"],
        "verified_at": [None, 1],
        "created_by": ["ELSEWHERE"],
        "created_at": [1],
        "needs_consent_at": [1],
    },
    # Said once more beside the seal, which says it itself: what is asked for is what the connection's row says.
    "vault_credential": {"origin": ["BOUND ELSEWHERE"], "scheme": ["query:key"], "created_at": [1]},
}
"""What else there is: with it changed, what is sent goes to the same origin and stands in the same place."""


def _each(edits: dict[str, dict[str, list[Any]]]) -> Iterator[tuple[str, str, Any]]:
    for table, columns in edits.items():
        for column, values in columns.items():
            yield from ((table, column, value) for value in values)


def test_every_column_is_tried(place: Place) -> None:
    for table in ("connection", "vault_credential", "vault_field"):
        columns = {row[1] for row in place.database.read(f"PRAGMA table_info({table})")}
        assert columns == BOUND.get(table, {}).keys() | FREE.get(table, {}).keys()


@pytest.mark.parametrize("edits", [BOUND, FREE], ids=["bound", "free"])
@pytest.mark.parametrize("warm", [True, False], ids=["keys in memory", "keys forgotten"])
async def test_no_column_of_the_database_sends_a_secret_elsewhere(
    place: Place, upstream: Upstream, elsewhere: Upstream, edits: dict[str, dict[str, list[Any]]], warm: bool
) -> None:
    bound = json.dumps([elsewhere.url, ["127.0.0.1/32"]])
    connection = connection_named(place.database, place.org, "stripe")
    tried = 0
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok
        for table, column, value in [
            (t, c, v) for t, columns in edits.items() for c, vs in columns.items() for v in vs
        ]:
            (before,) = place.database.read(f"SELECT {column} FROM {table}")[0]
            after = value
            if isinstance(value, str):
                after = value.replace("BOUND ELSEWHERE", bound).replace("ELSEWHERE", elsewhere.url)
                after = after.replace("HERE", upstream.url)
            if after == before:
                continue
            upstream.requests.clear()
            _edit(place, f"UPDATE {table} SET {column} = ?", after)
            if not warm:
                place.installation.vault.forget()
            for tool in ("stripe_list_charges", "stripe_get_me"):
                with contextlib.suppress(CallRefused):
                    await call(parts, place.caller(), tool, {}, Nobody())
            _edit(place, f"UPDATE {table} SET {column} = ?", before)
            assert elsewhere.requests == [], (table, column, value)
            for request in upstream.requests:
                assert request.headers["authorization"] == f"Bearer {SECRET}", (table, column, value)
                assert SECRET not in request.target
            assert edits is FREE or upstream.requests == [], (table, column, value)
            tried += 1
        assert tried > 10
        assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok, "all is as it was"
    assert connection_named(place.database, place.org, "stripe") == connection


COPY_FIELD = "INSERT INTO vault_field SELECT org, connection, version, '{}', sealed FROM vault_field"
TOGETHER: dict[str, list[str]] = {
    "base url and origin": [
        "UPDATE connection SET base_url = 'ELSEWHERE'",
        "UPDATE vault_credential SET origin = 'BOUND'",
    ],
    "kind, scheme and scheme": [
        "UPDATE connection SET kind = 'token', scheme = 'header:x-key'",
        "UPDATE vault_credential SET scheme = 'header:x-key'",
    ],
    "a secret called a command": [
        "UPDATE connection SET source = 'cmd'",
        "UPDATE vault_field SET field = '@reference'",
    ],
    "a reference called a secret": [
        "UPDATE connection SET source = 'vault'",
        "UPDATE vault_field SET field = 'secret'",
    ],
    "a reference beside it": [COPY_FIELD.format("@reference_"), "UPDATE connection SET source = 'cmd'"],
    "a secret beside it": [COPY_FIELD.format("user"), "UPDATE connection SET source = 'vault'"],
    "an earlier version": [
        "UPDATE connection SET credential_version = 1",
        "UPDATE vault_credential SET version = 1",
        "UPDATE vault_field SET version = 1",
    ],
}


@pytest.mark.parametrize("statements", TOGETHER.values(), ids=TOGETHER)
async def test_nor_do_columns_that_were_changed_to_fit_each_other(
    place: Place, upstream: Upstream, elsewhere: Upstream, statements: list[str]
) -> None:
    bound = json.dumps([elsewhere.url, ["127.0.0.1/32"]])
    rows = partial(place.database.read, "SELECT * FROM connection, vault_credential, vault_field")
    before = rows()
    for sql in statements:
        _edit(place, sql.replace("ELSEWHERE", elsewhere.url).replace("BOUND", bound))
    if rows() == before:
        pytest.skip("it is called so already")
    failed, said = await _read(place)
    assert failed
    assert "cannot be opened" in said
    assert upstream.requests == []
    assert place.events("call.outcome")[-1]["error"] == "credential cannot be opened"


async def test_a_credential_moved_to_another_connection_or_org_does_not_open(
    place: Place, upstream: Upstream, elsewhere: Upstream
) -> None:
    """The whole of it, rows and all, under connections that point elsewhere."""
    other = add_org(place.installation, "globex")
    theirs = other.connect(elsewhere.url, secret="rk_test_their_own_secret")
    other.agent()
    mine = place.connect(elsewhere.url, name="second", secret="rk_test_another_secret")
    source = place.installation.workspaces.of(place.caller()).connections["stripe"]
    for whose, target in ((other, theirs), (place, mine)):
        for table in ("vault_field", "vault_credential"):
            assert execute(place, f"DELETE FROM {table} WHERE connection = ?", target.id) == 1
        for table in ("vault_credential", "vault_field"):
            names = [row[1] for row in place.database.read(f"PRAGMA table_info({table})")]
            taken = ", ".join({"org": "?", "connection": "?"}.get(name, name) for name in names)
            copied = f"INSERT INTO {table} SELECT {taken} FROM {table} WHERE connection = ?"
            assert execute(place, copied, target.org, target.id, source.id) == 1
        alike = "UPDATE connection SET credential_version = ?, source = ? WHERE id = ?"
        assert execute(place, alike, source.credential_version, source.source, target.id) == 1
        execute(place, "UPDATE org SET revision = revision + 1")
        async with agent(whose) as client:
            result = await client.call_tool(f"{target.name}_list_charges", {})
        assert result.is_error
        assert "cannot be opened" in result.content[0].text  # type: ignore[union-attr]
    assert upstream.requests == []


# -- an intruder among the connector files


def _connected_probe(place: Place, upstream: Upstream, given: Secret) -> None:
    with_connector(place, "probe", PROBE)
    planned = plan(
        place.installation.catalogue,
        [],
        connector="probe",
        name=None,
        kind=None,
        base_url=upstream.url,
        private=("127.0.0.1/32",),
    )
    place.database.write_now(
        lambda rows: store(
            rows,
            place.installation.vault,
            place.org,
            planned,
            fields=given,
            account=None,
            verified=False,
            by="alice",
        )
    )


REPLACED: dict[str, tuple[str, str]] = {
    "another header": ("name: X-Api-Key", "name: X-Forwarded-For"),
    "the query": ("scheme: header, name: X-Api-Key", "scheme: query, name: page"),
    "another scheme": ("scheme: header, name: X-Api-Key", "scheme: bearer"),
    "another kind": ("  key: {", "  other: {"),
    "a kind of two fields": (
        "key: {label: key, help: Any., scheme: header, name: X-Api-Key}",
        "key: {label: k, help: Any., scheme: basic, fields: {user: {label: u}, password: {label: p}}}",
    ),
}


@pytest.mark.parametrize(("old", "new"), REPLACED.values(), ids=REPLACED)
async def test_a_replaced_connector_file_puts_a_stored_key_in_no_other_place(
    place: Place, given: Secret, open_upstream: Upstream, old: str, new: str
) -> None:
    _connected_probe(place, open_upstream, given)
    assert old in PROBE
    with_connector(place, "probe", PROBE.replace(old, new))
    place.rule(who="everyone", tools=["*"], then="allow")
    async with agent(place) as client:
        result = await client.call_tool("probe_query", {"words": "x"})
    assert result.is_error
    assert "cannot be opened" in result.content[0].text  # type: ignore[union-attr]
    assert open_upstream.requests == []
    assert [event["outcome"] for event in place.events("call.outcome")] == ["failed"]


MOVED = {name: change for name, change in REPLACED.items() if name != "another kind"}  # that one is put as before


@pytest.mark.parametrize(("old", "new"), MOVED.values(), ids=MOVED)
async def test_nor_where_the_row_in_the_database_was_changed_to_fit(
    place: Place, given: Secret, open_upstream: Upstream, old: str, new: str
) -> None:
    """File and row agree, and so does the vault's own column; what was sealed does not."""
    _connected_probe(place, open_upstream, given)
    with_connector(place, "probe", PROBE.replace(old, new))
    kind = place.installation.catalogue.connectors["probe"].credentials[0]
    for table in ("connection", "vault_credential"):
        execute(place, f"UPDATE {table} SET scheme = ? WHERE scheme LIKE 'header:%'", bound_scheme(kind))
    execute(place, "UPDATE connection SET kind = ? WHERE connector = 'probe'", kind.id)
    place.rule(who="everyone", tools=["*"], then="allow")
    async with agent(place) as client:
        result = await client.call_tool("probe_query", {"words": "x"})
    assert result.is_error
    assert "cannot be opened" in result.content[0].text  # type: ignore[union-attr]
    assert open_upstream.requests == []


async def test_a_replaced_connector_file_with_another_base_url_leads_a_stored_key_nowhere(
    place: Place, given: Secret, open_upstream: Upstream, elsewhere: Upstream
) -> None:
    """A connection has its own base URL; the file's is the default for new ones."""
    _connected_probe(place, open_upstream, given)
    port = elsewhere.url.rpartition(":")[2]
    with_connector(
        place,
        "probe",
        PROBE.replace("https://probe.example", f"https://127.0.0.1:{port}/base").replace("/search", "/x"),
    )
    place.rule(who="everyone", tools=["*"], then="allow")
    async with agent(place) as client:
        assert not (await client.call_tool("probe_query", {"words": "x"})).is_error
    assert [request.target for request in open_upstream.requests] == ["/x?words=x"]
    assert open_upstream.requests[0].headers["x-api-key"] == SECRET


EDITED: dict[str, tuple[str, str]] = {
    **REPLACED,
    "the base url": ("https://probe.example", "https://127.0.0.1:PORT/base"),
    "a base url with a name in it": ("https://probe.example", "https://user@127.0.0.1:PORT"),
    "the header's case": ("name: X-Api-Key", "name: x-api-key"),
    "a prefix": ("name: X-Api-Key}", "name: X-Api-Key, prefix: 'https://127.0.0.1:PORT/'}"),
    "a parameter called as the header": ("scheme: header, name: X-Api-Key", "scheme: query, name: X-Api-Key"),
    "a path that is a host": ("call: GET /search", "call: GET //127.0.0.1:PORT/search"),
    "a path that climbs": ("call: GET /search", "call: GET /../search"),
    "a path with a user": ("call: GET /search", "call: GET @127.0.0.1:PORT/search"),
    "the verify call": ("call: GET /me", "call: GET //127.0.0.1:PORT/me"),
    "a fixed host": ("headers: {X-Fixed: probe}", "headers: {Host: '127.0.0.1:PORT'}"),
    "a fixed header in the key's place": ("headers: {X-Fixed: probe}", "headers: {X-Api-Key: mine}"),
    "an argument in the key's place": ("in: header, as: X-Mark", "in: header, as: X-Api-Key"),
    "another id": ("id: probe", "id: other"),
}


@pytest.mark.parametrize(("old", "new"), EDITED.values(), ids=EDITED)
async def test_no_edit_of_a_connector_file_sends_a_secret_elsewhere(
    place: Place, given: Secret, open_upstream: Upstream, elsewhere: Upstream, old: str, new: str
) -> None:
    """By a call or by the verify call; where the file is still taken, as before or not at all."""
    _connected_probe(place, open_upstream, given)
    place.rule(who="everyone", tools=["*"], then="allow")
    assert old in PROBE
    text = PROBE.replace(old, new.replace("PORT", elsewhere.url.rpartition(":")[2]))
    with contextlib.suppress(DefinitionError):
        parse(text, "probe.yaml")
        with_connector(place, "probe", text)
    connection = connection_named(place.database, place.org, "probe")
    async with running(place.installation) as parts:
        for tool, arguments in {"probe_query": {"words": "x"}, "probe_header": {"mark": "mine"}}.items():
            with contextlib.suppress(CallRefused):
                await call(parts, place.caller(), tool, arguments, Nobody())
        connector = place.installation.catalogue.connectors["probe"]
        sealed = parts.database.snapshot(lambda rows: open_credential(rows, parts.vault, connection))
        async with Egress() as egress:
            with contextlib.suppress(VaultError, ConnectorError):
                kind = connector.credentials[0]
                secret = credential(resolver_of(place.installation.settings), connection, kind, sealed)
                await verify(egress, connection, connector, secret)
    for request in open_upstream.requests:
        headers = dict(request.headers)
        assert headers.pop("x-api-key").endswith(SECRET)
        assert SECRET not in f"{request.target} {headers} {request.body!r}"


async def test_an_approval_does_not_outlive_a_replaced_connector_file(
    place: Place, given: Secret, open_upstream: Upstream
) -> None:
    _connected_probe(place, open_upstream, given)
    place.rule(who="everyone", tools=["probe.query"], then="confirm")
    async with agent(place) as client:
        held = await client.call_tool("probe_query", {"words": "x"})
    assert held.structured_content is not None
    approval = held.structured_content["approval"]["id"]
    decide(place, approval, Decision.APPROVE)
    reopened(with_connector(place, "probe", PROBE.replace("GET /search", "GET /everything")))
    async with agent(place) as client:
        again = await client.call_tool("probe_query", {"words": "x"})
    assert again.is_error
    assert open_upstream.requests == []
    assert leak(again.model_dump_json(), SECRET) is None
