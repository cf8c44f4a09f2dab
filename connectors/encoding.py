"""Write several arguments as the one text that an upstream wants of them; each way is one function and one line.

What is written is decided by the arguments alone, so that what a person agreed to is what is sent.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from connectors.errors import Unsendable

_ADDRESS = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+"
_MAILBOX = re.compile(rf"(?P<name>[^<>@,;:\"()\\\[\]]{{1,100}}?) *<(?P<named>{_ADDRESS})>|(?P<bare>{_ADDRESS})")
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")


@dataclass(frozen=True, slots=True)
class Encoder:
    """One way of writing; `write` is given some of `fields`, and raises Unsendable for what it cannot write."""

    fields: frozenset[str]
    write: Callable[[Mapping[str, Any]], str]


def mail(fields: Mapping[str, Any]) -> str:
    """A plain-text mail (RFC 5322) in base64url, as Gmail takes it: without From and Date, which Gmail adds.

    `to`, `cc` and `bcc` are lists of `ann@example.com` or `Ann <ann@example.com>`. No value can add a header or an
    addressee of its own.
    """
    from email.message import EmailMessage  # here, since it takes a while to import
    from email.policy import SMTP

    message = EmailMessage(policy=SMTP)
    for header, name in (("To", "to"), ("Cc", "cc"), ("Bcc", "bcc")):
        if fields.get(name):
            message[header] = [_mailbox(name, text) for text in fields[name]]
    for header, name in (("Subject", "subject"), ("In-Reply-To", "in_reply_to"), ("References", "references")):
        if fields.get(name):
            message[header] = _line(name, fields[name])
    try:
        message.set_content(fields.get("text", ""), cte="quoted-printable")
        return base64.urlsafe_b64encode(message.as_bytes()).decode()
    except UnicodeEncodeError:
        raise Unsendable("The text holds half of a surrogate pair; send whole characters.") from None


ENCODERS: Mapping[str, Encoder] = {
    "mail": Encoder(frozenset({"to", "cc", "bcc", "subject", "in_reply_to", "references", "text"}), mail),
}


def _mailbox(name: str, text: str) -> Any:
    from email.headerregistry import Address

    found = _MAILBOX.fullmatch(_line(name, text).strip())
    if not found:
        raise Unsendable(
            f"{name} has an address that cannot be written; give ann@example.com or Ann <ann@example.com>."
        )
    return Address((found["name"] or "").strip(), addr_spec=found["named"] or found["bare"])


def _line(name: str, text: str) -> str:
    if not _LINE.fullmatch(text):
        raise Unsendable(f"{name} may not hold line breaks or other control characters.")
    return text
