"""The append-only record of everything that was asked, decided and done, which someone who distrusts us can check.

Each org has one chain (`append`). `select` reads it, `export_file` writes it to a file, and `verify_database` and
`verify_export` find what was changed and say what they cannot exclude. One entry's form is in `entry.py`.
"""

from server.audit.chain import Rows, append, argument_fields, hash_value
from server.audit.entry import AuditError, CannotRead, Damaged, Entry, Event, ExportFailed, Head, TooLarge
from server.audit.events import MEANINGS
from server.audit.export import FORMATS, Exported, Format, Header, export_file, export_lines
from server.audit.hashed import AUDIT_VALUES, Hashed, hashes_of
from server.audit.reading import Filters, Reader, head, select
from server.audit.verify import Report, Status, verify_database, verify_export

__all__ = [
    "AUDIT_VALUES",
    "FORMATS",
    "MEANINGS",
    "AuditError",
    "CannotRead",
    "Damaged",
    "Entry",
    "Event",
    "ExportFailed",
    "Exported",
    "Filters",
    "Format",
    "Hashed",
    "Head",
    "Header",
    "Reader",
    "Report",
    "Rows",
    "Status",
    "TooLarge",
    "append",
    "argument_fields",
    "export_file",
    "export_lines",
    "hash_value",
    "hashes_of",
    "head",
    "select",
    "verify_database",
    "verify_export",
]
