"""A file that somebody cuts off within a line, while a stream writes to it, spoils no line that comes after."""

from pathlib import Path

from server.audit import FORMATS
from server.audit.entry import Entry, log_hash
from server.audit.receivers import AppendedFile

ENTRY = Entry("o", 1, 0, "org.created", '{"v":1}', log_hash("o"), "0" * 64)


def test_what_comes_after_a_line_that_others_cut_off_begins_a_line(tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    receiver = AppendedFile(file, FORMATS["jsonl"], "o")
    receiver.send([ENTRY])
    whole = file.read_text()
    with file.open("r+b") as other:
        other.truncate(10)
    receiver.send([ENTRY])
    receiver.close()
    assert file.read_text() == f"{whole[:10]}\n{whole}"
