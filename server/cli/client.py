"""`keyleash client add|remove|show`: put Keyleash into an MCP client's own settings, and take it out again."""

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.acting import AsJson, AsMember, OrgName, at_desk
from server.cli.output import say, show_json, show_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from server.cli.clients import Change, Client, Entry
    from server.database import Rows
    from server.identity import Agent

app = typer.Typer(no_args_is_help=True, help="Put Keyleash into an MCP client, and take it out again.")

IDS = "claude-code, claude-desktop, cursor, vscode, codex or gemini"
ClientName = Annotated[str, typer.Argument(metavar="CLIENT", help=IDS)]
AgentName = Annotated[
    str | None, typer.Option("--agent", metavar="NAME", help="The agent that the client is; named after it by default.")
]
Project = Annotated[
    Path | None,
    typer.Option("--project", metavar="DIR", help="The client's settings for this project, not the person's."),
]


@app.command("add")
def add_client(
    client: ClientName,
    agent: AgentName = None,
    project: Project = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Write Keyleash into a client's settings; the agent is created where there is none. All of it or nothing."""
    from server.cli.clients import add, remove
    from server.identity import create_agent

    known = _client(client)
    name = agent or known.id
    path = _path(known, project)
    with at_desk(org, as_member, "look around") as desk:
        found = _existing(desk.installation.directory.agents(desk.org.id), name)
        if found is None:
            desk.require("manage their own agents")
        else:
            desk.require_for(found)
        wanted = _entry(known, name, desk.installation.settings.home, desk.org.name)
        written: list[Change] = []

        def change(rows: "Rows") -> None:
            """The file is written inside the transaction: where that fails, the agent was never made."""
            if found is None:
                create_agent(rows, desk.org.id, name=name, member=desk.actor.member, by=desk.by)
            written.append(add(known, wanted, path))

        try:
            desk.database.write_now(change)
        except BaseException:
            if written and written[0].action == "added":
                remove(known, path, agent=name, keyleash_home=wanted.home, org=wanted.org)
            raise
    done = {**_change_as_json(known, written[0]), "agent": name, "agent_created": found is None}
    if json:
        show_json(done)
        return
    made = f" The agent {name} was created; it acts for {desk.actor.member.name}." if found is None else ""
    show_text(f"{known.title}: {written[0].action} `{written[0].name}` in {written[0].path}.{made}")
    if written[0].backup is not None:
        say(f"The file as it was is at {written[0].backup}.")
    say(known.afterwards)


@app.command("remove")
def remove_client(
    client: ClientName,
    agent: AgentName = None,
    project: Project = None,
    org: OrgName = None,
    as_member: AsMember = None,
    json: AsJson = False,
) -> None:
    """Take Keyleash out of a client's settings. The agent stays; `keyleash agent remove` removes it."""
    from server.cli.clients import ClientError, installed, remove

    known = _client(client)
    name = agent or known.id
    with at_desk(org, as_member, "manage their own agents") as desk:
        home = desk.installation.settings.home
        change = remove(known, _path(known, project), agent=name, keyleash_home=home, org=desk.org.name)
    if change.action == "absent" and (others := installed(known, change.path)):
        found = " and ".join(f"{one.agent} (`keyleash client remove {known.id} --agent {one.agent}`)" for one in others)
        raise ClientError(
            f"Nothing was removed: {change.path} has no entry for the agent {name}, but there is one for {found}."
        )
    if json:
        show_json({**_change_as_json(known, change), "agent": name})
    elif change.action == "absent":
        show_text(f"{known.title}: there is no entry for the agent {name} in {change.path}.")
    else:
        show_text(f"{known.title}: {change.action} {change.path}.")
        say(f"The agent {name} is still there. `keyleash agent remove {name}` removes it.")


@app.command("show")
def show_client(
    client: ClientName,
    agent: AgentName = None,
    project: Project = None,
    http: Annotated[
        str | None, typer.Option("--http", metavar="URL", help="For a server over HTTP at this address instead.")
    ] = None,
    token_env: Annotated[
        str, typer.Option("--token-env", metavar="NAME", help="With --http: the variable that holds the agent's token.")
    ] = "KEYLEASH_TOKEN",  # noqa: S107 - a variable's name
    org: OrgName = None,
    json: AsJson = False,
) -> None:
    """Print what to put into a client's settings, and where. Nothing is written, and nothing need exist."""
    from server.cli.clients import remote, snippet
    from server.settings import home

    known = _client(client)
    name = agent or known.id
    wanted = remote(http, token_env) if http else _entry(known, name, home(), org or _only_org())
    text, path = snippet(known, wanted), _path(known, project)
    if json:
        command = None if http else {"command": wanted.command, "args": wanted.args, "home": wanted.home}  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType] - an Entry without --http
        show_json({"client": known.id, "agent": name, "path": str(path), "snippet": text, "entry": command})
        return
    sys.stdout.write(text)
    if http is None:
        say(f"This belongs into {path}. `keyleash client add {known.id}` merges it for you.")
    else:
        asks = f"goes into the variable {token_env}" if token_env in text else f"is asked for by {known.title}"
        say(f"Put this into {path} by hand. The agent's token {asks}: `keyleash agent create NAME` shows one, once.")
    say(known.afterwards)


def keyleash_command() -> Path:
    """The absolute path of the command that this is, not following links: an upgrade may move what they lead to."""
    own = shutil.which(sys.argv[0])
    if own is not None and Path(own).stem == "keyleash":
        return Path(own).absolute()
    beside = shutil.which("keyleash", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("keyleash")
    return Path(found).absolute() if found else Path(sys.executable).parent / "keyleash"


def _client(name: str) -> "Client":
    from server.cli.clients import CLIENTS

    if name not in CLIENTS:
        raise typer.BadParameter(f"there is no client {name!r}. There are {', '.join(CLIENTS)}.")
    return CLIENTS[name]


def _path(client: "Client", project: Path | None) -> Path:
    folder = None if project is None else project.absolute()
    return client.config_path(Path.home(), sys.platform, folder, environ=os.environ)


def _entry(client: "Client", agent: str, home: Path, org: str | None) -> "Entry":
    from server.cli.clients import entry

    return entry(keyleash_command(), agent, home, org, _settings(os.environ))


FILES = (
    "KEYLEASH_TRANSIT_TOKEN_FILE",
    "KEYLEASH_TRANSIT_CA_FILE",
    "KEYLEASH_KV_TOKEN_FILE",
    "KEYLEASH_KV_CA_FILE",
    "KEYLEASH_OP_TOKEN_FILE",
    "KEYLEASH_OAUTH_APPS",
)
PLAIN = (
    "KEYLEASH_DATABASE",
    "KEYLEASH_TRANSIT_ADDR",
    "KEYLEASH_KV_ADDR",
    "KEYLEASH_PUBLIC_URL",
    "KEYLEASH_HOLD_SECONDS",
    "KEYLEASH_REFERENCE_SECONDS",
    "KEYLEASH_KEY_SECONDS",
    "KEYLEASH_KEEP_DAYS",
    "KEYLEASH_LIST_LIMIT",
)
"""With FILES, what a server that a client starts has to be told. The database's owner is for no server."""


def _settings(environ: "Mapping[str, str]") -> dict[str, str]:
    """What is set here and the server needs too. Raises ClientError where that is a secret."""
    from server.cli.clients import ClientError

    url = environ.get("KEYLEASH_DATABASE")
    if url:
        from server.postgres import has_password

        if has_password(url):
            raise ClientError(
                "KEYLEASH_DATABASE holds a password, which would stand in the client's file. Put it into ~/.pgpass "
                "(HOST:PORT:DATABASE:ROLE:PASSWORD, mode 0600), take it out of the URL, and try again."
            )
    plain = {name: environ[name] for name in PLAIN if environ.get(name)}
    return plain | {name: str(Path(environ[name]).expanduser().absolute()) for name in FILES if environ.get(name)}


def _existing(agents: "list[Agent]", name: str) -> "Agent | None":
    return next((agent for agent in agents if agent.name == name), None)


def _only_org() -> str | None:
    """The org's name where there is one installation with one org; showing works without."""
    from server.database import DatabaseProblem, open_database
    from server.identity import Directory, IdentityProblem
    from server.settings import read_settings

    database = open_database(read_settings())
    try:
        return Directory(database).org(None).name
    except (DatabaseProblem, IdentityProblem):
        return None
    finally:
        database.close()


def _change_as_json(client: "Client", change: "Change") -> dict[str, Any]:
    return {
        "client": client.id,
        "path": str(change.path),
        "name": change.name,
        "action": change.action,
        "backup": None if change.backup is None else str(change.backup),
    }
