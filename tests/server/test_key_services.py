"""A root key in a key service, from the command to the call: moved to while calls go on, asked for, away, back.

The services are the fakes that stand in `tests/vault`; what they enforce, they enforce for real.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from server.app import open_installation, running
from server.call import call
from server.cli.setup import found_org
from server.identity import new_id
from server.settings import Settings
from tests.agents import ERAS, Nobody, connected
from tests.commandline import CommandLine, with_environment
from tests.installed import Place
from tests.server.rotating import everything, rotate
from tests.telling import Clock, Receiver, a_server, delivered, held, hooked, outbox
from tests.upstream import Answer, Upstream
from tests.vault.fake_kms import FakeKms
from tests.vault.fake_transit import FakeKey, FakeTransit
from tests.vault.rigs import alone_with_aws, write_token
from vault import VaultError

pytestmark = pytest.mark.anyio


@dataclass
class Service:
    """A key service, and what an operator says to use its key."""

    spec: str
    fake: FakeKms | FakeTransit
    line: CommandLine

    @property
    def agreed(self) -> dict[str, str]:
        """What an operator sets so that a token goes where only a backup says."""
        return {"KEYLEASH_TRANSIT_ADDR": self.fake.url} if isinstance(self.fake, FakeTransit) else {}

    def go_away(self) -> None:
        self.fake.instead = lambda _received: Answer({"errors": []}, status=503)

    def come_back(self) -> None:
        self.fake.instead = lambda _received: None


@pytest.fixture(params=["aws-kms", "transit"])
def service(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: CommandLine, place: Place
) -> Iterator[Service]:
    place.installation.close()
    if request.param == "aws-kms":
        with FakeKms() as kms:
            alone_with_aws(monkeypatch, endpoint=kms.url)
            names = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED", "AWS_ACCESS_KEY_ID")
            names += ("AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL_KMS")
            yield Service(f"aws-kms:{kms.new_key()}", kms, with_environment(owner, _set(names)))
        return
    with FakeTransit() as transit:
        transit.keys["one"] = FakeKey()
        monkeypatch.setenv("KEYLEASH_TRANSIT_TOKEN_FILE", str(write_token(tmp_path / "token", transit.token)))
        monkeypatch.setenv("KEYLEASH_TRANSIT_ADDR", transit.url)
        yield Service(
            f"transit:{transit.url}#one",
            transit,
            with_environment(owner, _set(("KEYLEASH_TRANSIT_TOKEN_FILE", "KEYLEASH_TRANSIT_ADDR"))),
        )


def _set(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names}


def told(line: CommandLine, *arguments: str) -> str:
    ran = line(*arguments)
    assert ran.code == 0, ran.err
    return ran.out


def reopen(place: Place) -> None:
    place.installation = open_installation(place.installation.settings)


async def test_moving_there_and_back_is_one_command_each_and_loses_nothing(place: Place, service: Service) -> None:
    before = everything(place.installation)
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    (place.home / "keys" / "root.key").unlink()
    reopen(place)
    assert everything(place.installation) == before
    asked = len(service.fake.requests)
    told(service.line, "vault", "rotate-root", "--yes")  # under the newest version of the service's own key
    assert len(service.fake.requests) > asked
    told(service.line, "vault", "rotate-org", "acme", "--yes")
    told(service.line, "vault", "rewrap", "--to", f"file:{place.home / 'keys' / 'home.key'}", "--yes")
    asked = len(service.fake.requests)
    reopen(place)
    assert everything(place.installation) == before
    assert len(service.fake.requests) == asked
    states = [root["state"] for root in service.line("vault", "status", "--json").json["roots"]]
    assert states == ["retired", "retired", "retired", "in use"]


async def test_a_server_that_was_started_before_the_move_goes_on(place: Place, service: Service) -> None:
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok
        done = await anyio.to_thread.run_sync(lambda: service.line.alone("vault", "rewrap", "--to", service.spec, "-y"))
        assert done.code == 0, done.err
        asked = len(service.fake.requests)
        assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok
    assert len(service.fake.requests) > asked
    generations = place.installation.vault.keyring.generations
    assert place.database.query(generations.newest)[1].remote


@pytest.mark.parametrize("era", ERAS)
async def test_a_server_starts_while_the_service_is_away_and_needs_no_restart_when_it_is_back(
    place: Place, service: Service, era: str, upstream: Upstream
) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    service.go_away()
    reopen(place)
    assert place.installation.vault.sealed is None
    async with connected(place, "memory", era) as client:
        assert "stripe_list_charges" in {tool.name for tool in (await client.list_tools()).tools}
        result = await client.call_tool("stripe_list_charges", {})
        assert result.is_error
        assert "keys cannot be had just now" in str(result.content)
        assert upstream.requests == []
    service.come_back()
    async with running(place.installation) as parts:
        assert (await call(parts, place.caller(), "stripe_list_charges", {}, Nobody())).ok
    assert len(upstream.requests) == 1


async def test_while_the_service_is_away_the_commands_say_so_and_store_nothing(place: Place, service: Service) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    service.go_away()
    before = place.database.read("SELECT * FROM vault_credential")
    for arguments in (("connection", "rotate", "stripe", "--secret-stdin", "--no-verify"), ("org", "create", "new")):
        ran = service.line.alone(*arguments, stdin=b"rk_test_a_new_secret_for_stripe")
        assert ran.code == 1, ran.out
        assert "Traceback" not in ran.err
        assert "no other key is used instead" in ran.err
    assert service.line("vault", "status").code == 0
    assert service.line("audit", "verify").code == 0
    assert place.database.read("SELECT * FROM vault_credential") == before


def is_locked(place: Place) -> bool:
    """Whether somebody is writing."""
    with contextlib.closing(sqlite3.connect(place.installation.settings.database, timeout=0)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return True
        return False


@pytest.mark.sqlite_only("it is about SQLite's file")
async def test_no_command_asks_the_service_while_it_keeps_others_from_writing(place: Place, service: Service) -> None:
    """A service that hangs would hold up every call of every org."""
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    asked: list[bool] = []

    service.fake.instead = lambda _received: asked.append(is_locked(place))
    secret = b"rk_test_a_new_secret_for_stripe"
    for stdin, *arguments in (
        (secret, "connect", "stripe", "--name", "second", "--secret-stdin", "--no-verify"),
        (secret, "connection", "rotate", "second", "--secret-stdin", "--no-verify"),
        (b"", "connection", "rotate", "second", "--keep-secret"),
        (b"https://hooks.example.com/x", "channel", "add", "webhook", "chat", "--url-stdin"),
        (b"", "channel", "rotate", "chat"),
        (b"", "org", "create", "new"),
        (b"", "vault", "rotate-org", "acme", "--yes"),
        (b"", "vault", "rotate-root", "--yes"),
        (b"", "vault", "backup", str(place.home.parent / "backup.db")),
    ):
        asked.clear()
        ran = service.line(*arguments, stdin=stdin)
        assert ran.code == 0, ran.err
        assert asked
        assert not any(asked), arguments


@pytest.mark.sqlite_only("it is about SQLite's file")
async def test_what_is_to_be_told_waits_while_the_service_is_away_and_asks_it_in_no_transaction(
    place: Place, service: Service
) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    reopen(place)
    with Receiver() as receiver:
        hooked(place, receiver.hook)
        await held(place)
        place.installation.vault.forget()
        service.go_away()
        async with a_server(place, Clock()) as server:
            await delivered(server)
        assert receiver.requests == []
        assert [tries for _, _, tries, _ in outbox(place)] == [0]
        locked: list[bool] = []
        service.fake.instead = lambda _received: locked.append(is_locked(place))
        async with a_server(place, Clock()) as server:
            await delivered(server)
        assert locked
        assert not any(locked)
        assert len(receiver.requests) == 1


async def test_an_org_is_not_made_under_a_root_key_that_was_rotated_meanwhile(place: Place) -> None:
    database, vault, org = place.database, place.installation.vault, new_id("org")
    key = database.query(lambda rows: vault.first_org_key(rows, org))
    rotate(place.installation, "root")
    with pytest.raises(VaultError, match="rotated meanwhile"):
        database.write_now(lambda rows: found_org(rows, vault, name="new", preset="default", org=org, key=key))
    assert [org.name for org in place.installation.directory.orgs()] == ["acme"]


async def test_while_the_service_is_away_doctor_says_that_and_blames_no_secret(place: Place, service: Service) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    service.go_away()
    ran = service.line("doctor", "--json")
    found = {one["check"]: one for one in ran.json if one["status"] != "ok"}
    assert ran.code == 1
    assert "Nothing can be opened just now" in found["root key"]["message"]
    assert "no other key is used instead" in found["root key"]["message"]
    assert "Not looked at" in found["credentials"]["message"]
    assert "Give it again" not in ran.out


async def test_a_key_that_was_swapped_at_the_service_opens_nothing(place: Place, service: Service) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    for key in service.fake.keys.values():
        if isinstance(key, FakeKey):
            key.versions = [bytes(32).replace(b"\0", b"x")]
        else:
            key.raw = b"x" * 32
    reopen(place)
    assert "is not the one that this database was made with" in (place.installation.vault.sealed or "")


async def test_an_installation_is_made_on_a_service_at_once(service: Service, tmp_path: Path) -> None:
    line = CommandLine(tmp_path / "new", service.line.person, service.line.environ)
    ran = line("init", "--org", "acme", "--root", service.spec)
    assert ran.code == 0, ran.err
    assert not (tmp_path / "new" / "keys").exists()
    assert "nobody deletes it at its service" in ran.err
    assert line("vault", "status", "--json").json["sealed"] is False


async def test_an_installation_is_not_made_where_the_service_is_away(service: Service, tmp_path: Path) -> None:
    service.go_away()
    line = CommandLine(tmp_path / "new", service.line.person, service.line.environ)
    ran = line("init", "--org", "acme", "--root", service.spec)
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert not (tmp_path / "new").exists()


@pytest.mark.sqlite_only("it is about SQLite's file")
async def test_a_backup_wants_the_service_and_nothing_else(place: Place, service: Service, tmp_path: Path) -> None:
    """No key is exported; on a new machine the same service opens the backup, and while it is away nothing does."""
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    (place.home / "keys" / "root.key").unlink()
    ran = service.line("vault", "export-recovery", str(tmp_path / "recovery"), "--passphrase-stdin", stdin=b"x" * 20)
    assert ran.code == 1
    assert "never leaves it" in ran.err
    assert not (tmp_path / "recovery").exists()
    told(service.line, "vault", "backup", str(tmp_path / "backup.db"))
    new = CommandLine(tmp_path / "new", service.line.person, service.line.environ)
    service.go_away()
    away = with_environment(new, service.agreed)("vault", "restore", str(tmp_path / "backup.db"))
    assert away.code == 1
    assert "no other key is used instead" in away.err
    assert not new.home.exists()
    service.come_back()
    told(with_environment(new, service.agreed), "vault", "restore", str(tmp_path / "backup.db"))
    before = everything(open_installation(place.installation.settings))
    assert everything(open_installation(Settings(home=new.home))) == before


@pytest.mark.sqlite_only("it is about SQLite's file")
@pytest.mark.parametrize("service", ["transit"], indirect=True)
async def test_a_backup_that_was_altered_cannot_have_our_token_sent_elsewhere(
    place: Place, service: Service, tmp_path: Path
) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    told(service.line, "vault", "backup", str(tmp_path / "backup.db"))
    new = CommandLine(tmp_path / "new", service.line.person, service.line.environ)
    with Upstream() as thief:
        with contextlib.closing(sqlite3.connect(tmp_path / "backup.db")) as db, db:
            db.execute("UPDATE vault_root SET location = ?", (f"{thief.url}/transit#one",))
        for line in (new, service.line, with_environment(new, service.agreed)):
            ran = line("vault", "restore", str(tmp_path / "backup.db"), "--yes", "--accept-rollback")
            assert ran.code == 1
            assert thief.url in ran.err
        assert thief.requests == []


@pytest.mark.parametrize("service", ["transit"], indirect=True)
async def test_a_database_that_was_altered_cannot_have_our_token_sent_where_the_operator_does_not_say(
    place: Place, service: Service
) -> None:
    told(service.line, "vault", "rewrap", "--to", service.spec, "--yes")
    line = with_environment(service.line, service.agreed)
    assert line("vault", "status", "--json").json["sealed"] is False
    with Upstream() as thief:
        location = f"{thief.url}/transit#one"
        place.database.write_now(
            lambda rows: rows.execute("UPDATE vault_root SET location = ? WHERE provider = 'transit'", (location,))
        )
        shown = line("vault", "status", "--json").json
        assert (shown["sealed"], "the token is not sent" in shown["reason"]) == (True, True)
        assert thief.requests == []
