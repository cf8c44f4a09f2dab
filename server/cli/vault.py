"""`keyleash vault …`: whether the vault is open, which keys it stands on, and new ones in their place."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, Yes, opened, operators_name, require_operator
from server.cli.output import counted, moment, progress, say, show_fields, show_json, show_table, show_text
from server.cli.terminal import require_yes

if TYPE_CHECKING:
    from server.app import Installation
    from server.rotation import RootRotated
    from vault import RootKeyRef, VaultStatus

app = typer.Typer(no_args_is_help=True, help="Credentials at rest, and the keys that they are under.")


@app.callback()
def group() -> None:
    """Credentials at rest, and the keys that they are under."""


@app.command("status")
def status(json: AsJson = False) -> None:
    """Say whether the vault is open, which keys there are since when, and how much is under each. Needs no key.

    What was removed and still stands in the files is tried again.
    """
    with opened(as_operator=True) as installation:
        shown = _status(installation)
    if json:
        show_json(shown)
        return
    show_fields(
        {
            "vault": f"sealed: {shown['reason']}" if shown["sealed"] else "open",
            "root key": f"{shown['provider']}, {shown['location']}",
            "since": shown["since"],
            "rotation": shown["unfinished"],
            "removed, and still in the files": [f"{one['org']}: {one['what']}" for one in shown["pending"]] or None,
        }
    )
    show_table(
        ("ROOT KEY", "KEPT IN", "SINCE", "ORG KEYS UNDER IT", "STATE"),
        (
            (r["generation"], f"{r['provider']}, {r['location']}", moment(r["since"]), r["org_keys"], r["state"])
            for r in shown["roots"]
        ),
        empty="There is no root key. Run `keyleash init`.",
        under=("KEPT IN",),
    )
    show_table(
        ("ORG", "KEY", "SINCE", "ROOT KEY", "CREDENTIALS UNDER IT", "TEXTS UNDER IT"),
        (
            (org["org"], key["version"], moment(key["since"]), key["root"], key["credentials"], key["texts"])
            for org in shown["orgs"]
            for key in org["keys"]
        ),
        empty="No org has a key yet.",
    )


@app.command("rotate-root")
def rotate_root(yes: Yes = False, json: AsJson = False) -> None:
    """Make a new root key beside the one in use, and put every org's key under it while calls go on.

    With a key service everything is wrapped anew, under the newest version of its key there. One that was begun and
    not finished is finished.
    """
    from server.app import own_root_place
    from server.rotation import unfinished_root
    from vault import root_key_spec

    with opened(as_operator=True) as installation:
        require_operator(installation, "rotating the root key")
        begun, home = unfinished_root(installation.database), installation.settings.home
        if begun is None:
            current = installation.database.snapshot(installation.vault.status).roots[-1]
            place = own_root_place(home, current.provider, current.location).successor(current.generation + 1)
        else:
            place = root_key_spec(f"{begun.provider}:{begun.location}", home)  # as it was written down
        question = f"Put every org's key under a new root key ({place.provider}, {place.location})?"
        require_yes(question if begun is None else f"Finish the move to {place.provider}, {place.location}?", yes=yes)
        done = _moved_to(installation, place)
    _show_root(done, json=json)


@app.command("rewrap")
def rewrap(
    to: Annotated[
        str, typer.Option("--to", metavar="PLACE", help="Where the new root key is to live, as `init --root` takes it.")
    ],
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Move to a root key in another place, from a file to a key service for instance, while calls go on."""
    from vault import root_key_spec

    with opened(as_operator=True) as installation:
        require_operator(installation, "moving to another root key")
        place = root_key_spec(to, installation.settings.home)
        require_yes(f"Put every org's key under a root key in {place.provider}, {place.location}?", yes=yes)
        done = _moved_to(installation, place)
    _show_root(done, json=json)


@app.command("drop-root")
def drop_root(
    generation: Annotated[int, typer.Argument(min=1, max=2**31, help="Which, as `vault status` numbers them.")],
    yes: Yes = False,
    json: AsJson = False,
) -> None:
    """Destroy a root key that nothing is under any more. Backups from its time can then not be opened."""
    from server.app import root_place
    from server.rotation import destroy_root, drop_root

    with opened(as_operator=True) as installation:
        require_operator(installation, "dropping a root key")
        require_yes(
            f"Destroy the root key of generation {generation}? Backups that were made under it cannot be opened then.",
            yes=yes,
        )
        dropped = drop_root(installation.database, generation, by=operators_name())
        place = root_place(installation.settings.home, dropped.provider, dropped.location)
        kept = destroy_root(installation.database, dropped, place, home=installation.settings.home)
    if json:
        show_json({"generation": generation, **place.describe(), "destroyed": kept is None, "why_not": kept})
        return
    show_text(f"Dropped the root key of generation {generation}.")
    if kept is not None:
        say(f"No key was destroyed ({place.provider}, {place.location}): {kept}")


@app.command("rotate-org")
def rotate_org(name: Annotated[str, typer.Argument(metavar="ORG")], yes: Yes = False, json: AsJson = False) -> None:
    """Give an org a new key, put all its credentials and sealed texts under it while calls go on, drop the old one."""
    from server.cli.erasing import erased, whether_gone
    from server.rotation import rotate_org

    with opened(as_operator=True) as installation:
        require_operator(installation, "rotating an org's key")
        org = installation.directory.org(name)
        require_yes(f"Give {org.name} a new key, and put everything that is sealed for it under that?", yes=yes)
        with progress("Sealing anew", None) as report:
            done = rotate_org(installation.database, installation.vault, org.id, by=operators_name(), progress=report)
        gone = erased(installation, org.id, f"key-{done.version - 1}")
    if json:
        show_json({"org": org.name, **done._asdict(), "erased": gone})
        return
    again = " An earlier run had begun it." if done.resumed else ""
    show_text(
        f"{org.name} has a new key (version {done.version}). Put under it: {counted(done.credentials, 'credential')}, "
        f"{counted(done.texts, 'text')}. Dropped: {counted(done.dropped, 'earlier key')}.{again}"
    )
    say(whether_gone(installation, "What was wrapped by the earlier key", gone=gone))


def _moved_to(installation: "Installation", place: "RootKeyRef") -> "RootRotated":
    from server.erasure import attempt
    from server.rotation import rotate_root

    total = sum(root.org_keys for root in installation.database.snapshot(installation.vault.status).roots)
    with progress("Moving the orgs' keys", total) as report:
        done = rotate_root(installation.database, installation.vault, place, by=operators_name(), progress=report)
    attempt(installation.database)  # what is still held back, `vault status` shows and tries again
    return done


def _show_root(done: "RootRotated", *, json: bool) -> None:
    if json:
        show_json(done._asdict())
        return
    again = " An earlier run had begun it." if done.resumed else ""
    show_text(
        f"The root key is now generation {done.generation}, in {done.provider}, {done.location}. Put under it: "
        f"{counted(done.moved, 'org key')}.{again}"
    )
    say(
        "Back it up (`keyleash vault export-recovery`). The one before is kept, because backups from its time need it; "
        "`keyleash vault drop-root` destroys it."
    )


def _status(installation: "Installation") -> dict[str, Any]:
    from server.clock import iso
    from server.erasure import attempt
    from server.rotation import unfinished_root
    from server.sealed import texts_under

    directory = installation.directory
    names = {org.id: org.name for org in (*directory.removed_orgs(), *directory.orgs())}
    status, texts = installation.database.snapshot(
        lambda rows: (installation.vault.status(rows), {(o, v): n for o, v, n in texts_under(rows)})
    )
    begun = unfinished_root(installation.database) if status.roots else None
    waiting = [
        {"org": names.get(one.org, one.org), "what": f"{one.what} {one.name}", "since": iso(one.requested_at)}
        for one in attempt(installation.database)
    ]
    return {**_as_json(status, names, texts, begun is not None), "pending": waiting}


def _as_json(
    status: "VaultStatus", names: dict[str, str], texts: dict[tuple[str, int], int], unfinished: bool
) -> dict[str, Any]:
    from server.clock import iso

    half = [names.get(org, org) for org, keys in status.orgs.items() if len(keys) > 1]
    begun = ["of the root key (`keyleash vault rotate-root`)"] * unfinished
    begun += [f"of the key of {org} (`keyleash vault rotate-org {org}`)" for org in half]
    return {
        "sealed": status.sealed is not None,
        "reason": status.sealed,
        "provider": status.provider,
        "location": status.location,
        "since": None if status.since is None else iso(status.since),
        "unfinished": f"begun and not finished: {'; '.join(begun)}" if begun else None,
        "roots": [
            {
                "generation": root.generation,
                "provider": root.provider,
                "location": root.location,
                "since": iso(root.since),
                "org_keys": root.org_keys,
                "state": "retired" if root.retired_at else "in use" if root.ready else "being prepared",
            }
            for root in status.roots
        ],
        "orgs": [
            {
                "org": names.get(org, org),
                "key_versions": len(keys),
                "credential_versions": sum(key.credentials for key in keys),
                "keys": [
                    {
                        "version": key.version,
                        "since": iso(key.since),
                        "root": key.root,
                        "credentials": key.credentials,
                        "texts": texts.get((org, key.version), 0),
                    }
                    for key in keys
                ],
            }
            for org, keys in sorted(status.orgs.items(), key=lambda item: names.get(item[0], item[0]))
        ],
    }
