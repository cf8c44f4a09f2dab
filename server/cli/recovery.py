"""`keyleash vault export-recovery`, and the way back: the root key in a file, under a passphrase.

The passphrase is typed without being shown, or comes from standard input; it is never an argument, and never shown.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli.acting import AsJson, opened, operators_name, require_operator
from server.cli.output import say, show_json, show_text, warn
from server.cli.terminal import NotSure, ask_hidden, require_yes

if TYPE_CHECKING:
    from server.database import Database, Rows
    from server.recovery import Generation
    from server.settings import Settings
    from vault import RootKeyRef, Secret

PassphraseStdin = Annotated[
    bool, typer.Option("--passphrase-stdin", help="Read the passphrase from standard input instead of asking for it.")
]
LONGEST_PASSPHRASE = 4096


def export_recovery(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file; keep it apart from the backups.")],
    passphrase_stdin: PassphraseStdin = False,
    json: AsJson = False,
) -> None:
    """Write the root key to a file under a passphrase, for the day on which its own place is lost."""
    from server.app import root_place
    from server.clock import iso, now_ms
    from vault.recovery import exported, require_free, sealed_root

    with opened(as_operator=True) as installation:
        require_operator(installation, "exporting the root key")
        wanted = _generation(installation.database)
        _require_no_rotation(installation.database)
        require_free(file)
        place = root_place(installation.settings.home, wanted.provider, wanted.location)
        with exported(place) as root, _new_passphrase(stdin=passphrase_stdin) as passphrase:
            made_at = iso(now_ms())
            made = sealed_root(root, passphrase, generation=wanted.id, check=wanted.check, made_at=made_at)
        installation.database.write_now(lambda rows: _record_export(rows, file, wanted.id))
        made.write(file)
    if json:
        show_json({"file": str(file), "generation": made.generation, "fits": made.fits, "made_at": made.made_at})
        return
    show_text(f"Wrote the root key (generation {made.generation}) to {file}, under your passphrase.")
    say(
        "Whoever has this file, its passphrase and a backup has every credential: keep the three apart. A new root key "
        "(`keyleash vault rotate-root`) needs a new file."
    )


@dataclass(frozen=True)
class LostRoot:
    """How a lost root key comes back: its recovery file, and the place where it is to live."""

    file: Path
    place: "RootKeyRef"
    passphrase_stdin: bool

    def open(self, wanted: "Generation") -> "Secret":
        """The root key's text form, if the file is for this one; asks for its passphrase. Raises RecoveryProblem."""
        from server.recovery import require_fitting
        from vault import Secret
        from vault.recovery import read_recovery

        recovery = read_recovery(self.file)
        require_fitting(recovery, wanted)
        if self.passphrase_stdin:
            given = _from_stdin()
        else:
            given = Secret({"secret": _asked(f"Passphrase of {self.file.name}: ")})
        with given:
            return recovery.open(given)


def bring_root_back(settings: "Settings", lost: LostRoot, *, yes: bool, json: bool) -> None:
    """Put a lost root key back for the database that is here, which stays as it is.

    Other servers of a PostgreSQL database look where it says: that is changed only where somebody agrees.
    """
    from server.database import open_database, require_schema
    from server.recovery import recover_root

    database = open_database(settings, as_operator=True)
    try:
        require_schema(database)
        wanted = _generation(database)
        place = lost.place if settings.database_url is None else _as_others_name_it(settings.home, lost.place, wanted)
        noted = settings.database_url is None or not _found_from(settings.home, place, wanted)
        if noted and settings.database_url is not None:
            warn(
                "the database is used by other servers; this changes where they look for the root key: from "
                f"{wanted.provider} ({wanted.location}) to {place.provider} ({place.location})."
            )
            require_yes("Have every server look there?", yes=yes)
        with lost.open(wanted) as root:
            kept = recover_root(database, wanted, root, place, by=operators_name(), noted=noted)
    finally:
        database.close()
    if json:
        show_json({"generation": wanted.id, "root_key": {"provider": kept.provider, "location": kept.location}})
        return
    show_text(f"The root key (generation {wanted.id}) is in {kept.provider}, {kept.location} again.")
    say("Nothing else was changed. Start again what serves this installation. Next: keyleash doctor")


def _as_others_name_it(home: Path, place: "RootKeyRef", wanted: "Generation") -> "RootKeyRef":
    """The same place; where that is any file in this home, the one of the name that the database has for it."""
    from vault import root_key_spec

    if wanted.provider == "file" and place == root_key_spec("file", home):
        return root_key_spec(f"file:{home / 'keys' / Path(wanted.location).name}", home)
    return place


def _found_from(home: Path, place: "RootKeyRef", wanted: "Generation") -> bool:
    """Whether a server with this home will find it there by what the database says already."""
    if place.provider != wanted.provider or place.location == wanted.location:
        return place.provider == wanted.provider
    here = place.provider == "file" and place.location == str(home / "keys" / Path(wanted.location).name)
    # Unless there is a file where the database says, which would come first.
    return here and not os.path.lexists(wanted.location)


def _generation(database: "Database") -> "Generation":
    from server.database import DatabaseProblem
    from server.recovery import newest_generation

    found = database.query(newest_generation)
    if found is None:
        raise DatabaseProblem("This installation has no root key. Run `keyleash init`.")
    return found


def _require_no_rotation(database: "Database") -> None:
    from server.rotation import RotationProblem, unfinished_root

    if unfinished_root(database) is not None:
        raise RotationProblem(
            "A rotation of the root key is not finished, and one key alone would not open everything. Finish it "
            "(`keyleash vault rotate-root`), then export."
        )


def _record_export(rows: "Rows", file: Path, generation: int) -> None:
    from server.audit import Event, append

    for (org,) in rows.execute("SELECT id FROM org ORDER BY id").fetchall():
        append(rows, org, Event.VAULT_ROOT_EXPORTED, generation=generation, file=file.name, by=operators_name())


def _new_passphrase(*, stdin: bool) -> "Secret":
    from vault import Secret
    from vault.recovery import SHORTEST_PASSPHRASE, require_passphrase

    if stdin:
        return _from_stdin()
    first = Secret({"secret": _asked(f"Passphrase, at least {SHORTEST_PASSPHRASE} characters: ")})
    require_passphrase(first)
    with Secret({"secret": _asked("The same again: ")}) as second:
        if first.reveal() != second.reveal():
            raise NotSure("The two were not the same. Nothing was written.")
    return first


def _asked(question: str) -> str:
    return ask_hidden(question, otherwise="Give it with `--passphrase-stdin`.")


def _from_stdin() -> "Secret":
    from vault import Secret
    from vault.errors import RecoveryProblem

    if sys.stdin.isatty():
        raise RecoveryProblem("Standard input is the terminal, which would show it. Leave --passphrase-stdin out.")
    raw = sys.stdin.buffer.read(LONGEST_PASSPHRASE + 1)
    try:
        given = Secret({"secret": raw.decode("utf-8").rstrip("\r\n")})
    except UnicodeDecodeError:
        given = Secret({"secret": ""})
    unfit = len(raw) > LONGEST_PASSPHRASE or not given.reveal()
    del raw  # so that a traceback that prints locals has nothing to print
    if unfit:
        raise RecoveryProblem("Standard input holds no passphrase: give one line of UTF-8 text.")
    return given
