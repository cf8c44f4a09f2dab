"""`keyleash connector list`, `show` and `check`: what can be connected, whether or not there is an installation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson
from server.cli.output import say, show_fields, show_json, show_table, show_text, warn

if TYPE_CHECKING:
    from connectors.catalogue import Catalogue
    from connectors.definition import Connector, CredentialKind, Tool

app = typer.Typer(no_args_is_help=True, help="What can be connected.")


@app.command("list")
def list_connectors(json: AsJson = False) -> None:
    """List what can be connected."""
    catalogue = _catalogue()
    for problem in catalogue.problems:
        warn(f"left out: {problem}")
    found = sorted(catalogue.connectors.values(), key=lambda connector: connector.id)
    if json:
        show_json([{"id": c.id, "title": c.title, "tools": len(c.tools), "file": c.file} for c in found])
        return
    show_table(
        ("ID", "TITLE", "TOOLS", "FILE"),
        ((c.id, c.title, len(c.tools), c.file) for c in found),
        empty="There are no connectors. Install Keyleash again.",
        prose=("TITLE",),
        under=("FILE",),
    )


@app.command("show")
def show_connector(connector: Annotated[str, typer.Argument()], json: AsJson = False) -> None:
    """Show a connector: how it signs in, and its tools with their effects and arguments."""
    found = _catalogue().connector(connector)
    if json:
        show_json(_connector_as_json(found))
        return
    address = found.base_url
    if found.own_url:
        address = f"your own, for instance {found.example_url}" if found.example_url else "give yours with --base-url"
    reviewed = {} if _is_shipped(found) else {"reviewed": "yes" if found.reviewed else "no"}
    show_fields({"id": found.id, "title": found.title, "address": address, "file": found.file} | reviewed)
    show_table(
        ("CREDENTIAL", "FIELDS", "HOW TO GET IT"),
        ((kind.id, _fields_of(kind), kind.help) for kind in found.credentials),
        empty="It needs no credential.",
        prose=("FIELDS", "HOW TO GET IT"),
    )
    show_table(
        ("TOOL", "EFFECT", "SHARED", "ARGUMENTS (* REQUIRED)", "TITLE"),
        (
            (tool.name, tool.effect.value, "yes" if tool.shared else "", _arguments(tool), tool.title)
            for tool in found.tools.values()
        ),
        empty="It has no tools.",
        prose=("ARGUMENTS (* REQUIRED)", "TITLE"),
    )
    for kind in found.credentials:
        if kind.oauth is not None:
            show_fields({"oauth": kind.id, **_oauth_of_kind(kind)})
    for deprecation in found.deprecations:
        warn(f"{deprecation.date}: {deprecation.what} {deprecation.see}".rstrip())


@app.command("check")
def check_connector(file: Annotated[Path, typer.Argument(metavar="FILE")], json: AsJson = False) -> None:
    """Check a connector file, and say by line what is wrong with it."""
    from connectors.errors import DefinitionError
    from connectors.loading import load

    try:
        found = load(file)
        left = _left_to_do(file, found)
    except DefinitionError as problem:
        if not json:
            raise
        show_json({"ok": False, "file": problem.file, "line": problem.line, "message": str(problem)})
        raise typer.Exit(1) from None
    if json:
        to_do = [{"line": line, "what": what} for line, what in left]
        show_json({"ok": True, "file": str(file), "id": found.id, "tools": len(found.tools), "to_do": to_do})
    else:
        show_text(f"{file} is a sound connector file: {found.title}, {len(found.tools)} tools.")
        for line, what in left:
            say(f"{file}:{line}: {what}")


def _left_to_do(file: Path, connector: "Connector") -> list[tuple[int, str]]:
    """What an import left for a person, by line, that still stands."""
    found: list[tuple[int, str]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("base_url:") and connector.own_url and not connector.example_url:
            found.append((number, "`.invalid` stands for an address that nobody knows yet: write the real one."))
        if "# CHECK" in line:
            found.append((number, "a `# CHECK` stands here: do as it says, then remove it."))
        if line.startswith("reviewed:") and not connector.reviewed:
            found.append((number, "`reviewed: false`: read every tool, then set `reviewed: true`."))
    return found


def _is_shipped(connector: "Connector") -> bool:
    from connectors.catalogue import shipped_folder

    return (shipped_folder() / f"{connector.id}.yaml").exists()


def _catalogue() -> "Catalogue":
    """Every connector, whether or not there is an installation."""
    from connectors.catalogue import Catalogue, shipped_folder
    from server.settings import read_settings

    return Catalogue.load(shipped_folder(), read_settings().connectors)


def _fields_of(kind: "CredentialKind") -> str:
    return ", ".join(field.name for field in kind.fields)


def _oauth_of_kind(kind: "CredentialKind") -> dict[str, Any]:
    """What a person needs to know to register an app."""
    from server.oauth.consent import DEFAULT_REDIRECT

    oauth = kind.oauth
    if oauth is None:
        return {}
    return {
        "grant": oauth.grant,
        "redirect": DEFAULT_REDIRECT if oauth.grant == "code" else None,
        "authorize": oauth.authorize or None,
        "token": oauth.token,
        "revoke": oauth.revoke.url if oauth.revoke else None,
        "register": oauth.register or None,
        "scopes": list(oauth.scopes),
        "pkce": oauth.pkce,
    }


def _connector_as_json(connector: "Connector") -> dict[str, Any]:
    return {
        "id": connector.id,
        "title": connector.title,
        "reviewed": connector.reviewed,
        "base_url": None if connector.own_url else connector.base_url,
        "example_url": connector.example_url or None,
        "file": connector.file,
        "credentials": [
            {
                "id": kind.id,
                "label": kind.label,
                "help": kind.help,
                "fields": [{"name": field.name, "label": field.label, "secret": field.secret} for field in kind.fields],
                "oauth": _oauth_of_kind(kind) if kind.oauth else None,
            }
            for kind in connector.credentials
        ],
        "tools": [
            {
                "name": tool.name,
                "title": tool.title,
                "effect": tool.effect.value,
                "shared": tool.shared,
                "call": f"{tool.method} {tool.upstream or tool.path}",
                **({"document": tool.operation.document} if tool.operation else {}),
                "description": tool.description,
                "input_schema": _unfrozen(tool.input_schema),
            }
            for tool in connector.tools.values()
        ],
        "deprecations": [{"date": d.date, "what": d.what, "see": d.see} for d in connector.deprecations],
    }


def _arguments(tool: "Tool") -> str:
    return ", ".join(f"{argument.name}{'*' if argument.required else ''}" for argument in tool.arguments)


def _unfrozen(value: Any) -> Any:
    """Read-only mappings and tuples of a schema, as JSON takes them."""
    from collections.abc import Mapping

    if isinstance(value, Mapping):
        return {key: _unfrozen(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(value, list | tuple):
        return [_unfrozen(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
    return value
