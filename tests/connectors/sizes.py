"""`python -m tests.connectors.sizes`: how many bytes a model hears of each shipped tool whose answer is a list."""

import json
from collections.abc import Iterator

from connectors.answer import interpret
from connectors.catalogue import Catalogue, Offered, shipped_folder
from connectors.definition import Call
from connectors.egress import Reply
from tests.connectors.realistic import answer

MOST = 25_000
"""Bytes that a model hears of thirty things."""


LISTING = ("list_", "search_", "query_", "read_channel", "read_thread", "search", "get_thread")
"""How the names of tools begin whose answer is a list of things."""


def lists() -> Iterator[tuple[Offered, str]]:
    """Every shipped tool whose answer is a list, and what is heard of thirty."""
    catalogue = Catalogue.load(shipped_folder())
    for offered in catalogue.offer({name: name for name in catalogue.connectors}).tools:
        if offered.tool.name.startswith(LISTING):
            yield offered, hear(offered, answer(offered.connector.id, offered.tool))


def hear(offered: Offered, body: object) -> str:
    """What a model gets of this answer."""
    if offered.tool.operation:
        body = {"data": body}
    call = Call(offered.connection, offered.connector, offered.tool, offered.name, {})
    raw = json.dumps(body).encode()
    return interpret(call, Reply(200, {}, raw, 1.0, len(raw))).text


if __name__ == "__main__":
    for size, name in sorted(((len(heard.encode()), offered.name) for offered, heard in lists()), reverse=True):
        print(f"{size:>7,} {'over' if size > MOST else 'ok  '} {name}")
