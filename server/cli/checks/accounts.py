"""Whether the connected accounts can be used: connector files, credentials, consents, definitions, limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from server.cli.checks.finding import Finding, Patient, connections_in
from server.cli.output import counted

if TYPE_CHECKING:
    from connectors.definition import CredentialKind, Deprecation
    from server.app import Installation
    from server.connections import Connection
    from server.settings import Settings
    from vault import Secret


SOON = timedelta(days=90)
PLACES_AT_ONCE = 8


def connectors(patient: Patient) -> Iterator[Finding]:
    """Files that cannot be read, and what their vendors have announced."""
    from connectors.catalogue import Catalogue, shipped_folder

    catalogue = Catalogue.load(shipped_folder(), patient.settings.connectors)
    for problem in catalogue.problems:
        yield Finding("connectors", "fail", f"A connector file is left out: {problem}")
    if not catalogue.problems:
        yield Finding("connectors", "ok", f"All {len(catalogue.connectors)} connector files can be read.")
    used = {connection.connector for _, connection in connections_in(patient)}
    for connector in (found for name, found in sorted(catalogue.connectors.items()) if name in used):
        for deprecation in connector.deprecations:
            yield from announced(connector.title, deprecation, datetime.now(UTC))


def announced(title: str, deprecation: "Deprecation", now: datetime) -> Iterator[Finding]:
    """A deprecation that is near or past."""
    date = deprecation.date
    day = datetime.fromisoformat(date if len(date) > 7 else f"{date}-01").replace(tzinfo=UTC)
    if day <= now + SOON:
        when = f"since {date}" if day <= now else f"from {date} on"
        yield Finding("deprecations", "warn", f"{title}, {when}: {deprecation.what} {deprecation.see}".rstrip())


def credentials(patient: Patient) -> Iterator[Finding]:
    """Every secret opens for what it was sealed for, and every reference leads to one. Nothing is sent."""
    from concurrent.futures import ThreadPoolExecutor

    from vault import KeysUnavailable

    installation = patient.installation
    if installation is None or installation.vault.sealed is not None:
        return
    total, elsewhere = 0, list[Elsewhere]()
    for org, connection in connections_in(patient):
        total += 1
        try:
            found = _opened(installation, org, connection)
        except KeysUnavailable:  # of all the others too, and each would be waited for
            away = "Not looked at: the service that keeps the root key does not answer, or refuses."
            yield Finding("credentials", "warn", away)
            return
        if isinstance(found, Finding):
            yield found
        elif found is not None:
            elsewhere.append(found)
    with ThreadPoolExecutor(PLACES_AT_ONCE) as pool:  # one place may be slow
        for findings in pool.map(partial(_resolved, patient.settings), elsewhere):
            yield from findings
    yield Finding("credentials", "ok", f"{counted(total, 'connection')} {'was' if total == 1 else 'were'} looked at.")


@dataclass(frozen=True)
class Elsewhere:
    """A credential that a reference stands for."""

    org: str
    connection: "Connection"
    kind: "CredentialKind"
    reference: "Secret"


def _opened(installation: "Installation", org: str, connection: "Connection") -> Finding | Elsewhere | None:
    """What is wrong with what is sealed for a connection; the reference, where it is one; None where all is well.

    Raises KeysUnavailable, which is not the connection's fault.
    """
    from server.connections import credential_kind, open_credential
    from server.credential import is_reference
    from vault import CannotOpen, KeysUnavailable, VaultError

    connector = installation.catalogue.connectors.get(connection.connector)
    if connector is None:
        needs = f"{org}: {connection.name} needs the connector {connection.connector}, which cannot be read."
        return Finding("connections", "fail", needs)
    group = "managed" if connection.managed else "connection"
    again = f"Give it again: keyleash {group} rotate {connection.name} --org {org}"
    try:
        kind = credential_kind(connection, connector)
    except CannotOpen:
        moved = (
            f"{org}: the file {connector.file} now puts the secret of {connection.name} in another place of a request "
            f"than the one it was given for, so it is not sent. Put the file back as it was. Or: {again}"
        )
        return Finding("credentials", "fail", moved)
    try:
        sealed = installation.database.of(connection.org).snapshot(
            lambda rows: open_credential(rows, installation.vault, connection)
        )
        if is_reference(connection, sealed):
            return Elsewhere(org, connection, kind, sealed)
    except CannotOpen:
        return Finding("credentials", "fail", f"{org}: the secret of {connection.name} cannot be opened. {again}")
    except KeysUnavailable:
        raise
    except VaultError as problem:  # a key above it: giving the secret again would not mend that
        return Finding("credentials", "fail", f"{org}: the secret of {connection.name} cannot be opened. {problem}")
    sealed.wipe()
    return None


def _resolved(settings: "Settings", one: Elsewhere) -> list[Finding]:
    """Whether a reference leads to a credential, in bounded time, and who else could read it on the way."""
    from server.credential import resolved, resolver_of
    from vault import CannotResolve

    resolver = resolver_of(settings)
    name = f"{one.org}: the secret of {one.connection.name} stays elsewhere ({one.connection.source})"
    with one.reference:
        found = [
            Finding("credentials", "warn", f"{name}, and every user of this machine can read {file}: chmod o-r it.")
            for file in resolver.open_to_all(one.reference)
        ]
        try:
            resolved(resolver, one.kind, one.reference).wipe()
        except CannotResolve as problem:
            if one.connection.source == "env":  # a server has an environment of its own
                unknown = f"{name} and is not set here; whether it is where the server runs cannot be told from here."
                return [*found, Finding("credentials", "warn", unknown)]
            return [*found, Finding("credentials", "fail", f"{name} and cannot be had from there: {problem}")]
    if one.connection.source == "env":
        there = f"{name} and is set here; a server reads it in its own environment."
        found.append(Finding("credentials", "ok", there))
    return found


def definitions(patient: Patient) -> Iterator[Finding]:
    """Tools of wrapped servers that are held, because nobody has reviewed what their server says now."""
    from server.held import held_of, pinned_by

    if patient.installation is None:
        return
    installation = patient.installation
    for org in installation.directory.orgs():
        for held in held_of(installation.database, org.id):
            if pinned_by(held, installation.catalogue.connectors) is not None:
                what = "its server has it no more" if held.gone else "its server has changed it"
                look = f"keyleash connector review {held.name} --org {org.name}"
                yield Finding("definitions", "warn", f"{org.name}: {held.name}_{held.tool} is held: {what}: {look}")


def consents(patient: Patient) -> Iterator[Finding]:
    """Accounts that are signed in to by OAuth: whose tokens have ended, and which are still to be ended."""
    from server.cli.consent import needed
    from server.oauth.revoking import pending
    from server.oauth.tokens import standing

    if patient.installation is None:
        return
    database = patient.installation.database
    for org, connection in connections_in(patient):
        if connection.needs_consent_at is not None:
            again = f"{org}: {connection.name} needs {needed(connection)}, and none of its tools can work until then: "
            yield Finding("consents", "fail", f"{again}keyleash connection rotate {connection.name} --org {org}")
            continue
        held = standing(database, connection)
        if held is not None and held.failures:
            often = f"{org}: the token of {connection.name} could not be renewed {held.failures} times in a row. "
            yield Finding("consents", "warn", f"{often}`keyleash audit list` says why.")
        elif held is not None and held.expires_at is not None and not held.renewable:
            from server.clock import iso

            ends = f"{org}: {connection.name} has no refresh token, and ends at {iso(held.expires_at)}. Consent again "
            yield Finding("consents", "warn", f"{ends}then: keyleash connection rotate {connection.name} --org {org}")
    names = {org.id: org.name for org in patient.installation.directory.orgs()}
    for one in pending(database):
        why = one.reason or "not asked yet"
        yield Finding(
            "consents",
            "warn",
            f"{names.get(one.org, one.org)}: {one.name} was removed, and its provider has yet to end its tokens "
            f"({why}). A running server tries again. At once: end the app's access in the account's own settings.",
        )


def budgets(patient: Patient) -> Iterator[Finding]:
    """Which budgets are used up, so that calls wait for a person, and which are near their end."""
    from server.spending import all_standings

    if patient.installation is None:
        return
    total = 0
    for org in patient.installation.directory.orgs():
        for one in all_standings(patient.installation.database, org.id):
            total += 1
            change = f"`keyleash budget change {one.budget.id} --org {org.name}` makes it larger."
            if one.up:
                yield Finding("budgets", "warn", f"{org.name}: {one}: further calls wait for an approver. {change}")
            elif one.near:
                used = f"{one.budget.amount(one.used)} of the budget of {one.budget} are used"
                yield Finding("budgets", "warn", f"{org.name}: {used}. {change}")
    yield Finding("budgets", "ok", f"{counted(total, 'budget')} {'was' if total == 1 else 'were'} looked at.")


def managed(patient: Patient) -> Iterator[Finding]:
    """Which limits of the operator's accounts orgs have used up, or nearly."""
    from server.cli.offers import used_of
    from server.managed import NEAR, offered_to

    if patient.installation is None:
        return
    total = 0
    for org in patient.installation.directory.orgs():
        for each in offered_to(patient.installation.database, org.id):
            total += 1
            near = each.reached(percent=NEAR) if each.in_use else []
            words = ", ".join(f"{what} {used}" for name, (what, used) in used_of(each).items() if name in near)
            stops = "its calls are refused until the limit opens again" if each.reached() else "then it is refused"
            if near:
                change = f"`keyleash managed limit {each.name} --org {org.name}` with a number changes it."
                yield Finding("managed", "warn", f"{org.name} has used of {each.name}: {words}; {stops}. {change}")
    if total:
        yield Finding("managed", "ok", f"{counted(total, 'offer')} {'was' if total == 1 else 'were'} looked at.")
