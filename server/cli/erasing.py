"""After a removal: whether it is gone from the files already, and what a person is told of that."""

from typing import TYPE_CHECKING

from server.cli.output import say

if TYPE_CHECKING:
    from server.app import Installation


def erased(installation: "Installation", org: str, identifier: str) -> bool:
    """Try at once to erase what was just removed from the files, and whatever else waits for that."""
    from server.erasure import attempt

    return all((one.org, one.id) != (org, identifier) for one in attempt(installation.database))


def whether_gone(installation: "Installation", what: str, *, gone: bool) -> str:
    """One sentence on `what` was removed, such as "Its secret"."""
    if gone and not installation.database.files:
        return (
            f"{what} is deleted from the database. PostgreSQL's own log, its replicas and backups, and pages that it "
            "has not written over yet may still hold it, sealed."
        )
    if gone:
        return f"{what} is gone from the database's files."
    return (
        f"{what} cannot be opened any more, and will be gone from the database's files when the process that is "
        "reading the database lets go; `keyleash vault status` shows it."
    )


def say_of_backups(installation: "Installation") -> None:
    """A copy that was made before a removal still holds what was removed: that is never left unsaid."""
    folder = installation.settings.backups
    if folder.is_dir() and any(folder.iterdir()):
        say(f"Copies of the database in {folder} that are older than this still hold it, sealed.")
