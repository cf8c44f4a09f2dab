"""Where the record may be streamed to, as the operator's environment says it. ValueError says what to write there."""

import re

Syslog = tuple[str, str, int]
"""udp, tcp or tls, the host, and the port."""


def syslog(given: str) -> Syslog | None:
    """KEYLEASH_SYSLOG."""
    if not given:
        return None
    found = _SYSLOG.fullmatch(given)
    port = 0 if found is None else int(found["port"] or _PORTS[found["kind"]])
    if found is None or not 0 < port < 65536:
        raise ValueError(
            f"KEYLEASH_SYSLOG is {given!r}: give udp://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT, where the syslog "
            "receiver of the record is."
        )
    return found["kind"], (found["host"] or found["six"]).lower(), port


def otlp_logs(given: str) -> str | None:
    """KEYLEASH_OTLP_LOGS; with the usual path where it has none. It is not quoted: it may hold what it should not."""
    if not given:
        return None
    found = _OTLP.fullmatch(given)
    if found is None or not 0 < int(found["port"] or 4318) < 65536:
        raise ValueError(
            "KEYLEASH_OTLP_LOGS makes no sense: give https://HOST:PORT/v1/logs, where the OpenTelemetry receiver is, "
            "without a name, a password or a question mark in it. Secrets go into KEYLEASH_OTLP_HEADERS."
        )
    return given if found["path"] not in (None, "/") else f"{given.rstrip('/')}/v1/logs"


def otlp_headers(given: str) -> tuple[tuple[str, str], ...]:
    """KEYLEASH_OTLP_HEADERS: each name, and a reference to its secret. It is not quoted either."""
    if not given:
        return ()
    from vault.references import FORMS, REFERENCES

    kinds = "|".join(re.escape(kind.prefix) for kind in REFERENCES.values())
    parts = re.split(rf",(?=\s*{_NAME}=(?:{kinds}))", given)
    found = [re.fullmatch(rf"\s*({_NAME})=((?:{kinds}).+?)\s*", part, re.DOTALL) for part in parts]
    names = [one[1].lower() for one in found if one]
    if len(set(names)) < len(parts) or not all(map(is_header, names)):
        raise ValueError(
            f"KEYLEASH_OTLP_HEADERS makes no sense: give NAME=REFERENCE, with {FORMS} for where the secret is, and "
            "commas between several. The secret itself does not stand there."
        )
    return tuple((one[1].lower(), one[2]) for one in found if one)


def is_header(name: str) -> bool:
    """Whether a header may have this name: not one that says what is sent."""
    return re.fullmatch(_NAME, name) is not None and name.lower() not in _OURS


_SYSLOG = re.compile(
    r"(?P<kind>udp|tcp|tls)://((?P<host>[A-Za-z0-9._-]+)|\[(?P<six>[0-9A-Fa-f:.]+)\])(:(?P<port>[0-9]{1,5}))?/?"
)
_PORTS = {"udp": 514, "tcp": 601, "tls": 6514}
"""The usual ones: RFC 5426, RFC 6587 (and IANA's registry), RFC 5425."""
_OTLP = re.compile(
    r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:(?P<port>[0-9]{1,5}))?(?P<path>/[A-Za-z0-9._~/-]*)?"
)
_NAME = r"[A-Za-z0-9-]{1,64}"
_OURS = frozenset(
    {"content-type", "content-length", "content-encoding", "transfer-encoding", "host", "connection", "accept-encoding"}
)
