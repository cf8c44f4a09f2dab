"""`keyleash channel …`: places that are told when a call waits for a person. None of them can decide it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, Desk, OrgName, Yes, at_desk, require_open
from server.cli.output import say, show_fields, show_json, show_table, show_text, warn
from server.cli.terminal import ask_hidden, require_yes

if TYPE_CHECKING:
    from server.approval.outbox import Happening
    from server.policy import Ruling
    from server.webhooks import Hook, Plan
    from vault import Secret

app = typer.Typer(no_args_is_help=True, help="Places that are told when a call waits for a person.")

Name = Annotated[str, typer.Argument(metavar="NAME")]
Url = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", help="Where to; only if nothing in it is secret. Leave it out to be asked."),
]
FromStdin = Annotated[
    bool, typer.Option("--url-stdin", help="Read the URL from standard input: chat tools' URLs are secrets.")
]
Private = Annotated[
    list[str] | None,
    typer.Option("--allow-private", metavar="CIDR", help="Private addresses it may lead to. The operator's."),
]
OTHERWISE = "Or give the URL with `--url-stdin`, or with `--url` if nothing in it is secret."


@app.command("add")
def add_channel(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="webhook")],
    name: Name,
    url: Url = None,
    url_stdin: FromStdin = False,
    event: Annotated[
        list[str] | None,
        typer.Option(
            "--event",
            help="What is told: opened, decided, expired, unknown, budget (all five); checkpoint. Repeat, or commas.",
        ),
    ] = None,
    ruling: Annotated[
        list[str] | None,
        typer.Option(
            "--ruling",
            help="Of which calls: approve (the default), confirm (most are asked of the person at the client at once).",
        ),
    ] = None,
    allow_private: Private = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Add a place that is told. Its signing secret is shown once: the receiver checks with it who is speaking."""
    from server.webhooks import KIND, create

    if kind != KIND:
        raise typer.BadParameter(f"There is no kind {kind!r} of channel to add. There is {KIND}.")
    events, rulings = _events(event), _rulings(ruling)
    with at_desk(org, as_member, "manage channels") as desk:
        _require_able(desk, allow_private)
        planned, target = _target(url, stdin=url_stdin, private=allow_private or ())
        desk.have_keys_at_hand()
        with target:
            hook, signing = desk.database.write_now(
                lambda rows: create(
                    rows,
                    desk.installation.vault,
                    desk.org.id,
                    planned,
                    target,
                    name=name,
                    events=events,
                    rulings=rulings,
                    by=desk.by,
                )
            )
        if json:
            show_json({**_as_json(desk, hook), "signing_secret": signing})
            return
        show_text(f"Added {hook.name} ({hook.address}). Its signing secret, which is not shown again:\n{signing}")
        say(f"Try it: keyleash channel test {hook.name}")
        if not desk.installation.settings.public_url:
            say("Without KEYLEASH_PUBLIC_URL, where `keyleash serve` runs, what is told carries no link.")


@app.command("list")
def list_channels(org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """List the places that are told."""
    from server.webhooks import hooks_of

    with at_desk(org, as_member, "look around") as desk:
        shown = [_as_json(desk, hook) for hook in hooks_of(desk.database, desk.org.id)]
    if json:
        show_json(shown)
        return
    show_table(
        ("NAME", "KIND", "WHERE", "TOLD", "OF", "STATUS", "WAITING"),
        (
            (
                one["name"],
                one["kind"],
                one["address"],
                ", ".join(one["events"]),
                ", ".join(one["rulings"]),
                one["status"],
                one["waiting"],
            )
            for one in shown
        ),
        empty="Nobody is told when a call waits: `keyleash channel add webhook NAME`.",
        prose=("TOLD", "OF"),
        under=("TOLD", "OF"),
    )


@app.command("show")
def show_channel(name: Name, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Show one place and how telling it goes. Its URL and its secret cannot be shown to anybody."""
    from server.webhooks import hook_named

    with at_desk(org, as_member, "look around") as desk:
        shown = _as_json(desk, hook_named(desk.database, desk.org.id, name))
    if json:
        show_json(shown)
    else:
        show_fields(shown)


@app.command("test")
def test_channel(name: Name, org: OrgName = None, as_member: AsMember = None, json: AsJson = False) -> None:
    """Send a message that says that it is a test; exit code 1 where it was not taken."""
    from server.webhooks import hook_named, tested

    with at_desk(org, as_member, "manage channels") as desk:
        require_open(desk.installation)
        hook = hook_named(desk.database, desk.org.id, name)
        desk.have_keys_at_hand()
        problem = _sent(desk, hook)
        desk.database.write_now(lambda rows: tested(rows, hook, problem=problem, by=desk.by))
    if json:
        show_json({"name": hook.name, "ok": problem is None, "message": problem})
    elif problem is None:
        show_text(f"{hook.name} has taken a test message.")
    else:
        warn(f"{hook.name} has not taken it: {problem}.")
    raise typer.Exit(0 if problem is None else 1)


@app.command("rotate")
def rotate_channel(
    name: Name,
    new_url: Annotated[bool, typer.Option("--new-url", help="Ask for a new URL, too, without showing it.")] = False,
    url: Url = None,
    url_stdin: FromStdin = False,
    allow_private: Private = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Give a place a new signing secret, which counts at once, and a new URL if you like. It is enabled again.

    What the receiver refuses until it knows the new secret is sent again, for up to a day.
    """
    from server.cli.erasing import erased, whether_gone
    from server.webhooks import hook_named, rotate

    elsewhere = new_url or url is not None or url_stdin
    if allow_private and not elsewhere:
        raise typer.BadParameter("--allow-private goes with a new URL: --new-url, --url or --url-stdin.")
    with at_desk(org, as_member, "manage channels") as desk:
        _require_able(desk, allow_private)
        hook = hook_named(desk.database, desk.org.id, name)
        planned, target = _target(url, stdin=url_stdin, private=allow_private or ()) if elsewhere else (None, None)
        desk.have_keys_at_hand()
        vault = desk.installation.vault
        signing = desk.database.write_now(lambda rows: rotate(rows, vault, hook, planned, target, by=desk.by))
        gone = erased(desk.installation, hook.org, hook.id)
        if json:
            shown = _as_json(desk, hook_named(desk.database, desk.org.id, name))
            show_json({**shown, "signing_secret": signing, "erased": gone})
            return
    show_text(f"{hook.name} has a new signing secret, which is not shown again:\n{signing}")
    say(whether_gone(desk.installation, "The earlier one", gone=gone))


@app.command("remove")
def remove_channel(
    name: Name, yes: Yes = False, org: OrgName = None, as_member: AsMember = None, json: AsJson = False
) -> None:
    """Remove a place, with its URL, its secret, and what it has still to be told."""
    from server.cli.erasing import erased, say_of_backups, whether_gone
    from server.webhooks import hook_named, remove

    with at_desk(org, as_member, "manage channels") as desk:
        hook = hook_named(desk.database, desk.org.id, name)
        require_yes(f"Remove {hook.name} ({hook.address})?", yes=yes)
        desk.database.write_now(lambda rows: remove(rows, desk.installation.vault, hook, by=desk.by))
        gone = erased(desk.installation, hook.org, hook.id)
        if json:
            show_json({"name": hook.name, "id": hook.id, "erased": gone})
        else:
            show_text(f"Removed {hook.name}. {whether_gone(desk.installation, 'Its URL, with its secret,', gone=gone)}")
        say_of_backups(desk.installation)


def _require_able(desk: Desk, allow_private: list[str] | None) -> None:
    if allow_private:
        desk.require_operator("opening private addresses to a channel (`--allow-private`)")
    require_open(desk.installation)


def _target(url: str | None, *, stdin: bool, private: "list[str] | tuple[()]") -> "tuple[Plan, Secret]":
    """The URL, from where it was given, checked. Raises ChannelProblem, ConnectionProblem or terminal.NoTerminal."""
    from server.cli.credential import from_stdin
    from server.webhooks import ChannelProblem, plan
    from vault import Secret

    if url is not None and stdin:
        raise typer.BadParameter("Give --url or --url-stdin, not both.")
    if url is not None and _looks_secret(url):
        raise ChannelProblem(
            "This URL looks as if it were a secret itself, as chat tools' are, and nothing was done with it. Arguments "
            "stay in the shell's history and other programs can read them: have the tool make another URL. Then leave "
            "--url out to be asked for it, or give it with `--url-stdin`."
        )
    if url is not None:
        target = Secret({"secret": url})
    elif stdin:
        with from_stdin() as given:
            target = Secret({"secret": given.reveal().strip()})
    else:
        target = Secret({"secret": ask_hidden("The webhook's URL: ", otherwise=OTHERWISE).strip()})
    return plan(target.reveal(), private), target


def _looks_secret(url: str) -> bool:
    """Whether a part of it is long and random enough to be one, or it has a query, which is for secrets mostly."""
    path = url.partition("://")[2]
    parts = [part for part in path.replace("?", "/").split("/")[1:] if len(part) >= 16]
    return "?" in url or any(
        any(char.isdigit() for char in part) and any(char.isalpha() for char in part) for part in parts
    )


def _sent(desk: Desk, hook: "Hook") -> str | None:
    """What is wrong with a webhook; None where it takes a message."""
    import asyncio

    from connectors.egress import Egress
    from server.delivery import send
    from server.identity import new_id
    from server.webhooks import message, take_target, trial_facts

    vault = desk.installation.vault
    taken = desk.database.snapshot(lambda rows: take_target(rows, vault, hook))

    async def run() -> str | None:
        async with Egress() as egress:
            failed = await send(egress, hook, taken, message(new_id("ntf"), trial_facts(desk.org.name), ""))
            return failed.why if failed else None

    return asyncio.run(run())


def _events(given: list[str] | None) -> "list[Happening]":
    from server.approval.outbox import UNLESS_NAMED, Happening

    return _chosen(given, {one.value: one for one in Happening}, list(UNLESS_NAMED), "--event")


def _rulings(given: list[str] | None) -> "list[Ruling]":
    from server.policy import Ruling
    from server.webhooks import RULINGS

    return _chosen(given, {one.value: one for one in RULINGS}, [Ruling.APPROVE], "--ruling")


def _chosen(given: list[str] | None, known: dict[str, Any], otherwise: list[Any], option: str) -> list[Any]:
    names = [part.strip() for text in given or () for part in text.split(",") if part.strip()]
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option} {name!r} is none of {', '.join(known)}.")
    return [one for name, one in known.items() if name in names] or otherwise


def _as_json(desk: Desk, hook: "Hook") -> dict[str, Any]:
    from server.clock import iso
    from server.webhooks import waiting

    count, since = waiting(desk.database, hook)
    return {
        "name": hook.name,
        "kind": hook.kind,
        "address": hook.address,
        "private": list(hook.private),
        "events": list(hook.events),
        "rulings": list(hook.rulings),
        "status": "enabled" if hook.disabled_at is None else "disabled",
        "disabled_why": hook.disabled_why,
        "waiting": count,
        "waiting_since": None if since is None else iso(since),
        "delivered_at": None if hook.delivered_at is None else iso(hook.delivered_at),
        "failed_at": None if hook.failed_at is None else iso(hook.failed_at),
        "failure": hook.failure,
        "given_up": hook.given_up,
        "given_up_at": None if hook.given_up_at is None else iso(hook.given_up_at),
        "created_by": hook.created_by,
        "created_at": iso(hook.created_at),
    }
