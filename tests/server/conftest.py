"""Fixtures for the server's rooms: a real installation in a temporary folder, and a fake upstream on loopback."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.identity import system_user
from tests.commandline import CommandLine
from tests.definitions import read_once
from tests.installed import SECRET, Place, make
from tests.metering import metering
from tests.places import Places
from tests.server.restoring import PASSPHRASE, Backup
from tests.upstream import Upstream

SPARE_S = 15.0


@pytest.fixture(scope="session", autouse=True)
def _shipped_connectors_read_once() -> Iterator[None]:
    with read_once():
        yield


@pytest.fixture(autouse=True)
def _well_within_an_hour() -> None:
    """What counts by the hour, day or month would begin anew in the middle of a test: none begins at the end of one."""
    left = 3600 - time.time() % 3600
    if left < SPARE_S:
        time.sleep(left + 0.1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream(SECRET) as running:
        yield running


@pytest.fixture
def elsewhere() -> Iterator[Upstream]:
    """Where nothing may ever arrive."""
    with Upstream() as other:
        yield other
        assert other.requests == []


@pytest.fixture
def open_upstream() -> Iterator[Upstream]:
    """One that asks for no secret."""
    with Upstream() as running_upstream:
        yield running_upstream


@pytest.fixture
def place(tmp_path: Path, upstream: Upstream) -> Iterator[Place]:
    """An org with its owner, a connected Stripe-like account, and the agent `reconciler` who acts for the owner."""
    made = make(tmp_path / "home")
    made.connect(upstream.url)
    made.agent()
    yield made
    made.installation.close()


@pytest.fixture
def metered(tmp_path: Path, upstream: Upstream) -> Iterator[Place]:
    """An org whose connected account reports tokens, cost and quota."""
    made = metering(tmp_path / "metered", upstream.url)
    yield made
    made.installation.close()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    """Every kind of place that a reference can name."""
    (tmp_path / "elsewhere").mkdir()
    with Places(tmp_path / "elsewhere", monkeypatch) as made:
        yield made


@pytest.fixture
def keyleash(tmp_path: Path) -> CommandLine:
    """The command line of a person who has no installation yet."""
    person = tmp_path / "person"
    person.mkdir()
    return CommandLine(tmp_path / "home", person)


@pytest.fixture
def owner(place: Place, keyleash: CommandLine) -> CommandLine:
    """The command line of the owner of `place`, who is the system user that runs the tests."""
    place.database.write_now(
        lambda rows: rows.execute("UPDATE member SET os_user = ? WHERE name = 'alice'", (system_user(),))
    )
    return keyleash


@pytest.fixture
def metered_owner(metered: Place, keyleash: CommandLine) -> CommandLine:
    """The same of `metered`."""
    metered.database.write_now(lambda rows: rows.execute("UPDATE member SET os_user = ?", (system_user(),)))
    return CommandLine(metered.home, keyleash.person)


@pytest.fixture(autouse=True)
def _log_level_as_it_was() -> Iterator[None]:
    """Commands that run in this process set the level of Keyleash's log, as they do for a process of their own."""
    log = logging.getLogger("keyleash")
    level = log.level
    yield
    log.setLevel(level)


@pytest.fixture
def backup(place: Place, owner: CommandLine, tmp_path: Path) -> Backup:
    """A backup of `place`, made at the command line."""
    file = tmp_path / "kept" / "backup.db"
    file.parent.mkdir()
    assert owner("vault", "backup", str(file)).code == 0
    return Backup(place, file, owner, tmp_path)


@pytest.fixture
def recovery(backup: Backup) -> Path:
    """The recovery file of the installation; its root key is lost after."""
    file = backup.folder / "kept" / "recovery.json"
    ran = backup.line("vault", "export-recovery", str(file), "--passphrase-stdin", stdin=PASSPHRASE.encode())
    assert ran.code == 0, ran.err
    (backup.place.home / "keys" / "root.key").unlink()
    return file
