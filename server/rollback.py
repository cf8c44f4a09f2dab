"""Go on from an older database: what may have been used since it was current can be used no more."""

from collections.abc import Sequence

from server.audit import Event, append
from server.audit.noted import Gap, NotedHeads, gap_fields
from server.clock import now_ms
from server.comparing import NOTED
from server.database import Rows, open_database
from server.duty import make_room
from server.ending import end_all
from server.identity import set_frozen, touch
from server.locks import exclusive
from server.settings import Settings
from server.signing import begin_anew

NEEDS_CONSENT = "oauth2"
"""Schemes that begin so have refresh tokens, which are used once unless it is known that they are not."""


def set_right(rows: Rows, org: str, *, frozen: bool, by: str) -> tuple[list[str], int]:
    """What may have been used since an older database was current can be used no more; returns what needs consent.

    Approvals and grants end, connections whose refresh tokens are used once ask for consent again, and where it is not
    known that nothing is missing, the org's agents are frozen: revoked ones may have come back.
    """
    ended = sum(end_all(rows, org, by=by))
    stale = rows.execute(
        "SELECT id, name FROM connection c WHERE org = ? AND substr(scheme, 1, ?) = ? AND NOT EXISTS "
        "(SELECT 1 FROM oauth_token t WHERE t.org = c.org AND t.connection = c.id AND t.rotates = ?) ORDER BY name",
        (org, len(NEEDS_CONSENT), NEEDS_CONSENT, False),
    ).fetchall()
    for connection, _ in stale:
        rows.execute("UPDATE connection SET needs_consent_at = ? WHERE org = ? AND id = ?", (now_ms(), org, connection))
    if frozen:
        set_frozen(rows, org, frozen=True, by=by)
    return [str(name) for _, name in stale], ended


def accept_rollback(settings: Settings, *, by: str) -> tuple[list[Gap], dict[str, list[str]]]:
    """Go on from an older database that was put back by hand, with every org frozen.

    Returns what is missing in it, and the connections that need consent. Raises DatabaseProblem or AuditError.
    """
    noted = NotedHeads(settings.noted_heads)
    database = open_database(settings, as_operator=True)
    try:
        make_room(settings)
        with exclusive(settings.serving_lock):
            missing = noted.missing(database)
            needs_consent = database.write_now(lambda rows: _set_all_right(rows, missing, by=by)) if missing else {}
            noted.settle(database)
    finally:
        database.close()
    return missing, needs_consent


def _set_all_right(rows: Rows, missing: Sequence[Gap], *, by: str) -> dict[str, list[str]]:
    needs_consent: dict[str, list[str]] = {}
    for org, name in rows.execute("SELECT id, name FROM org ORDER BY id").fetchall():
        found, _ = set_right(rows, org, frozen=True, by=by)
        touch(rows, org)
        gap = next((gap for gap in missing if gap.org == org), None)
        accepted = append(
            rows,
            org,
            Event.VAULT_ROLLBACK_ACCEPTED,
            behind=None if gap is None else gap_fields(NOTED, gap),
            needs_consent=found or None,
            by=by,
            known_by="the root key",
        )
        if gap is not None:
            begin_anew(rows, org, accepted.seq)
        if found:
            needs_consent[name] = found
    return needs_consent
