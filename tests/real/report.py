"""What came of each check, said as it happens: ok, failed, or cannot run here and why."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

SHOWN = 700  # characters of a problem


class Came(StrEnum):
    """What a check came to."""

    OK = "ok"
    FAILED = "failed"
    NOT_SHOWN = "cannot run here"


class CannotRun(Exception):
    """This cannot be shown here; the message says why. It is no failure, and no success."""


class Wrong(Exception):
    """It is not as it should be; the message says what is."""


@dataclass(frozen=True)
class Line:
    """One named check."""

    part: str
    what: str
    came: Came
    why: str = ""

    def __str__(self) -> str:
        return f"{self.part:12} {self.came:16} {self.what}" + (f": {self.why}" if self.why else "")


@dataclass
class Report:
    """The lines so far; each is printed when it is known."""

    part: str = ""
    lines: list[Line] = field(default_factory=list)

    @contextmanager
    def line(self, what: str) -> Iterator[list[str]]:
        """One check: fine unless the block raises. What the block puts into the list is said of it when it is fine."""
        notes: list[str] = []
        try:
            yield notes
        except CannotRun as reason:
            self._add(what, Came.NOT_SHOWN, str(reason))
        except Exception as problem:  # a check that breaks has failed, and the next one has its turn
            said = str(problem) if isinstance(problem, Wrong) else f"{type(problem).__name__}: {problem}"
            self._add(what, Came.FAILED, said)
        else:
            self._add(what, Came.OK, "; ".join(notes))

    def of(self, came: Came) -> int:
        """How many came to this."""
        return sum(line.came is came for line in self.lines)

    def _add(self, what: str, came: Came, why: str) -> None:
        line = Line(self.part, what, came, " ".join(why.split())[:SHOWN])
        self.lines.append(line)
        print(line, flush=True)


def expect(fine: object, otherwise: str) -> None:
    """Raise Wrong unless it is so."""
    if not fine:
        raise Wrong(otherwise)
