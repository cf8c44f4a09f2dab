"""`keyleash vault status`: whether the vault is open, and why not where it is sealed."""

from typing import TYPE_CHECKING, Any

import typer

from server.cli.acting import AsJson, opened
from server.cli.output import show_fields, show_json

if TYPE_CHECKING:
    from vault import VaultStatus

app = typer.Typer(no_args_is_help=True, help="Credentials at rest.")


@app.callback()
def group() -> None:
    """Credentials at rest."""


@app.command("status")
def status(json: AsJson = False) -> None:
    """Say whether the vault is open, where its root key is, and what it holds. Needs no key."""
    with opened() as installation:
        names = {org.id: org.name for org in installation.directory.orgs()}
        shown = _as_json(installation.database.snapshot(installation.vault.status), names)
    if json:
        show_json(shown)
        return
    show_fields(
        {
            "vault": f"sealed: {shown['reason']}" if shown["sealed"] else "open",
            "root key": f"{shown['provider']}, {shown['location']}",
            "since": shown["since"],
            "org keys": [f"{org['org']} ({org['key_versions']})" for org in shown["orgs"]],
            "credentials": [f"{org['org']}: {org['credential_versions']}" for org in shown["orgs"]],
        }
    )


def _as_json(status: "VaultStatus", names: dict[str, str]) -> dict[str, Any]:
    from server.clock import iso

    return {
        "sealed": status.sealed is not None,
        "reason": status.sealed,
        "provider": status.provider,
        "location": status.location,
        "since": None if status.since is None else iso(status.since),
        "orgs": [
            {
                "org": names.get(org, org),
                "key_versions": versions,
                "credential_versions": sum(status.credentials.get(org, {}).values()),
            }
            for org, versions in sorted(status.org_keys.items(), key=lambda item: names.get(item[0], item[0]))
        ],
    }
