"""What the operator sets, from the environment; every name begins with KEYLEASH_."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from server import destinations
from server.narrowing import Network, network

T = TypeVar("T")


class SettingsProblem(Exception):
    """A setting makes no sense; the message names it and says how to mend it."""


@dataclass(frozen=True)
class Settings:
    """The settings of one process. `home` holds everything that Keyleash keeps."""

    home: Path
    hold_seconds: float = 45.0
    wait_seconds: float = 10.0
    """How long a call waits for its turn, where its connection takes no more just now."""
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    """The reverse proxies whose X-Forwarded-For is believed."""
    log_level: str = "WARNING"
    key_seconds: float = 300.0
    """How long an org's key is used after a key service unwrapped it, before the service is asked again."""
    list_limit: int = 60
    """How many tools a caller is listed at most; with more it gets three that find, describe and call them."""
    keep_days: int = 30
    """How long what is sealed of calls that are over is kept: for `policy replay`, and of held calls and grants."""
    checkpoint_entries: int = 1000
    """A log has a checkpoint made when it has grown by so many entries …"""
    checkpoint_seconds: float = 60.0
    """… or when so much time has passed, and there is anything new."""
    look_seconds: float = 3600.0
    """How often a server looks by itself whether wrapped servers still say what was reviewed; 0: never."""
    reference_seconds: float = 10.0
    """How long it may take to read one secret that stays elsewhere."""
    op_token_file: Path | None = None
    kv_address: str = ""
    kv_token_file: Path | None = None
    kv_ca_file: Path | None = None
    oauth_apps: Path | None = None
    """A file with the operator's own OAuth apps, for organisations that bring none."""
    database_url: str | None = field(default=None, repr=False)
    """A PostgreSQL database, as the role that serves; without one there is the SQLite file."""
    database_owner: str | None = field(default=None, repr=False)
    """The same database as its owner, for what only the operator does."""

    @property
    def owner_url(self) -> str:
        """The database as its owner. Raises SettingsProblem."""
        if self.database_owner is None:
            raise SettingsProblem(
                "This is the operator's, and on PostgreSQL it takes the database's owner. Set KEYLEASH_DATABASE_OWNER "
                "to postgresql://OWNER@HOST/DATABASE for this command, and for no server."
            )
        return self.database_owner

    @property
    def serving_role(self) -> str:
        """The PostgreSQL role that serves."""
        from server.postgres import parsed

        return str(parsed(self.database_url or "")["user"])

    public_url: str = ""
    """Under which address people reach this server's pages, without a slash at its end; empty where they do not."""

    syslog: destinations.Syslog | None = None
    """The receiver that the record may be streamed to: udp, tcp or tls, its host and its port."""
    syslog_ca_file: Path | None = None
    """The authorities that are believed about a receiver over TLS; None: the system's."""
    otlp_logs: str | None = None
    """The receiver of OTLP over HTTP that the record may be streamed to: the whole URL."""
    otlp_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Headers that it wants, each with a reference to the secret that stands in it."""
    otlp_ca_file: Path | None = None
    """The authorities that are believed about it; None: the system's."""

    @property
    def streams(self) -> Path:
        """How far each stream of the record got."""
        return self.home / "streams"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.home / "data" / "keyleash.db"

    @property
    def connectors(self) -> Path:
        """The folder of the operator's own connector files."""
        return self.home / "data" / "connectors"

    @property
    def backups(self) -> Path:
        """Where `upgrade` and `vault restore` keep what was there before."""
        return self.home / "backups"

    @property
    def serving_lock(self) -> Path:
        """Held by every server while it runs, and by a restore alone."""
        return self.home / "data" / "serving.lock"

    @property
    def noted_heads(self) -> Path:
        """How far logs went that cannot be signed; their folder has the signed checkpoints, in one for each org."""
        return self.home / "checkpoints" / "heads.json"

    @property
    def restoring(self) -> Path:
        """Where a backup is examined before anything else is touched; gone when a restore has ended."""
        return self.home / "restoring"


def read_settings() -> Settings:
    """Read the environment. Raises SettingsProblem."""
    hold_seconds = _seconds("KEYLEASH_HOLD_SECONDS", 45, 0, 50)
    wait_seconds = _seconds("KEYLEASH_WAIT_SECONDS", 10, 0, 30)
    reference_seconds = _seconds("KEYLEASH_REFERENCE_SECONDS", 10, 1, 30)
    key_seconds = _seconds("KEYLEASH_KEY_SECONDS", 300, 1, 3600)
    level = os.environ.get("KEYLEASH_LOG", "WARNING").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsProblem(f"KEYLEASH_LOG is {level!r}: give debug, info, warning or error.")
    hosts = os.environ.get("KEYLEASH_ALLOWED_HOSTS", "")
    proxies = os.environ.get("KEYLEASH_TRUSTED_PROXIES", "")
    if os.environ.get("KEYLEASH_DATABASE_OWNER") and not os.environ.get("KEYLEASH_DATABASE"):
        raise SettingsProblem(
            "KEYLEASH_DATABASE_OWNER is set and KEYLEASH_DATABASE is not: set that to the same database as the role "
            "that serves, or neither for SQLite."
        )
    return Settings(
        home=home(),
        hold_seconds=hold_seconds,
        wait_seconds=wait_seconds,
        allowed_hosts=tuple(host.strip() for host in hosts.split(",") if host.strip()),
        trusted_proxies=tuple(_proxy(each.strip()) for each in proxies.split(",") if each.strip()),
        log_level=level,
        key_seconds=key_seconds,
        list_limit=_list_limit(),
        keep_days=_keep_days(),
        checkpoint_entries=_checkpoint_entries(),
        checkpoint_seconds=_checkpoint_seconds(),
        look_seconds=_look_seconds(),
        reference_seconds=reference_seconds,
        op_token_file=_path("KEYLEASH_OP_TOKEN_FILE"),
        kv_address=os.environ.get("KEYLEASH_KV_ADDR", ""),
        kv_token_file=_path("KEYLEASH_KV_TOKEN_FILE"),
        kv_ca_file=_path("KEYLEASH_KV_CA_FILE"),
        oauth_apps=_path("KEYLEASH_OAUTH_APPS"),
        database_url=os.environ.get("KEYLEASH_DATABASE") or None,
        database_owner=os.environ.get("KEYLEASH_DATABASE_OWNER") or None,
        public_url=_public_url(),
        syslog=_given("KEYLEASH_SYSLOG", destinations.syslog),
        syslog_ca_file=_path("KEYLEASH_SYSLOG_CA_FILE"),
        otlp_logs=_given("KEYLEASH_OTLP_LOGS", destinations.otlp_logs),
        otlp_headers=_given("KEYLEASH_OTLP_HEADERS", destinations.otlp_headers),
        otlp_ca_file=_path("KEYLEASH_OTLP_CA_FILE"),
    )


_PUBLIC_URL = re.compile(
    r"https://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?|http://(127\.0\.0\.1|localhost)(:[0-9]{1,5})?/?"
)


def _public_url() -> str:
    given = os.environ.get("KEYLEASH_PUBLIC_URL", "").strip()
    if given and not _PUBLIC_URL.fullmatch(given):
        raise SettingsProblem(
            f"KEYLEASH_PUBLIC_URL is {given!r}: give the address under which people reach this server, such as "
            "https://keyleash.example.com"
        )
    return given.rstrip("/")


def _given(name: str, read: Callable[[str], T]) -> T:
    try:
        return read(os.environ.get(name, "").strip())
    except ValueError as error:
        raise SettingsProblem(str(error)) from None


def _proxy(text: str) -> Network:
    try:
        found = network(text)
    except ValueError as error:
        raise SettingsProblem(f"KEYLEASH_TRUSTED_PROXIES: {error} Several stand with commas between.") from None
    if found.prefixlen == 0:
        raise SettingsProblem(
            f"KEYLEASH_TRUSTED_PROXIES: {text} is everybody, and whoever is believed can say to come from anywhere. "
            "Name the addresses of your proxies."
        )
    return found


def _list_limit() -> int:
    given = os.environ.get("KEYLEASH_LIST_LIMIT", "60")
    if not given.isdecimal() or len(given) > 5 or int(given) > 10_000:
        raise SettingsProblem(
            f"KEYLEASH_LIST_LIMIT is {given!r}: give a whole number of tools from 0 to 10000. Who has more is listed "
            "three that find them."
        )
    return int(given)


def _keep_days() -> int:
    given = os.environ.get("KEYLEASH_KEEP_DAYS", "30")
    if not given.isascii() or not given.isdecimal() or len(given) > 3 or not 1 <= int(given) <= 365:
        raise SettingsProblem(
            f"KEYLEASH_KEEP_DAYS is {given!r}: give a whole number of days from 1 to 365. For so long what is "
            "sealed of calls that are over is kept: for `keyleash policy replay`, and of held calls and grants."
        )
    return int(given)


def _checkpoint_entries() -> int:
    given = os.environ.get("KEYLEASH_CHECKPOINT_ENTRIES", "1000")
    if not given.isascii() or not given.isdecimal() or len(given) > 6 or int(given) < 1:
        raise SettingsProblem(
            f"KEYLEASH_CHECKPOINT_ENTRIES is {given!r}: give a whole number of entries from 1 to 999999. After so many "
            "a signed checkpoint of the log is made."
        )
    return int(given)


def _checkpoint_seconds() -> float:
    given = os.environ.get("KEYLEASH_CHECKPOINT_SECONDS", "60")
    if not given.isascii() or not given.isdecimal() or len(given) > 5 or not 1 <= int(given) <= 86_400:
        raise SettingsProblem(
            f"KEYLEASH_CHECKPOINT_SECONDS is {given!r}: give whole seconds from 1 to 86400. After so long a signed "
            "checkpoint is made of each log that has anything new; until then an older database that was put back is "
            "not told from the newer one."
        )
    return float(given)


def _look_seconds() -> float:
    given = os.environ.get("KEYLEASH_LOOK_SECONDS", "3600")
    whole = given.isascii() and given.isdecimal() and len(given) <= 6
    if not whole or not (int(given) == 0 or 300 <= int(given) <= 604_800):
        raise SettingsProblem(
            f"KEYLEASH_LOOK_SECONDS is {given!r}: give whole seconds from 300 to 604800, or 0 for never. So often a "
            "server asks each wrapped MCP server whether its tools are still what was reviewed."
        )
    return float(given)


def _seconds(name: str, default: float, least: float, most: float) -> float:
    """Many clients give up on a call at 60 seconds, so nothing that a call waits for may take much of that."""
    given = os.environ.get(name, str(default))
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1
    if not least <= seconds <= most:
        raise SettingsProblem(
            f"{name} is {given!r}: give seconds from {least:g} to {most:g}. Many clients give up on a call at 60."
        )
    return seconds


def _path(name: str) -> Path | None:
    given = os.environ.get(name)
    return Path(given).expanduser().absolute() if given else None


def home() -> Path:
    """KEYLEASH_HOME, or the platform's folder for an application's data."""
    given = os.environ.get("KEYLEASH_HOME")
    if given:
        return Path(given).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local").absolute() / "keyleash"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "keyleash"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share").absolute() / "keyleash"
