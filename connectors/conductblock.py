"""Read what a connector file says of its upstream's conduct: repeats, errors, quotas, limits, and what will end."""

import re
from collections.abc import Mapping

from connectors import fileformat as keys
from connectors.arguments import RESERVED_HEADERS, check_header
from connectors.definition import Deprecation, ErrorShape, Kind, Pace, Quota
from connectors.selectorblock import read_selector
from connectors.source import Spot

_DATE = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?")


def read_idempotency(spot: Spot | None) -> tuple[str | None, tuple[str, ...]]:
    if spot is None:
        return None, ()
    block = spot.block("Idempotency", keys.IDEMPOTENCY, keys.required(keys.IDEMPOTENCY))
    header = block["header"].text("The header")
    check_header(header, block["header"], RESERVED_HEADERS)
    methods = [
        item.one_of("A method", ["POST", "PUT", "PATCH", "DELETE"]) for item in block["methods"].items("Methods")
    ]
    return header, tuple(methods)


def read_idempotency_hours(spot: Spot | None) -> int:
    hours = spot.mapping("Idempotency").get("hours") if spot is not None else None
    if hours is None:
        return 0
    if not isinstance(hours.value, int) or isinstance(hours.value, bool) or not 1 <= hours.value <= 720:
        hours.fail("The hours must be a whole number from 1 to 720.", "Write what the vendor promises.")
    return hours.value


# GraphQL, September 2025, 7.1.2; `code` is what most servers add.
_GRAPHQL_ERRORS = {"message": "errors[0].message", "code": "errors[0].extensions.code"}


def read_errors(spot: Spot | None, kind: Kind) -> ErrorShape:
    block = spot.block("Errors", keys.FORMS[kind].errors) if spot else {}
    if kind == "graphql":
        block = {name: Spot("", 1, text) for name, text in _GRAPHQL_ERRORS.items()} | block
    header = block.get("request_id_header")
    if header:
        check_header(header.text("The header"), header, frozenset())
    return ErrorShape(
        message=read_selector(block.get("message")),
        code=read_selector(block.get("code")),
        request_id=read_selector(block.get("request_id")),
        request_id_header=header.text("The header").lower() if header else None,
        ok_field=read_selector(block.get("ok")),
        user_errors=block["user_errors"].text("The key") if "user_errors" in block else "",
        limited=_codes(block, "limited"),
        spent=_codes(block, "spent"),
        wait=_seconds(block.get("wait")),
        rejected=_codes(block, "rejected"),
        unclear=_codes(block, "unclear"),
    )


def _seconds(spot: Spot | None) -> float | None:
    if spot is None:
        return None
    if not isinstance(spot.value, int) or isinstance(spot.value, bool) or not 1 <= spot.value <= 3600:
        spot.fail(f"Seconds cannot be {spot.value!r}.", "Give a whole number from 1 to 3600.")
    return float(spot.value)


def _codes(block: Mapping[str, Spot], key: str) -> frozenset[str]:
    if key in block and "code" not in block:
        block[key].fail(f"`{key}:` lists codes, and there is no `code:` that finds one.", "Add `code:`.")
    return frozenset(texts_of(block, key))


def texts_of(block: Mapping[str, Spot], key: str) -> tuple[str, ...]:
    return block[key].texts(key.capitalize()) if key in block else ()


def read_quota(spot: Spot | None) -> tuple[Quota, ...]:
    found: list[Quota] = []
    for name, part in spot.named("Quota").items() if spot else ():
        block = part.block("A quota", keys.QUOTA, keys.required(keys.QUOTA))
        for header in block.values():
            check_header(header.text("The header"), header, frozenset())
        of = block["of"].text("The header").lower() if "of" in block else ""
        found.append(Quota(name, block["left"].text("The header").lower(), of))
    return tuple(found)


STARTED = Pace(concurrent=4)
"""A program that is started for each call: so many of it at once, unless the connection says otherwise."""


def read_limits(spot: Spot | None) -> Pace:
    block = spot.block("Limits", keys.LIMITS) if spot else {}
    return Pace(**{name: _count(part, keys.LIMITS[name].schema["maximum"]) for name, part in block.items()})


def _count(spot: Spot, most: int) -> int:
    if not isinstance(spot.value, int) or isinstance(spot.value, bool) or not 1 <= spot.value <= most:
        spot.fail(f"This must be a whole number from 1 to {most}.", "Write what the vendor says.")
    return spot.value


def read_deprecation(spot: Spot) -> Deprecation:
    block = spot.block("A deprecation", keys.DEPRECATION, keys.required(keys.DEPRECATION))
    return Deprecation(
        date=block["date"].matching("The date", _DATE, "Write YYYY-MM or YYYY-MM-DD, in quotes."),
        what=block["what"].text("What"),
        see=block["see"].text("See") if "see" in block else "",
    )
