"""Put Keyleash into an MCP client's own configuration file, and take it out again, without losing a byte of the rest.

The file is edited as text: whatever is not our entry keeps its order, indentation, comments, line endings and mode.
A file that cannot be edited so is left untouched, and `ClientError.snippet` is what a person can paste instead.
Before each change the old bytes go to `FILE.keyleash-backup-TIME`; `remove` puts those very bytes back when nothing
else has changed since. Another program that writes between our last look at the file and the rename (microseconds)
is the one race that remains: no client documents a lock that it honours.
"""

import contextlib
import json
import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, cast

from server.cli import jsonfile, tomlfile
from server.cli.textfile import BOM, CannotEditError, Json, as_object, newline
from server.http import AGENT_PATH

__all__ = [
    "CLIENTS",
    "Change",
    "Client",
    "ClientError",
    "Entry",
    "Installed",
    "Remote",
    "add",
    "entry",
    "installed",
    "remote",
    "remove",
    "snippet",
]

Action = Literal["added", "updated", "unchanged", "removed", "restored", "deleted", "absent"]


class ClientError(Exception):
    """Nothing was written. The message says why and what to do; `snippet` is the text to paste by hand, or empty."""

    def __init__(self, message: str, snippet: str = "") -> None:
        super().__init__(message)
        self.snippet = snippet


@dataclass(frozen=True)
class Entry:
    """A server that the client starts itself, over stdio. Build it with `entry`."""

    command: str
    agent: str
    home: str
    org: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else the server has to find in its environment, by name: no secret, since the client's file is none."""

    @property
    def args(self) -> list[str]:
        return ["serve", "--agent", self.agent, *(["--org", self.org] if self.org else [])]


@dataclass(frozen=True)
class Remote:
    """A server that the client reaches over HTTP, with the token in an environment variable. Build it with `remote`."""

    url: str
    token_env: str


@dataclass(frozen=True)
class Installed:
    """One of our entries as found in a client's file; `None` where the entry does not say."""

    name: str
    agent: str
    org: str | None
    home: str | None
    command: str
    settings: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Change:
    """What came of it. `backup` holds the bytes from before, readable by the owner only; `None` when none was needed.

    `restored`: the bytes from before `add` are back, and the backup that held them is gone. `deleted`: `add` had made
    the file, so it is gone too.
    """

    path: Path
    name: str
    action: Action
    backup: Path | None = None


@dataclass(frozen=True)
class Place:
    """Where to look: `platform` as in `sys.platform`, `environ` as in `os.environ`."""

    home: Path
    platform: str
    project: Path | None
    environ: Mapping[str, str]

    def variable(self, name: str, default: Path) -> Path:
        return Path(self.environ[name]) if self.environ.get(name) else default

    @property
    def app_data(self) -> Path:
        """The folder in which desktop applications keep their own folders."""
        if self.platform == "darwin":
            return self.home / "Library" / "Application Support"
        if self.platform == "win32":
            return self.variable("APPDATA", self.home / "AppData" / "Roaming")
        return self.variable("XDG_CONFIG_HOME", self.home / ".config")


@dataclass(frozen=True)
class Client:
    """An MCP client: where its file is, how it is written, and how an entry looks in it."""

    id: str
    title: str
    syntax: Literal["json", "json with comments", "json with comments and trailing commas", "toml"]
    table: str
    """The key that holds the servers by name."""
    user: Callable[[Place], Path]
    """The person's own file."""
    in_project: str | None
    """The file relative to a project's folder, or `None` where the client has none."""
    typed: bool
    """Whether a stdio entry says `"type": "stdio"`."""
    http: Callable[[Remote], Json] | None
    """The whole document for a remote server, without its name filled in; `None` where the client takes OAuth only."""
    expands: re.Pattern[str]
    """What the client would replace inside a value."""
    afterwards: str
    """What a person does next."""

    @property
    def format(self) -> Literal["json", "toml"]:
        return "toml" if self.syntax == "toml" else "json"

    def config_path(
        self, home: Path, platform: str, project: Path | None = None, *, environ: Mapping[str, str] | None = None
    ) -> Path:
        """The file to edit. Raises `ClientError` for a project file where the client has none."""
        place = Place(home, platform, project, environ or {})
        if project is None:
            return self.user(place)
        if self.in_project is None:
            raise ClientError(f"{self.title} has no configuration per project. Leave the project out.")
        return project / self.in_project


def entry(
    command: str | Path,
    agent: str,
    keyleash_home: str | Path,
    org: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Entry:
    """An entry that starts `command serve --agent AGENT`.

    Both paths must be absolute: clients start servers from folders, and with a PATH, that nobody can foresee.
    Raises `ClientError` for a relative path, and for text that no configuration file can hold.
    """
    for label, path in (("the keyleash command", str(command)), ("KEYLEASH_HOME", str(keyleash_home))):
        if not (PurePosixPath(path).is_absolute() or PureWindowsPath(path).is_absolute()):
            raise ClientError(f"The path of {label} is not absolute: {path}. Give the whole path.")
    for label, text in (("agent", agent), ("organisation", org)):
        if text is not None and (not text or text.startswith("-")):
            raise ClientError(f"{text!r} cannot name an {label} on a command line. Use a name that starts otherwise.")
    more = dict(settings or {})
    for text in (str(command), agent, str(keyleash_home), org or "", *more.values()):
        if not text.isprintable():
            raise ClientError(f"{text!r} has characters that a configuration file cannot hold. Use another name.")
    return Entry(str(command), agent, str(keyleash_home), org, more)


def remote(url: str, token_env: str) -> Remote:
    """An entry for `keyleash serve --http`; `token_env` names the variable that holds the agent's token.

    An address without a path is the server's, and agents connect at its `/agent/mcp`.
    """
    if not re.fullmatch(r"https?://[!-~]+", url):
        raise ClientError(f"{url!r} is not an http or https address.")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", token_env):
        raise ClientError(f"{token_env!r} is not the name of an environment variable. For instance: KEYLEASH_TOKEN.")
    origin = re.fullmatch(r"(https?://[^/?#]+)/?", url)
    return Remote(origin[1] + AGENT_PATH if origin else url, token_env)


def snippet(client: Client, wanted: Entry | Remote, *, name: str = "keyleash") -> str:
    """A whole configuration file with nothing but this entry, to paste from. Ends with a newline."""
    if isinstance(wanted, Entry):
        document: Json = {client.table: {name: _stdio(client, wanted)}}
    elif client.http is None:
        raise ClientError(
            f"{client.title} reaches remote servers by OAuth only, not with an agent's token. "
            f"Let it start keyleash itself: leave --http out."
        )
    else:
        document = client.http(wanted)
        document[client.table] = {name: document[client.table]}
    if client.format == "toml":
        return tomlfile.block(client.table, name, document[client.table][name], "\n")
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def installed(client: Client, path: Path) -> tuple[Installed, ...]:
    """Our entries in the file, in its order; none where there is no file. Raises `ClientError` if it is malformed."""
    before = _read(client, _real(path))
    return tuple(_ours(_servers(client, _load(client, path, _text(path, before)), path)))


def add(client: Client, wanted: Entry, path: Path, *, now: datetime | None = None) -> Change:
    """Merge the entry into the file, making file and folder where they are missing. Doing it twice changes nothing.

    The same agent's entry is brought up to date in place, and what a person added to it stays. The entry is called
    `keyleash`, or `keyleash-AGENT` where that name is taken. Raises `ClientError`, with nothing written.
    """
    paste = snippet(client, wanted)
    values = (wanted.command, wanted.home, wanted.agent, *wanted.settings.values())
    if found := next((value for value in values if client.expands.search(value)), None):
        raise ClientError(f"{client.title} would replace the part after $ in {found}. Use a path without $.")

    def plan(before: bytes | None) -> _Plan:
        text = _text(path, before)
        servers = _servers(client, _load(client, path, text), path)
        name = _name(client, servers, wanted, path)
        after = _with(client, text, path, name, wanted)
        _prove(client, path, name, before=text, after=after, wanted=_stdio(client, wanted))
        action: Action = "unchanged" if after == text else "updated" if name in servers else "added"
        return _Plan(after.encode(), name, action)

    try:
        return _rewrite(client, path, plan, now)
    except ClientError as problem:
        raise ClientError(str(problem), problem.snippet or paste) from None


def remove(
    client: Client,
    path: Path,
    *,
    agent: str,
    keyleash_home: str | Path | None = None,
    org: str | None = None,
    now: datetime | None = None,
) -> Change:
    """Take the agent's entry out: the exact bytes from before `add` if nothing else changed since, else only the entry.

    Raises `ClientError`, with nothing written.
    """
    home = str(keyleash_home) if keyleash_home is not None else None

    def plan(before: bytes | None) -> _Plan:
        text = _text(path, before)
        ours = _ours(_servers(client, _load(client, path, text), path))
        mine = [one for one in ours if _same(one, agent, home, org)]
        if before is None or not mine:
            return _Plan(before, "", "absent")
        name = mine[0].name
        if (undo := _undo(client, path, before, mine[0])) is not None:
            return undo
        after = _without(client, text, path, name)
        _prove(client, path, name, before=text, after=after, wanted=None)
        return _Plan(after.encode(), name, "removed")

    return _rewrite(client, path, plan, now)


# The file: read, back up, look again, replace.


@dataclass(frozen=True)
class _Plan:
    after: bytes | None
    name: str
    action: Action
    spent: Path | None = None
    """The backup whose bytes are back in the file."""


ATTEMPTS = 5
"""How often a file that keeps changing under our hands is read again. Running clients do rewrite theirs."""


class _ChangedError(Exception):
    """The file is no longer what was read."""


def _rewrite(client: Client, path: Path, plan: Callable[[bytes | None], _Plan], now: datetime | None) -> Change:
    """Read, plan, write beside, look again, and only then replace: whole or not at all."""
    target = _real(path)
    try:
        for _ in range(ATTEMPTS):
            before = _read(client, target)
            planned = plan(before)
            if planned.after == before:
                return Change(path, planned.name, planned.action)
            with contextlib.suppress(_ChangedError), contextlib.ExitStack() as undo:
                backup = _replace(client, path, target, before=before, planned=planned, now=now, undo=undo)
                return Change(path, planned.name, planned.action, backup)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ClientError(f"{path} was not changed: {why}. Check the permissions of its folder.") from None
    raise ClientError(f"{path} was not changed: another program keeps writing to it. Quit {client.title}, try again.")


def _replace(
    client: Client,
    path: Path,
    target: Path,
    *,
    before: bytes | None,
    planned: _Plan,
    now: datetime | None,
    undo: contextlib.ExitStack,
) -> Path | None:
    """The backup made, if any. Raises `_ChangedError`; `undo` then leaves nothing behind."""
    beside = backup = None
    if before is None:
        target.parent.mkdir(parents=True, exist_ok=True)
    else:
        _editable(target)
    if planned.after is not None:
        beside = _write_beside(target, planned.after, like=before is not None)
        undo.callback(beside.unlink, missing_ok=True)
    if before is not None and planned.action in ("added", "updated", "removed"):
        backup = _back_up(path, before, now or datetime.now(UTC))
        undo.callback(backup.unlink, missing_ok=True)
    if _read(client, target) != before:
        raise _ChangedError
    if beside is None:
        target.unlink()
    else:
        beside.replace(target)
    undo.pop_all()
    if planned.spent is not None:
        planned.spent.unlink(missing_ok=True)
    return backup


def _real(path: Path) -> Path:
    """The file behind a symbolic link, so that the link stays one."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop: RuntimeError until Python 3.13
        raise ClientError(f"{path} is a symbolic link that leads nowhere. Mend the link.") from None


def _read(client: Client, target: Path) -> bytes | None:
    """The bytes, or `None` where there is no file."""
    try:
        if not stat.S_ISREG(target.stat().st_mode):
            raise ClientError(f"{target} is not a file. Move it away, or configure {client.title} by hand.")
        return target.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClientError(f"{target} cannot be read: {error.strerror}. Check the permissions.") from None


def _editable(target: Path) -> None:
    """Refuse what a rename over it would spoil, or what somebody has protected."""
    status = target.stat()
    if status.st_nlink > 1:
        raise ClientError(f"{target} has a second name (a hard link), which an edit would cut. Edit it by hand.")
    if not status.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise ClientError(f"{target} is read-only. Make it writable, or edit it by hand.")


def _write_beside(target: Path, content: bytes, *, like: bool) -> Path:
    """A finished file next to the target, with the target's mode and owner when it is `like` it, else 0600."""
    handle, name = tempfile.mkstemp(prefix=".keyleash-", dir=target.parent)
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if like:
            status = target.stat()
            if hasattr(os, "chown") and (status.st_uid, status.st_gid) != (os.geteuid(), beside.stat().st_gid):
                os.chown(beside, status.st_uid, status.st_gid)
            beside.chmod(stat.S_IMODE(status.st_mode))
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return beside


_BACKUP = ".keyleash-backup-"


def _back_up(path: Path, content: bytes, now: datetime) -> Path:
    """The old bytes under a new name that sorts by time; never over another backup. 0600: the file may hold secrets."""
    stamp = f"{path.name}{_BACKUP}{now.astimezone(UTC):%Y%m%dT%H%M%S.%fZ}"
    for number in range(1, 1000):
        backup = path.with_name(stamp if number == 1 else f"{stamp}-{number}")
        try:
            handle = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            continue
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return backup
    raise ClientError(f"{path} has a thousand backups of this very moment. Delete the old {path.name}{_BACKUP}* files.")


def _undo(client: Client, path: Path, current: bytes, mine: Installed) -> _Plan | None:
    """What `add` found, if adding this entry to it gives exactly the current file: then nothing else has changed."""
    wanted = Entry(mine.command, mine.agent, mine.home or "", mine.org, mine.settings)
    backups = sorted((p for p in path.parent.iterdir() if p.name.startswith(path.name + _BACKUP)), reverse=True)
    for backup in backups:
        with contextlib.suppress(ClientError, OSError):
            before = backup.read_bytes()
            text = _text(backup, before)
            fresh = mine.name not in _servers(client, _load(client, backup, text), backup)
            if fresh and _with(client, text, backup, mine.name, wanted).encode() == current:
                return _Plan(before, mine.name, "restored", spent=backup)
    with contextlib.suppress(ClientError):
        if not backups and _with(client, "", path, mine.name, wanted).encode() == current:
            return _Plan(None, mine.name, "deleted")
    return None


# The document: what it says, and our entry put in or taken out.


def _text(path: Path, content: bytes | None) -> str:
    try:
        return (content or b"").decode()
    except UnicodeDecodeError:
        raise ClientError(f"{path} is not UTF-8 text. Save it as UTF-8 and try again.") from None


def _load(client: Client, path: Path, text: str) -> Json:
    """The document as values; numbers stay as written, so that comparing two documents is exact."""
    try:
        if client.format == "toml":
            return tomllib.loads(text.removeprefix(BOM), parse_float=_as_written)
        root = _parsed(client, text)
    except jsonfile.MalformedError as error:
        raise ClientError(f"{path}:{error.line}: {error.what}. Nothing was changed. {_MEND}") from None
    except (ValueError, RecursionError) as error:
        raise ClientError(f"{path} is not valid TOML: {error}. Nothing was changed. {_MEND}") from None
    document = {} if root is None else as_object(root.value)
    if document is None:
        raise ClientError(f"{path} does not hold a JSON object. Nothing was changed. {_MEND}")
    return document


def _as_written(number: str) -> tuple[str, str]:
    return ("number", number)


_MEND = "Mend the file and try again, or put the entry in by hand."


def _servers(client: Client, document: Json, path: Path) -> Json:
    servers = as_object(document.get(client.table, {}))
    if servers is None:
        raise ClientError(f"{path}: {client.table} is not a table of servers. Nothing was changed. {_MEND}")
    return servers


def _ours(servers: Json) -> Iterator[Installed]:
    for name, server in servers.items():
        settings = as_object(server) or {}
        command, args, env = (settings.get(key) for key in ("command", "args", "env"))
        if not isinstance(command, str) or not isinstance(args, list):
            continue
        words = [word for word in cast("list[object]", args) if isinstance(word, str)]
        agent = _option(words, "--agent")
        program = PureWindowsPath(command).name.lower()  # splits at both kinds of slash
        if agent is None or "serve" not in words or not (program.startswith("keyleash") or "keyleash" in words):
            continue
        settings = {key: value for key, value in (as_object(env) or {}).items() if isinstance(value, str)}
        home = settings.pop("KEYLEASH_HOME", None)
        yield Installed(name, agent, _option(words, "--org"), home, command, settings)


def _option(words: Sequence[str], option: str) -> str | None:
    for index, word in enumerate(words):
        if word == option and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{option}="):
            return word.removeprefix(f"{option}=")
    return None


def _same(one: Installed, agent: str, home: str | None, org: str | None) -> bool:
    """The same agent: an organisation or home that either side leaves open does not tell two apart."""
    open_org = one.org is None or org is None or one.org == org
    open_home = one.home is None or home is None or os.path.normpath(one.home) == os.path.normpath(home)
    return one.agent == agent and open_org and open_home


def _name(client: Client, servers: Json, wanted: Entry, path: Path) -> str:
    for one in _ours(servers):
        if _same(one, wanted.agent, wanted.home, wanted.org):
            return one.name
    names = ("keyleash", "keyleash-" + re.sub(r"[^A-Za-z0-9-]+", "-", wanted.agent))  # Codex and Gemini take no more
    for name in names:
        if name not in servers:
            return name
    raise ClientError(
        f"{path} already has other servers called {' and '.join(names)}. Nothing was changed. Rename one of them."
    )


def _stdio(client: Client, wanted: Entry) -> Json:
    kind = {"type": "stdio"} if client.typed else {}
    environment = {"KEYLEASH_HOME": wanted.home, **wanted.settings}
    return {**kind, "command": wanted.command, "args": wanted.args, "env": environment}


def _parsed(client: Client, text: str) -> jsonfile.Node | None:
    return jsonfile.parse(text, comments="comments" in client.syntax, commas="commas" in client.syntax)


def _with(client: Client, text: str, path: Path, name: str, wanted: Entry) -> str:
    """The text with our entry in it. Raises ClientError where it is in a form that is not edited."""
    value = _stdio(client, wanted)
    try:
        if client.format == "toml":
            servers = _servers(client, _load(client, path, text), path)
            if name not in servers:
                return tomlfile.append(text, tomlfile.block(client.table, name, value, newline(text)))
            return tomlfile.merge(text, (client.table, name), value, servers[name])
        root = _parsed(client, text)
        if root is None:
            document = json.dumps({client.table: {name: value}}, indent=2, ensure_ascii=False) + "\n"
            bare = not text.removeprefix(BOM) or text.endswith("\n")
            return text + ("" if bare else "\n") + document
        return jsonfile.put(text, root, (client.table, name), value)
    except CannotEditError as error:
        raise _not_edited(path, error) from None


def _without(client: Client, text: str, path: Path, name: str) -> str:
    """The text without our entry. Raises ClientError where it is in a form that is not edited."""
    if client.format == "toml":
        return tomlfile.drop(text, (client.table, name))
    root = _parsed(client, text)
    try:
        table = jsonfile.member(root, client.table) if root is not None else None
        mine = jsonfile.member(table.node, name) if table is not None else None
    except CannotEditError as error:
        raise _not_edited(path, error) from None
    return jsonfile.drop(text, table.node, mine) if table is not None and mine is not None else text


def _not_edited(path: Path, error: CannotEditError) -> ClientError:
    mend = "" if "try again" in str(error) else f" {_MEND}"
    return ClientError(f"{path} {error}{mend}")


def _prove(client: Client, path: Path, name: str, *, before: str, after: str, wanted: Json | None) -> None:
    """Refuse an edit that changed anything but our entry, or did not bring about what was wanted."""
    old, new = _load(client, path, before), _load(client, path, after)
    entries = [{**_servers(client, document, path)} for document in (old, new)]
    entries[0].pop(name, None)
    found = entries[1].pop(name, None)
    right = found is None if wanted is None else _covers(as_object(found) or {}, wanted)
    if entries[0] != entries[1] or {**old, client.table: 0} != {**new, client.table: 0} or not right:
        raise ClientError(f"{path} is written in a form that Keyleash cannot edit safely. Nothing was changed. {_MEND}")


def _covers(found: Json, wanted: Json) -> bool:
    for key, value in wanted.items():
        part, there = as_object(value), as_object(found.get(key))
        if not (_covers(there, part) if part is not None and there is not None else found.get(key) == value):
            return False
    return True


# The clients, as documented in November 2026 on the page beside each and in the issues named; VS Code's and Gemini's
# pages were read at the vendor, the others as quoted by third parties. None has been tried with the client itself.


def _claude_desktop(place: Place) -> Path:
    """The file that the app really reads: one installed as an MSIX package sees its own copy of %APPDATA% only.

    github.com/anthropics/claude-code/issues/26073; the package's suffix is a hash of the publisher.
    """
    packages = place.variable("LOCALAPPDATA", place.home / "AppData" / "Local") / "Packages"
    if place.platform == "win32":
        inside = [found / "LocalCache" / "Roaming" / "Claude" for found in sorted(packages.glob("Claude_*"))]
        real = [folder for folder in inside if folder.is_dir()]
        if len(real) > 1:
            raise ClientError(f"Two Claude Desktop packages are installed: {real[0]} and {real[1]}. Remove one.")
        if real:
            return real[0] / "claude_desktop_config.json"
    return place.app_data / "Claude" / "claude_desktop_config.json"


def _bearer(reference: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {reference}"}


def _vscode_http(it: Remote) -> Json:
    """The token is asked for once and kept by VS Code: `${env:…}` in headers is not replaced (vscode issue 336232)."""
    ask = {"type": "promptString", "id": "keyleash-token", "description": "Keyleash agent token", "password": True}
    server = {"type": "http", "url": it.url, "headers": _bearer("${input:keyleash-token}")}
    return {"inputs": [ask], "servers": server}


_BRACES = re.compile(r"\$\{")

CLIENTS: dict[str, Client] = {
    client.id: client
    for client in (
        Client(  # https://code.claude.com/docs/en/mcp
            id="claude-code",
            title="Claude Code",
            syntax="json",
            table="mcpServers",
            user=lambda place: place.variable("CLAUDE_CONFIG_DIR", place.home) / ".claude.json",
            in_project=".mcp.json",
            typed=True,
            http=lambda it: {"mcpServers": {"type": "http", "url": it.url, "headers": _bearer(f"${{{it.token_env}}}")}},
            expands=_BRACES,
            afterwards="Start a new Claude Code session; /mcp shows the server.",
        ),
        Client(  # https://playwright.dev/mcp/clients/claude-desktop; on Linux there are unofficial builds only
            id="claude-desktop",
            title="Claude Desktop",
            syntax="json",
            table="mcpServers",
            user=_claude_desktop,
            in_project=None,
            typed=False,
            http=None,
            expands=_BRACES,
            afterwards="Quit Claude Desktop completely (closing its window is not enough) and start it again.",
        ),
        Client(  # https://cursor.com/docs/mcp
            id="cursor",
            title="Cursor",
            syntax="json with comments and trailing commas",
            table="mcpServers",
            user=lambda place: place.home / ".cursor" / "mcp.json",
            in_project=".cursor/mcp.json",
            typed=True,
            http=lambda it: {"mcpServers": {"url": it.url, "headers": _bearer(f"${{env:{it.token_env}}}")}},
            expands=_BRACES,
            afterwards="Restart Cursor; its MCP settings show the server.",
        ),
        Client(  # https://code.visualstudio.com/docs/agents/reference/mcp-configuration
            id="vscode",
            title="VS Code",
            syntax="json with comments and trailing commas",
            table="servers",
            user=lambda place: place.app_data / "Code" / "User" / "mcp.json",
            in_project=".vscode/mcp.json",
            typed=True,
            http=_vscode_http,
            expands=_BRACES,
            afterwards="Run `MCP: List Servers` in VS Code, choose keyleash and start it.",
        ),
        Client(  # https://developers.openai.com/codex/mcp
            id="codex",
            title="Codex",
            syntax="toml",
            table="mcp_servers",
            user=lambda place: place.variable("CODEX_HOME", place.home / ".codex") / "config.toml",
            in_project=".codex/config.toml",
            typed=False,
            http=lambda it: {"mcp_servers": {"url": it.url, "bearer_token_env_var": it.token_env}},
            expands=re.compile(r"(?!)"),
            afterwards="Start a new Codex session; /mcp shows the server.",
        ),
        Client(  # https://geminicli.com/docs/tools/mcp-server
            id="gemini",
            title="Gemini CLI",
            syntax="json with comments",
            table="mcpServers",
            user=lambda place: place.variable("GEMINI_CLI_HOME", place.home) / ".gemini" / "settings.json",
            in_project=".gemini/settings.json",
            typed=False,
            http=lambda it: {"mcpServers": {"httpUrl": it.url, "headers": _bearer(f"${{{it.token_env}}}")}},
            expands=re.compile(r"\$(\w|\{)"),
            afterwards="Restart Gemini CLI; /mcp shows the server.",
        ),
    )
}
