"""What the tests of signed logs share: a signer of its own, checkpoints of a log, and both verifiers side by side."""

import re
import subprocess
import sys
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from server.audit import Report, Status, export_lines, standalone, verify_export
from server.audit.checkpoints import Grown, Signer, begun, grow, statement
from server.audit.note import Checkpoint, NoteProblem, VerifierKey, origin_of, read_notes
from server.audit.proof import Proofs
from server.audit.reading import Reader
from vault.signing import SigningKey

STANDALONE = Path(standalone.__file__)


def signer(org: str, seed: int = 1) -> Signer:
    return Signer(origin_of(org), SigningKey(bytes([seed]) * 32))


def checkpoint(db: Reader, org: str, by: Signer, *, at: int | None = None) -> Checkpoint:
    """A checkpoint of the log as it is, or was at this size; whatever its entries hold."""
    log: Grown = begun(org, None)
    grow(db, org, log, to=at)
    return statement(log, by)


@dataclass(frozen=True)
class Verdict:
    """What both verifiers say alike."""

    code: int
    first_bad: int | None


def both(
    export: bytes, folder: Path, notes: str = "", key: VerifierKey | None = None, *, alone: bool = False
) -> Report:
    """Ours, once the stand-alone one has come to the same; `alone`: run as an auditor does, by a bare Python."""
    try:
        checkpoints = tuple(read_notes(notes.encode())) if notes else ()
        ours = verify_export(BytesIO(export), proofs=Proofs(checkpoints, key))
    except NoteProblem as problem:
        ours = Report(Status.UNVERIFIABLE, problem=str(problem))  # as the command does
    files = {"export.jsonl": export, "notes.txt": notes.encode()}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    words = [str(folder / "export.jsonl"), *(["--checkpoint", str(folder / "notes.txt")] if notes else [])]
    words += ["--key", str(key)] if key else []
    theirs = _alone(words) if alone else _called(words)
    if b'"selection":' in export.partition(b"\n")[0]:
        assert theirs.code == 3, "the short one takes whole logs only"
        return ours
    first = None if ours.exit_code == 3 else ours.first_bad
    assert theirs == Verdict(ours.exit_code, first), (ours, theirs)
    return ours


def _alone(words: list[str]) -> Verdict:
    """`-I`: no environment, no site of the user, and not the folder that it lies in."""
    ran = subprocess.run(
        [sys.executable, "-I", "-S", str(STANDALONE), *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.stderr == "", ran.stderr
    return Verdict(ran.returncode, _first(ran.stdout))


def _called(words: list[str]) -> Verdict:
    from contextlib import redirect_stdout
    from io import StringIO

    with redirect_stdout(StringIO()) as said:
        code = standalone.main(words)
    return Verdict(code, _first(said.getvalue()))


def _first(said: str) -> int | None:
    found = re.search(r"first bad entry: (\d+)", said)
    return int(found[1]) if found else None


def exported(db: Reader, org: str) -> bytes:
    return b"".join(line.encode() for line in export_lines(db, org))


__all__ = ["STANDALONE", "Verdict", "both", "checkpoint", "exported", "signer"]
