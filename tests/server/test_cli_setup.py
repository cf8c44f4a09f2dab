"""An installation is made whole or not at all, upgraded only after a copy was kept, and examined without a change."""

import contextlib
import json
import sqlite3
import stat
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from connectors.definition import Deprecation
from server.cli import doctor as doctor_room
from server.cli.checks.accounts import PLACES_AT_ONCE, announced
from server.cli.checks.finding import Patient
from server.cli.doctor import CHECKS
from server.cli.setup import member_name, upgrade_database
from server.database import SCHEMA, DatabaseProblem
from server.identity import system_user
from server.settings import Settings
from server.sqlite import SqliteDatabase
from tests.agents import reopened
from tests.commandline import CommandLine, with_environment
from tests.installed import SECRET, Place
from tests.upstream import Upstream
from vault import to_reference


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- init


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_init_makes_an_installation_for_its_user_alone(keyleash: CommandLine) -> None:
    ran = keyleash("init", "--org", "acme", "--root", "file", "--json")
    assert ran.code == 0, ran.err
    assert ran.json == {
        "home": str(keyleash.home),
        "org": "acme",
        "preset": "default",
        "root_key": {"provider": "file", "location": str(keyleash.home / "keys" / "root.key")},
    }
    assert [mode(keyleash.home), mode(keyleash.home / "keys"), mode(keyleash.home / "data")] == [0o700] * 3
    assert mode(keyleash.home / "data" / "keyleash.db") == 0o600
    (member,) = keyleash("member", "list", "--json").json
    assert (member["name"], member["roles"]) == (member_name(system_user()), ["owner"])
    assert member["os_user"] == system_user()
    entries = keyleash("audit", "list", "--json").json
    made = ["org.created", "member.created", "installation.created", "audit.listed"]
    assert [entry["event"] for entry in entries] == made
    assert keyleash("vault", "status", "--json").json["sealed"] is False


def test_an_empty_folder_that_is_there_becomes_private(keyleash: CommandLine) -> None:
    keyleash.home.mkdir(mode=0o755)
    assert keyleash("init", "--org", "acme", "--root", "file").code == 0
    assert mode(keyleash.home) == 0o700


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_second_init_touches_nothing(keyleash: CommandLine) -> None:
    keyleash("init", "--org", "acme", "--root", "file")
    before = {name: (keyleash.home / name).read_bytes() for name in ("data/keyleash.db", "keys/root.key")}
    ran = keyleash("init", "--org", "other", "--root", "file")
    assert ran.code == 1
    assert "keyleash org create" in ran.err
    assert {name: (keyleash.home / name).read_bytes() for name in before} == before


def test_a_failed_init_leaves_nothing_behind(keyleash: CommandLine) -> None:
    ran = keyleash("init", "--org", "No Such Name!", "--root", "file")
    assert ran.code == 1
    assert "cannot name an org" in ran.err
    assert not keyleash.home.exists()
    assert keyleash("init", "--org", "acme", "--root", "file").code == 0


def test_a_failed_init_takes_away_only_what_it_made_itself(keyleash: CommandLine) -> None:
    keys = keyleash.home / "keys"
    keys.mkdir(parents=True, mode=0o700)
    (keys / "root.key").write_text("somebody's")
    (keyleash.home / "notes.txt").write_text("mine")
    ran = keyleash("init", "--org", "acme", "--root", "file")
    assert ran.code == 1
    assert "There is a file at" in ran.err
    assert everything_in(keyleash.home) == ["keys", "keys/root.key", "notes.txt"]
    assert (keys / "root.key").read_text() == "somebody's"


def test_a_root_key_elsewhere_goes_when_init_fails_after_making_it(keyleash: CommandLine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "vault" / "deep" / "root.key"
    assert keyleash("init", "--org", "Bad Name", "--root", f"file:{elsewhere}").code == 1
    assert not (tmp_path / "vault").exists()
    assert keyleash("init", "--org", "acme", "--root", f"file:{elsewhere}").code == 0
    assert mode(elsewhere) == 0o600
    assert keyleash("vault", "status", "--json").json["sealed"] is False
    assert not (keyleash.home / "keys").exists()


def test_without_a_real_keychain_init_fails_and_names_the_file(keyleash: CommandLine) -> None:
    ran = keyleash.alone("init", "--org", "acme")
    assert ran.code == 1
    assert "--root file" in ran.err
    assert not keyleash.home.exists()


@pytest.mark.parametrize("wrong", [("--root", "pigeon"), ("--preset", "lax"), ("--root", "file:")])
def test_init_refuses_what_it_does_not_know(keyleash: CommandLine, wrong: tuple[str, str]) -> None:
    ran = keyleash("init", "--org", "acme", *(() if wrong[0] == "--root" else ("--root", "file")), *wrong)
    assert ran.code == 1
    assert not keyleash.home.exists()


def test_without_a_terminal_the_org_is_named_after_the_system_user(keyleash: CommandLine) -> None:
    assert keyleash("init", "--root", "file", "--json").json["org"] == member_name(system_user())


@pytest.mark.parametrize(
    ("user", "name"),
    [
        ("ada", "ada"),
        ("CORP\\Ada Lovelace", "corp-ada-lovelace"),
        ("_www", "www"),
        ("Ω", "owner"),
        ("x" * 99, "x" * 63),
    ],
)
def test_every_system_user_gets_a_members_name(user: str, name: str) -> None:
    assert member_name(user) == name


def test_the_environment_does_not_say_who_somebody_is(owner: CommandLine) -> None:
    owner.environ |= {"LOGNAME": "mallory", "USER": "mallory"}
    assert owner("connection", "list").code == 0


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_commands_before_init_say_what_to_do(keyleash: CommandLine) -> None:
    ran = keyleash("connection", "list")
    assert (ran.code, ran.out) == (1, "")
    assert "keyleash init" in ran.err
    assert not keyleash.home.exists()


# -- upgrade


def test_upgrade_has_nothing_to_do_on_this_releases_schema(owner: CommandLine) -> None:
    assert owner("upgrade", "--json").json == {"from": SCHEMA, "to": SCHEMA, "backup": None}
    assert not (owner.home / "backups").exists()


def older(place: Place) -> Settings:
    stamp(place.installation.settings.database, "0000")
    return place.installation.settings


def stamp(path: Path, version: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (version,))


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_upgrade_keeps_a_copy_first_and_writes_it_down(place: Place) -> None:
    settings = older(place)
    before, after, copy = upgrade_database(settings, lambda path: stamp(path, SCHEMA))
    assert (before, after) == ("0000", SCHEMA)
    assert copy is not None
    assert mode(copy) == 0o600
    with contextlib.closing(sqlite3.connect(copy)) as kept:
        assert kept.execute("SELECT version_num FROM alembic_version").fetchone() == ("0000",)
        assert kept.execute("SELECT COUNT(*) FROM connection").fetchone() == (1,)
    (entry,) = place.events("installation.upgraded")
    assert (entry["schema_before"], entry["schema_after"]) == ("0000", SCHEMA)


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_a_failed_upgrade_names_the_copy(place: Place) -> None:
    settings = older(place)
    with pytest.raises(DatabaseProblem, match="The database as it was is at") as caught:
        upgrade_database(settings, lambda _path: None)
    (copy,) = settings.backups.iterdir()
    assert str(copy) in str(caught.value)


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_the_command_reports_a_failed_upgrade_without_a_traceback(place: Place, owner: CommandLine) -> None:
    older(place)
    ran = owner("upgrade")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert str(owner.home / "backups") in ran.err


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_upgrade_refuses_a_newer_schema_and_keeps_no_copy(place: Place, owner: CommandLine) -> None:
    stamp(place.installation.settings.database, "9999")
    ran = owner("upgrade")
    assert ran.code == 1
    assert "newer" in ran.err
    assert not (owner.home / "backups").exists()


# -- doctor


def findings(line: CommandLine) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    ran = line("doctor", "--json")
    found: dict[str, list[tuple[str, str]]] = {}
    for one in ran.json:
        assert set(one) == {"check", "status", "message"}
        found.setdefault(one["check"], []).append((one["status"], one["message"]))
    return ran.code, found


def test_a_sound_installation_is_well(owner: CommandLine) -> None:
    code, found = findings(owner)
    assert code == 0, found
    assert {status for each in found.values() for status, _ in each} == {"ok"}
    assert owner("doctor").code == 0


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_without_an_installation_doctor_says_init(keyleash: CommandLine) -> None:
    code, found = findings(keyleash)
    assert code == 1
    assert found["database"][0][0] == "fail"
    assert "keyleash init" in found["database"][0][1]
    assert not keyleash.home.exists()


def test_doctor_finds_a_folder_that_others_can_read(owner: CommandLine) -> None:
    owner.home.chmod(0o755)
    code, found = findings(owner)
    assert code == 1
    assert found["files"][0] == ("fail", f"{owner.home} can be read or written by others: chmod 700 {owner.home}")


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_in_a_closed_folder_a_wide_file_is_only_a_warning(owner: CommandLine) -> None:
    database = owner.home / "data" / "keyleash.db"
    database.chmod(0o644)
    code, found = findings(owner)
    assert (code, found["files"][0][0]) == (0, "warn")
    assert f"chmod 600 {database}" in found["files"][0][1]


def test_doctor_finds_a_missing_root_key(owner: CommandLine) -> None:
    (owner.home / "keys" / "root.key").unlink()
    code, found = findings(owner)
    assert code == 1
    assert found["root key"][0][0] == "fail"
    assert "Put it back" in found["root key"][0][1]


def test_doctor_finds_a_credential_that_does_not_open(place: Place, owner: CommandLine) -> None:
    place.database.write_now(lambda rows: rows.execute("UPDATE connection SET base_url = 'https://evil.test'"))
    code, found = findings(owner)
    assert code == 1
    assert "keyleash connection rotate stripe --org acme" in found["credentials"][0][1]


def test_doctor_resolves_each_reference_and_says_which_fails(
    place: Place, owner: CommandLine, upstream: Upstream, tmp_path: Path
) -> None:
    file = tmp_path / "some.key"
    file.write_text(SECRET)
    file.chmod(0o600)
    for name, reference in {
        "there": f"file:{file}",
        "gone": "file:/nowhere/at/all",
        "short": "cmd:echo xyzzy",
        "unset": "env:KEYLEASH_TEST_UNSET",
        "here": "env:SOME_API_KEY",
    }.items():
        place.connect(upstream.url, name=name, secret=to_reference(reference))
    code, found = findings(with_environment(owner, {"SOME_API_KEY": SECRET}))
    assert code == 1
    assert [(status, message.split()[4]) for status, message in found["credentials"][:-1]] == [
        ("fail", "gone"),
        ("ok", "here"),
        ("fail", "short"),
        ("warn", "unset"),
    ]
    said = json.dumps(found)
    for hidden in ("xyzzy", "/nowhere", "TEST_UNSET", "SOME_API", SECRET):
        assert hidden not in said
    assert found["credentials"][-1] == ("ok", "6 connections were looked at.")
    assert upstream.requests == []


def test_doctor_asks_slow_places_side_by_side_and_only_for_so_long(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    for number in range(PLACES_AT_ONCE):
        place.connect(upstream.url, name=f"slow_{number}", secret=to_reference("cmd:sleep 60"))
    started = time.monotonic()
    _, found = findings(with_environment(owner, {"KEYLEASH_REFERENCE_SECONDS": "3"}))
    assert time.monotonic() - started < 3 * PLACES_AT_ONCE
    assert [status for status, _ in found["credentials"]] == ["fail"] * PLACES_AT_ONCE + ["ok"]


def test_doctor_points_out_a_secret_that_every_user_of_the_machine_can_read(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # not below pytest's own, which is closed
        Path(folder).chmod(0o755)
        file = Path(folder) / "some.key"
        file.write_text(SECRET)
        file.chmod(0o644)
        place.connect(upstream.url, name="open", secret=to_reference(f"file:{file}"))
        code, found = findings(owner)
    assert code == 0
    (warned,) = [message for status, message in found["credentials"] if status == "warn"]
    assert "every user of this machine" in warned
    assert str(file) not in warned


def test_doctor_says_which_file_has_moved_the_place_of_a_secret(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    folder = place.installation.settings.connectors
    folder.mkdir()
    shipped = (Path(__file__).parents[2] / "configs" / "connectors" / "stripe.yaml").read_text()
    file = folder / "mine.yaml"
    file.write_text(shipped.replace("id: stripe\n", "id: mine\n", 1))
    reopened(place)
    place.connect(upstream.url, connector="mine")
    assert findings(owner)[0] == 0
    file.write_text(file.read_text().replace("    scheme: bearer\n", "    scheme: header\n    name: X-Key\n"))
    code, found = findings(owner)
    assert code == 1
    ((status, message), _) = found["credentials"]
    assert status == "fail"
    assert str(file) in message
    assert "Put the file back as it was" in message
    assert "keyleash connection rotate mine --org acme" in message


def test_doctor_finds_a_reference_that_the_row_does_not_own_up_to(
    place: Place, owner: CommandLine, upstream: Upstream
) -> None:
    place.connect(upstream.url, name="pointing", secret=to_reference("cmd:touch /nowhere"))
    place.database.write_now(lambda rows: rows.execute("UPDATE connection SET source = 'vault'"))
    code, found = findings(owner)
    assert code == 1
    assert [(status, "cannot be opened" in message) for status, message in found["credentials"]] == [
        ("fail", True),
        ("ok", False),
    ]


def test_doctor_finds_a_standalone_agent_without_rules(place: Place, owner: CommandLine) -> None:
    place.agent("robot", standalone=True)
    code, found = findings(owner)
    assert (code, found["agents"][0][0]) == (0, "warn")
    assert "robot" in found["agents"][0][1]
    robot = place.installation.directory.agent(place.org, "robot")
    place.rule(who=f"agent:{robot.id}", tools=["stripe.list_*"], then="allow")
    assert findings(owner)[1]["agents"] == [("ok", "The agents of every org were looked at.")]


def test_doctor_finds_a_broken_connector_file(owner: CommandLine) -> None:
    folder = owner.home / "data" / "connectors"
    folder.mkdir(mode=0o700)
    (folder / "mine.yaml").write_text("id: [")
    code, found = findings(owner)
    assert code == 1
    assert "mine.yaml" in found["connectors"][0][1]


@pytest.mark.parametrize(
    ("date", "says"),
    [
        ("2020-01-01", ["since 2020-01-01"]),
        ("2020-01", ["since 2020-01"]),
        ("2027-02-01", ["from 2027-02-01 on"]),
        ("2027-02-25", []),
        ("2028-03", []),
    ],
)
def test_doctor_speaks_of_deprecations_that_are_near_or_past(date: str, says: list[str]) -> None:
    end = Deprecation(date, "Sources end.", "https://example.com")
    said = announced("Stripe", end, datetime(2026, 11, 26, tzinfo=UTC))
    assert [(one.check, one.status, one.message) for one in said] == [
        ("deprecations", "warn", f"Stripe, {when}: Sources end. https://example.com") for when in says
    ]


def test_doctor_warns_of_what_ends_at_a_connector_that_is_used_and_of_no_other(
    place: Place, owner: CommandLine
) -> None:
    assert "deprecations" not in findings(owner)[1]
    place.connect("https://acme.zendesk.com", connector="zendesk")
    warned = findings(owner)[1]["deprecations"]
    assert {status for status, _ in warned} == {"warn"}
    assert any("Zendesk" in text and "2026-10-27" in text and "https://" in text for _, text in warned)
    assert not any("Gemini" in text for _, text in warned)


def test_doctor_finds_a_client_that_starts_a_missing_command(owner: CommandLine) -> None:
    broken = {"mcpServers": {"keyleash": {"command": "/nowhere/keyleash", "args": ["serve", "--agent", "reconciler"]}}}
    (owner.person / ".claude.json").write_text(json.dumps(broken))
    code, found = findings(owner)
    assert code == 1
    assert "keyleash client add claude-code --agent reconciler" in found["clients"][0][1]


@pytest.mark.parametrize(
    "files",
    [
        {"RECORD": "vault/__init__.py,sha256=x,1\n"},
        {"RECORD": '"vault/a,b.py",sha256=x,1\n'},
        {"RECORD": "other/__init__.py,,\nvault.py,sha256=x,1\n"},
        {"RECORD": "vault.cpython-311-x86_64-linux-gnu.so,sha256=x,1\n"},
        {"top_level.txt": "other\nvault\n", "RECORD": "other/__init__.py,,\n"},
    ],
    ids=["a package", "a comma in a name", "a module", "a compiled module", "as declared"],
)
def test_doctor_finds_another_owner_of_our_packages(
    monkeypatch: pytest.MonkeyPatch, owner: CommandLine, tmp_path: Path, files: dict[str, str]
) -> None:
    _installed(tmp_path / "site", "hvac-vault", files)
    monkeypatch.syspath_prepend(tmp_path / "site")
    code, found = findings(owner)
    assert code == 1
    assert "hvac-vault also installs a package called 'vault'" in found["packages"][0][1]


@pytest.mark.parametrize(
    "record",
    ["vault.libs/a.so,,\n", "vaults/a.py,,\n", "a/vault/b.py,,\n", "vault.txt,,\n", "vault-1.dist-info/RECORD,,\n"],
)
def test_doctor_takes_no_likeness_for_our_package(
    monkeypatch: pytest.MonkeyPatch, owner: CommandLine, tmp_path: Path, record: str
) -> None:
    _installed(tmp_path / "site", "hvac-vault", {"RECORD": record})
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert findings(owner)[1]["packages"][0][0] == "ok"


def test_the_owners_are_those_that_python_finds() -> None:
    from importlib.metadata import packages_distributions

    from server.cli.owners import owners_of

    told = packages_distributions()
    assert len(told) > 50
    assert {name: set(owners) for name, owners in owners_of(told).items()} == {
        name: set(owners) for name, owners in told.items()
    }


def _installed(site: Path, name: str, files: dict[str, str]) -> None:
    info = site / f"{name.replace('-', '_')}-1.dist-info"
    info.mkdir(parents=True)
    for file, text in {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n", **files}.items():
        (info / file).write_text(text, encoding="utf-8")


def test_a_check_that_breaks_hides_no_other(place: Place) -> None:
    def broken(_patient: Patient) -> object:
        raise RuntimeError("secret detail")

    (found,) = doctor_room._carried_out(broken, Patient(place.installation.settings, None))  # type: ignore[arg-type]
    assert (found.status, found.message) == ("fail", "This could not be checked (RuntimeError).")


@pytest.mark.sqlite_only("it is about SQLite's file")
def test_doctor_changes_nothing(place: Place, owner: CommandLine) -> None:
    before = SqliteDatabase(place.installation.settings.database).read("SELECT COUNT(*) FROM audit_entry")
    (owner.home / "keys" / "root.key").chmod(0o644)
    assert owner("doctor").code == 1
    assert mode(owner.home / "keys" / "root.key") == 0o644
    assert SqliteDatabase(place.installation.settings.database).read("SELECT COUNT(*) FROM audit_entry") == before


def test_every_check_is_listed_once() -> None:
    assert len(set(CHECKS)) == len(CHECKS)
