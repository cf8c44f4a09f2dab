"""Put the parts together; the only place that knows all of them."""

import logging
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from connectors.catalogue import Catalogue, shipped_folder
from server.approval import Approvals, tending
from server.approval.reaching import Keeper
from server.audit.noted import NotedHeads
from server.clock import now_ms
from server.connections import Workspaces
from server.credential import resolver_of
from server.database import Database, DatabaseProblem, open_database, require_schema
from server.erasure import retrying
from server.held import note
from server.identity import Directory, system_user
from server.keeping import Conversations
from server.keys import Keys
from server.oauth import revoking
from server.oauth.apps import Apps
from server.oauth.renewal import Renewals
from server.pacing import Turns
from server.parts import Parts
from server.recorded import sweeping
from server.settings import Settings
from server.sqlite import require_here
from server.telemetry import everything, exporting, listened_to
from vault import KeysUnavailable, RootKey, RootKeyRef, Sealed, Vault, VaultError, root_key_spec

if TYPE_CHECKING:
    from connectors.egress import Egress
    from server.http import Door
    from server.identity import Caller
    from server.protocol import McpServer

log = logging.getLogger("keyleash")


def release() -> str:
    """This release's version; `0` where the code runs without being installed."""
    try:
        return version("keyleash")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True)
class Installation:
    """Everything that a command or a server works with."""

    settings: Settings
    database: Database
    vault: Vault
    directory: Directory
    catalogue: Catalogue
    workspaces: Workspaces
    approvals: Approvals

    def parts(self, egress: "Egress") -> Parts:
        """The rooms that a call passes through."""
        references = resolver_of(self.settings)
        return Parts(
            database=self.database,
            directory=self.directory,
            workspaces=self.workspaces,
            vault=self.vault,
            egress=egress,
            approvals=self.approvals,
            keys=Keys(self.database, self.vault),
            references=references,
            pace=Turns(self.settings.wait_seconds),
            conversations=Conversations(egress, self.directory, self.workspaces),
            renewals=Renewals(self.database, self.vault, egress, Apps(self.settings.oauth_apps), references),
            changed=partial(note, self.catalogue.connectors),
            telemetry=listened_to(),
        )

    def close(self) -> None:
        """Let go of the database."""
        self.database.close()


def open_installation(settings: Settings, *, as_operator: bool = False) -> Installation:
    """Open what `keyleash init` made; on PostgreSQL as the role that serves, or as the owner. Raises DatabaseProblem.

    Without the right root key the vault stays sealed: nothing can be opened, and it says why.
    """
    database = open_database(settings, as_operator=as_operator)
    require_schema(database)
    require_here(database)
    if not as_operator:
        require_kept_apart(database)
    catalogue = Catalogue.load(shipped_folder(), settings.connectors)
    for problem in catalogue.problems_in(settings.connectors):
        log.error("a connector file is left out: %s", problem)
    vault = open_vault(database, settings)
    return Installation(
        settings=settings,
        database=database,
        vault=vault,
        directory=Directory(database),
        catalogue=catalogue,
        workspaces=Workspaces(database, catalogue),
        approvals=Approvals(database, vault, hold_seconds=settings.hold_seconds),
    )


def require_kept_apart(database: Database) -> None:
    """Refuse a database that is to keep orgs apart and does not. Raises DatabaseProblem."""
    wrong_role = database.serves_as_owner()
    if wrong_role is not None:
        raise DatabaseProblem(wrong_role)
    found = database.faults()
    if found:
        raise DatabaseProblem(
            f"{database.name} would not keep orgs apart: {'; '.join(found)}. Give KEYLEASH_DATABASE a role that owns "
            "nothing, as docs/operating.md says, and run `keyleash upgrade`, which puts the policies back."
        )


def open_vault(database: Database, settings: Settings) -> Vault:
    """The vault of this database, open if the root key is there and is the right one, sealed otherwise.

    While its key service is away the vault is open all the same: calls are refused until it is back.
    """
    rows = database.read(
        "SELECT provider, location FROM vault_root WHERE check_blob IS NOT NULL ORDER BY id DESC LIMIT 1"
    )
    if not rows:
        return Vault(None, why_sealed="this installation has no root key. Run `keyleash init`.")
    find = partial(find_root, settings.home)
    try:
        vault = Vault(find(*rows[0]), find=find, keep_seconds=settings.key_seconds)
    except VaultError as problem:
        return Vault(None, why_sealed=f"{problem}{_copied_here(settings, *rows[0])}")
    try:
        database.query(vault.check_root)
    except KeysUnavailable as problem:
        log.warning("%s", problem)
    except VaultError as problem:
        return Vault(None, why_sealed=str(problem))
    return vault


def _copied_here(settings: Settings, provider: str, location: str) -> str:
    """What a further server lacks, where the database names a key file that another one has."""
    here = settings.home / "keys" / Path(location).name
    if settings.database_url is None or provider != "file" or os.path.lexists(here):
        return ""
    return f" On a further server: copy that file from one that has it to {here} (mode 0600, in a folder of mode 0700)."


def find_root(home: Path, provider: str, location: str) -> RootKey:
    """The root key that is kept there; in a home that was moved as a whole, where it is now. Raises RootKeyProblem.

    Whether it is the right one is the vault's to check.
    """
    return root_place(home, provider, location).load()


def root_place(home: Path, provider: str, location: str) -> RootKeyRef:
    """Where a root key is kept that was written down as being there, whether the home was moved or not."""
    if provider == "file" and not _is_there(Path(location)):  # or we may not look, which `load` says
        moved = home / "keys" / Path(location).name
        location = str(moved if _is_there(moved) else location)
    return root_key_spec(f"{provider}:{location}", home)


def own_root_place(home: Path, provider: str, location: str) -> RootKeyRef:
    """The same, but never in another installation's home, where a restored copy of it finds its key: in ours then."""
    place = root_place(home, provider, location)
    folder = Path(place.location).parent
    elsewhere = provider == "file" and folder.name == "keys" and folder.parent.resolve() != home.resolve()
    if elsewhere and _is_there(folder.parent / "data" / "keyleash.db", unseen=True):
        return root_key_spec(f"file:{home / 'keys' / Path(place.location).name}", home)
    return place


def _is_there(path: Path, *, unseen: bool = False) -> bool:
    """Whether there is such a file; `unseen` where nobody lets us look."""
    try:
        return path.exists()
    except OSError:
        return unseen


def kept_by_one(installation: Installation) -> Keeper | None:
    """What of this installation opens for one system user alone, without whom nobody decides; None where nothing."""
    rows = installation.database.read(
        "SELECT provider, location FROM vault_root WHERE check_blob IS NOT NULL ORDER BY id DESC LIMIT 1"
    )
    provider, location = rows[0] if rows else ("", "")
    if provider == "file":
        return Keeper("The root key", _owner(Path(root_place(installation.settings.home, provider, location).location)))
    if provider == "keychain":
        return Keeper("The root key", system_user())
    if installation.settings.database_url is None:
        return Keeper("The database", _owner(installation.settings.database))
    return None


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (OSError, KeyError, NotImplementedError):  # it cannot be seen, the user has no name, Windows
        return ""


@asynccontextmanager
async def running(installation: Installation) -> AsyncGenerator[Parts]:
    """The parts with the door out open. Meanwhile channels are told, what was removed is erased and revoked, and what
    time brings to held calls is written down."""
    from connectors.egress import Egress  # the HTTP library: commands that send nothing do without
    from server.delivery import delivering
    from server.looking import Looking, looking

    database, vault, settings = installation.database, installation.vault, installation.settings
    async with (
        Egress() as egress,
        retrying(database),
        sweeping(database, settings.keep_days),
        tending(database, installation.approvals, keep_days=settings.keep_days),
        delivering(database, vault, public_url=settings.public_url),
    ):
        parts = installation.parts(egress)
        parts.telemetry.watch(everything(database, now_ms, NotedHeads(settings.noted_heads).signed.heads))
        apps, connectors = Apps(settings.oauth_apps), installation.catalogue.connectors
        async with (
            revoking.retrying(database, vault, egress, connectors, parts.keys, apps=apps),
            parts.conversations.keeping(),
            looking(Looking(parts, connectors, settings.look_seconds)),
        ):
            try:
                yield parts
            finally:
                await parts.renewals.settle()


def protocol_server(installation: Installation, parts: Parts, identify: Any) -> "McpServer":
    """The MCP server over these parts. `identify` names the caller of a request."""
    import secrets

    from server.protocol import build

    try:
        key = installation.database.query(lambda rows: installation.vault.derive(rows, "", "request-state"))
    except Sealed:
        key = secrets.token_bytes(32)  # nothing is ever sealed with it: a sealed server asks nobody
    except KeysUnavailable:
        log.warning("answers to approval prompts are taken by this process only, until it is started again")
        key = secrets.token_bytes(32)
    return build(parts, identify, version=release(), state_keys=[key], list_limit=installation.settings.list_limit)


def quiet_logs(level: str) -> None:
    """Log to standard error, plainly. Libraries stay at WARNING: at DEBUG some of them print headers and URLs."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    log.setLevel(level)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what it would say is said by the command


async def serve_stdio(installation: Installation, *, org: str, agent: str, stdin: TextIO, stdout: TextIO) -> None:
    """Serve one client over standard streams as `agent` (an id), asked of the database again at every request."""
    from dataclasses import replace

    from server.errors import Refused
    from server.identity import STDIO
    from server.protocol import run_stdio

    def identify(_request: Any) -> "Caller":
        caller = installation.directory.by_agent(org, agent)
        if caller is None:
            raise Refused("the agent of this connection has been removed or has expired")
        if not caller.narrowing.admits_from(None):
            raise Refused("this agent is narrowed to network addresses, and a local connection comes from none")
        return replace(caller, transport=STDIO)

    with exporting(release()):
        async with running(installation) as parts:
            server = protocol_server(installation, parts, identify)
            await run_stdio(server, parts, identify, stdin=stdin, stdout=stdout)


def http_door(installation: Installation, parts: Parts, *, host: str) -> "Door":
    """The ASGI application for a bind to `host`. Raises BindProblem."""
    from server.http import Door, allowed
    from server.identity import HTTP
    from server.protocol import CALLER, HttpFace, caller_of_request
    from server.readiness import Readiness

    hosts, origins = allowed(host, installation.settings.allowed_hosts)
    server = protocol_server(installation, parts, partial(caller_of_request, parts.directory.again))
    return Door(
        HttpFace(server, parts.directory.again, hosts=hosts, origins=origins),
        partial(installation.directory.by_token, transport=HTTP),
        partial(_turned_away, parts.database),
        Readiness(installation.database, installation.vault).look,
        caller_key=CALLER,
        hosts=hosts,
        proxies=installation.settings.trusted_proxies,
    )


async def _turned_away(database: Database, caller: "Caller") -> None:
    """Written down where it can be; the answer has gone out already, and was a refusal."""
    from server.audit import AuditError
    from server.database import DatabaseProblem
    from server.identity import turned_away

    try:
        await database.of(caller.org).write(lambda rows: turned_away(rows, caller))
    except (DatabaseProblem, AuditError) as error:
        log.error("a token that was turned away could not be recorded: %s", error)


async def serve_http(installation: Installation, *, host: str, port: int) -> None:
    """Serve agents over HTTP until stopped. Raises BindProblem."""
    import uvicorn

    with exporting(release()):
        async with running(installation) as parts:
            door = http_door(installation, parts, host=host)
            config = uvicorn.Config(
                door,  # pyright: ignore[reportArgumentType] - ASGI's own types are looser than uvicorn's
                host=host,
                port=port,
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=10,
                timeout_keep_alive=75,
            )
            await uvicorn.Server(config).serve()
