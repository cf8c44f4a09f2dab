"""What the operator sets, from the environment; every name begins with KEYLEASH_."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path


class SettingsProblem(Exception):
    """A setting makes no sense; the message names it and says how to mend it."""


@dataclass(frozen=True)
class Settings:
    """The settings of one process. `home` holds everything that Keyleash keeps."""

    home: Path
    hold_seconds: float = 45.0
    allowed_hosts: tuple[str, ...] = ()
    log_level: str = "WARNING"
    key_seconds: float = 300.0
    """How long an org's key is used after a key service unwrapped it, before the service is asked again."""
    list_limit: int = 60
    """How many tools a caller is listed at most; with more it gets three that find, describe and call them."""

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
        """Where `upgrade` puts its copy."""
        return self.home / "backups"


def read_settings() -> Settings:
    """Read the environment. Raises SettingsProblem."""
    hold = os.environ.get("KEYLEASH_HOLD_SECONDS", "45")
    hold_seconds = _number(hold)
    if not 0 <= hold_seconds <= 50:
        raise SettingsProblem(
            f"KEYLEASH_HOLD_SECONDS is {hold!r}: give seconds from 0 to 50. Many clients give up on a call at 60."
        )
    keep = os.environ.get("KEYLEASH_KEY_SECONDS", "300")
    key_seconds = _number(keep)
    if not 1 <= key_seconds <= 3600:
        raise SettingsProblem(f"KEYLEASH_KEY_SECONDS is {keep!r}: give seconds from 1 to 3600.")
    most = os.environ.get("KEYLEASH_LIST_LIMIT", "60")
    list_limit = _number(most)
    if not (0 <= list_limit <= 10_000 and list_limit.is_integer()):
        raise SettingsProblem(
            f"KEYLEASH_LIST_LIMIT is {most!r}: give a whole number of tools from 0 to 10000. Callers with more get "
            "tools that find them instead of the list."
        )
    level = os.environ.get("KEYLEASH_LOG", "WARNING").upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise SettingsProblem(f"KEYLEASH_LOG is {level!r}: give debug, info, warning or error.")
    hosts = os.environ.get("KEYLEASH_ALLOWED_HOSTS", "")
    return Settings(
        home=home(),
        hold_seconds=hold_seconds,
        allowed_hosts=tuple(host.strip() for host in hosts.split(",") if host.strip()),
        log_level=level,
        key_seconds=key_seconds,
        list_limit=int(list_limit),
    )


def _number(text: str) -> float:
    """A number, or -1 for what is none."""
    try:
        return float(text)
    except ValueError:
        return -1


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
