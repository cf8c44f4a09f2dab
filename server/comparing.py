"""Find out whether a backup is behind what is known of its logs from elsewhere, and by how much."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from server.audit import AuditError, Head
from server.audit.noted import Gap, NotedHeads, gaps, hash_at, heads, pruned
from server.audit.noted import Logs as Log
from server.backup import BackupProblem
from server.copies import Reader, reading
from server.database import DatabaseProblem
from server.restore import Staged
from server.settings import Settings
from server.sqlite import SqliteDatabase

HERE, NOTED, GIVEN = "the database that is here now", "the heads noted outside the database", "--head"
"""From where it is known how far a log went."""


@dataclass(frozen=True)
class Compared:
    """What is known of the logs from outside the backup. `told` names the places that were looked at."""

    behind: tuple[tuple[str, Gap], ...]
    """where it is known from, and what is missing"""
    told: tuple[str, ...]
    untold: tuple[str, ...]
    """orgs of the backup of which nothing outside says how far their log went"""
    heads: Mapping[str, Head]
    """how far each log goes that is here now"""
    revisions: Mapping[str, int]
    """the revision of each org that is here now"""
    names: Mapping[str, str]
    """the name of each org that is here now"""
    unreadable: str | None
    """why the database that is there now could not be compared"""

    @property
    def rolls_back(self) -> bool:
        """Whether something that was recorded would be gone."""
        return bool(self.behind)

    @property
    def certain(self) -> bool:
        """Whether it is known that nothing would be gone."""
        return not self.behind and not self.untold


def compared(staged: Staged, settings: Settings, given: Sequence[tuple[str, Head]]) -> Compared:
    """Compare the backup's logs with those that are here now, with the heads noted outside, and with `given` ones.

    `given` has an org's name or id and a head that somebody noted. Raises BackupProblem or AuditError.
    """
    noted = NotedHeads(settings.noted_heads).read()
    with reading(staged.path) as db:
        log = Reader(db)
        ids = {str(name): str(org) for org, name in log.read("SELECT id, name FROM org")}
        asked = [(_org(ids, org), end) for org, end in given]
        known = [*_from(log, NOTED, noted.items()), *_from(log, GIVEN, asked)]
        told = {NOTED: set(noted), GIVEN: {org for org, _ in asked}}
        ends, present, unreadable = _present(log, settings, known, told)
        seen = {org for orgs in told.values() for org in orgs}
        untold = tuple(name for name, org in sorted(ids.items()) if org not in seen)
    places = tuple(place for place, orgs in told.items() if orgs)
    revisions = {org: revision for org, (revision, _) in present.items()}
    names = {org: name for org, (_, name) in present.items()}
    return Compared(tuple(_worst(known)), places, untold, ends, revisions, names, unreadable)


def _present(
    log: Log, settings: Settings, known: list[tuple[str, Gap]], told: dict[str, set[str]]
) -> tuple[dict[str, Head], dict[str, tuple[int, str]], str | None]:
    """The heads, and each org's revision and name, that are here now, or why they cannot be read.

    Adds to `known` and `told`.
    """
    if not settings.database.exists():
        return {}, {}, None
    here = SqliteDatabase(settings.database)
    try:
        ends = heads(here)
        read = here.read("SELECT id, revision, name FROM org")
        present = {str(org): (int(revision), str(name)) for org, revision, name in read}
        known += [(HERE, gap) for org, end in ends.items() if (gap := _apart(log, here, org, end)) is not None]
    except AuditError as problem:
        return {}, {}, str(problem)
    except DatabaseProblem as problem:
        if not any(words in str(problem) for words in ("damaged", "no Keyleash tables")):
            raise  # locked, or not ours to read: that can be mended, and then it can be compared
        return {}, {}, str(problem)
    finally:
        here.close()
    told[HERE] = set(ends)
    return ends, present, None


def _apart(log: Log, here: Log, org: str, end: Head) -> Gap | None:
    """What the log that is here has beyond the backup's, from where the two part."""
    if hash_at(log, org, end.seq) == end.hash:
        return None
    gone = pruned(here, org)
    same, apart = 0, end.seq  # entries are chained: once they differ they differ for good
    if gone and hash_at(log, org, gone) == hash_at(here, org, gone):
        same = gone  # and before that nothing is there to be compared
    while apart - same > 1:
        middle = (same + apart) // 2
        found = hash_at(log, org, middle)
        if found is not None and found == hash_at(here, org, middle):
            same = middle
        else:
            apart = middle
    return Gap(org, end, same, forked=hash_at(log, org, same + 1) is not None)


def _from(log: Log, place: str, known: Iterable[tuple[str, Head]]) -> list[tuple[str, Gap]]:
    return [(place, gap) for gap in gaps(log, known)]


def _worst(known: Iterable[tuple[str, Gap]]) -> list[tuple[str, Gap]]:
    """One gap for each org: the one that is known best and loses most."""
    found: dict[str, tuple[str, Gap]] = {}
    for place, gap in known:
        before = found.get(gap.org)
        if before is None or (gap.lost or 0) > (before[1].lost or 0):
            found[gap.org] = (place, gap)
    return [found[org] for org in sorted(found)]


def _org(ids: Mapping[str, str], given: str) -> str:
    if given in ids or given.startswith("org_"):
        return ids.get(given, given)
    raise BackupProblem(f"--head names the org {given!r}, and the backup has none of that name. Give its id (org_…).")
