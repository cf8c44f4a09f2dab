"""Whether the leash holds and lets work go on: agents, approvers, who is told, calls that were lost."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from server.cli.checks.finding import Finding, Patient
from server.cli.output import counted

if TYPE_CHECKING:
    from connectors.catalogue import Offer
    from server.app import Installation
    from server.identity import Agent, Org
    from server.policy import Rule
    from server.settings import Settings
    from server.webhooks import Hook


LATE_MS = 10 * 60 * 1000


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

    if patient.installation is None:
        return
    directory = patient.installation.directory
    for org, rules, preset in _ruled(patient.installation):
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


def _ruled(installation: "Installation") -> "Iterator[tuple[Org, Sequence[Rule], Sequence[Rule]]]":
    """Every org with its own rules and its preset's, whose file is read once for all."""
    from server.policy import load_preset
    from server.rules import rules_of

    orgs = installation.directory.orgs()
    presets = {name: load_preset(name) for name in {org.preset for org in orgs}}
    for org in orgs:
        yield org, rules_of(installation.database, org.id), presets[org.preset]


def approvers(patient: Patient) -> Iterator[Finding]:
    """Every rule that asks for an approval reaches somebody who can give it."""
    from server.app import kept_by_one
    from server.approval.reaching import behind_one, first_of, gaps

    installation = patient.installation
    if installation is None:
        return
    keeper, said = kept_by_one(installation), dict[tuple[str, str], list[str]]()
    for org, own, preset in _ruled(installation):
        rules = [*own, *preset]
        database = installation.database.of(org.id)
        found = database.snapshot(lambda rows, org=org, rules=rules: gaps(rows, org.id, rules))
        if keeper is not None:
            found += database.snapshot(lambda rows, o=org, r=rules, k=keeper: behind_one(rows, o.id, r, k))
        for gap in found:
            said.setdefault(("warn" if gap.grave else "ok", gap.text), []).append(org.name)
        if not found:
            said.setdefault(("ok", "every rule that asks for an approval reaches somebody."), []).append(org.name)
    for (status, text), orgs in said.items():
        yield Finding("approvers", status, f"{first_of(orgs)}: {text}")


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
