"""`keyleash doctor`: look at everything that an installation stands on, and say how to mend what is wrong.

It changes nothing. Every check is a function in `CHECKS`; one that cannot be carried out never hides the others.
"""

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from server.cli.acting import AsJson
from server.cli.output import counted, plain, show_json, show_lines, width_of
from server.cli.tables import Sheet, laid_out

if TYPE_CHECKING:
    from connectors.catalogue import Offer
    from connectors.definition import CredentialKind, Deprecation
    from server.app import Installation
    from server.cli.clients import Installed
    from server.connections import Connection
    from server.erasure import Pending
    from server.identity import Agent
    from server.policy import Rule
    from server.settings import Settings
    from server.webhooks import Hook
    from vault import Secret

SOON = timedelta(days=90)
PACKAGES = ("server", "connectors", "vault")


@dataclass(frozen=True)
class Finding:
    """What one check found: `status` is ok, warn or fail; `message` says what to do where it is not ok."""

    check: str
    status: str
    message: str


@dataclass(frozen=True)
class Patient:
    """What is examined. `installation` is None where it cannot be opened."""

    settings: "Settings"
    installation: "Installation | None"


def doctor(json: AsJson = False) -> None:
    """Examine this installation and say how to mend what is wrong. Exit code 1 if anything is."""
    findings = examine()
    if json:
        show_json([{"check": one.check, "status": one.status, "message": one.message} for one in findings])
    else:
        _print(findings)
    raise typer.Exit(1 if any(one.status == "fail" for one in findings) else 0)


def examine() -> list[Finding]:
    """Every check's findings, in the order of CHECKS."""
    import logging

    from server.app import open_installation
    from server.database import DatabaseProblem
    from server.settings import read_settings

    settings = read_settings()
    logging.getLogger("keyleash").setLevel(logging.CRITICAL)  # what it would say is found below
    try:
        patient = Patient(settings, open_installation(settings))
    except DatabaseProblem as problem:
        patient = Patient(settings, None)
        unopened = [Finding("database", "fail", str(problem))]
    else:
        unopened = []
    try:
        return [*unopened, *(finding for check in CHECKS for finding in _carried_out(check, patient))]
    finally:
        if patient.installation is not None:
            patient.installation.close()


def _carried_out(check: Callable[[Patient], Iterator[Finding]], patient: Patient) -> list[Finding]:
    name = check.__name__.replace("_", " ")
    try:
        found = list(check(patient))
    except Exception as error:
        return [Finding(name, "fail", f"This could not be checked ({type(error).__name__}).")]
    return found


def schema(patient: Patient) -> Iterator[Finding]:
    if patient.installation is not None:
        from server.database import SCHEMA

        yield Finding("schema", "ok", f"The database is at schema {SCHEMA}, which is this release's.")


def files(patient: Patient) -> Iterator[Finding]:
    """Everything that Keyleash keeps is for its own user alone."""
    home = patient.settings.home
    if not home.is_dir():
        yield Finding("files", "fail", f"There is no folder {home}. Run `keyleash init`, or set KEYLEASH_HOME.")
        return
    if sys.platform == "win32":
        return
    open_home = bool(home.stat().st_mode & 0o077)
    clean = True
    for path in _kept(home):
        status = path.lstat()
        if status.st_uid != os.geteuid():
            clean = False
            yield Finding("files", "fail", f"{path} belongs to another user. Run Keyleash as its owner.")
        elif status.st_mode & 0o077:
            clean = False
            mode = "700" if stat.S_ISDIR(status.st_mode) else "600"
            # In a closed folder a wider mode opens nothing by itself; keys must be tight all the same.
            grave = open_home or "keys" in path.parts[-2:]
            mend = f"{path} can be read or written by others: chmod {mode} {path}"
            yield Finding("files", "fail" if grave else "warn", mend)
    if clean:
        yield Finding("files", "ok", f"{home} is for this user alone.")


def _kept(home: Path) -> Iterator[Path]:
    """The folders that hold secrets or the record, and the files right in them."""
    yield home
    noted = home / "checkpoints"
    for folder in (home / "data", home / "keys", home / "backups", noted, *sorted(noted.glob("*/"))):
        if folder.is_dir():
            yield folder
            yield from (path for path in sorted(folder.iterdir()) if path.is_file())


def ends_of_logs(patient: Patient) -> Iterator[Finding]:
    """No older database was put back, and no restore was cut off."""
    from server.audit import AuditError
    from server.audit.noted import NotedHeads
    from server.duty import RolledBack, require_current

    if patient.installation is None:
        return
    database = patient.installation.database
    try:
        require_current(database, patient.settings)
        doubts = NotedHeads(patient.settings.noted_heads).doubts(database)
    except (AuditError, RolledBack) as problem:
        doubts = [str(problem)]
    for doubt in doubts:
        yield Finding("ends of logs", "fail", doubt)
    if not doubts:
        yield Finding("ends of logs", "ok", "Every log goes as far as was signed or noted outside the database.")


def root_key(patient: Patient) -> Iterator[Finding]:
    """Whether the root key opens the vault now, which a key service may not let it."""
    from vault import VaultError

    if patient.installation is None:
        return
    database, vault = patient.installation.database, patient.installation.vault
    status = database.snapshot(vault.status)
    if vault.sealed is not None:
        yield Finding("root key", "fail", f"The vault is sealed: {vault.sealed}")
        return
    try:
        database.query(vault.check_root)
    except VaultError as problem:
        yield Finding("root key", "fail", f"Nothing can be opened just now. {problem}")
    else:
        yield Finding("root key", "ok", f"The root key ({status.provider}, {status.location}) opens the vault.")


def rotations(patient: Patient) -> Iterator[Finding]:
    """No rotation was begun and left: until it is finished, the key before is still needed."""
    from server.rotation import unfinished_root

    installation = patient.installation
    if installation is None:
        return
    database, vault = installation.database, installation.vault
    status = database.snapshot(vault.status)
    names = {org.id: org.name for org in installation.directory.orgs()}
    keys = {org: found.get(org, ()) for org in names for found in (database.of(org).snapshot(vault.status).orgs,)}
    if status.roots and unfinished_root(installation.database) is not None:
        begun = "A rotation of the root key was begun and not finished: keyleash vault rotate-root"
        yield Finding("rotations", "warn", begun)
    for org in (names.get(org, org) for org, versions in keys.items() if len(versions) > 1):
        begun = f"A rotation of the key of {org} was begun and not finished: keyleash vault rotate-org {org}"
        yield Finding("rotations", "warn", begun)


def keychain(patient: Patient) -> Iterator[Finding]:
    """Whether there is an OS keychain that could hold the root key."""
    from vault import RootKeyProblem, root_key_spec

    provider = ""
    if patient.installation is not None:
        provider = patient.installation.database.snapshot(patient.installation.vault.status).provider
    elsewhere = f"the root key is in {provider}" if provider else "use `keyleash init --root file`"
    try:
        root_key_spec("keychain", patient.settings.home).load()
    except RootKeyProblem as problem:
        if provider == "keychain":
            yield Finding("keychain", "fail", str(problem))
        elif "has no root key named" in str(problem):
            yield Finding("keychain", "ok", f"There is an OS keychain; {elsewhere}.")
        else:
            yield Finding("keychain", "ok", f"There is no OS keychain here: {elsewhere}.")
    else:
        yield Finding("keychain", "ok", "The OS keychain answers.")


def connectors(patient: Patient) -> Iterator[Finding]:
    """Files that cannot be read, and what their vendors have announced."""
    from connectors.catalogue import Catalogue, shipped_folder

    catalogue = Catalogue.load(shipped_folder(), patient.settings.connectors)
    for problem in catalogue.problems:
        yield Finding("connectors", "fail", f"A connector file is left out: {problem}")
    if not catalogue.problems:
        yield Finding("connectors", "ok", f"All {len(catalogue.connectors)} connector files can be read.")
    used = {connection.connector for _, connection in _connections(patient)}
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
    for org, connection in _connections(patient):
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


PLACES_AT_ONCE = 8


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
    for org, connection in _connections(patient):
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


def erasures(patient: Patient) -> Iterator[Finding]:
    """What was removed has left the files."""
    from server.clock import iso
    from server.erasure import pending

    if patient.installation is None:
        return
    directory = patient.installation.directory
    names = {org.id: org.name for org in (*directory.orgs(), *directory.removed_orgs())}
    waiting = pending(patient.installation.database)
    for one in waiting:
        yield Finding(
            "erasures",
            "warn",
            f"{names.get(one.org, one.org)}: {_erased(one)} was removed at {iso(one.requested_at)}, and its "
            "sealed bytes are still in the database's files: a process that reads an older state holds them there. "
            "Every removal, every running server and `keyleash vault status` try again. If it stays, end whatever "
            f"else has {patient.installation.database.name} open.",
        )
    if waiting:
        return
    if patient.installation.database.files:
        yield Finding("erasures", "ok", "Nothing that was removed is left in the database's files.")
    else:
        excluded = "PostgreSQL's own log, replicas and backups are not looked into"
        yield Finding("erasures", "ok", f"Nothing that was removed waits to be deleted; {excluded}.")


def _erased(one: "Pending") -> str:
    earlier = {"secret": "the earlier secret of", "address": "the earlier address and secret of the channel"}
    return f"{earlier.get(one.what, f'the {one.what}')} {one.name}"


def unknown_calls(patient: Patient) -> Iterator[Finding]:
    """Somebody has looked into every call of which nobody knew what became of it."""
    if patient.installation is None:
        return
    unknown, found = patient.installation.approvals.unknown, 0
    for org in patient.installation.directory.orgs():
        count = len(unknown.approvals(org.id)) + len(unknown.calls(org.id))
        found += count
        if count:
            calls = "1 call" if count == 1 else f"{count} calls"
            yield Finding(
                "unknown calls",
                "warn",
                f"{org.name}: nobody knows what became of {calls}. `keyleash approvals list` shows them; look into the "
                "account, then `keyleash approvals resolve ID` with --happened or --did-not.",
            )
    if not found:
        yield Finding("unknown calls", "ok", "What became of every call is known.")


def agents(patient: Patient) -> Iterator[Finding]:
    """Agents that can do nothing, and orgs that are frozen."""
    from server.clock import now_ms
    from server.connections import connections_of, offer_of
    from server.policy import load_preset
    from server.rules import rules_of

    if patient.installation is None:
        return
    directory = patient.installation.directory
    for org in directory.orgs():
        rules, preset = rules_of(patient.installation.database, org.id), load_preset(org.preset)
        offer = offer_of(patient.installation.catalogue, connections_of(patient.installation.database, org.id))
        if org.frozen_at is not None:
            yield Finding(
                "agents", "warn", f"{org.name} is frozen: no agent may call. keyleash unfreeze --org {org.name}"
            )
        for agent in directory.agents(org.id):
            if agent.expires_at is not None and agent.expires_at <= now_ms():
                yield Finding("agents", "warn", f"{org.name}: the agent {agent.name} has expired.")
            elif agent.member is not None and agent.member_name is None:
                yield Finding("agents", "warn", f"{org.name}: {agent.name} acts for a member who was removed.")
            elif agent.member is None and not _reaches_anything(agent, offer, rules, preset):
                yield Finding(
                    "agents",
                    "warn",
                    f"{org.name}: no rule lets the standalone agent {agent.name} call anything. For instance: "
                    f"keyleash policy add --who agent:{agent.name} --tools 'stripe.*' --effects read --then allow",
                )
    yield Finding("agents", "ok", "The agents of every org were looked at.")


def _reaches_anything(agent: "Agent", offer: "Offer", rules: Sequence["Rule"], preset: Sequence["Rule"]) -> bool:
    from server.policy import Ruling, Subject, possible

    subject = Subject(agent.id, None, standalone=True)
    if not offer.tools:  # nothing is connected yet: a rule about it will do
        return any(rule.then is not Ruling.DENY and str(rule.who) in subject.marks() for rule in rules)
    return any(possible(subject, one.connection, one.tool.name, one.tool.effect, rules, preset) for one in offer.tools)


def approvers(patient: Patient) -> Iterator[Finding]:
    """Every rule that asks for an approval reaches somebody who can give it."""
    from server.app import kept_by_one
    from server.approval.reaching import behind_one, gaps
    from server.policy import load_preset
    from server.rules import rules_of

    installation = patient.installation
    if installation is None:
        return
    keeper = kept_by_one(installation)
    for org in installation.directory.orgs():
        rules = [*rules_of(installation.database, org.id), *load_preset(org.preset)]
        database = installation.database.of(org.id)
        found = database.snapshot(lambda rows, org=org, rules=rules: gaps(rows, org.id, rules))
        if keeper is not None:
            found += database.snapshot(lambda rows, o=org, r=rules, k=keeper: behind_one(rows, o.id, r, k))
        for gap in found:
            yield Finding("approvers", "warn" if gap.grave else "ok", f"{org.name}: {gap.text}")
        if not found:
            yield Finding("approvers", "ok", f"{org.name}: every rule that asks for an approval reaches somebody.")


def channels(patient: Patient) -> Iterator[Finding]:
    """What is told arrives, and every URL and signing secret opens."""
    from server.webhooks import hooks_of

    installation = patient.installation
    if installation is None:
        return
    total = 0
    for org in installation.directory.orgs():
        for hook in hooks_of(installation.database, org.id):
            total += 1
            for problem in _of_channel(installation, hook):
                yield Finding("channels", "warn", f"{org.name}: the channel {hook.name} {problem}")
    if total:
        yield from _of_link(patient.settings)
    yield Finding("channels", "ok", f"{counted(total, 'channel')} looked at.")


def _of_link(settings: "Settings") -> Iterator[Finding]:
    """Whether the link leads to a page that is served; as far as this terminal is set up as the server is."""
    from urllib.parse import urlsplit

    if not settings.public_url:
        yield Finding("channels", "ok", "KEYLEASH_PUBLIC_URL is not set here: where it is not, no link is told.")
        return
    host = urlsplit(settings.public_url).hostname or ""
    if host not in ("127.0.0.1", "localhost", *settings.allowed_hosts):
        yield Finding(
            "channels",
            "warn",
            f"The link that is told leads to {host}, and a server answers to that name only where "
            f"KEYLEASH_ALLOWED_HOSTS has it: KEYLEASH_ALLOWED_HOSTS={host}",
        )


def _of_channel(installation: "Installation", hook: "Hook") -> Iterator[str]:
    from server.clock import iso, now_ms
    from server.webhooks import take_target, waiting
    from vault import CannotOpen, VaultError

    again = f"keyleash channel rotate {hook.name} --new-url"
    if hook.disabled_at is not None:
        yield f"is disabled since {iso(hook.disabled_at)}: {hook.disabled_why}. {again}"
    if hook.given_up_at is not None and hook.given_up_at > (hook.delivered_at or 0):
        yield f"was not told {hook.given_up} times; the last time: {hook.failure}. keyleash channel test {hook.name}"
    count, since = waiting(installation.database, hook)
    if since is not None and since < now_ms() - LATE_MS and hook.disabled_at is None:
        why = hook.failure or "no server is running that could"
        yield f"has {count} things still to be told, the first since {iso(since)}: {why}."
    try:
        sealed = installation.database.of(hook.org).snapshot(lambda rows: take_target(rows, installation.vault, hook))
        sealed().wipe()
    except CannotOpen:
        yield f"cannot be told anything: its URL and secret cannot be opened. {again}"
    except VaultError:
        return  # a key above it, which another check is about


LATE_MS = 10 * 60 * 1000


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


def memory(_patient: Patient) -> Iterator[Finding]:
    """Whether a crash, or another process of the same user, could show what this process holds."""
    from server.hygiene import memory_is_private

    missing = [what for what, held in memory_is_private().items() if not held]
    if missing:
        yield Finding(
            "memory", "warn", f"This platform does not give: {', '.join(missing)}. Run it under its own user."
        )
    else:
        yield Finding("memory", "ok", "Core dumps are off, and no other process of this user can read the memory.")


def packages(patient: Patient) -> Iterator[Finding]:
    """No other distribution brings a package of one of our names: whichever came last would win."""
    from server.cli.owners import owners_of

    owners = owners_of(PACKAGES)
    clean = True
    for name in PACKAGES:
        others = sorted({owner for owner in owners.get(name, []) if owner.lower() != "keyleash"})
        if others:
            clean = False
            yield Finding(
                "packages",
                "fail",
                f"{', '.join(others)} also installs a package called {name!r}. Install Keyleash by itself, for "
                "instance with `uv tool install` or `pipx install`.",
            )
    if clean:
        yield Finding("packages", "ok", "No other distribution owns server, connectors or vault.")


def clients(patient: Patient) -> Iterator[Finding]:
    """MCP clients whose entry starts a command that is not there, or another installation's."""
    from server.cli.clients import CLIENTS, ClientError, installed

    known = 0
    for client in CLIENTS.values():
        try:
            path = client.config_path(Path.home(), sys.platform, None, environ=os.environ)
            entries = installed(client, path)
        except ClientError as problem:
            yield Finding("clients", "warn", str(problem))
            continue
        for entry in entries:
            known += 1
            command = Path(entry.command)
            if not (command.is_file() and os.access(command, os.X_OK)):
                yield Finding(
                    "clients",
                    "fail",
                    f"{client.title} ({path}) starts {command}, which is not there. "
                    f"Run: keyleash client add {client.id} --agent {entry.agent}",
                )
            elif _lacks_database(patient, entry):
                yield Finding(
                    "clients",
                    "warn",
                    f"{client.title} ({path}) starts Keyleash without KEYLEASH_DATABASE, so it does not find what is "
                    f"in PostgreSQL. Run: keyleash client add {client.id} --agent {entry.agent}",
                )
            elif _agent_is_missing(patient, entry.agent, entry.home, entry.org):
                yield Finding(
                    "clients",
                    "warn",
                    f"{client.title} ({path}) serves the agent {entry.agent}, which there is not. "
                    f"Run: keyleash client add {client.id} --agent {entry.agent}",
                )
    yield Finding("clients", "ok", f"MCP clients' settings hold Keyleash {counted(known, 'time')}.")


def _lacks_database(patient: Patient, entry: "Installed") -> bool:
    here = entry.home is None or Path(entry.home) == patient.settings.home
    return patient.settings.database_url is not None and here and not entry.settings.get("KEYLEASH_DATABASE")


def _agent_is_missing(patient: Patient, agent: str, home: str | None, org: str | None) -> bool:
    if patient.installation is None or home is None or Path(home) != patient.settings.home:
        return False
    directory = patient.installation.directory
    return not any(
        one.name == agent
        for each in directory.orgs()
        if org in (None, each.name, each.id)
        for one in directory.agents(each.id)
    )


CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    files,
    schema,
    ends_of_logs,
    root_key,
    rotations,
    keychain,
    connectors,
    credentials,
    consents,
    definitions,
    erasures,
    unknown_calls,
    agents,
    approvers,
    channels,
    budgets,
    managed,
    memory,
    packages,
    clients,
)


def _connections(patient: Patient) -> Iterator[tuple[str, "Connection"]]:
    from server.connections import connections_of

    if patient.installation is not None:
        for org in patient.installation.directory.orgs():
            for connection in connections_of(patient.installation.database, org.id):
                yield org.name, connection


_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def _print(findings: list[Finding]) -> None:
    sheet = Sheet(
        heads=("STATUS", "CHECK", "MESSAGE"),
        rows=tuple((one.status, one.check, plain(one.message)) for one in findings),
        prose=frozenset([2]),
        headed=False,
        styles=tuple(f"bold {_COLOURS[one.status]}" for one in findings),
    )
    show_lines(laid_out(sheet, width_of(sys.stdout)))
