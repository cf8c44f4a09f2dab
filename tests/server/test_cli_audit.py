"""The record is read, exported and verified, each on record itself; the exit code says what was found."""

import csv
import json
from pathlib import Path

import pytest
import typer

from server.audit import Event, append
from server.cli.moments import duration, moment
from server.clock import now_ms
from tests.commandline import CommandLine
from tests.installed import Place


@pytest.fixture
def exported(owner: CommandLine, tmp_path: Path) -> Path:
    file = tmp_path / "log.jsonl"
    assert owner("audit", "export", "--format", "jsonl", "--output", str(file)).code == 0
    return file


def tamper(place: Place, sql: str) -> None:
    """Change the log past its triggers, as whoever holds the database can."""
    place.unlock_the_log()
    place.database.write_now(lambda rows: rows.execute(sql))


# -- list


def test_entries_are_listed_newest_last_and_the_listing_is_one(owner: CommandLine, place: Place) -> None:
    events = [entry["event"] for entry in owner("audit", "list", "--json").json]
    assert events == ["org.created", "member.created", "connection.created", "agent.created", "audit.listed"]
    (last,) = owner("audit", "list", "--limit", "1", "--json").json
    assert (last["event"], last["by"], last["selection"]) == ("audit.listed", "alice", {"limit": 1})
    assert len(last["hash"]) == 64
    assert "connection.created" in owner("audit", "list").out


@pytest.mark.parametrize("why", ["reason", "error"])
def test_the_list_says_why_a_call_did_not_succeed(owner: CommandLine, place: Place, why: str) -> None:
    place.database.write_now(
        lambda rows: append(rows, place.org, Event.CALL_OUTCOME, tool="t", outcome="failed", **{why: "unreachable"})
    )
    assert "failed: unreachable" in owner("audit", "list").out


def test_every_filter_narrows(owner: CommandLine, place: Place) -> None:
    def events(*filters: str) -> list[str]:
        return [entry["event"] for entry in owner("audit", "list", "--json", *filters).json]

    assert events("--event", "agent.created") == ["agent.created"]
    assert events("--event", "agent.created", "--event", "org.created") == ["org.created", "agent.created"]
    assert events("--agent", "nobody", "--agent", "reconciler", "--agent", "x") == ["agent.created"]
    assert place.events("audit.listed")[-1]["selection"] == {"limit": 50, "agent": ["nobody", "reconciler", "x"]}
    assert events("--agent", "reconciler") == ["agent.created"]
    assert events("--member", "alice") == ["member.created"]
    assert events("--connection", "stripe") == ["connection.created"]
    assert events("--tool", "stripe_get_balance") == []
    assert events("--outcome", "succeeded") == []
    assert events("--until", "2020-01-01") == []
    assert events("--since", "1h", "--event", "org.created") == ["org.created"]
    assert events("--since", "2999-01-01T00:00Z") == []


@pytest.mark.parametrize(
    "wrong",
    [
        *[("--event", "no.such"), ("--since", "yesterday"), ("--until", "2026-13-01"), ("--limit", "0")],
        *[("--event", "no.such", "--event", "org.created"), ("--since", "1d", "--since", "2d")],
    ],
)
def test_a_filter_that_means_nothing_is_misuse(owner: CommandLine, place: Place, wrong: tuple[str, ...]) -> None:
    before = len(place.events())
    ran = owner("audit", "list", *wrong)
    assert (ran.code, ran.out) == (2, "")
    assert len(place.events()) == before


def test_times_read_as_they_are_written() -> None:
    assert moment("1970-01-02") == 86_400_000
    assert moment("1970-01-01T01:00+01:00") == 0
    assert abs(now_ms() - moment("2d") - 2 * 86_400_000) < 10_000
    assert [duration(text) for text in ("90s", "15m", "12h", "30d", "2w")] == [
        90_000,
        900_000,
        43_200_000,
        2_592_000_000,
        1_209_600_000,
    ]
    with pytest.raises(typer.BadParameter):
        duration("-1d")


# -- export and verify


def test_an_export_verifies_and_exporting_is_on_record(owner: CommandLine, place: Place, exported: Path) -> None:
    assert exported.stat().st_mode & 0o777 == 0o600
    (entry,) = place.events("audit.exported")
    assert (entry["format"], entry["by"]) == ("jsonl", "alice")
    assert json.loads(exported.read_text().splitlines()[-1])["entry"]["event"] == "audit.exported"
    ran = owner("audit", "verify", "--export", str(exported), "--json")
    assert (ran.code, ran.json["status"], ran.json["entries"]) == (0, "intact", entry["seq"])


def test_verifying_an_export_needs_nothing_else(keyleash: CommandLine, exported: Path) -> None:
    away = CommandLine(keyleash.person / "nowhere", keyleash.person)
    ran = away("audit", "verify", "--export", str(exported))
    assert ran.code == 0
    assert ran.out.startswith("Intact: 5 entries")
    assert "does not exclude" in ran.err
    assert not away.home.exists()


def test_an_altered_export_is_found_and_the_entry_named(owner: CommandLine, exported: Path) -> None:
    lines = exported.read_bytes().splitlines(keepends=True)
    exported.write_bytes(b"".join(lines).replace(b'"connector":"stripe"', b'"connector":"strife"'))
    ran = owner("audit", "verify", "--export", str(exported))
    assert ran.code == 1
    assert "First bad entry: 3 (line 4)" in ran.out
    assert owner("audit", "verify", "--export", str(exported), "--json").json["first_bad"] == 3
    exported.write_bytes(b"".join(lines[:-1]))
    assert owner("audit", "verify", "--export", str(exported)).code == 1


@pytest.mark.parametrize("content", [b"", b"not an export\n", b'"seq","at"\n'])
def test_what_is_no_export_cannot_be_verified(owner: CommandLine, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    ran = owner("audit", "verify", "--export", str(file))
    assert ran.code == 3
    assert "Cannot be verified" in ran.out
    assert owner("audit", "verify", "--export", str(tmp_path / "nosuch")).code == 3


def test_the_database_is_verified_and_that_is_on_record(owner: CommandLine, place: Place) -> None:
    ran = owner("audit", "verify", "--json")
    assert (ran.code, ran.json["status"], ran.json["entries"]) == (0, "intact", 4)
    (entry,) = place.events("audit.verified")
    assert (entry["outcome"], entry["entries"]) == ("intact", 4)


def test_an_altered_database_is_found_and_the_entry_named(owner: CommandLine, place: Place) -> None:
    tamper(place, "UPDATE audit_entry SET body = replace(body, 'alice', 'malice') WHERE seq = 2")
    ran = owner("audit", "verify")
    assert ran.code == 1
    assert "First bad entry: 2" in ran.out


def test_a_log_that_takes_no_more_entries_is_still_judged(owner: CommandLine, place: Place) -> None:
    tamper(place, "UPDATE audit_entry SET hash = 'none' WHERE seq = (SELECT MAX(seq) FROM audit_entry)")
    ran = owner("audit", "verify")
    assert ran.code == 1
    assert "could not be recorded" in ran.err
    assert "Traceback" not in ran.err


def test_a_head_that_was_noted_finds_a_truncation(owner: CommandLine, place: Place) -> None:
    first = owner("audit", "verify", "--json").json["head"]
    noted = f"{first['seq']}:{first['hash']}"
    assert owner("audit", "verify", "--head", noted).code == 0
    tamper(place, "DELETE FROM audit_entry WHERE seq > 2")
    assert owner("audit", "verify", "--head", noted).code == 1
    assert owner("audit", "verify", "--head", "nonsense").code == 2
    assert (
        owner("audit", "verify", "--head", noted, "--head", noted[:-1] + ("0" if noted[-1] != "0" else "1")).code == 2
    )


def test_csv_is_for_spreadsheets(owner: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "log.csv"
    ran = owner("audit", "export", "--format", "csv", "--output", str(file), "--json")
    assert (ran.code, ran.json["entries"]) == (0, 5)
    with file.open(newline="") as opened:
        assert [row["event"] for row in csv.DictReader(opened)][-1] == "audit.exported"
    assert owner("audit", "verify", "--export", str(file)).code == 3


def test_a_pipe_gets_the_same_lines(owner: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "piped"
    ran = owner("audit", "export", "--output", "-")
    file.write_text(ran.out)
    assert owner("audit", "verify", "--export", str(file)).code == 0
    assert owner("audit", "export", "--output", "-", "--json").code == 2


def test_a_selection_is_exported_and_says_that_it_proves_less(owner: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "part.jsonl"
    assert owner("audit", "export", "--event", "agent.created", "--output", str(file)).code == 0
    ran = owner("audit", "verify", "--export", str(file))
    assert ran.code == 3
    assert "selection" in ran.out


def test_an_export_that_fails_leaves_no_file(owner: CommandLine, tmp_path: Path) -> None:
    ran = owner("audit", "export", "--output", str(tmp_path / "no" / "such" / "folder.jsonl"))
    assert ran.code == 1
    assert "could not be written" in ran.err
    assert owner("audit", "export", "--output", str(tmp_path)).code == 1
    assert owner("audit", "export", "--format", "xml", "--output", str(tmp_path / "x")).code == 2
    assert not (tmp_path / "x").exists()


def test_hostile_text_in_the_record_is_not_interpreted(owner: CommandLine, place: Place) -> None:
    place.database.write_now(
        lambda rows: append(
            rows, place.org, Event.CALL_REFUSED, agent="[bold]x\x1b[2J", tool="t\nforged line", reason="r"
        )
    )
    ran = owner("audit", "list")
    assert "\x1b" not in ran.out
    assert "[bold]x\\x1b[2J" in ran.out
    assert "t\\x0aforged line" in ran.out


def test_progress_is_shown_on_a_terminal_and_never_among_the_results(owner: CommandLine, tmp_path: Path) -> None:
    with owner.at_terminal("audit", "export", "--output", str(tmp_path / "log.jsonl")) as terminal:
        assert terminal.end() == 0
    assert "Exporting" in terminal.shown
    assert "Exporting" not in owner("audit", "export", "--output", str(tmp_path / "log.jsonl")).err


@pytest.mark.parametrize("name", ["keys/root.key", "data/keyleash.db", "data/new.jsonl"])
def test_an_export_is_never_put_into_keyleashs_own_folder(owner: CommandLine, place: Place, name: str) -> None:
    before = {path: path.read_bytes() for path in (place.home / "keys").iterdir()}
    ran = owner("audit", "export", "--output", str(place.home / name))
    assert ran.code == 2
    assert "Keyleash's own folder" in ran.err.replace("\n", " ").replace("│", "").replace("  ", " ")
    assert {path: path.read_bytes() for path in (place.home / "keys").iterdir()} == before
    assert not (place.home / "data" / "new.jsonl").exists()
    assert owner("audit", "verify").code == 0
